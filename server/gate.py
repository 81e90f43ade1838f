"""What stands in front of Flower's SuperLink app: the network sees fleet calls of enrolled nodes and nothing else.

Stock Flower serves Fleet, Control and Runtime on one port, the last two without a credential
(`tests/attacks/test_stock_flower.py`). Through the gate go only the paths in `FLEET_PATHS`, only with a certificate
that the authority signed and has not revoked, only in the name of the SuperNode key that this certificate is bound to,
and only what `server/fleet_calls.py` lets this node say. A refusal says nothing but its status; the reason stands in
the log. Control and Runtime are served on the loopback, behind `federation/loopback.py`.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import sqlite3
from base64 import b64decode
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final, Protocol, TypeAlias

from uvicorn.protocols.http.h11_impl import H11Protocol

from sovfed.federation.errors import IdentityError
from sovfed.server.fleet_calls import CALLS, FleetRules, RefusedError, body_limit

Scope: TypeAlias = MutableMapping[str, Any]
Event: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Event]]
Send: TypeAlias = Callable[[Event], Awaitable[None]]
App: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

PUBLIC_KEY_HEADER: Final = b"flwr-public-key"  # flwr's FLEET_HTTP_PUBLIC_KEY_HEADER, held by a contract test
BODY_TIMEOUT_S: Final = 300.0
CERTIFICATE: Final = "sovfed.certificate"  # scope key: the peer's certificate, DER
FLEET_PATHS: Final = frozenset(CALLS)
_REASONS: Final = {
    400: "Bad Request", 401: "Unauthorized", 403: "Forbidden", 404: "Not Found", 408: "Request Timeout",
    413: "Content Too Large", 503: "Busy",
}  # fmt: skip
_log = logging.getLogger("sovfed.gate")


class Peer(Protocol):
    """What the gate asks of a verified certificate (`federation/identity.py`: `PeerIdentity`)."""

    @property
    def institution(self) -> str: ...
    @property
    def node_key_digest(self) -> str: ...


class Verifier(Protocol):
    """Checks a peer's certificate (`federation/identity.py`: `Trust`)."""

    def verify(self, cert_der: bytes) -> Peer: ...


class CertificateProtocol(H11Protocol):
    """uvicorn's HTTP protocol that also tells the app which certificate the connection's peer presented.

    h11 rather than httptools: it bounds the size of a request's head.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        tls = transport.get_extra_info("ssl_object")
        certificate = tls.getpeercert(binary_form=True) if tls is not None else None
        served: Any = self.app

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            scope[CERTIFICATE] = certificate
            await served(scope, receive, send)

        self.app = app


class FleetGate:
    """Lets through fleet calls whose certificate is valid and bound to the node key, and whose body `rules` accept.

    The certificate is verified on every request, so a revocation holds from the moment the CRL is replaced, also on
    open connections.
    """

    def __init__(self, app: App, trust: Verifier, rules: FleetRules) -> None:
        self._app, self._trust, self._rules = app, trust, rules

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})  # there is no lifespan on this side
            return
        try:
            peer, key = self._admit(scope)
            body = await _read_body(scope, receive, body_limit(scope["path"]))
            await self._judge(scope["path"], peer, key, body)
        except RefusedError as refusal:
            client = (scope.get("client") or ("?",))[0]
            _log.warning("refused %s from %s: %s", refusal.status, client, refusal)
            await _refuse(send, refusal.status)
            return
        except _DisconnectedError:
            return
        await self._app(scope, _replay(body, receive), send)

    async def _judge(self, path: str, peer: Peer, key: bytes, body: bytes) -> None:
        try:
            await asyncio.to_thread(self._rules.check, path, key, body)
        except RefusedError as refusal:
            raise RefusedError(refusal.status, f"{peer.institution}: {refusal}") from refusal
        except sqlite3.Error as error:
            raise RefusedError(503, f"{peer.institution}: the state cannot be read: {error}") from error

    def _admit(self, scope: Scope) -> tuple[Peer, bytes]:
        """The peer and its node key, if this call may be made at all. The certificate is judged before the path."""
        certificate = scope.get(CERTIFICATE)
        if not certificate:
            raise RefusedError(403, "no client certificate")
        try:
            peer = self._trust.verify(certificate)
        except IdentityError as error:
            raise RefusedError(403, str(error)) from error
        path = scope["path"]
        if scope["method"] != "POST" or path not in FLEET_PATHS:
            raise RefusedError(404, f"{peer.institution}: {scope['method'][:8]!r} {path[:80]!r} is not a fleet call")
        key = _named_key(scope)
        if not hmac.compare_digest(hashlib.sha256(key).hexdigest(), peer.node_key_digest):
            raise RefusedError(403, f"{peer.institution}: the request names another node key than the certificate")
        return peer, key


class _DisconnectedError(Exception):
    """The peer went away before its request was complete."""


def _header(scope: Scope, name: bytes) -> bytes | None:
    """The one value of header `name`; None if it is absent or repeated."""
    values = [value for key, value in scope["headers"] if key.lower() == name]
    return values[0] if len(values) == 1 else None


def _named_key(scope: Scope) -> bytes:
    try:
        return b64decode(_header(scope, PUBLIC_KEY_HEADER) or b"", validate=True)
    except ValueError:
        return b""


async def _read_body(scope: Scope, receive: Receive, limit: int) -> bytes:
    """The request's body, refused as soon as it is known to exceed `limit`."""
    claimed = _header(scope, b"content-length")
    if claimed is not None and (not claimed.isdigit() or int(claimed[:20]) > limit):
        raise RefusedError(413, f"a body of {claimed[:20]!r} bytes, at most {limit}")
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            while True:
                event = await receive()
                if event["type"] != "http.request":
                    raise _DisconnectedError
                body += event.get("body", b"")
                if len(body) > limit:
                    raise RefusedError(413, f"a body of more than {limit} bytes")
                if not event.get("more_body", False):
                    return bytes(body)
    except TimeoutError as error:
        raise RefusedError(408, f"the body took longer than {BODY_TIMEOUT_S:.0f} s") from error


def _replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that yields `body` once, then what the connection yields."""
    pending: list[Event] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Event:
        return pending.pop() if pending else await receive()

    return replay


async def _refuse(send: Send, status: int) -> None:
    """Answer `status` and a fixed word; JSON, because Flower's client reads errors as JSON."""
    content = b'{"detail": "%s"}' % _REASONS[status].encode("ascii")
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(content)).encode("ascii")),
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": content})
