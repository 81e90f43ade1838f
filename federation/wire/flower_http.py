"""The one patch point in Flower's HTTP client: our loopback secret and client certificate, bounds, shorter sleeps.

Flower 1.41 makes every Fleet, Runtime and Control client a `ProtobufClient` and offers no way to give it a header or
a client certificate. A contract test holds what is used of it: `__init__`'s arguments and the attribute `_client`.
"""

from __future__ import annotations

import ssl
import time
from functools import cache
from ipaddress import ip_address
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from sovfed.federation.errors import IdentityError, ProtocolError, ServiceError
from sovfed.federation.wire.clocks import tell_difference

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    import httpx

MAX_RESPONSE_BYTES: Final = 64 * 2**20  # over the network; Flower cuts objects into chunks of 5 MiB
KEPT_S: Final = 3.0  # a connection without a call; below the 5 s after which Flower's servers close it
_headers: Final[dict[str | None, dict[str, str]]] = {}  # by "host:port"; None is any loopback address
_certificate: Final[list[tuple[Path, Path]]] = []


def add_client_header(name: str, value: str, address: str | None = None) -> None:
    """Send header `name` with every Flower request over plain HTTP to the loopback, and to nowhere else.

    `address` ("127.0.0.1:9094") narrows it to one listener, for a process that talks to several. Clients made before
    the call keep what they had.
    """
    _headers.setdefault(address, {})[name] = value
    _patch()


def use_client_certificate(cert_path: Path, key_path: Path) -> None:
    """Present this certificate on every https connection that Flower's clients make from now on.

    A client that does not pin its roots raises IdentityError: the certificate is shown to our own server only.
    """
    _certificate[:] = [(cert_path, key_path)]
    _patch()


def shorten_sleeps(module: ModuleType, sleeps_s: Mapping[float, float | Callable[[], float]]) -> None:
    """Replace fixed sleeps of Flower's `module`, and of no other: {3: 0.2} makes its `time.sleep(3)` last 0.2 s.

    A function is asked each time. Raises ServiceError if the module does not sleep through a `time` of its own.
    """
    if not isinstance(getattr(module, "time", None), ModuleType | _Clock):
        raise ServiceError(f"{module.__name__} no longer sleeps through its own `time`; expected Flower 1.41")
    vars(module)["time"] = _Clock(sleeps_s)


class _Clock:
    """The `time` module with some sleeps replaced."""

    def __init__(self, sleeps_s: Mapping[float, float | Callable[[], float]]) -> None:
        self._sleeps_s = dict(sleeps_s)

    def sleep(self, seconds: float) -> None:
        pause = self._sleeps_s.get(seconds, seconds)
        time.sleep(pause() if callable(pause) else pause)

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)


@cache
def _patch() -> None:
    import httpx
    from flwr.supercore.protobuf.client import ProtobufClient

    original = ProtobufClient.__init__

    def initialise(
        self: ProtobufClient, base_url: str, *, verify: ssl.SSLContext | bool | str = True, **options: Any
    ) -> None:
        original(self, base_url, verify=verify, **options)
        plain = self._client
        self._client = httpx.Client(
            timeout=plain.timeout,
            limits=httpx.Limits(max_connections=100, max_keepalive_connections=20, keepalive_expiry=KEPT_S),
            headers={"accept-encoding": "identity", **_headers_for(base_url)},
            event_hooks={"response": [tell_difference, refuse_unbounded] if base_url.startswith("https:") else []},
            verify=_context_for(base_url, verify),
            trust_env=not _is_loopback(base_url),  # no proxy from the environment sees the secret
            follow_redirects=False,  # a redirect would carry the header elsewhere
        )
        plain.close()

    ProtobufClient.__init__ = initialise  # type: ignore[method-assign]


def refuse_unbounded(response: httpx.Response) -> None:
    """Raises ProtocolError, before the body is read, unless it states a length of at most `MAX_RESPONSE_BYTES`."""
    length = response.headers.get("content-length", "")
    if not length.isdecimal() or int(length) > MAX_RESPONSE_BYTES or "content-encoding" in response.headers:
        size = length[:20] or "unknown"
        raise ProtocolError(f"{response.url}: a response of {size} bytes, at most {MAX_RESPONSE_BYTES}")


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False  # a name, even "localhost", may resolve to anything


def _headers_for(url: str) -> dict[str, str]:
    if urlsplit(url).scheme != "http" or not _is_loopback(url):
        return {}
    return {**_headers.get(None, {}), **_headers.get(urlsplit(url).netloc, {})}


def _context_for(url: str, verify: ssl.SSLContext | bool | str) -> ssl.SSLContext | bool | str:
    if urlsplit(url).scheme != "https" or not _certificate:
        return verify
    if isinstance(verify, bool):
        raise IdentityError(f"{url}: a client certificate is set but the server's root is not pinned")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT) if isinstance(verify, str) else verify
    if isinstance(verify, str):
        context.load_verify_locations(cafile=verify)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    cert_path, key_path = _certificate[0]
    try:
        context.load_cert_chain(cert_path, key_path)
    except (OSError, ssl.SSLError) as error:
        raise IdentityError(f"{cert_path}: certificate and key {key_path} cannot be used: {error}") from error
    return context
