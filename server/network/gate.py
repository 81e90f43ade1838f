"""What stands in front of Flower's SuperLink app: the network sees fleet calls of enrolled nodes and nothing else.

Stock Flower serves Fleet, Control and Runtime on one port, the last two without a credential
(`tests/attacks/test_stock_flower.py`). Through the gate go only the paths in `FLEET_PATHS`, only with a certificate
that the authority signed and has not revoked, only in the name of the SuperNode key that this certificate is bound to,
and only what `server/network/fleet_calls.py` lets this node say. A refusal says nothing but its status; the reason
stands in the log. Control and Runtime are served on the loopback, behind `federation/wire/loopback.py`.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import sqlite3
from base64 import b64decode
from collections.abc import Awaitable, Callable, MutableMapping
from datetime import UTC, datetime
from email.utils import formatdate
from typing import Any, Final, Protocol, TypeAlias

from sovfed.federation.errors import IdentityError
from sovfed.federation.wire.clocks import TIMESTAMP_HEADER, signed_too_far
from sovfed.federation.wire.held import INSTITUTION, replay
from sovfed.server.network.door import PatientProtocol
from sovfed.server.network.fleet_calls import CALLS, PUSH_OBJECT, FleetRules, RefusedError, body_limit

Scope: TypeAlias = MutableMapping[str, Any]
Event: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Event]]
Send: TypeAlias = Callable[[Event], Awaitable[None]]
App: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

PUBLIC_KEY_HEADER: Final = b"flwr-public-key"  # flwr's FLEET_HTTP_PUBLIC_KEY_HEADER, held by a contract test
BODY_TIMEOUT_S: Final = 30.0
OBJECT_TIMEOUT_S: Final = 300.0  # for the body of an object: 5 MiB on a slow line
RECHECK_S: Final = 10.0  # a revoked certificate loses its connections after this at the latest
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


class CertificateProtocol(PatientProtocol):
    """Tells the app which certificate the connection's peer presented, and its door whether that certificate holds.

    One that does not leaves the connection unproven, so that it ends within `HANDSHAKE_S`: long enough for a refusal to
    be read. One that is revoked later ends its connections within `RECHECK_S`, whatever they are doing.
    """

    trust: Verifier
    _certificate: bytes | None = None
    _recheck: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        tls = transport.get_extra_info("ssl_object")
        self._certificate = tls.getpeercert(binary_form=True) if tls is not None else None
        served: Any = self.app

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            scope[CERTIFICATE] = self._certificate
            await served(scope, receive, send)

        self.app = app
        self._look(first=True)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._recheck is not None:
            self._recheck.cancel()
        super().connection_lost(exc)

    def _look(self, first: bool = False) -> None:
        try:
            institution = self.trust.verify(self._certificate or b"").institution
        except IdentityError as error:
            _log.warning("%s: connected with a certificate that does not hold: %s", (self.client or "?")[0], error)
            if not first:
                self.transport.abort()
            return
        if first and self.door is not None:
            self.door.prove(self.transport.get_extra_info("peername"), institution)
        self._recheck = self.loop.call_later(RECHECK_S, self._look)


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
        send = _dated(send)
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
        await self._app({**scope, INSTITUTION: peer.institution}, replay(body, receive), send)

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
        if why := signed_too_far(_header(scope, TIMESTAMP_HEADER), datetime.now(UTC)):
            raise RefusedError(401, f"{peer.institution}: {why}")
        return peer, key


def _dated(send: Send) -> Send:
    """`send` with the time of now: uvicorn's is of its last tick, and old for a while on a machine that stood still."""

    async def dated(event: Event) -> None:
        if event["type"] == "http.response.start":
            date = (b"date", formatdate(usegmt=True).encode("ascii"))
            event = {**event, "headers": [*event.get("headers", ()), date]}
        await send(event)

    return dated


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
    limit_s = OBJECT_TIMEOUT_S if scope["path"] == PUSH_OBJECT else BODY_TIMEOUT_S
    try:
        async with asyncio.timeout(limit_s):
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
        raise RefusedError(408, f"the body took longer than {limit_s:.0f} s") from error


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
