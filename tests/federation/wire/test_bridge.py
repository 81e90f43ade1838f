"""A proxy that itself wants TLS leads to the agency as others do: for gRPC, Flower's client, and whoever looks."""

from __future__ import annotations

import contextlib
import logging
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import httpx
import pytest
from tests.connect_proxy import ConnectProxy, Faults, connect_proxy, proxy_identity
from tests.federation.wire.test_reach import PINNED, ROOT, server

from sovfed.federation.certificates import to_pem
from sovfed.federation.wire.bridge import UNREACHED, bridged, grpc_options
from sovfed.federation.wire.flower_http import Presented, _connecting
from sovfed.federation.wire.proxy import Proxy, Tls, keep_credentials, keep_roots
from sovfed.federation.wire.reach import UnreachableError, look

PASSWORD = "s3cret-word"
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok"


@contextlib.contextmanager
def secured(folder: Path, name: str = "127.0.0.1", login: str = "") -> Iterator[tuple[ConnectProxy, Proxy]]:
    """A proxy that wants TLS, and how an institution is told of it."""
    context, roots = proxy_identity(folder, name)
    user, _, password = login.partition(":")
    with connect_proxy(Faults(login=login), context) as proxy:
        yield proxy, Proxy("127.0.0.1", proxy.port, user, password, Tls(roots))


def presented(folder: Path, proxy: Proxy) -> Presented:
    (folder / "root").write_bytes(to_pem(ROOT))
    return Presented(folder / "cert", folder / "key", folder / "root", proxy)


def test_the_agency_is_reached_by_whoever_looks(tmp_path: Path) -> None:
    with server(tmp_path) as address, secured(tmp_path, login=f"ann:{PASSWORD}") as (proxy, way):
        look(address, PINNED, way, 5)
        assert set(proxy.asked) == {address}


def test_the_agency_is_reached_by_flowers_client(tmp_path: Path) -> None:
    with server(tmp_path, answer=ANSWER) as address, secured(tmp_path, login=f"ann:{PASSWORD}") as (proxy, way):
        with httpx.Client(transport=_connecting(presented(tmp_path, way))) as client:
            assert [client.get(f"https://{address}/").text for _ in range(2)] == ["ok", "ok"]
        assert proxy.asked == [address] * 2


def ready(address: str, way: Proxy, timeout_s: float) -> bool:
    """Whether gRPC has TLS with `address` by `way`."""
    credentials = grpc.ssl_channel_credentials(to_pem(ROOT))
    with grpc.secure_channel(address, credentials, grpc_options(way)) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout_s)
        except grpc.FutureTimeoutError:
            return False
    return True


def test_the_agency_is_reached_by_grpc_whatever_no_proxy_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`proxy_for` has judged NO_PROXY already; a setting in client.yaml stands above it."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with grpc_server(tmp_path) as address, secured(tmp_path, login=f"ann:{PASSWORD}") as (proxy, way):
        assert ready(address, way, 20)
        assert proxy.asked == [address]


@contextlib.contextmanager
def grpc_server(folder: Path) -> Iterator[str]:
    with server(folder):  # for its certificate
        pass
    pair = ((folder / "key").read_bytes(), (folder / "cert").read_bytes())
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as pool:
        running = grpc.server(pool)
        port = running.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([pair]))
        running.start()
        try:
            yield f"127.0.0.1:{port}"
        finally:
            running.stop(None).wait()


SEALED = """
import sys
from pathlib import Path
from sovfed.clients.node.sandbox import enter
name, home, address, root, setting = sys.argv[1:]
enter(name, Path(home), Path("/srv/records"))
from sovfed.federation.wire.proxy import proxy_for
from sovfed.federation.wire.reach import Pinned, look
look(address, Pinned(root), proxy_for(address, setting, Path(home)))
"""


@pytest.mark.parametrize("name", ["supernode", "gateway"])
def test_the_processes_that_go_out_reach_it_when_they_are_sealed(tmp_path: Path, name: str) -> None:
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    with server(tmp_path) as address, secured(tmp_path, login=f"ann:{PASSWORD}") as (proxy, way):
        keep_credentials(home, f"ann:{PASSWORD}")
        keep_roots(home, (tmp_path / "proxy-ca.pem").read_bytes())
        argv = [sys.executable, "-c", SEALED, name, str(home), address, to_pem(ROOT).decode(), way.setting]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=100, check=False)
        assert done.returncode == 0, done.stderr
        assert set(proxy.asked) == {address}


