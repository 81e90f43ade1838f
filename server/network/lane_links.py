"""The coordinator's streams to the relay: registers the run, offers nodes the lane, keeps their streams open."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import secrets
import threading
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Final, Protocol

import grpc
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp.grid import Grid

from sovfed.federation.errors import AwayError, ProtocolError, ServiceError
from sovfed.federation.messages import LaneOffer, LaneReply
from sovfed.federation.secagg.keys import Identity
from sovfed.federation.wire.flower import from_records, new_message, to_records
from sovfed.federation.wire.lane_end import (
    ATTACH,
    CHANNEL_OPTIONS,
    CONTROL,
    NODE_KEY,
    RUN_KEY,
    LaneEnd,
    LoopThread,
    open_stream,
    session_number,
)
from sovfed.federation.wire.lane_offer import make_offer
from sovfed.federation.wire.lane_pb2 import LaneNode, LaneRun, LaneRunReply
from sovfed.server.network.link import Link, next_offers
from sovfed.server.network.presence import Awaited, Presence
from sovfed.server.network.uploads import Uploads

log = logging.getLogger(__name__)
GRACE_S: Final = 2.0  # a stream that is gone for longer gets a fresh offer
MAX_OFFERED: Final = 4096  # offers whose reply is still looked for
EACH_S: Final = 1.0  # more time for all to join, for each node
LOST_NODES_S, NEW_NODES_S = 1.0, 5.0  # how often to look which nodes are online: when one is lost, and otherwise
POLL_S: Final = (0.02, 0.5)  # between looks at who has joined
COLLECT_S: Final = (0.5, 5.0)  # between looks for replies, by which only those that decline are known; longer for many
RECONNECT_S: Final = (0.02, 0.5)  # pauses before a broken stream to the relay is opened again
JOIN_S: Final = 2.0  # longest wait for the relay to end a run


class Receiver(Protocol):
    """Who takes the messages: the StreamGrid."""

    def deliver(self, link: Link, end: LaneEnd, data: memoryview) -> None: ...

    def expire(self) -> None: ...


class Links:
    """All lanes of one run. Streams live on an event loop's thread, offers on a thread that alone talks to `base`."""

    def __init__(
        self,
        base: Grid,
        receiver: Receiver,
        *,
        run_id: int,
        run: str,
        identity: Identity,
        socket: Path,
        address: str,
        nodes: Sequence[NodeInfo],
        max_message_bytes: int,
        offer_timeout_s: float,
        awaited: Awaited,
        folder: Path | None = None,
    ) -> None:
        """Long replies that find no memory are kept in `folder`."""
        self._base, self._receiver, self._run_id, self._run = base, receiver, run_id, run
        self._socket, self._address, self._identity = socket, address, identity
        self._max_message_bytes, self._offer_timeout_s = max_message_bytes, offer_timeout_s
        self._links = {int(node.node_id): Link(node) for node in nodes}
        self._wanted, self._patience_s = awaited.wanted, awaited.patience_s
        self._expected, self._on_presence, self._is_asked = awaited.expected, awaited.on_change, awaited.asked
        self._opened_at, self._told = time.time(), Presence(0, 0, {})
        self._online = set(self._links)
        self._joined, self._joined_at = 0, float("-inf")  # how many are there, and when (monotonic) one was more
        self._offered: dict[str, Link] = {}  # by message id: offers not answered yet
        self._owner = secrets.token_bytes(32)
        self._control: grpc.aio.StreamStreamCall[bytes, bytes] | None = None
        self._turn = asyncio.Lock()
        self._registered, self._stop = threading.Event(), threading.Event()
        self._thread = LoopThread("lane")
        self._uploads = Uploads(folder, self._thread.loop)
        self._offers = threading.Thread(target=self._keep_offering, name="lane-offers", daemon=True)

    def open(self) -> None:
        """Register the run, offer the lane, and wait for the nodes. Raises ServiceError if none joins in time.

        Those that are known have `offer_timeout_s`, and more the more they are; `wanted` nodes are waited for until
        `patience_s`, whether they are known yet or not.
        """
        started = time.monotonic()
        asyncio.run_coroutine_threadsafe(self._keep_control(), self._thread.loop)
        if not self._registered.wait(self._offer_timeout_s):
            raise AwayError(f"no lane relay answers at {self._socket}")
        self._offers.start()
        while not self._all_there(time.monotonic() - started):
            self._stop.wait(0.02)
        presence = self.presence()
        if not any(link.connected for link in self._all()):
            passed = time.monotonic() - started
            raise ServiceError(f"none of {len(self._links)} nodes joined the lane within {passed:.0f} s")
        log.log(logging.WARNING if presence.missing else logging.INFO, "the lane is open: %s", presence.sentence())
        self._tell()

    def _all_there(self, passed_s: float) -> bool:
        """Whether it need not be waited any longer for nodes to join."""
        links = self._asked()
        joined = sum(link.connected for link in links)
        if joined < self._wanted and passed_s < self._patience_s:
            return False
        all_asked = all(link.connected or link.declined for link in links)
        return all_asked or passed_s >= self._offer_timeout_s + EACH_S * len(links)

    def presence(self) -> Presence:
        """Who has joined, and who is missing since when."""
        now, links = time.monotonic(), self._asked()
        gone = {link.info.name: link.missing_since for link in links if link.lost_for(now) >= GRACE_S}
        joined = len(links) - len(gone)
        if joined + len(gone) < self._wanted:  # of those that are enrolled, who has not been seen at all
            seen = {link.info.name for link in links}
            gone |= {name: self._opened_at for name in self._expected if name not in seen}
        return Presence(joined, max(self._wanted, len(links)), gone)

    def _tell(self) -> None:
        presence = self.presence()
        if presence != self._told:
            self._told = presence
            self._on_presence(presence)

    def get(self, node_id: int) -> Link | None:
        """The lane of `node_id`, if it was ever offered."""
        link = self._links.get(node_id)
        return link if link is not None and link.end is not None else None

    def flush(self) -> None:
        """Send what was given to any `Link.send`: to wake the loop's thread costs more than a short message."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: so is the lane
            self._thread.loop.call_soon_threadsafe(self._wake_all)

    def _wake_all(self) -> None:
        for link in self._all():
            if link.end is not None:
                link.end.wake()

    def present(self) -> list[NodeInfo]:
        """The nodes whose stream is up, or broke less than GRACE_S ago."""
        now = time.monotonic()
        return [link.info for link in self._all() if link.lost_for(now) < GRACE_S]

    def close(self) -> None:
        """End the run at the relay, and our threads. Messages not answered are forgotten."""
        if self._stop.is_set():
            return
        self._stop.set()
        asyncio.run_coroutine_threadsafe(self._end_run(), self._thread.loop).result()
        if self._offers.is_alive():
            self._offers.join(JOIN_S)
        self._thread.close()

    def _all(self) -> list[Link]:
        return list(self._links.values())

    def _asked(self) -> list[Link]:
        """Those whom the run is for."""
        return [link for link in self._all() if self._is_asked(link.info.name)]

    # On the event loop's thread.

    def _channel(self) -> grpc.aio.Channel:
        return grpc.aio.insecure_channel(f"unix:{self._socket}", options=CHANNEL_OPTIONS)

    async def _keep_control(self) -> None:
        """Hold the control stream open; a relay that has lost its memory makes every node due for a fresh offer."""
        while not self._stop.is_set():
            try:
                async with self._channel() as channel:
                    self._control = open_stream(channel, CONTROL)
                    if not await self._register([]):
                        for link in self._all():
                            link.lost_at = link.offered_at = float("-inf")
                    self._registered.set()
                    await self._control.code()
            except (grpc.RpcError, ServiceError, asyncio.InvalidStateError) as error:
                log.debug("lane control: %s", error)
            self._control = None
            await asyncio.sleep(RECONNECT_S[0])

    async def _register(self, nodes: list[LaneNode], over: bool = False) -> bool:
        """Tell the relay of the run and of `nodes`; whether it still held the run."""
        async with self._turn:
            if self._control is None:
                raise ServiceError("the lane's relay is away")
            request = LaneRun(run=self._run, owner=self._owner, nodes=nodes, over=over)
            await self._control.write(request.SerializeToString())
            reply = await self._control.read()
        if not isinstance(reply, bytes):
            raise ServiceError("the lane's relay ended the control stream")
        return LaneRunReply.FromString(reply).known

    async def _end_run(self) -> None:
        with contextlib.suppress(TimeoutError, ServiceError, grpc.RpcError, asyncio.InvalidStateError):
            await asyncio.wait_for(self._register([], over=True), JOIN_S)

    async def _begin(self, links: Sequence[Link]) -> list[str]:
        """The tokens to offer: of a new session with each of `links`, or of one that it has not begun yet."""
        waiting = [link.untaken for link in links]
        tokens = [link.token if link.untaken else secrets.token_urlsafe(32) for link in links]
        await self._register(
            [
                LaneNode(
                    node_id=link.node_id,
                    node_key_digest=hashlib.sha256(link.info.public_key).hexdigest(),
                    token_sha256=hashlib.sha256(token.encode()).digest(),
                )
                for link, token in zip(links, tokens, strict=True)
            ]
        )
        for link, token, goes_on in zip(links, tokens, waiting, strict=True):
            link.offered_at, link.declined = time.monotonic(), False
            link.offers += 1
            if goes_on:
                continue
            if link.task is not None:
                link.task.cancel()
            link.token = token
            end = LaneEnd(
                session_number(token),
                self._max_message_bytes,
                partial(self._receiver.deliver, link),
                asyncio.get_running_loop(),
                self._uploads.plot,
            )
            link.renew(end)
            link.task = asyncio.create_task(self._keep_stream(link, end))
        return tokens

    async def _keep_stream(self, link: Link, end: LaneEnd) -> None:
        """Carry the session's messages over one stream after another."""
        metadata = ((RUN_KEY, self._run), (NODE_KEY, str(link.node_id)))
        pause = RECONNECT_S[0]
        while True:
            met = end.streams
            try:
                async with self._channel() as channel:
                    await end.pump(open_stream(channel, ATTACH, *metadata))
            except (grpc.RpcError, asyncio.InvalidStateError) as error:
                log.debug("node %d: stream broken: %s", link.node_id, error)
            except OSError as error:  # the disk is full: the same bytes are sent again
                log.warning("node %d: an upload cannot be kept: %s", link.node_id, error)
            except ProtocolError as error:
                log.warning("node %d: stream ended: %s", link.node_id, error)
            if end.streams > met:
                link.lost_at, link.offers, pause = time.monotonic(), 0, RECONNECT_S[0]
                link.missing_since = time.time()
            await asyncio.sleep(pause)
            pause = min(2 * pause, RECONNECT_S[1])

    # On the offers' thread.

    def _keep_offering(self) -> None:
        looked, collected, pause = time.monotonic(), time.monotonic(), POLL_S[0]
        while not self._stop.wait(pause):
            try:
                now = time.monotonic()
                self._note_joined(now)
                gone = [link for link in self._all() if link.lost_for(now) >= GRACE_S]
                if now - looked > (LOST_NODES_S if gone else NEW_NODES_S):
                    looked = now
                    self._look_for_nodes()
                online = [link for link in gone if link.node_id in self._online]
                if offered := next_offers(online, now, self._joined_at):
                    self._offer(offered)
                    pause = POLL_S[0]
                else:
                    pause = min(1.5 * pause, POLL_S[1])
                self._offered = {name: link for name, link in self._offered.items() if not link.connected}
                if self._offered and now - collected > min(COLLECT_S[0] * (1 + len(self._links) / 16), COLLECT_S[1]):
                    collected = now
                    self._collect()
                self._receiver.expire()
                self._tell()
            except Exception:  # Flower's Grid raises its transport's own errors; the lane outlives a SuperLink restart
                log.warning("offering the lane failed; trying again", exc_info=True)
                pause = POLL_S[1]

    def _note_joined(self, now: float) -> None:
        joined = sum(link.connected for link in self._all())
        if joined > self._joined:
            self._joined_at = now
        self._joined = joined

    def _look_for_nodes(self) -> None:
        nodes = {int(node.node_id): node for node in self._base.get_nodes()}
        for node_id, node in nodes.items():
            if node_id not in self._links:
                self._links[node_id] = Link(node)
        self._online = set(nodes)

    def _offer(self, links: Sequence[Link]) -> None:
        tokens = asyncio.run_coroutine_threadsafe(self._begin(links), self._thread.loop).result()
        messages = [
            new_message(
                to_records(self._make_offer(link.node_id, token)),
                run_id=self._run_id, node_id=link.node_id, kind="query.lane", group="lane",
            )
            for link, token in zip(links, tokens, strict=True)
        ]  # fmt: skip
        self._offered |= dict(zip(self._base.push_messages(messages), links, strict=True))
        while len(self._offered) > MAX_OFFERED:
            del self._offered[next(iter(self._offered))]

    def _make_offer(self, node_id: int, token: str) -> LaneOffer:
        return make_offer(
            self._identity, run=self._run, run_id=self._run_id, node_id=node_id, address=self._address, token=token,
            now=time.time(),
        )  # fmt: skip

    def _collect(self) -> None:
        """Note which nodes answered that they will not join."""
        for reply in self._base.pull_messages(list(self._offered)):
            link = self._offered.pop(reply.metadata.reply_to_message_id, None)
            if link is None:
                continue
            try:
                answer = from_records(reply.content) if reply.has_content() else None
            except ProtocolError:
                answer = None
            link.declined = not (isinstance(answer, LaneReply) and answer.accepted)
            if link.declined:
                log.warning("node %d does not join the lane", link.node_id)
