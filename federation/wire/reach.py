"""Why an address cannot be reached over TLS: looked at step by step, with the first step that fails and its fix.

Name, connection, proxy, handshake, certificate. A library that fails says "unavailable" for all of them.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from sovfed.federation.addresses import host_port, split_host_port
from sovfed.federation.decoded import certificate_of
from sovfed.federation.errors import IdentityError
from sovfed.federation.text import visible
from sovfed.federation.wire import clocks
from sovfed.federation.wire.bridge import UNREACHED, bridged
from sovfed.federation.wire.proxy import ROOTS, connect_request

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sovfed.federation.wire.proxy import Proxy, Tls

TIMEOUT_S: Final = 10.0
MAX_HEAD_BYTES: Final = 16_384
EXPIRED, NOT_YET = 10, 9  # OpenSSL's X509_V_ERR_CERT_HAS_EXPIRED, …_NOT_YET_VALID
WRONG_NAME: Final = (62, 64)  # …_HOSTNAME_MISMATCH, …_IP_ADDRESS_MISMATCH


class UnreachableError(Exception):
    """The first step that fails, as a sentence, and in `fix` what mends it; `passing` if it may mend itself."""

    def __init__(self, sentence: str, fix: str, *, passing: bool = False) -> None:
        super().__init__(sentence)
        self.fix, self.passing = fix, passing


@dataclass(frozen=True)
class Pinned:
    """The one root that the server may come from, and the own certificate and key to show, if any."""

    root: str  # PEM
    pair: tuple[Path, Path] | None = None


def look(address: str, pinned: Pinned, proxy: Proxy | None = None, timeout_s: float = TIMEOUT_S) -> None:
    """Raises UnreachableError unless `address` (host:port) answers with TLS under a certificate of the pinned root."""
    with _handshaken(address, pinned, proxy, timeout_s):
        pass


def look_at_clock(address: str, pinned: Pinned, proxy: Proxy | None = None, timeout_s: float = TIMEOUT_S) -> str:
    """What the fleet port at `address` answers to a request for nothing, as a sentence; `look` comes with it.

    Raises UnreachableError also if it refuses our certificate, or its clock and ours differ.
    """
    with _handshaken(address, pinned, proxy, timeout_s) as tls:
        asked = time.monotonic()
        try:
            tls.sendall(f"GET / HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n".encode())
            head = _head(tls)
            status, date = _status(head), _header(head, "date")
            differs = clocks.difference(date, asked) if date else ""
        except (OSError, ValueError) as error:
            raise UnreachableError(
                f"{address}: the connection ended before an answer ({error})",
                "the agency may not know or no longer trust this certificate; ask it, and look at both clocks",
            ) from error
    if status == 403:
        raise UnreachableError(
            f"{address}: the agency refuses this institution's certificate",
            "ask the agency; its superlink's log says why (revoked, expired, or its own revocation list is stale)",
        )
    if differs:
        raise UnreachableError(f"{differs}: it refuses this institution", f"set the clock that is wrong ({clocks.SET})")
    return f"{address} answers over mutual TLS{f', through the proxy {proxy.address}' if proxy else ''}"


@contextlib.contextmanager
def _handshaken(address: str, pinned: Pinned, proxy: Proxy | None, timeout_s: float) -> Iterator[ssl.SSLSocket]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_verify_locations(cadata=pinned.root)
    if pinned.pair is not None:
        context.load_cert_chain(*pinned.pair)
    host, _ = split_host_port(address)
    with _opened(address, proxy, timeout_s) as plain:
        try:
            tls = context.wrap_socket(plain, server_hostname=host)
        except ssl.SSLCertVerificationError as error:
            raise _not_the_agency(address, proxy, timeout_s, error) from error
        except (OSError, ssl.SSLError) as error:
            raise UnreachableError(
                f"{address}: no TLS ({error})",
                "a firewall or a service of another kind answers there; ask the agency for the right address",
                passing=True,
            ) from error
        with tls:
            yield tls


def _opened(address: str, proxy: Proxy | None, timeout_s: float) -> socket.socket:
    """A connection to `address`, through `proxy` if there is one."""
    host, port = split_host_port(address) if proxy is None else (proxy.host, proxy.port)
    where = host_port(host, port) if proxy is None else f"the proxy {proxy.address}"
    try:
        connection = socket.create_connection((host, port), timeout_s)
    except socket.gaierror as error:
        fix = "ask your network's people for a name server that knows it"
        if proxy is None:
            fix += ", or, where only a proxy reaches the internet, set client.proxy or HTTPS_PROXY"
        raise UnreachableError(f"{where}: the name {host!r} is not known here ({error.strerror})", fix) from error
    except TimeoutError as error:
        raise UnreachableError(
            f"{where}: no answer within {timeout_s:g} s",
            f"have the firewall let TCP port {port} out, or name a proxy",
            passing=True,
        ) from error
    except OSError as error:
        raise UnreachableError(
            f"{where}: {error.strerror or error}", "is it running, and is this its address and port?", passing=True
        ) from error
    if proxy is None:
        return connection
    with contextlib.ExitStack() as opened:
        opened.enter_context(connection)
        if proxy.tls is not None:
            connection = opened.enter_context(_secured(connection, proxy, proxy.tls))
        connect(connection, address, proxy)
        if proxy.tls is None:
            opened.pop_all()
            return connection
    return _opened(address, bridged(proxy), timeout_s)  # TLS through TLS, now that the way is known to be open


def _secured(connection: socket.socket, proxy: Proxy, tls: Tls) -> ssl.SSLSocket:
    """TLS with the proxy itself."""
    try:
        return tls.context().wrap_socket(connection, server_hostname=proxy.host)
    except ssl.SSLCertVerificationError as error:
        raise UnreachableError(
            f"the proxy {proxy.address}: its certificate does not hold here ({error.verify_message})",
            "have its people give you the authority's certificate: `sovfed client join --proxy-ca FILE`, or "
            f"{ROOTS} of the home; its name there must be {proxy.host}",
        ) from error
    except OSError as error:
        raise UnreachableError(
            f"the proxy {proxy.address}: no TLS ({error})", "one that is asked in plain is http://HOST:PORT",
            passing=True,
        ) from error  # fmt: skip


class Wire(Protocol):
    """What CONNECT needs of a connection."""

    def sendall(self, data: bytes, /) -> object: ...

    def recv(self, size: int, /) -> bytes: ...


def connect(connection: Wire, address: str, proxy: Proxy) -> None:
    """Have `proxy`, at the other end of `connection`, open the way to `address`. Raises UnreachableError."""
    try:
        connection.sendall(connect_request(address, proxy))
        status = _status(_head(connection))
    except (OSError, ValueError) as error:
        raise UnreachableError(
            f"the proxy {proxy.address} did not answer to CONNECT ({error})",
            "is it an HTTP proxy? Its people know its address and port, and whether it is https://",
            passing=True,
        ) from error
    if status == 200:
        return
    sentence = f"the proxy {proxy.address} refuses {address}: status {status}"
    raise UnreachableError(sentence, _FIXES.get(status, _FIX), passing=status >= 500)


_FIXES: Final = {
    UNREACHED: "this machine does not reach it over TLS; `sovfed doctor --home HOME` says why",
    407: "it asks for user and password: `sovfed client join --proxy-login FILE`, or secrets/proxy (user:password)",
    403: "have its people allow CONNECT to the agency's host and its three ports, without looking into TLS",
    502: "it cannot reach the agency either: is the address right, and is the agency up?",
    503: "it cannot reach the agency either: is the address right, and is the agency up?",
    504: "it cannot reach the agency either: is the address right, and is the agency up?",
}
_FIX: Final = "ask its people what it wants for CONNECT to the agency's host and ports"


def _not_the_agency(
    address: str, proxy: Proxy | None, timeout_s: float, error: ssl.SSLCertVerificationError
) -> UnreachableError:
    """What is wrong with the certificate at `address`, told from the certificate itself."""
    code = error.verify_code
    if code in (EXPIRED, NOT_YET):
        when = "has ended" if code == EXPIRED else "is not valid yet"
        return UnreachableError(
            f"{address}: by this clock ({time.strftime('%F %R', time.gmtime())} UTC) its certificate {when}",
            f"look at the clock first ({clocks.SET}); if it is right, the agency must renew",
        )
    if code in WRONG_NAME:
        return UnreachableError(
            f"{address}: its certificate is for other names",
            "ask the agency for its address; its server.names must hold it",
        )
    return UnreachableError(
        f"{address}: somebody else answers, with a certificate by {_issuer(address, proxy, timeout_s)!r}",
        "TLS is looked into on the way (a proxy or a firewall): have its people exempt the agency's host. The way must "
        "be TLS from end to end, so no authority of theirs can be trusted here",
    )


def _issuer(address: str, proxy: Proxy | None, timeout_s: float) -> str:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with _opened(address, proxy, timeout_s) as plain, context.wrap_socket(plain) as tls:
            certificate = certificate_of(tls.getpeercert(binary_form=True) or b"")
    except (UnreachableError, IdentityError, OSError, ValueError):
        return "unknown"
    return visible(certificate.issuer.rfc4514_string()[:200], keep="")


def _head(connection: Wire) -> bytes:
    """An HTTP answer's head, within `TIMEOUT_S` also if it comes byte by byte. Raises ValueError if none comes."""
    data, deadline = b"", time.monotonic() + TIMEOUT_S
    while b"\r\n\r\n" not in data:
        more = connection.recv(4096)
        if not more or len(data) > MAX_HEAD_BYTES or time.monotonic() > deadline:
            raise ValueError("it hung up, or sent no HTTP answer")
        data += more
    return data.partition(b"\r\n\r\n")[0]


def _status(head: bytes) -> int:
    words = head.split(maxsplit=2)
    if len(words) < 2 or not words[0].startswith(b"HTTP/") or not words[1].isdigit():
        raise ValueError("no HTTP answer")
    return int(words[1])


def _header(head: bytes, name: str) -> str:
    for line in head.decode("latin-1").split("\r\n")[1:]:
        key, _, value = line.partition(":")
        if key.strip().lower() == name:
            return value.strip()
    return ""
