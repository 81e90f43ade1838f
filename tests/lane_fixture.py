"""A relay with real certificates on free ports, gateways, a base Grid, and a proxy that cuts connections."""

from __future__ import annotations

import asyncio
import hashlib
import queue
import time
import uuid
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import grpc
import numpy as np
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Context, RecordDict
from flwr.app import Message as FlowerMessage
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp.grid import Grid
from flwr.supercore.run import Run

from sovfed.clients.node.app import make_client_app
from sovfed.clients.node.lane import LaneClient
from sovfed.federation.certificates import (
    InstitutionNames,
    ServerNames,
    create_csr,
    create_key,
    create_root,
    key_to_pem,
    make_crl,
    sign_csr,
    to_pem,
)
from sovfed.federation.files import write_private
from sovfed.federation.identity import Trust, node_key_bytes
from sovfed.federation.messages import LaneOffer, ProfileReply, Reply, Request, TrainReply, TrainRequest
from sovfed.federation.secagg.files import load_identity
from sovfed.federation.wire.flower import TTL_S
from sovfed.federation.wire.lane_end import SERVICE, SESSION_KEY, LoopThread
from sovfed.federation.wire.lane_offer import make_offer
from sovfed.server.network.lane import SERVER_OPTIONS, Relay, add_lane

RUN_ID = 4711
MAX_BYTES = 64 << 20
T = TypeVar("T")


class Authority:
    """A root that writes identity folders."""

    def __init__(self, now: datetime) -> None:
        self.now, self.number = now, 0
        self.key, self.root = create_root("Test Authority", now)

    def write(self, home: Path, names: InstitutionNames | ServerNames) -> x509.Certificate:
        """A fresh identity for `names` in `home`/identity."""
        identity = home / "identity"
        identity.mkdir(parents=True, mode=0o700, exist_ok=True)
        key = create_key()
        csr = to_pem(create_csr(key, names))
        certificate = sign_csr(self.key, self.root, csr, self.now, 30)
        (identity / "root.pem").write_bytes(to_pem(self.root))
        (identity / "cert.pem").write_bytes(to_pem(certificate))
        write_private(identity / "key.pem", key_to_pem(key))
        self.revoke(home)
        return certificate

    def load(self, home: Path) -> x509.Certificate:
        return x509.load_pem_x509_certificate((home / "identity" / "cert.pem").read_bytes())

    def revoke(self, home: Path, *serials: int) -> None:
        """A new revocation list in `home`/identity."""
        self.number += 1
        crl = make_crl(self.key, self.root, [(serial, self.now) for serial in serials], self.number, self.now, 7)
        part = home / "identity" / "crl.part"
        part.write_bytes(to_pem(crl))
        part.replace(home / "identity" / "crl.pem")


class Cutter:
    """A TCP or Unix-socket proxy that cuts a connection after a number of bytes, or passes nothing on for a while."""

    def __init__(self, open_target: Callable[[], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]) -> None:
        self._open_target = open_target
        self.cut_after: int | None = None
        self.passed = self.cuts = 0
        self.flowing = asyncio.Event()
        self.flowing.set()
        self._writers: set[asyncio.StreamWriter] = set()

    async def serve(self, path: Path | None = None) -> str:
        if path is not None:
            self._server = await asyncio.start_unix_server(self._accept, path)
            return str(path)
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await self._open_target()
        except OSError:
            writer.close()
            return
        pair = {writer, far_writer}
        self._writers |= pair
        await asyncio.gather(self._pass(reader, far_writer, pair), self._pass(far_reader, writer, pair))
        self._writers -= pair

    async def _pass(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, pair: set[asyncio.StreamWriter]
    ) -> None:
        try:
            while data := await reader.read(1 << 16):
                self.passed += len(data)
                await self.flowing.wait()
                if self.cut_after is not None and self.passed > self.cut_after:
                    self.cut_after = None
                    self.cuts += 1
                    break
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        for each in pair:
            each.transport.abort()

    async def close(self) -> None:
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()


def open_call(channel: grpc.Channel, method: str, outgoing: Iterator[bytes], *metadata: tuple[str, str]) -> Any:
    """A bidirectional call of the lane's service, from synchronous code."""
    call: grpc.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(f"/{SERVICE}/{method}")
    return call(outgoing, metadata=metadata)


class Stream:
    """One bidirectional call, driven from a test."""

    def __init__(self, channel: grpc.Channel, method: str, *metadata: tuple[str, str]) -> None:
        self.outgoing: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self.call = open_call(channel, method, iter(self.outgoing.get, None), *metadata)

    def send(self, data: bytes | None) -> None:
        """Send `data`; None ends this side of the stream."""
        self.outgoing.put(data)

    def receive(self) -> bytes:
        data = next(self.call)
        assert isinstance(data, bytes)
        return data

    def code(self) -> grpc.StatusCode:
        """The status that the call ends with."""
        try:
            next(self.call)
        except StopIteration:
            return grpc.StatusCode.OK
        except grpc.RpcError:
            code = self.call.code()
            assert isinstance(code, grpc.StatusCode)
            return code
        raise AssertionError("a frame came where the end was expected")

    def session(self) -> str:
        return str(dict(self.call.initial_metadata())[SESSION_KEY])


