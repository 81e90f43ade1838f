"""The patch point in Flower's HTTP client: where header and certificate go, and where they do not."""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import ModuleType

import httpx
import pytest
from flwr.proto.runtime_pb2 import AcquireTaskRequest
from flwr.supercore.runtime import RuntimeHttpClient

from sovfed.federation.errors import IdentityError, ProtocolError, ServiceError
from sovfed.federation.wire import flower_http
from sovfed.federation.wire.flower_http import Presented, add_client_header, shorten_sleeps, use_client_certificate


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    yield
    flower_http._headers.clear()
    flower_http._presented.clear()


@pytest.fixture
def listener() -> Iterator[tuple[str, list[dict[str, str]]]]:
    """A real HTTP server: its address, and the headers of the requests that it has got."""
    got: list[dict[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append({name.lower(): value for name, value in self.headers.items()})
            self.send_response(307 if self.path.endswith("acquire-task") and len(got) == 1 else 200)
            self.send_header("location", f"http://127.0.0.2:{server.server_port}/elsewhere")
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield f"127.0.0.1:{server.server_port}", got
        server.shutdown()
        thread.join()


def _call(address: str) -> None:
    with RuntimeHttpClient.from_server_address(address, True, None, []) as client:
        client.AcquireTask(AcquireTaskRequest())


def test_header_goes_to_the_loopback_and_does_not_follow_a_redirect(
    listener: tuple[str, list[dict[str, str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    address, got = listener
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")  # a proxy would see the secret; it must not be asked
    add_client_header("x-test-secret", "s3cret")
    with pytest.raises(httpx.HTTPStatusError, match="307"):
        _call(address)
    assert [headers["x-test-secret"] for headers in got] == ["s3cret"]


def test_header_for_one_listener_is_not_shown_to_another(listener: tuple[str, list[dict[str, str]]]) -> None:
    address, got = listener
    add_client_header("x-test-secret", "s3cret", "127.0.0.1:1")
    with pytest.raises(httpx.HTTPStatusError, match="307"):
        _call(address)
    assert "x-test-secret" not in got[0]


@pytest.mark.parametrize(
    "url", ["http://10.0.0.1:80", "http://localhost:80", "https://127.0.0.1:80", "http://example.org"]
)
def test_header_goes_nowhere_but_plain_loopback(url: str) -> None:
    add_client_header("x-test-secret", "s3cret")
    assert flower_http._headers_for(url) == {}


def test_certificate_is_not_shown_where_the_root_is_not_pinned(tmp_path: Path) -> None:
    use_client_certificate(Presented(tmp_path / "cert.pem", tmp_path / "key.pem", tmp_path / "root.pem"))
    with pytest.raises(IdentityError, match="not pinned"):
        RuntimeHttpClient("https://example.org")
    with RuntimeHttpClient("http://127.0.0.1:1"):  # no TLS, no certificate
        pass


def test_unusable_certificate_is_refused(tmp_path: Path) -> None:
    use_client_certificate(Presented(tmp_path / "cert.pem", tmp_path / "key.pem", tmp_path / "root.pem"))
    with pytest.raises(IdentityError, match="cannot be used"):
        RuntimeHttpClient("https://127.0.0.1:1", verify=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))


@pytest.mark.parametrize(
    "headers", [{}, {"content-length": str(2**40)}, {"content-length": "10", "content-encoding": "gzip"},
                {"content-length": "-1"}, {"transfer-encoding": "chunked"}],
)  # fmt: skip
def test_response_without_a_small_stated_length_is_refused_before_it_is_read(headers: dict[str, str]) -> None:
    response = httpx.Response(200, headers=headers, request=httpx.Request("POST", "https://agency.example/v1"))
    with pytest.raises(ProtocolError, match="a response of"):
        flower_http.refuse_unbounded(response)


def test_response_of_a_chunk_passes() -> None:
    flower_http.refuse_unbounded(httpx.Response(200, headers={"content-length": str(5 * 2**20)}))


def test_only_the_named_sleeps_of_the_named_module_change() -> None:
    module = ModuleType("sleeper")
    vars(module)["time"] = time
    pauses = iter([0.0, 0.0])
    shorten_sleeps(module, {3: 0.01, 60.0: lambda: next(pauses)})
    start = time.monotonic()
    module.time.sleep(3)
    module.time.sleep(60)
    assert time.monotonic() - start < 1
    assert next(pauses) == 0.0
    assert module.time.monotonic is time.monotonic
    assert time.sleep.__module__ == "time"


def test_module_that_sleeps_otherwise_is_refused() -> None:
    with pytest.raises(ServiceError, match=r"Flower 1\.42"):
        shorten_sleeps(ModuleType("sleeper"), {3: 0.2})
