"""Whatever keeps an address from being reached is named, with what mends it: against real sockets, TLS and a proxy."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpcore
import pytest
from tests.connect_proxy import Faults, connect_proxy

from sovfed.federation.addresses import host_port
from sovfed.federation.certificates import (
    ServerNames,
    create_csr,
    create_key,
    create_root,
    key_to_pem,
    sign_csr,
    to_pem,
)
from sovfed.federation.wire import flower_http, reach
from sovfed.federation.wire.proxy import Proxy
from sovfed.federation.wire.reach import Pinned, UnreachableError, look, look_at_clock

NOW = datetime.now(UTC)
KEY, ROOT = create_root("Ministry of Health", NOW - timedelta(days=400))
PINNED = Pinned(to_pem(ROOT).decode())


@contextlib.contextmanager
def server(
    folder: Path, *, host: str = "127.0.0.1", name: str = "127.0.0.1", ended: bool = False, foreign: bool = False,
    answer: bytes = b"",
) -> Iterator[str]:  # fmt: skip
    """A TLS server under a certificate for `name`, by our root or a `foreign` one; its address."""
    own = create_key()
    csr = to_pem(create_csr(own, ServerNames((name,))))
    signer = create_root("Proxy of the house", NOW) if foreign else (KEY, ROOT)
    certificate = sign_csr(*signer, csr, NOW - timedelta(days=60 if ended else 0), 30)
    (folder / "key").write_bytes(key_to_pem(own))
    (folder / "cert").write_bytes(to_pem(certificate))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "cert", folder / "key")
    listener = socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET)

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with contextlib.suppress(OSError), connection, context.wrap_socket(connection, server_side=True) as tls:
                if answer and tls.recv(4096):
                    tls.sendall(answer)

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield host_port(host, listener.getsockname()[1])
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def problem(address: str, proxy: Proxy | None = None) -> UnreachableError:
    with pytest.raises(UnreachableError) as caught:
        look(address, PINNED, proxy, 5)
    assert caught.value.fix
    return caught.value


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_what_is_well_is_reached_directly_and_through_a_proxy(tmp_path: Path, host: str) -> None:
    with server(tmp_path, host=host, name=host) as address, connect_proxy() as proxy:
        look(address, PINNED)
        look(address, PINNED, Proxy("127.0.0.1", proxy.port))
        assert proxy.asked == [address], "brackets and all"


def test_a_certificate_that_is_not_the_agencys_is_told_by_its_fault(tmp_path: Path) -> None:
    with server(tmp_path, foreign=True) as address:
        looked_into = problem(address)
        assert "Proxy of the house" in str(looked_into) and "exempt" in looked_into.fix and not looked_into.passing
    with server(tmp_path, ended=True) as address:
        ended = problem(address)
        assert "has ended" in str(ended) and "clock" in ended.fix
    with server(tmp_path, name="agency.example") as address:
        assert "other names" in str(problem(address))


def test_each_refusal_of_a_proxy_is_told(tmp_path: Path) -> None:
    with server(tmp_path) as address, connect_proxy(Faults(login="ann:pw")) as proxy:
        way = Proxy("127.0.0.1", proxy.port)
        assert "407" in str(problem(address, way)) and "password" in problem(address, way).fix
        look(address, PINNED, Proxy("127.0.0.1", proxy.port, "ann", "pw"))
        proxy.faults.login, proxy.faults.forbidden = "", frozenset({int(address.rpartition(":")[2])})
        assert "403" in str(problem(address, way)) and not problem(address, way).passing
        proxy.faults.forbidden, proxy.faults.drop = frozenset(), True
        assert problem(address, way).passing
    assert "proxy" in str(problem(address, way)), "it is gone: the proxy is named, not the agency"


def test_what_is_away_or_unknown_is_told(tmp_path: Path) -> None:
    with server(tmp_path) as address:
        pass
    assert problem(address).passing
    assert "is not known here" in str(problem("no-such-host.invalid:1"))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent_address = f"127.0.0.1:{silent.getsockname()[1]}"
        threading.Thread(target=lambda: silent.accept()[0].close(), daemon=True).start()  # noqa: PLW0108 - not yet
        assert "no TLS" in str(problem(silent_address))


@pytest.mark.parametrize(
    ("head", "said"),
    [
        (b"HTTP/1.1 403 Forbidden\r\n\r\n", "refuses this institution"),
        (b"HTTP/1.1 404 No\r\ndate: Mon, 01 Jan 2001 00:00:00 GMT\r\n\r\n", "ahead: it refuses this institution"),
    ],
)
def test_a_certificate_that_is_refused_and_a_clock_that_is_off_are_told(tmp_path: Path, head: bytes, said: str) -> None:
    with server(tmp_path, answer=head) as address, pytest.raises(UnreachableError, match=said):
        look_at_clock(address, PINNED)


@contextlib.contextmanager
def garbage(piece: bytes) -> Iterator[Proxy]:
    """A proxy that answers whatever it is asked with `piece`, again and again."""
    listener, over = socket.create_server(("127.0.0.1", 0)), threading.Event()

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with contextlib.suppress(OSError), connection:
                    while not over.wait(0.02):
                        connection.sendall(piece)

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield Proxy("127.0.0.1", listener.getsockname()[1], "user", "pass-word")
    finally:
        over.set()
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


@pytest.mark.parametrize(
    "piece", [b"H", b"x: y\r\n", b"\x1b[2J" * 1000, b"\r\n\r\n", b"HTTP/1.1 " + b"9" * 5000 + b"\r\n\r\n", b""]
)
def test_a_proxy_that_answers_garbage_or_without_end_is_given_up(monkeypatch: pytest.MonkeyPatch, piece: bytes) -> None:
    monkeypatch.setattr(reach, "TIMEOUT_S", 0.5)
    monkeypatch.setattr(flower_http, "TIMEOUT_S", 0.5)
    with garbage(piece) as proxy:
        with pytest.raises(UnreachableError, match="did not answer to CONNECT") as caught:
            look("agency.test:443", PINNED, proxy, 0.5)
        assert "pass-word" not in f"{caught.value}{caught.value.fix}{proxy}" and str(caught.value).isprintable()
        with pytest.raises(httpcore.ConnectError, match="did not answer to CONNECT"):
            flower_http._tunnel(proxy).connect_tcp("agency.test", 443, timeout=5.0)


@pytest.mark.parametrize("date", ["", "now", "Mon, 99 Foo 99999999 99:99:99 +9999"])
def test_a_server_that_answers_garbage_is_no_traceback(tmp_path: Path, date: str) -> None:
    answer = f"HTTP/1.1 200 OK\r\ndate: {date}\r\n\r\n" if date else "\x1b[2J\r\n\r\n"
    with server(tmp_path, answer=answer.encode()) as address, pytest.raises(UnreachableError, match="before an answer"):
        look_at_clock(address, PINNED)