class Trainer:
    """Answers a training request with the model plus one, and counts what it was asked."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.delay_s = 0.0
        self.fail: Exception | None = None

    def answer(self, request: Request) -> Reply:
        if self.fail is not None:
            raise self.fail
        time.sleep(self.delay_s)
        if isinstance(request, TrainRequest):
            self.asked.append(request.round)
            return TrainReply(request.round, 10, 0.0, 0.5, request.model + 1, np.zeros(3))
        return ProfileReply(np.zeros(3))


@dataclass
class Gateway:
    """One institution: its folder, node, trainer and lane client."""

    home: Path
    node: NodeInfo
    trainer: Trainer = field(default_factory=Trainer)
    lane: LaneClient | None = None

    def start(self, **options: object) -> None:
        app = make_client_app(
            self.trainer, lambda offer, context: self.lane is not None and self.lane.open(offer, context)
        )
        self.app = app
        self.lane = LaneClient(self.home, app, max_message_bytes=MAX_BYTES, **options)  # type: ignore[arg-type]

    def stop(self) -> None:
        if self.lane is not None:
            self.lane.close()
            self.lane = None

    def context(self) -> Context:
        return Context(RUN_ID, int(self.node.node_id), {}, RecordDict(), {})


class DirectGrid(Grid):
    """Flower's Grid as far as the lane's offers need it: hands each message to the node's ClientApp at once."""

    def __init__(self, gateways: Iterable[Gateway]) -> None:
        self.gateways = {int(gateway.node.node_id): gateway for gateway in gateways}
        self.pushed: list[FlowerMessage] = []
        self._answers: dict[str, FlowerMessage] = {}
        self._run = Run.create_empty(RUN_ID)

    def set_run(self, run: Run) -> None:
        self._run = run

    @property
    def run(self) -> Run:
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> FlowerMessage:
        return FlowerMessage(content, dst_node_id, message_type, ttl=ttl or TTL_S, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        return [node.node_id for node in self.get_nodes()]

    def get_nodes(self) -> Iterable[NodeInfo]:
        return [gateway.node for gateway in self.gateways.values() if gateway.lane is not None]

    def push_messages(self, messages: Iterable[FlowerMessage]) -> Iterable[str]:
        ids = []
        for message in messages:
            self.pushed.append(message)
            ids.append(uuid.uuid4().hex)
            message.metadata.__dict__["_message_id"] = ids[-1]
            gateway = self.gateways[message.metadata.dst_node_id]
            if gateway.lane is not None:
                self._answers[ids[-1]] = gateway.app(message, gateway.context())
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[FlowerMessage]:
        return [self._answers.pop(message_id) for message_id in message_ids if message_id in self._answers]

    def send_and_receive(
        self, messages: Iterable[FlowerMessage], *, timeout: float | None = None
    ) -> Iterable[FlowerMessage]:
        return self.pull_messages(self.push_messages(messages))


class Agency:
    """The relay in an event loop of its own, with its two endpoints and institutions that trust it."""

    def __init__(self, folder: Path, nodes: int = 4) -> None:
        self.folder = folder
        self.authority = Authority(datetime.now(UTC))
        self.home = folder / "agency"
        self.authority.write(self.home, ServerNames(("127.0.0.1",)))
        self.signer = load_identity(self.home / "identity")
        self.gateways = [self.enrol(index) for index in range(nodes)]
        self.loop = LoopThread("relay")
        self.address = ""
        self.start()

    def enrol(self, index: int) -> Gateway:
        public = node_key_bytes(ec.generate_private_key(ec.SECP384R1()).public_key())
        home = self.folder / f"hospital-{index}"
        self.authority.write(home, InstitutionNames(f"hospital-{index}", hashlib.sha256(public).hexdigest()))
        return Gateway(home, NodeInfo(node_id=2**63 + index, public_key=public, name=f"hospital-{index}"))

    def offer(self, gateway: Gateway, token: str, address: str = "", **changes: Any) -> LaneOffer:
        """The agency's offer to `gateway` in run r1; `changes` are to what it signs."""
        signed: dict[str, Any] = {
            "run": "r1", "run_id": RUN_ID, "node_id": int(gateway.node.node_id), "address": address or self.address,
            "token": token, "now": time.time(),
        }  # fmt: skip
        return make_offer(changes.pop("identity", self.signer), **{**signed, **changes})

    def start(self) -> None:
        self.relay: Relay = self.call(self._start())

    async def _start(self) -> Relay:
        identity = self.home / "identity"
        self.tls, self.uds = grpc.aio.server(options=SERVER_OPTIONS), grpc.aio.server(options=SERVER_OPTIONS)
        relay = add_lane(self.tls, self.uds, Trust(identity), grace_s=1.0, recheck_s=0.2)
        pair = ((identity / "key.pem").read_bytes(), (identity / "cert.pem").read_bytes())
        credentials = grpc.ssl_server_credentials(
            [pair], (identity / "root.pem").read_bytes(), require_client_auth=True
        )
        port = self.address.rpartition(":")[2] or "0"
        self.address = f"127.0.0.1:{self.tls.add_secure_port(f'127.0.0.1:{port}', credentials)}"
        self.uds.add_insecure_port(f"unix:{self.home / 'lane.sock'}")
        await self.tls.start()
        await self.uds.start()
        return relay

    def stop(self) -> None:
        """The registry's process is gone, and with it the relay's memory."""

        async def stop() -> None:
            await asyncio.gather(self.tls.stop(None), self.uds.stop(None))

        self.call(stop())

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of `work` on the relay's event loop."""
        return asyncio.run_coroutine_threadsafe(work, self.loop.loop).result(20)

    def close(self) -> None:
        for gateway in self.gateways:
            gateway.stop()
        self.stop()
        self.loop.close()


@contextmanager
def agency(folder: Path, nodes: int = 4) -> Iterator[Agency]:
    found = Agency(folder, nodes)
    try:
        yield found
    finally:
        found.close()


def wait_until(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    """Return as soon as `condition` holds; AssertionError after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come to hold in time"
        time.sleep(0.01)
