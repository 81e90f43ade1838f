"""The agency's console as an ASGI application: pages for whoever is logged in, two acts for operators.

Every page works without a script; with it, what moves is fetched again every few seconds. What changes anything is a
POST that carries the session's CSRF token and comes from this page's own origin.
"""

from __future__ import annotations

import logging
import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from fastapi import Depends, FastAPI, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import RedirectResponse, Response

from sovfed.federation.errors import IdentityError, SovfedError
from sovfed.federation.evidence.store import record
from sovfed.federation.host.forms import ForbiddenError, Throttle, read_form, same
from sovfed.federation.host.web import guarded, page, static, templates
from sovfed.server.console.overview import Overview
from sovfed.server.console.plots import plots
from sovfed.server.console.sessions import LONGEST_S, Session, Sessions
from sovfed.server.console.users import OPERATOR, User, authenticate, read_users

if TYPE_CHECKING:
    from sovfed.federation.wire.loopback import ASGIApp

log = logging.getLogger(__name__)
AT_ONCE: Final = 2  # logins that are computed at a time: each takes 32 MiB
LINKS: Final = (
    ("/", "Overview"), ("/institutions", "Institutions"), ("/runs", "Runs"), ("/orders", "Orders"),
    ("/budgets", "Budgets"), ("/releases", "Releases"), ("/requests", "Requests"),
)  # fmt: skip
Act = Callable[[str], None]


@dataclass(frozen=True)
class Visitor:
    """Who asks: the session and what the user may do."""

    session: Session
    user: User

    @property
    def operator(self) -> bool:
        return self.user.role == OPERATOR


class LoginNeededError(Exception):
    """Nobody is logged in, or no longer."""


def make_console(home: Path, hosts: tuple[str, ...], *, tls: bool, stop: Act, resume: Act) -> ASGIApp:
    """The console over the agency in `home`, at one of the names `hosts`; `stop` and `resume` are told a run's name."""
    console = _Console(home, tls, {"stop": stop, "resume": resume})
    return guarded(console.app, hosts, tls)


