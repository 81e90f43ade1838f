"""Who may hold a connection to the SuperLink: so many in all, few unproven ones an address, few an institution.

A connection is unproven until its peer has shown a certificate that holds (network) or the secret (loopback).
Whoever is over a limit loses its own oldest connection: a stranger keeps nobody else out, and since the limits stay
below the number of file descriptors, the listener, the database and the other side of the process always have some.
"""

from __future__ import annotations

import asyncio
import logging
import resource
import socket
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from uvicorn.protocols.http.h11_impl import H11Protocol

Address: TypeAlias = tuple[Any, ...]  # as the socket module gives it
Receive: TypeAlias = Callable[[], Awaitable[Any]]
Send: TypeAlias = Callable[[Any], Awaitable[None]]
App: TypeAlias = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]
PROVE: Final = "sovfed.prove"  # scope key: what to call once the peer has shown that it belongs here
OPEN_PATH: Final = "/health"
MAX_CONNECTIONS: Final = 1024  # of the network side
MAX_LOOPBACK: Final = 256
UNPROVEN_PER_ADDRESS: Final = 64
PER_INSTITUTION: Final = 8
BACKLOG: Final = 128  # connections accepted at one go, before any other work
HANDSHAKE_S: Final = 10.0
HEAD_S: Final = 10.0  # for the whole head of a request
log = logging.getLogger("sovfed.door")


def raise_descriptor_limit() -> int:
    """Raise this process's limit of open files as far as it may go; the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        soft = hard
    return soft if soft != resource.RLIM_INFINITY else 2**20


@dataclass(eq=False)
class _Guest:
    connection: socket.socket
    address: str
    institution: str | None = None
    proven: bool = False
    leaving: bool = False


class Door:
    """The connections of one listener. Everything happens on the event loop's thread."""

    def __init__(self, limit: int, unproven_per_address: int = UNPROVEN_PER_ADDRESS) -> None:
        self._limit, self._spare = limit, min(BACKLOG, limit) // 4
        self._per_address = min(unproven_per_address, max(limit // 2, 1))
        self._guests: dict[Address, _Guest] = {}  # by peer address and port, in the order in which they came

    def __len__(self) -> int:
        """Descriptors in use."""
        return len(self._guests)

    def enter(self, connection: socket.socket, peer: Address) -> bool:
        """Whether `connection` may stay; it is counted until `leave`."""
        address = str(peer[0]) if peer else ""
        unproven = [guest for guest in self._guests.values() if not (guest.proven or guest.leaving)]
        of_address = [guest for guest in unproven if guest.address == address]
        if len(of_address) >= self._per_address:
            self._dismiss(of_address[0], "its address has too many that have shown nothing yet")
        elif len(self._guests) >= self._limit - self._spare and unproven:
            self._dismiss(unproven[0], "the listener is nearly full")
        if len(self._guests) >= self._limit:
            log.warning("%s: a connection was refused: %d are open", address, len(self._guests))
            return False
        self._guests[peer] = _Guest(connection, address)
        return True

    def leave(self, peer: Address) -> None:
        self._guests.pop(peer, None)

    def prove(self, peer: Address, institution: str | None = None) -> None:
        """The peer has shown who it is; over the institution's limit, its oldest connection ends."""
        guest = self._guests.get(peer)
        if guest is None:
            return
        guest.proven, guest.institution = True, institution
        own = [
            other_guest
            for other_guest in self._guests.values()
            if other_guest.institution == institution and not other_guest.leaving
        ]
        if institution is not None and len(own) > PER_INSTITUTION:
            self._dismiss(own[0], f"{institution} has more than {PER_INSTITUTION}")

    def expire(self, peer: Address) -> None:
        """End the connection if it is still unproven."""
        guest = self._guests.get(peer)
        if guest is not None and not guest.proven:
            self._dismiss(guest, f"it has shown nothing for {HANDSHAKE_S:g} s")

    def _dismiss(self, guest: _Guest, why: str) -> None:
        guest.leaving = True
        log.info("%s: a connection is ended: %s", guest.address, why)
        with suppress(OSError):
            guest.connection.shutdown(socket.SHUT_RDWR)  # the loop sees its end and closes it


class DoorSocket(socket.socket):
    """A listener that accepts only what its door lets in."""

    door: Door

    def accept(self) -> tuple[socket.socket, Address]:
        """The next connection that may stay. Raises BlockingIOError if none waits."""
        for _ in range(BACKLOG):
            descriptor, peer = self._accept()  # type: ignore[attr-defined]
            connection = _Counted(self.family, self.type, self.proto, fileno=descriptor)
            if self.door.enter(connection, peer):
                connection.gone = lambda peer=peer: self.door.leave(peer)
                asyncio.get_running_loop().call_later(HANDSHAKE_S, self.door.expire, peer)
                return connection, peer
            connection.close()
        raise BlockingIOError


class _Counted(socket.socket):
    gone: Callable[[], None] | None = None

    def close(self) -> None:
        super().close()
        if self.gone is not None:
            self.gone()
            self.gone = None


def listen(host: str, port: int, door: Door) -> DoorSocket:
    """A listening socket whose connections pass `door`. Raises OSError."""
    listener = DoorSocket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.door = door
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError:
        listener.close()
        raise
    return listener


def proving(app: App) -> App:
    """`app`, behind `require_secret`: whoever reaches it has shown the secret, unless the path is open to anyone."""

    async def known(scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope.get("path") != OPEN_PATH and PROVE in scope:
            scope[PROVE]()
        await app(scope, receive, send)

    return known


class PatientProtocol(H11Protocol):
    """uvicorn's HTTP protocol whose peer must send the head of each request within `HEAD_S`.

    h11 rather than httptools: it bounds the size of a request's head.
    """

    door: Door | None = None
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait_for_head()
        served: Any = self.app

        async def app(scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
            self._stop_timer()
            scope[PROVE] = self._prove
            await served(scope, receive, send)

        self.app = app

    def data_received(self, data: bytes) -> None:
        if self._timer is None and (self.cycle is None or self.cycle.response_complete):
            self._wait_for_head()
        super().data_received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def _prove(self) -> None:
        if self.door is not None:
            self.door.prove(self.transport.get_extra_info("peername"))

    def _wait_for_head(self) -> None:
        self._timer = self.loop.call_later(HEAD_S, self._give_up)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _give_up(self) -> None:
        log.info("%s: no request within %g s", self.client, HEAD_S)
        self.transport.abort()
