"""The institution's own page: read-only, on the loopback, behind a password. It asks nobody and changes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Route

from sovfed.clients.console.house import House
from sovfed.federation.host.web import LOOPBACK, guarded, page, static, templates
from sovfed.federation.wire.loopback import behind_password, ensure_secret

if TYPE_CHECKING:
    from starlette.requests import Request

    from sovfed.federation.wire.loopback import ASGIApp

USER: Final = "institution"
PASSWORD: Final = Path("secrets") / "console.password"
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
        return page(environment, name, told)

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
            logs=house.logs(),
        )  # fmt: skip

    def studies(request: Request) -> Response:
        return shown(request, "studies.html", "Studies", studies=house.studies(), policy=house.policy())

    def orders(request: Request) -> Response:
        listed, wrong = house.orders()
        return shown(request, "orders.html", "Orders", orders=listed, wrong=wrong, consent=house.consent())

    def file(request: Request) -> Response:
        return static(request.path_params["name"])

    routes = [
        Route("/", left), Route("/orders", orders), Route("/status", status), Route("/studies", studies),
        Route("/static/{name}", file),
    ]  # fmt: skip
    secret = ensure_secret(home / PASSWORD)
    return guarded(behind_password(Starlette(routes=routes), USER, secret), LOOPBACK, tls=False)


def serve(home: Path, port: int) -> None:
    """Serve the page on the loopback until SIGTERM or Ctrl-C."""
    import uvicorn

    uvicorn.run(
        make_console(home), host="127.0.0.1", port=port, access_log=False, server_header=False, log_config=None,
        log_level="warning", ws="none", proxy_headers=False, limit_concurrency=32,
    )  # fmt: skip