def problem(address: str, way: Proxy) -> UnreachableError:
    with pytest.raises(UnreachableError) as caught:
        look(address, PINNED, way, 5)
    return caught.value


def test_a_proxy_whose_certificate_does_not_hold_is_told_with_its_fix(tmp_path: Path) -> None:
    with secured(tmp_path) as (proxy, way):
        unknown = problem("127.0.0.1:9", Proxy(way.host, way.port, tls=Tls()))
        assert "its certificate does not hold here" in str(unknown) and "--proxy-ca" in unknown.fix
        assert not proxy.asked
    with secured(tmp_path, "proxy.example") as (_, way):
        other = problem("127.0.0.1:9", way)
        assert "127.0.0.1" in str(other) and "its name there must be 127.0.0.1" in other.fix


def test_a_proxy_that_is_asked_with_and_without_tls_the_wrong_way_round_is_told(tmp_path: Path) -> None:
    with secured(tmp_path) as (proxy, _):
        assert "whether it is https://" in problem("127.0.0.1:9", Proxy("127.0.0.1", proxy.port)).fix
    with connect_proxy() as proxy:
        _, roots = proxy_identity(tmp_path)
        assert "http://HOST:PORT" in problem("127.0.0.1:9", Proxy("127.0.0.1", proxy.port, tls=Tls(roots))).fix


def test_a_refusal_of_it_is_told_and_no_log_holds_the_password(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    with server(tmp_path) as address, secured(tmp_path, login=f"ann:{PASSWORD}") as (_, right):
        wrong = Proxy(right.host, right.port, "ann", f"{PASSWORD}-not", right.tls)
        refused = problem(address, wrong)
        assert "407" in str(refused) and "--proxy-login" in refused.fix
        transport = _connecting(presented(tmp_path, wrong))
        with httpx.Client(transport=transport) as client, pytest.raises(httpx.ConnectError, match="407") as caught:
            client.get(f"https://{address}/")
        assert f"the proxy {right.address}" in str(caught.value), "the proxy is named, not our listener"
        assert not ready(address, wrong, 1)
    near = bridged(wrong)
    said = f"{caplog.text}{''.join(capfd.readouterr())}{refused}{caught.value}{wrong!r}{near!r}"
    assert PASSWORD not in said and near.password not in said and wrong.login not in said


def test_a_proxy_that_is_gone_is_told_by_the_listener(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with secured(tmp_path) as (_, way):
        bridged(way)
    client = httpx.Client(transport=_connecting(presented_after(tmp_path, way)))
    with client, pytest.raises(httpx.ConnectError, match=str(UNREACHED)):
        client.get("https://127.0.0.1:9/")
    assert f"the proxy {way.address} is not reached over TLS" in caplog.text


def presented_after(folder: Path, way: Proxy) -> Presented:
    with server(folder):  # for its certificate
        return presented(folder, way)


@pytest.mark.parametrize(
    "asked",
    [
        b"CONNECT agency.example:443 HTTP/1.1\r\n\r\n",
        b"CONNECT agency.example:443 HTTP/1.1\r\nproxy-authorization: Basic c292ZmVkOg==\r\n\r\n",
        b"GET http://agency.example/ HTTP/1.1\r\n\r\n",
        b"CONNECT a\r\nb:1 HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01" + b"\0" * 70_000,
    ],
)
def test_a_stranger_on_this_machine_is_led_nowhere(tmp_path: Path, asked: bytes) -> None:
    with secured(tmp_path) as (proxy, way):
        near = bridged(way)
        with socket.create_connection((near.host, near.port), 5) as stranger:
            stranger.sendall(asked)
            stranger.shutdown(socket.SHUT_WR)
            with contextlib.suppress(ConnectionResetError):
                assert stranger.recv(100).startswith((b"HTTP/1.1 407", b""))
        with socket.create_connection((near.host, near.port), 5) as ours:
            ours.sendall(f"CONNECT 127.0.0.1:9 HTTP/1.0\r\nProxy-Authorization: {near.login}\r\n\r\n".encode())
            assert ours.recv(100) == b"", "the proxy hangs up, for nobody is there"
        assert proxy.asked == ["127.0.0.1:9"]


def test_without_a_file_the_systems_authorities_hold(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _, roots = proxy_identity(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(roots))
    subjects = [certificate["subject"] for certificate in Tls().context().get_ca_certs()]
    assert any("Network of the house" in str(subject) for subject in subjects)
    assert Tls().context().verify_mode is ssl.CERT_REQUIRED and Tls().context().check_hostname
