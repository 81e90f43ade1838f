"""Connections that do nothing, held open and replaced when they are closed: what a stranger needs no credential for."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Crowd:
    """Idle connections; `opened` counts every one that was let in, `refused` those that were not."""

    connect: Callable[[], socket.socket]
    size: int
    held: list[socket.socket] = field(default_factory=list)
    opened: int = 0
    refused: int = 0

    def press(self, stop: threading.Event) -> None:
        while not stop.is_set():
            self.held = [one for one in self.held if not _ended(one)]
            for _ in range(min(50, self.size - len(self.held))):
                try:
                    self.held.append(self.connect())
                    self.opened += 1
                except OSError:
                    self.refused += 1
            stop.wait(0.2)


def _ended(connection: socket.socket) -> bool:
    connection.settimeout(0)
    try:
        ended = not connection.recv(4096)
    except (BlockingIOError, ssl.SSLWantReadError):
        return False
    except OSError:
        ended = True
    if ended:
        connection.close()
    return ended


def tcp(port: int) -> Callable[[], socket.socket]:
    """Connections that never say anything."""
    return lambda: socket.create_connection(("127.0.0.1", port), timeout=2.0)


def half_request(port: int, folder: Path) -> Callable[[], socket.socket]:
    """TLS connections with the certificate in `folder` and a request whose head never ends."""
    context = ssl.create_default_context(cafile=str(folder / "root.pem"))
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")

    def connect() -> socket.socket:
        plain = socket.create_connection(("127.0.0.1", port), timeout=2.0)
        try:
            secure = context.wrap_socket(plain, server_hostname="127.0.0.1")
        except BaseException:
            plain.close()
            raise
        secure.sendall(b"POST /v1/fleet/pull-messages HTTP/1.1\r\nhost: x\r\nx-")
        return secure

    return connect


@contextlib.contextmanager
def crowding(connect: Callable[[], socket.socket], size: int) -> Iterator[Crowd]:
    """A crowd of `size`, pressing for the length of the block."""
    crowd, stop = Crowd(connect, size), threading.Event()
    thread = threading.Thread(target=crowd.press, args=(stop,), daemon=True)
    thread.start()
    try:
        yield crowd
    finally:
        stop.set()
        thread.join(10)
        for connection in crowd.held:
            connection.close()
