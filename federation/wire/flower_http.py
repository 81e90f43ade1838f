"""The one patch point in Flower's HTTP client: our loopback secret and client certificate, bounds, shorter sleeps.

Flower 1.42 makes every Fleet, Runtime and Control client a `ProtobufClient` and offers no way to give it a header or
a client certificate. A contract test holds what is used of it: `__init__`'s arguments and the attribute `_client`.
"""

from __future__ import annotations

import contextlib
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from ipaddress import ip_address
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from sovfed.federation.addresses import host_port
from sovfed.federation.errors import IdentityError, ProtocolError, ServiceError
from sovfed.federation.wire.bridge import bridged
from sovfed.federation.wire.clocks import note_time, tell_difference
from sovfed.federation.wire.reach import TIMEOUT_S, UnreachableError, connect

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import httpcore
    import httpx

    from sovfed.federation.wire.proxy import Proxy

MAX_RESPONSE_BYTES: Final = 64 * 2**20  # over the network; Flower cuts objects into chunks of 5 MiB
MOST_OPEN: Final = 100  # connections of one client
KEPT_S: Final = 3.0  # a connection without a call; below the 5 s after which Flower's servers close it
_headers: Final[dict[str | None, dict[str, str]]] = {}  # by "host:port"; None is any loopback address
_presented: Final[list[Presented]] = []


@dataclass(frozen=True)
class Presented:
    """What is shown on every https connection, whose server is pinned to `root_path`, and the way there.

    The way leads through `proxy`, if there is one.
    """

    cert_path: Path
    key_path: Path
    root_path: Path
    proxy: Proxy | None = None

    def stamp(self) -> tuple[int, ...]:
        """Another one whenever a file was replaced."""
        try:
            return tuple(path.stat().st_mtime_ns for path in (self.cert_path, self.key_path, self.root_path))
        except OSError as error:
            raise IdentityError(f"{error.filename}: certificate and key cannot be used: {error.strerror}") from error


def add_client_header(name: str, value: str, address: str | None = None) -> None:
    """Send header `name` with every Flower request over plain HTTP to the loopback, and to nowhere else.

    `address` ("127.0.0.1:9094") narrows it to one listener, for a process that talks to several. Clients made before
    the call keep what they had.
    """
    _headers.setdefault(address, {})[name] = value
    _patch()


def use_client_certificate(presented: Presented) -> None:
    """Present this certificate on every https connection that Flower's clients make from now on.

    A file that is replaced, as by a renewal, holds from the next request. A client that does not pin its roots raises
    IdentityError: the certificate is shown to our own server only.
    """
    _presented[:] = [presented]
    _patch()


def shorten_sleeps(module: ModuleType, sleeps_s: Mapping[float, float | Callable[[], float]]) -> None:
    """Replace fixed sleeps of Flower's `module`, and of no other: {3: 0.2} makes its `time.sleep(3)` last 0.2 s.

    A function is asked each time. Raises ServiceError if the module does not sleep through a `time` of its own.
    """
    if not isinstance(getattr(module, "time", None), ModuleType | _Clock):
        raise ServiceError(f"{module.__name__} no longer sleeps through its own `time`; expected Flower 1.42")
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
            limits=httpx.Limits(max_connections=MOST_OPEN, keepalive_expiry=KEPT_S),
            headers={"accept-encoding": "identity", **_headers_for(base_url)},
            event_hooks=_HOOKS if base_url.startswith("https:") else {},
            transport=_transport_for(base_url, verify),
            verify=verify,
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


_HOOKS: Final[dict[str, list[Callable[..., Any]]]] = {
    "request": [note_time],
    "response": [tell_difference, refuse_unbounded],
}


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


def _transport_for(url: str, verify: ssl.SSLContext | bool | str) -> httpx.BaseTransport | None:
    """What carries requests to `url`; None for httpx's own, where no certificate is to be shown."""
    if urlsplit(url).scheme != "https" or not _presented:
        return None
    if isinstance(verify, bool):
        raise IdentityError(f"{url}: a client certificate is set but the server's root is not pinned")
    return _renewing_transport(_presented[0])


def _renewing_transport(presented: Presented) -> httpx.BaseTransport:
    """A transport that begins anew, with new connections, whenever a file of `presented` was replaced.

    A certificate is judged with each request, so a connection must not outlive the one that it was opened with. The
    requests that are under way keep their connection.
    """
    import httpx

    class Renewing(httpx.BaseTransport):
        def __init__(self) -> None:
            self._lock = threading.Lock()
            self._stamp, self._inner = presented.stamp(), _connecting(presented)
            self._former: httpx.BaseTransport | None = None

        def handle_request(self, request: httpx.Request) -> httpx.Response:
            return self._current().handle_request(request)

        def _current(self) -> httpx.BaseTransport:
            with self._lock:
                with contextlib.suppress(IdentityError):  # one of two files is there already: the next request looks
                    if (stamp := presented.stamp()) != self._stamp:
                        inner = _connecting(presented)
                        if self._former is not None:
                            self._former.close()
                        self._stamp, self._former, self._inner = stamp, self._inner, inner
                return self._inner

        def close(self) -> None:
            for transport in (self._former, self._inner):
                if transport is not None:
                    transport.close()

    return Renewing()


def _connecting(presented: Presented) -> httpx.HTTPTransport:
    """httpx's own transport; through a proxy, one whose connections begin with our CONNECT.

    httpcore's leaves out the brackets of an IPv6 address, which real proxies refuse.
    """
    import httpcore
    import httpx

    context = _context(presented)
    transport = httpx.HTTPTransport(
        verify=context, trust_env=False, limits=httpx.Limits(max_connections=MOST_OPEN, keepalive_expiry=KEPT_S)
    )
    if presented.proxy is not None:
        transport._pool = httpcore.ConnectionPool(
            ssl_context=context, max_connections=MOST_OPEN, keepalive_expiry=KEPT_S,
            network_backend=_tunnel(presented.proxy),
        )  # fmt: skip
    return transport


def _tunnel(proxy: Proxy) -> httpcore.NetworkBackend:
    """What makes connections through `proxy`."""
    import httpcore

    near = bridged(proxy)

    class Tunnel(httpcore.SyncBackend):
        def connect_tcp(self, host: str, port: int, *args: Any, **options: Any) -> httpcore.NetworkStream:
            stream = super().connect_tcp(near.host, near.port, *args, **options)
            try:
                connect(_Bytes(stream), host_port(host, port), near)
            except UnreachableError as error:
                stream.close()
                raise httpcore.ConnectError(f"{error}; {error.fix}") from error
            return stream

    return Tunnel()


class _Bytes:
    """A stream of httpcore with the two verbs of a socket that CONNECT needs."""

    def __init__(self, stream: httpcore.NetworkStream) -> None:
        self._stream = stream

    def sendall(self, data: bytes) -> None:
        import httpcore

        try:
            self._stream.write(data, timeout=TIMEOUT_S)
        except (httpcore.NetworkError, httpcore.TimeoutException) as error:
            raise OSError(str(error)) from error

    def recv(self, size: int) -> bytes:
        import httpcore

        try:
            return self._stream.read(size, timeout=TIMEOUT_S)
        except (httpcore.NetworkError, httpcore.TimeoutException) as error:
            raise OSError(str(error)) from error


def _context(presented: Presented) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        context.load_verify_locations(cafile=presented.root_path)
        context.load_cert_chain(presented.cert_path, presented.key_path)
    except (OSError, ssl.SSLError) as error:
        files = f"{presented.cert_path}: certificate and key {presented.key_path}"
        raise IdentityError(f"{files} cannot be used: {error}") from error
    return context
