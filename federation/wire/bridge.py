"""A proxy that itself wants TLS, made one that does not, on the loopback of this machine: gRPC knows no others.

A listener of this process takes CONNECT, asks the proxy the same over TLS, with its own login, and carries bytes. What
it carries is TLS from end to end already. A stranger on this machine is let through to nothing: who connects must show
a login that is made anew in each process and stands nowhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import os
import re
import secrets
import socket
import threading
from functools import cache
from typing import TYPE_CHECKING, Final

from sovfed.federation.errors import ConfigError
from sovfed.federation.wire.proxy import Proxy, connect_request

if TYPE_CHECKING:
    from asyncio import StreamReader, StreamWriter
    from collections.abc import Coroutine

LOOPBACK: Final = "127.0.0.1"
UNREACHED: Final = 526  # our own status: the proxy itself is not reached over TLS
HEAD_S: Final = 10.0  # for the request, and for the proxy's TLS
PIECE_BYTES: Final = 1 << 18
_CONNECT: Final = re.compile(rb"CONNECT ([A-Za-z0-9._:\[\]-]{1,300}) HTTP/1\.[01]\r\n")
_GRPC_OWN: Final = ("no_grpc_proxy", "no_proxy")  # which gRPC obeys also where it is told the proxy
_ENDED: Final = (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError)
log = logging.getLogger("sovfed.proxy")


def bridged(proxy: Proxy) -> Proxy:
    """`proxy`, or the one on the loopback that leads to it where it wants TLS."""
    return proxy if proxy.tls is None else _bridge(proxy).near


def grpc_options(proxy: Proxy | None) -> tuple[tuple[str, str | int], ...]:
    """The options of a gRPC channel that goes through `proxy`, and through no other that the environment names."""
    if proxy is None:
        return (("grpc.enable_http_proxy", 0),)
    for name in _GRPC_OWN:
        os.environ.pop(name, None)
    return (("grpc.enable_http_proxy", 1), ("grpc.http_proxy", bridged(proxy).url))


@cache
def _bridge(proxy: Proxy) -> Bridge:
    return Bridge(proxy)


class Bridge:
    """A listener that leads to `proxy`, on a thread, as long as the process lives; `near` is how it is asked."""

    def __init__(self, proxy: Proxy) -> None:
        self._proxy, self._listener = proxy, socket.create_server((LOOPBACK, 0))
        port = self._listener.getsockname()[1]
        self.near = Proxy(LOOPBACK, port, "sovfed", secrets.token_urlsafe(32), stands_for=proxy.address)
        threading.Thread(target=lambda: asyncio.run(self._serve()), name="proxy", daemon=True).start()

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._carry, sock=self._listener)
        await server.serve_forever()

    async def _carry(self, reader: StreamReader, writer: StreamWriter) -> None:
        """Lead one connection on, until either end is closed."""
        with contextlib.closing(writer), contextlib.suppress(*_ENDED):
            async with asyncio.timeout(HEAD_S):
                address = self._asked(await reader.readuntil(b"\r\n\r\n"))
            if address is None:
                writer.write(_refusal(407))
                return
            try:
                far_reader, far_writer = await self._reach()
            except (OSError, TimeoutError, ConfigError) as error:
                log.warning("the proxy %s is not reached over TLS: %s", self._proxy.address, str(error) or "no answer")
                writer.write(_refusal(UNREACHED))
                return
            with contextlib.closing(far_writer):
                far_writer.write(connect_request(address, self._proxy))
                await _first_of(_pipe(reader, far_writer), _pipe(far_reader, writer))

    def _asked(self, head: bytes) -> str | None:
        """The address that CONNECT is for; None unless the login is shown."""
        request, lines = _CONNECT.match(head), head.split(b"\r\n")
        shown = [line.partition(b":")[2].strip() for line in lines if line.lower().startswith(b"proxy-authorization:")]
        if request is None or not any(hmac.compare_digest(login, self.near.login.encode()) for login in shown):
            return None
        return request[1].decode("ascii")

    async def _reach(self) -> tuple[StreamReader, StreamWriter]:
        """A connection to the proxy over TLS."""
        proxy = self._proxy
        if proxy.tls is None:
            raise ConfigError(f"the proxy {proxy.address} wants no TLS")
        async with asyncio.timeout(HEAD_S):
            return await asyncio.open_connection(
                proxy.host, proxy.port, ssl=proxy.tls.context(), server_hostname=proxy.host
            )


def _refusal(status: int) -> bytes:
    return f"HTTP/1.1 {status} No\r\ncontent-length: 0\r\n\r\n".encode()


async def _first_of(*pipes: Coroutine[None, None, None]) -> None:
    """Run `pipes` until one of them ends."""
    tasks = [asyncio.ensure_future(pipe) for pipe in pipes]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _pipe(reader: StreamReader, writer: StreamWriter) -> None:
    while data := await reader.read(PIECE_BYTES):
        writer.write(data)
        await writer.drain()
