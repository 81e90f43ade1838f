"""The guard on a server of its own: who may open a stream, and that no error text gets out."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from tests.enrolment_fixture import Agency, make_agency

from sovfed.federation.certificates import InstitutionNames, create_csr, create_key, key_to_pem, to_pem
from sovfed.federation.files import read_private
from sovfed.federation.identity import Trust
from sovfed.server.network.guard import FAILED, MAX_SOURCES, REFUSED, Guard, Hall, RateLimit
from sovfed.server.registry import authority


@pytest.fixture
def agency(tmp_path: Path) -> Agency:
    return make_agency(tmp_path)


class Service:
    """`/t.T/Echo` (stream) and `/t.T/Fail` (stream) behind a guard, over mutual TLS."""

    def __init__(self, agency: Agency) -> None:
        self.identity = agency.home / "identity"
        self.ended = asyncio.Event()
        key = create_key()
        csr = to_pem(create_csr(key, InstitutionNames("hospital-1", "ab" * 32)))
        self.pair = (key_to_pem(key), authority.sign(agency.authority, csr))

    async def echo(self, _: Any, context: Any) -> None:
        try:
            while isinstance(frame := await context.read(), bytes):
                await context.write(frame)
        finally:
            self.ended.set()

    async def late(self, _: Any, context: Any) -> None:
        """Aborts a call that its client has left."""
        while isinstance(await context.read(), bytes):
            pass
        try:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the other side left")
        finally:
            self.ended.set()

    async def fail(self, _: Any, context: Any) -> None:
        await context.read()
        raise ValueError("Mr Smith, born 1950")

    async def use(self, client: Callable[[Any], Awaitable[None]]) -> None:
        """Serve while `client` uses a channel to us."""
        server = grpc.aio.server(interceptors=(Guard(trust=Trust(self.identity)),))
        behaviours = {"Echo": self.echo, "Fail": self.fail, "Late": self.late}
        handlers: dict[str, Any] = {
            name: grpc.stream_stream_rpc_method_handler(handler) for name, handler in behaviours.items()
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("t.T", handlers),))
        root = (self.identity / "root.pem").read_bytes()
        own = (read_private(self.identity / "key.pem"), (self.identity / "cert.pem").read_bytes())
        port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([own], root, require_client_auth=True))
        await server.start()
        try:
            credentials = grpc.ssl_channel_credentials(root, *self.pair)
            options = (("grpc.enable_http_proxy", 0),)
            async with grpc.aio.secure_channel(f"127.0.0.1:{port}", credentials, options) as channel:
                await asyncio.wait_for(client(channel), 20)
        finally:
            await server.stop(0)


def test_a_stream_is_judged_when_it_opens(agency: Agency) -> None:
    async def client(channel: Any) -> None:
        stream = channel.stream_stream("/t.T/Echo")()
        await stream.write(b"1")
        assert await stream.read() == b"1"
        agency.publish_crl(authority.revoke(agency.authority, "hospital-1"))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.stream_stream("/t.T/Echo")().read()
        assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.PERMISSION_DENIED, REFUSED)
        stream.cancel()
        await asyncio.wait_for(service.ended.wait(), 5)  # a stream that its client leaves ends its handler

    service = Service(agency)
    asyncio.run(service.use(client))


def test_the_text_of_an_error_does_not_cross_the_wire(agency: Agency, caplog: pytest.LogCaptureFixture) -> None:
    async def client(channel: Any) -> None:
        stream = channel.stream_stream("/t.T/Fail")()
        await stream.write(b"1")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stream.read()
        assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.INTERNAL, FAILED)
        assert "Smith" not in str(caught.value.debug_error_string())

    asyncio.run(Service(agency).use(client))
    assert "Mr Smith" in caplog.text, "our own log keeps it"


def test_an_abort_that_comes_too_late_leaves_no_traceback(agency: Agency, caplog: pytest.LogCaptureFixture) -> None:
    async def client(channel: Any) -> None:
        stream = channel.stream_stream("/t.T/Late")()
        await stream.write(b"1")
        await asyncio.sleep(0.1)
        stream.cancel()
        await asyncio.wait_for(service.ended.wait(), 5)

    service = Service(agency)
    with caplog.at_level("INFO"):
        asyncio.run(service.use(client))
    assert "/t.T/Late: the peer is gone" in caplog.text
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_an_unknown_method_is_answered_as_such(agency: Agency) -> None:
    async def client(channel: Any) -> None:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary("/t.T/Nothing")(b"")
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED

    asyncio.run(Service(agency).use(client))


def test_over_its_limit_an_address_loses_its_own_oldest_call() -> None:
    async def play() -> list[str]:
        hall, ended = Hall(2), list[str]()

        async def wait(source: str, name: str) -> None:
            try:
                async with asyncio.timeout(30) as patience:
                    with hall.wait(source, patience):
                        await asyncio.sleep(30)
            except TimeoutError:
                ended.append(name)

        calls = []
        for source, name in (("b", "other"), ("a", "1"), ("a", "2"), ("a", "3"), ("a", "4")):
            calls.append(asyncio.create_task(wait(source, name)))
            await asyncio.sleep(0.01)
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        assert not hall._waiting
        return ended

    assert asyncio.run(play()) == ["1", "2"]


def test_the_rate_limit_refills_and_keeps_addresses_apart() -> None:
    now = [0.0]
    limit = RateLimit(2.0, 3, lambda: now[0])
    assert [limit.allow("a") for _ in range(4)] == [True, True, True, False]
    assert limit.allow("b")
    now[0] = 0.5
    assert [limit.allow("a") for _ in range(2)] == [True, False]
    now[0] = 100.0
    assert [limit.allow("a") for _ in range(4)] == [True, True, True, False]


def test_the_rate_limit_remembers_a_bounded_number_of_addresses() -> None:
    limit = RateLimit(1.0, 1, lambda: 0.0)
    assert all(limit.allow(str(source)) for source in range(2 * MAX_SOURCES))
    assert not limit.allow(str(2 * MAX_SOURCES - 1)), "the newest are remembered"
    assert limit.allow("0"), "the oldest are forgotten"
