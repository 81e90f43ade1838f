"""The way to the agency through a proxy: which one, as gRPC and Flower's HTTP client must be told.

A proxy is asked to CONNECT and then carries bytes: TLS goes on from end to end, with our certificate and the pinned
root, so that it sees neither. One that wants TLS itself (`https://`) is asked within that, by way of a listener of this
process (`bridge.py`), since gRPC knows no such proxies. Which one is `client.proxy`, else HTTPS_PROXY and NO_PROXY of
the environment. User and password stand in `secrets/proxy` (0600), or in the variable's URL; never in client.yaml.
"""

from __future__ import annotations

import ipaddress
import os
from base64 import b64encode
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import quote, unquote, urlsplit

from sovfed.federation.addresses import host_port, split_host_port
from sovfed.federation.errors import ConfigError
from sovfed.federation.files import read_private

if TYPE_CHECKING:
    import ssl
    from collections.abc import Mapping
    from urllib.parse import SplitResult

DIRECT: Final = "direct"
CREDENTIALS: Final = Path("secrets/proxy")
ROOTS: Final = Path("secrets/proxy-ca.pem")
PORTS: Final = {"http": 3128, "https": 443}  # where none is named
VARIABLES: Final = ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")


@dataclass(frozen=True)
class Tls:
    """TLS to the proxy itself, under a certificate by one of the authorities in the file `roots`.

    None is for the system's.
    """

    roots: Path | None = None

    def context(self) -> ssl.SSLContext:
        """Raises ConfigError if the file holds no certificates."""
        import ssl

        try:
            return ssl.create_default_context(cafile=self.roots)
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(f"{self.roots}: expected certificates of authorities (PEM): {error}") from error


@dataclass(frozen=True)
class Proxy:
    """An HTTP proxy; `user` and `password` are empty where it asks for none, `tls` is None where it is asked in plain.

    `stands_for` is the address of another that is reached by this one.
    """

    host: str
    port: int
    user: str = field(default="", repr=False)
    password: str = field(default="", repr=False)
    tls: Tls | None = None
    stands_for: str = ""

    @property
    def address(self) -> str:
        """host:port, what may be shown."""
        return self.stands_for or host_port(self.host, self.port)

    @property
    def url(self) -> str:
        """With user and password: for libraries, not to be shown."""
        login = f"{quote(self.user, safe='')}:{quote(self.password, safe='')}@" if self.user else ""
        return f"{self._scheme}://{login}{host_port(self.host, self.port)}"

    @property
    def login(self) -> str:
        """User and password as RFC 7617 sends them."""
        return f"Basic {b64encode(f'{self.user}:{self.password}'.encode()).decode()}"

    @property
    def setting(self) -> str:
        """As `client.proxy` names it: without user and password."""
        return f"{self._scheme}://{self.address}"

    @property
    def _scheme(self) -> str:
        return "https" if self.tls else "http"


def proxy_for(
    address: str, setting: str | None, home: Path, environment: Mapping[str, str] | None = None
) -> Proxy | None:
    """The proxy on the way to `address` (host:port), or None for none.

    Raises ConfigError if it is neither `http://HOST:PORT` nor `https://HOST:PORT`, and IdentityError if others can read
    its password.
    """
    environment = os.environ if environment is None else environment
    if setting == DIRECT:
        return None
    if setting is not None:
        parts = _parts(setting, "client.proxy")
        if parts.username or parts.password:
            raise ConfigError(f"client.proxy: user and password stand in {home / CREDENTIALS} (0600): user:password")
        return _proxy(parts, home, *_credentials(home))
    host = split_host_port(address)[0]
    name = next((name for name in VARIABLES if environment.get(name)), None)
    if name is None or _is_exempt(host, environment):
        return None
    parts = _parts(environment[name], name)
    if parts.username:
        return _proxy(parts, home, unquote(parts.username), unquote(parts.password or ""))
    return _proxy(parts, home, *_credentials(home))


def connect_request(address: str, proxy: Proxy) -> bytes:
    """What asks `proxy` to open the way to `address`."""
    authorisation = f"proxy-authorization: {proxy.login}\r\n" if proxy.user else ""
    return f"CONNECT {address} HTTP/1.1\r\nhost: {address}\r\n{authorisation}\r\n".encode()


def keep_credentials(home: Path, text: str) -> None:
    """Put `text`, user:password, where `proxy_for` looks. Raises ConfigError if it is not that."""
    from sovfed.federation.files import private_directory, write_private

    _login(text)
    private_directory(home / CREDENTIALS.parent)
    write_private(home / CREDENTIALS, text.strip().encode() + b"\n")


def keep_roots(home: Path, pem: bytes) -> None:
    """Put the authorities of an `https://` proxy where `proxy_for` looks. Raises ConfigError if they are none."""
    from cryptography import x509

    from sovfed.federation.decoded import UNREADABLE
    from sovfed.federation.files import private_directory, write_private

    try:
        x509.load_pem_x509_certificates(pem)
    except UNREADABLE as error:
        raise ConfigError("the proxy's authorities: expected certificates (PEM)") from error
    private_directory(home / ROOTS.parent)
    write_private(home / ROOTS, pem)


def _parts(text: str, what: str) -> SplitResult:
    try:
        parts = urlsplit(text if "://" in text else f"http://{text}")
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), 0
    if parts.scheme not in PORTS or not parts.hostname or port == 0 or parts.path.strip("/") or parts.query:
        raise ConfigError(f"{what}: expected http://HOST:PORT, or https://HOST:PORT of a proxy that itself wants TLS")
    return parts


def _proxy(parts: SplitResult, home: Path, user: str, password: str) -> Proxy:
    tls = Tls(home / ROOTS if (home / ROOTS).exists() else None) if parts.scheme == "https" else None
    return Proxy(parts.hostname or "", parts.port or PORTS[parts.scheme], user, password, tls)


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
