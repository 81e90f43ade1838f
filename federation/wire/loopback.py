"""The secret that every request to one of our loopback listeners must show.

Flower's Runtime and Control APIs ask the loopback for no credential, so any local user could claim tasks or start runs.
Both launchers wrap Flower's app in `require_secret`; the secret lies in a 0600 file that only our user can read.
"""

from __future__ import annotations

import base64
import os
import secrets
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from hmac import compare_digest
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from sovfed.federation.errors import ServiceError
from sovfed.federation.files import read_private

if TYPE_CHECKING:
    from pathlib import Path

SECRET_HEADER: Final = "x-sovfed-secret"  # noqa: S105 - a name, no secret
_MIN_LENGTH: Final = 32
Scope: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send: TypeAlias = Callable[[MutableMapping[str, Any]], Awaitable[None]]
ASGIApp: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]


def ensure_secret(path: Path) -> str:
    """The secret in `path`, made there (256 bits, mode 0600) by whoever asks first.

    Raises IdentityError if the file can be read by group or others.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not path.exists():
        draft = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(secrets.token_hex(32))
        try:
            os.link(draft, path)  # atomic, and never over a secret that another process has just made
        except FileExistsError:
            pass
        finally:
            draft.unlink()
    return read_secret(path)


def read_secret(path: Path) -> str:
    """The secret in `path`. Raises IdentityError if it is missing or readable by others, ServiceError if short."""
    secret = read_private(path).decode("ascii").strip()
    if len(secret) < _MIN_LENGTH:
        raise ServiceError(f"{path}: {len(secret)} characters, expected at least {_MIN_LENGTH}")
    return secret


def require_secret(app: ASGIApp, secret: str, exempt: Collection[str] = ("/health",)) -> ASGIApp:
    """`app` behind the secret: a request without it gets 403 before any byte of its body is read.

    Paths in `exempt` are answered to anyone. Websockets are closed. The comparison takes constant time.
    """
    expected, name = secret.encode(), SECRET_HEADER.encode()

    async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or (scope["type"] == "http" and (scope["path"] in exempt or shown(scope))):
            await app(scope, receive, send)
        elif scope["type"] == "http":
            headers = [(b"content-type", b"text/plain"), (b"connection", b"close")]
            await send({"type": "http.response.start", "status": 403, "headers": headers})
            await send({"type": "http.response.body", "body": b"the loopback secret is missing or wrong\n"})
        else:
            await send({"type": "websocket.close", "code": 1008})

    def shown(scope: Scope) -> bool:
        values = [value for key, value in scope["headers"] if key == name]
        return len(values) == 1 and compare_digest(values[0], expected)

    return guarded


def behind_password(app: ASGIApp, user: str, password: str) -> ASGIApp:
    """`app` for whoever sends `user` and `password` by HTTP's basic scheme (RFC 7617); 401 for anybody else."""
    expected = b"Basic " + base64.b64encode(f"{user}:{password}".encode())

    async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await app(scope, receive, send)
            return
        credentials = [value for name, value in scope["headers"] if name == b"authorization"]
        if scope["type"] == "http" and len(credentials) == 1 and compare_digest(credentials[0], expected):
            await app(scope, receive, send)
        elif scope["type"] == "http":
            headers = [(b"www-authenticate", b'Basic realm="sovfed"'), (b"content-type", b"text/plain")]
            await send({"type": "http.response.start", "status": 401, "headers": headers})
            await send({"type": "http.response.body", "body": b"The password is in the home's secrets.\n"})
        else:
            await send({"type": "websocket.close", "code": 1008})

    return guarded
