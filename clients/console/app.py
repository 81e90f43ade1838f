"""The institution's own page: on the loopback, behind a password. It asks nobody.

It has one act, a POST that carries a token of its form and comes from this page's own origin: an officer's word on an
order, where policy.yaml names the officer in `orders.sign_in_console`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

from sovfed.clients.console.house import House
from sovfed.clients.console.signing import Desk, Signing
from sovfed.federation.errors import SovfedError, TooManyTriesError
from sovfed.federation.host.forms import ForbiddenError, read_form
from sovfed.federation.host.sandbox import drop_privileges
from sovfed.federation.host.web import LOOPBACK, guarded, page, static, templates
from sovfed.federation.wire.loopback import behind_password, ensure_secret

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from starlette.requests import Request

    from sovfed.federation.wire.loopback import ASGIApp

USER: Final = "institution"
PASSWORD: Final = Path("console.password")  # in no folder that gateway, supernode or trainer may read
BYTES: Final = "application/octet-stream"
SHOWN: Final = 50  # refusals, and sums that could be differenced
LINKS: Final = (("/", "What left"), ("/orders", "Orders"), ("/status", "Status"), ("/studies", "Studies"))


def make_console(home: Path) -> ASGIApp:
    """The page over the institution in `home`, for whoever knows the password in its secrets."""
    house, environment = House(home), templates(Path(__file__).parent / "pages")

    def shown(request: Request, name: str, title: str, **values: Any) -> Response:
        told = {
            "site": f"sovfed at {house.name() or 'this institution'}", "title": title, "note": "", "links": LINKS,
            "current": request.url.path, **values,
        }  # fmt: skip
        return page(environment, name, told, values.get("status", 200))

    def left(request: Request) -> Response:
        (by_run, today, _), received = house.asked(), house.received()
        return shown(
            request, "left.html", "What left this house", ledgers=house.ledgers(), by_run=by_run, today=today,
            near=house.near()[:SHOWN], received=received, names={model.owner: model.run for model in received},
            most=SHOWN,
        )  # fmt: skip

    def status(request: Request) -> Response:
        _, _, reason = house.asked()
        return shown(
            request, "status.html", "Status", processes=house.processes(), end=house.certificate_end(), reason=reason,
            logs=house.logs(), to_do=house.to_do(),
        )  # fmt: skip

    def studies(request: Request) -> Response:
        return shown(request, "studies.html", "Studies", studies=house.studies(), policy=house.policy())

    def file(request: Request) -> Response:
        return static(request.path_params["name"])

    routes = [
        Route("/", left), Route("/status", status), Route("/studies", studies), Route("/static/{name}", file),
        *_order_routes(house, Signing(home), shown),
    ]  # fmt: skip
    secret = ensure_secret(home / PASSWORD)
    return guarded(behind_password(Starlette(routes=routes), USER, secret), LOOPBACK, tls=False)


def _order_routes(house: House, signing: Signing, shown: Callable[..., Response]) -> list[Route]:
    """The page of orders, and what its forms are sent to."""

    def show(request: Request, typed: Mapping[str, str], problem: str = "", status: int = 200) -> Response:
        listed, wrong = house.orders()
        try:
            desk = signing.desk()
        except SovfedError as error:
            desk, wrong = Desk(), wrong or str(error)
        said = request.query_params.get("said", "")
        notes = [f"Order {each.digest} of run {each.run}: {each.word}" for each in listed if each.digest == said]
        return shown(
            request, "orders.html", "Orders", orders=listed, wrong=wrong, consent=house.consent(), desk=desk,
            to_do=house.to_do(), typed=typed, problem=problem, status=status, note="".join(notes),
        )  # fmt: skip

    def orders(request: Request) -> Response:
        return show(request, {})

    async def answer(request: Request) -> Response:
        try:
            form = await read_form(request)
        except ForbiddenError:
            return PlainTextResponse("this is no form of this page: nothing was written\n", 403)
        try:
            answered = await run_in_threadpool(signing.answer, form)
        except SovfedError as error:
            typed = {name: form.get(name, "") for name in ("order", "officer", "reason")}
            status = 429 if isinstance(error, TooManyTriesError) else 409
            return await run_in_threadpool(show, request, typed, str(error), status)
        return RedirectResponse(f"/orders?said={answered.order[:12]}", 303)

    def statement(request: Request) -> Response:
        try:
            name, data = signing.statement(request.path_params["digest"])
        except SovfedError as error:
            return PlainTextResponse(f"{error}\n", 404)
        return Response(data, headers={"content-disposition": f'attachment; filename="{name}"'}, media_type=BYTES)

    return [
        Route("/orders", orders), Route("/orders", answer, methods=["POST"]),
        Route("/orders/{digest}.withdrawal", statement),
    ]  # fmt: skip


def serve(home: Path, port: int) -> None:
    """Serve the page on the loopback until SIGTERM or Ctrl-C."""
    import uvicorn

    drop_privileges()  # an officer's passphrase passes here: nobody but root looks in
    uvicorn.run(
        make_console(home), host="127.0.0.1", port=port, access_log=False, server_header=False, log_config=None,
        log_level="warning", ws="none", proxy_headers=False, limit_concurrency=32,
    )  # fmt: skip
