"""The way to the agency through a proxy: which one, as gRPC and Flower's HTTP client must be told.

A proxy is asked to CONNECT and then carries bytes: TLS goes on from end to end, with our certificate and the pinned
root, so that it sees neither. Which one is `client.proxy`, else HTTPS_PROXY and NO_PROXY of the environment. User and
password stand in `secrets/proxy` (0600), or in the variable's URL; never in client.yaml.
"""

from __future__ import annotations

import ipaddress
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import quote, unquote, urlsplit

from sovfed.federation.addresses import host_port, split_host_port
from sovfed.federation.errors import ConfigError
from sovfed.federation.files import read_private

if TYPE_CHECKING:
    from collections.abc import Mapping
    from urllib.parse import SplitResult

DIRECT: Final = "direct"
CREDENTIALS: Final = Path("secrets/proxy")
DEFAULT_PORT: Final = 3128
VARIABLES: Final = ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")
_GRPC_OWN: Final = ("no_grpc_proxy", "no_proxy")  # which gRPC obeys also where it is told the proxy


@dataclass(frozen=True)
class Proxy:
    """An HTTP proxy; `user` and `password` are empty where it asks for none."""

    host: str
    port: int
    user: str = field(default="", repr=False)
    password: str = field(default="", repr=False)

    @property
    def address(self) -> str:
        """host:port, what may be shown."""
        return host_port(self.host, self.port)

    @property
    def url(self) -> str:
        """With user and password: for libraries, not to be shown."""
        login = f"{quote(self.user, safe='')}:{quote(self.password, safe='')}@" if self.user else ""
        return f"http://{login}{self.address}"


def proxy_for(
    address: str, setting: str | None, home: Path, environment: Mapping[str, str] | None = None
) -> Proxy | None:
    """The proxy on the way to `address` (host:port), or None for none.

    Raises ConfigError if it is not `http://HOST:PORT`, and IdentityError if others can read its password.
    """
    environment = os.environ if environment is None else environment
    if setting == DIRECT:
        return None
    if setting is not None:
        parts = _parts(setting, "client.proxy")
        if parts.username or parts.password:
            raise ConfigError(f"client.proxy: user and password stand in {home / CREDENTIALS} (0600): user:password")
        return _proxy(parts, *_credentials(home))
    host = split_host_port(address)[0]
    name = next((name for name in VARIABLES if environment.get(name)), None)
    if name is None or _is_exempt(host, environment):
        return None
    parts = _parts(environment[name], name)
    if parts.username:
        return _proxy(parts, unquote(parts.username), unquote(parts.password or ""))
    return _proxy(parts, *_credentials(home))


def grpc_options(proxy: Proxy | None) -> tuple[tuple[str, str | int], ...]:
    """The options of a gRPC channel that goes through `proxy`, and through no other that the environment names."""
    if proxy is None:
        return (("grpc.enable_http_proxy", 0),)
    for name in _GRPC_OWN:
        os.environ.pop(name, None)
    return (("grpc.enable_http_proxy", 1), ("grpc.http_proxy", proxy.url))


def keep_credentials(home: Path, text: str) -> None:
    """Put `text`, user:password, where `proxy_for` looks. Raises ConfigError if it is not that."""
    from sovfed.federation.files import private_directory, write_private

    _login(text)
    private_directory(home / CREDENTIALS.parent)
    write_private(home / CREDENTIALS, text.strip().encode() + b"\n")


def _parts(text: str, what: str) -> SplitResult:
    try:
        parts = urlsplit(text if "://" in text else f"http://{text}")
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), 0
    if parts.scheme != "http" or not parts.hostname or port == 0 or parts.path.strip("/") or parts.query:
        raise ConfigError(f"{what}: expected http://HOST:PORT, a proxy that takes CONNECT without TLS of its own")
    return parts


def _proxy(parts: SplitResult, user: str, password: str) -> Proxy:
    return Proxy(parts.hostname or "", parts.port or DEFAULT_PORT, user, password)


def _credentials(home: Path) -> tuple[str, str]:
    path = home / CREDENTIALS
    return _login(read_private(path).decode("utf-8", "replace")) if path.exists() else ("", "")


def _login(text: str) -> tuple[str, str]:
    user, colon, password = text.strip().partition(":")
    if not colon or not user or "\n" in text.strip():
        raise ConfigError("the proxy's credentials: expected one line, user:password")
    return user, password


def _is_exempt(host: str, environment: Mapping[str, str]) -> bool:
    """Whether NO_PROXY names `host`, or it is this machine itself."""
    if host in ("localhost", "::1") or host.startswith("127."):
        return True
    listed = environment.get("no_proxy") or environment.get("NO_PROXY") or ""
    return any(_names(entry.strip().strip("[]").lower(), host.lower()) for entry in listed.split(",") if entry.strip())


def _names(entry: str, host: str) -> bool:
    """Whether the entry of NO_PROXY, `*`, a domain, an address or a network, holds `host`."""
    domain = entry.lstrip("*").lstrip(".")
    if entry == "*" or host == domain or host.endswith(f".{domain}"):
        return True
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(entry, strict=False)
    except ValueError:
        return False