class _Console:
    def __init__(self, home: Path, tls: bool, acts: dict[str, Act]) -> None:
        self._home, self._tls, self._acts = home, tls, acts
        self._overview, self._sessions, self._throttle = Overview(home), Sessions(), Throttle()
        self._slots = threading.BoundedSemaphore(AT_ONCE)
        self._templates = templates(Path(__file__).parent / "pages")
        self.cookie, self.entry = ("__Host-sovfed", "__Host-entry") if tls else ("sovfed", "sovfed-entry")
        self.app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
        self._add_routes()

    def _add_routes(self) -> None:
        app, visitor = self.app, Depends(self._visitor)
        app.add_api_route("/static/{name}", static, response_model=None)
        app.add_api_route("/login", self._entry, response_model=None)
        app.add_api_route("/login", self._login, methods=["POST"], response_model=None)
        app.add_api_route("/logout", self._logout, methods=["POST"], response_model=None)
        app.add_api_route("/runs/{name}/{act}", self._act, methods=["POST"], response_model=None)
        pages = {
            "/": self._home_page, "/institutions": self._institutions, "/runs": self._runs, "/runs/{name}": self._run,
            "/orders": self._orders, "/budgets": self._budgets, "/releases": self._releases,
            "/requests": self._requests,
        }  # fmt: skip
        for path, show in pages.items():
            app.add_api_route(path, show, response_model=None, dependencies=[visitor])  # type: ignore[arg-type]
        app.add_exception_handler(LoginNeededError, self._to_login)
        app.add_exception_handler(ForbiddenError, self._forbidden)
        app.add_exception_handler(SovfedError, self._failed)
        app.add_exception_handler(404, self._missing)

    def _visitor(self, request: Request) -> Visitor:
        """Whoever is logged in. A user who was removed, or written anew with a password or role, logs in again."""
        session = self._sessions.get(request.cookies.get(self.cookie, ""))
        user = read_users(self._home).get(session.name) if session else None
        if session is None or user is None or user.digest != session.digest:
            raise LoginNeededError
        request.state.visitor = Visitor(session, user)
        return Visitor(session, user)

    def _page(self, request: Request, name: str, title: str, **values: Any) -> Response:
        visitor: Visitor | None = getattr(request.state, "visitor", None)
        still = "still" in request.query_params
        shown = {
            "site": "sovfed console", "title": title, "note": "", "links": LINKS if visitor else (),
            "current": request.url.path, "visitor": visitor, "still": still, **values,
        }  # fmt: skip
        return page(self._templates, name, shown, values.get("status", 200))

    def _entry(self, request: Request) -> Response:
        return self._login_page(request)

    def _login_page(self, request: Request, problem: str = "", status: int = 200) -> Response:
        token = secrets.token_urlsafe(32)
        answer = self._page(request, "login.html", "Log in", problem=problem, entry=token, status=status)
        self._set(answer, self.entry, token, 600)
        return answer

    async def _login(self, request: Request) -> Response:
        form = await read_form(request)
        address = request.client.host if request.client else ""
        if not same(form.get("entry", ""), request.cookies.get(self.entry, "")):
            return self._login_page(request, "The form was too old; try again.", 403)
        if (wait := self._throttle.begin(address)) > 0:
            return self._login_page(request, f"Too many wrong logins; wait {wait / 60:.0f} minutes.", 429)
        try:
            user = await run_in_threadpool(self._check, form.get("name", ""), form.get("password", ""))
        except IdentityError:
            log.warning("a wrong login from %s", address)
            return self._login_page(request, "Name or password is wrong.", 401)
        self._throttle.right(address)
        await run_in_threadpool(partial(record, self._home, "login", role=user.role))
        log.info("%s logged in from %s", form["name"], address)
        answer = RedirectResponse("/", 303)
        self._sessions.end(request.cookies.get(self.cookie, ""))
        self._set(answer, self.cookie, self._sessions.begin(form["name"], user.digest), int(LONGEST_S))
        return answer

    def _check(self, name: str, password: str) -> User:
        with self._slots:
            return authenticate(self._home, name, password)

    async def _logout(self, request: Request) -> Response:
        await self._signed_form(request)
        self._sessions.end(request.cookies.get(self.cookie, ""))
        answer = RedirectResponse("/login", 303)
        answer.delete_cookie(self.cookie, secure=self._tls, httponly=True, samesite="strict")
        return answer

    async def _act(self, request: Request, name: str, act: str) -> Response:
        visitor, _ = await self._signed_form(request)
        if not visitor.operator or act not in self._acts:
            raise ForbiddenError
        await run_in_threadpool(self._acts[act], name)
        log.info("%s: run %s: %s", visitor.session.name, name, act)
        return RedirectResponse(f"/runs/{name}", 303)

    async def _signed_form(self, request: Request) -> tuple[Visitor, dict[str, str]]:
        """The visitor and the form, which must carry the session's token."""
        visitor, form = await run_in_threadpool(self._visitor, request), await read_form(request)
        if not same(form.get("csrf", ""), visitor.session.csrf):
            raise ForbiddenError
        return visitor, form

    def _set(self, answer: Response, name: str, value: str, seconds: int) -> None:
        answer.set_cookie(
            name, value, max_age=seconds, path="/", secure=self._tls, httponly=True, samesite="strict"
        )  # fmt: skip

    def _to_login(self, request: Request, _: Exception) -> Response:
        if request.headers.get("hx-request"):  # what is fetched again must not be the form to log in
            return Response(status_code=204, headers={"HX-Redirect": "/login"})
        return RedirectResponse("/login", 303)

    def _forbidden(self, request: Request, _: Exception) -> Response:
        return self._page(request, "problem.html", "Not allowed", problem="You may not do that.", status=403)

    def _missing(self, request: Request, _: Exception) -> Response:
        return self._page(request, "problem.html", "Not found", problem="There is no such page.", status=404)

    def _failed(self, request: Request, error: Exception) -> Response:
        return self._page(request, "problem.html", "That did not work", problem=str(error), status=409)

    def _home_page(self, request: Request) -> Response:
        overview, nodes = self._overview, self._overview.nodes()
        runs = overview.runs()
        return self._page(
            request, "overview.html", "Overview", processes=overview.processes(), nodes=nodes,
            institutions=overview.institutions(nodes), waiting=overview.waiting(nodes), requests=overview.requests(),
            permits=overview.unpurged(),
            active=[run for run in runs if run["status"] not in ("finished", "failed", "stopped")], recent=runs[:5],
        )  # fmt: skip

    def _institutions(self, request: Request) -> Response:
        views = self._overview.institutions(self._overview.nodes())
        return self._page(request, "institutions.html", "Institutions", institutions=views)

    def _runs(self, request: Request) -> Response:
        return self._page(request, "runs.html", "Runs", runs=self._overview.runs())

    def _run(self, request: Request, name: str) -> Response:
        told = self._overview.run(name, self._overview.nodes())
        return self._page(request, "run.html", f"Run {name}", plots=plots(told["lines"]), **told)

    def _orders(self, request: Request) -> Response:
        return self._page(request, "orders.html", "Orders", orders=self._overview.orders())

    def _budgets(self, request: Request) -> Response:
        return self._page(request, "budgets.html", "Privacy budgets", budgets=self._overview.budgets())

    def _releases(self, request: Request) -> Response:
        return self._page(request, "releases.html", "Releases", releases=self._overview.releases())

    def _requests(self, request: Request) -> Response:
        return self._page(request, "requests.html", "Requests to admit", requests=self._overview.requests())
