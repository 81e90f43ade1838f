"""Addresses: host:port, with IPv6 addresses in brackets, the one form that every library here reads; Unix sockets."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from sovfed.federation.errors import ConfigError

PORTS = range(1, 65_536)
MAX_SOCKET_PATH: Final = 107  # bytes, sockaddr_un on Linux


def socket_path(path: Path) -> Path:
    """`path` without links, where a Unix socket can stand. Raises ConfigError: the system allows short paths alone."""
    path = path.resolve()
    excess = len(os.fsencode(path)) - MAX_SOCKET_PATH
    if excess > 0:
        raise ConfigError(
            f"{path}: longer than {MAX_SOCKET_PATH} bytes, which the path of a Unix socket cannot be; "
            f"choose a home whose path is at least {excess} shorter"
        )
    return path


def host_port(host: str, port: int) -> str:
    """`host` and `port` as one text: "agency.example:8443", "[2001:db8::1]:8443"."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def split_host_port(address: str, what: str = "address") -> tuple[str, int]:
    """Host, without brackets, and port of `address`. Raises ConfigError, naming `what`, on any other text."""
    host, colon, port = address.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    bare = host[1:-1] if bracketed else host
    if not colon or not bare or (":" in bare) != bracketed or not port.isdecimal() or int(port) not in PORTS:
        raise ConfigError(f"{what} {address[:80]!r}: expected HOST:PORT, an IPv6 address in brackets: [::1]:8444")
    return bare, int(port)
