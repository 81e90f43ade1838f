"""A small HTTP proxy that knows CONNECT, in a thread, with the faults of real ones."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import random
import ssl
import threading
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from sovfed.federation.certificates import (
    ServerNames,
    create_csr,
    create_key,
    create_root,
    key_to_pem,
    sign_csr,
    to_pem,
)


@dataclass
class Faults:
    """What goes wrong from now on; may be changed while connections are open."""

    login: str = ""  # user:password that is demanded
    forbidden: frozenset[int] = frozenset()  # ports that are refused
    delay_s: float = 0.0  # of every piece, each way
    bytes_per_s: float = 0.0  # of one connection, each way; 0 is unbounded
    reset_share: float = 0.0  # of the pieces, the connection is reset instead
    drop: bool = False  # nobody is let in, and who is in is thrown out


@dataclass
class ConnectProxy:
    """Where it listens, whom it was asked for, and its faults; with `tls` it is asked over TLS."""

    faults: Faults = field(default_factory=Faults)
    tls: ssl.SSLContext | None = None
    port: int = 0
    asked: list[str] = field(default_factory=list)
    _writers: set[asyncio.StreamWriter] = field(default_factory=set)
    _all: weakref.WeakSet[asyncio.StreamWriter] = field(default_factory=weakref.WeakSet)
    _frozen: set[asyncio.StreamWriter] = field(default_factory=set)

    @property
    def url(self) -> str:
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._all.add(writer)
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            method, target, _ = head[0].split(" ")
            self.asked.append(target)
            status = self._status(method, target, head)
            if status != 200:
                writer.write(f"HTTP/1.1 {status} No\r\ncontent-length: 0\r\n\r\n".encode())
            elif not self.faults.drop:
                await self._carry(target, reader, writer)
        writer.close()

    def _status(self, method: str, target: str, head: list[str]) -> int:
        given = base64.b64encode(self.faults.login.encode()).decode()
        if method != "CONNECT":
            return 405
        if self.faults.login and not any(line.split()[-1:] == [given] for line in head[1:] if line):
            return 407
        return 403 if int(target.rpartition(":")[2]) in self.faults.forbidden else 200

    async def _carry(self, target: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, _, port = target.rpartition(":")
        there = await asyncio.open_connection(host.strip("[]"), int(port))
        self._all.add(there[1])
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        both = {writer, there[1]}
        self._writers |= both
        try:
            pipes = [asyncio.ensure_future(self._pipe(*pair)) for pair in ((reader, there[1]), (there[0], writer))]
            await asyncio.wait(pipes, return_when=asyncio.FIRST_COMPLETED)
            for pipe in pipes:
                pipe.cancel()
        finally:
            self._writers -= both
            there[1].close()

    async def _pipe(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        loop, faults, due = asyncio.get_running_loop(), self.faults, 0.0
        queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(64)

        async def send() -> None:
            while True:
                when, data = await queue.get()
                await asyncio.sleep(max(when - loop.time(), 0))
                while writer in self._frozen:  # noqa: ASYNC110 - for ever
                    await asyncio.sleep(0.1)
                writer.write(data)
                await writer.drain()
                if not data:
                    return

        sending = asyncio.ensure_future(send())
        try:
            while data := await reader.read(16_384):
                if random.random() < faults.reset_share:
                    writer.transport.abort()
                    return
                now = loop.time()
                due = max(due, now) + (len(data) / faults.bytes_per_s if faults.bytes_per_s else 0.0)
                await queue.put((due + faults.delay_s, data))
            await queue.put((loop.time() + faults.delay_s, b""))
            await sending
        finally:
            sending.cancel()

    def freeze(self) -> None:
        """Carry nothing more on the connections that are open, and tell nobody: what a NAT does that forgot them."""
        self._frozen |= self._writers

    async def throw_out(self) -> None:
        """Reset every connection that is open."""
        for writer in list(self._writers):
            writer.transport.abort()

    async def end(self) -> None:
        """Reset also what is being closed, which takes TLS two turns of the loop."""
        for writer in list(self._all):
            writer.transport.abort()
        await asyncio.sleep(0.1 if self.tls else 0)


def proxy_identity(folder: Path, name: str = "127.0.0.1") -> tuple[ssl.SSLContext, Path]:
    """TLS of a proxy whose certificate is for `name`, by an authority of its own, and that authority's certificate."""
    now = datetime.now(UTC)
    (signer, root), key = create_root("Network of the house", now), create_key()
    certificate = sign_csr(signer, root, to_pem(create_csr(key, ServerNames((name,)))), now, 30)
    paths = [folder / f"proxy-{part}.pem" for part in ("ca", "cert", "key")]
    for path, data in zip(paths, (to_pem(root), to_pem(certificate), key_to_pem(key)), strict=True):
        path.write_bytes(data)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(paths[1], paths[2])
    return context, paths[0]


@contextlib.contextmanager
def connect_proxy(faults: Faults | None = None, tls: ssl.SSLContext | None = None) -> Iterator[ConnectProxy]:
    """A proxy on a free loopback port."""
    proxy, ready, ends = ConnectProxy(faults or Faults(), tls), threading.Event(), []

    async def main() -> None:
        stop, loop = asyncio.Event(), asyncio.get_running_loop()
        server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0, ssl=tls)
        proxy.port = server.sockets[0].getsockname()[1]
        ends.append(lambda: loop.call_soon_threadsafe(stop.set))
        ready.set()
        await stop.wait()
        server.close()
        await proxy.end()

    thread = threading.Thread(target=asyncio.run, args=(main(),), daemon=True)
    thread.start()
    ready.wait(10)
    try:
        yield proxy
    finally:
        ends[0]()
        thread.join(10)
