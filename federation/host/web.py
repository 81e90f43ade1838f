"""What our own web pages share: templates that escape, headers that forbid, and the few files that a page loads.

Every file comes from this installation: no page loads anything from elsewhere, and the policy in its headers would stop
it. No script and no style stands in a page, so that text which slipped through could still not run.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.responses import FileResponse, HTMLResponse, PlainTextResponse

from sovfed import __version__
from sovfed.federation.text import visible

if TYPE_CHECKING:
    from starlette.responses import Response

    from sovfed.federation.wire.loopback import ASGIApp, Receive, Scope, Send

PAGES: Final = Path(__file__).parent / "pages"
FILES: Final = {"console.css": "text/css", "htmx.min.js": "text/javascript", "icon.svg": "image/svg+xml"}
POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; "
    "frame-ancestors 'none'; base-uri 'none'"
)
HEADERS: Final = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
LOOPBACK: Final = ("127.0.0.1", "localhost", "[::1]")


def templates(folder: Path) -> Environment:
    """The templates in `folder` and those that all pages share. Whatever they are given is escaped and made visible."""
    environment = Environment(
        loader=FileSystemLoader([folder, PAGES]), autoescape=True, undefined=StrictUndefined, finalize=_shown,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"day": day, "figure": figure}
    environment.globals["version"] = __version__
    return environment


def _shown(value: Any) -> Any:
    return visible(value, keep="\t\n") if isinstance(value, str) and not hasattr(value, "__html__") else value


def day(at: float | None) -> str:
    """Unix time as a person reads it, in UTC."""
    return "–" if not at else time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(at))


def figure(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def page(environment: Environment, name: str, values: Mapping[str, Any], status: int = 200) -> HTMLResponse:
    """The template `name` filled with `values`."""
    return HTMLResponse(environment.get_template(name).render(**values), status)


def static(name: str) -> Response:
    """One of the files that a page loads."""
    if name not in FILES:
        return PlainTextResponse("not found\n", 404)
    return FileResponse(PAGES / name, media_type=FILES[name])


def guarded(app: ASGIApp, hosts: Collection[str], tls: bool) -> ASGIApp:
    """`app` for requests that name one of `hosts`, with the headers of a page of ours on every answer.

    A name that is none of ours is an attacker's, whose page made a browser ask here (DNS rebinding).
    """
    headers = {**HEADERS, **({"strict-transport-security": "max-age=31536000"} if tls else {})}
    added = [(name.encode(), value.encode()) for name, value in headers.items()]
    allowed = {host.lower() for host in hosts}

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return

        async def send_with(message: Any) -> None:
            if message["type"] == "http.response.start":
                names = {name for name, _ in added}
                message["headers"] = [pair for pair in message["headers"] if pair[0].lower() not in names] + added
            await send(message)

        named = [value.decode("latin-1") for name, value in scope["headers"] if name == b"host"]
        if len(named) == 1 and _without_port(named[0]) in allowed:
            await app(scope, receive, send_with)
        else:
            await PlainTextResponse("this page has another name\n", 421)(scope, receive, send_with)

    return answer


def _without_port(host: str) -> str:
    name, colon, port = host.lower().rpartition(":")
    return name if colon and port.isdigit() else host.lower()
