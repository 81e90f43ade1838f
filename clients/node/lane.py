"""The institution's end of the lane: one outbound stream per run, answered by the installed ClientApp alone."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from typing import Final

import grpc
from flwr.app import Context
from flwr.app import Message as FlowerMessage
from flwr.common.constant import ErrorCode

from sovfed.federation.errors import WIRE_SENTENCES, IdentityError, ProtocolError
from sovfed.federation.identity import Trust, read_pair
from sovfed.federation.messages import LaneOffer
from sovfed.federation.stored import Plot, in_memory
from sovfed.federation.wire.bridge import grpc_options
from sovfed.federation.wire.flower import SERVER_NODE_ID
from sovfed.federation.wire.lane import Outgoing
from sovfed.federation.wire.lane_codec import error_reply, pack, shift_of, unpack
from sovfed.federation.wire.lane_end import (
    BACK_OFF_S,
    FAR,
    JOIN,
    NODE_KEY,
    RUN_KEY,
    SESSION_KEY,
    STREAM_OPTIONS,
    TOKEN_KEY,
    LaneEnd,
    LoopThread,
    open_stream,
    session_number,
)
from sovfed.federation.wire.lane_offer import check_offer
from sovfed.federation.wire.proxy import DIRECT, proxy_for

log = logging.getLogger(__name__)
App = Callable[[FlowerMessage, Context], FlowerMessage]
MAX_LANES: Final = 16
LOOK_S: Final = 5.0  # for a renewed certificate
MAX_REMEMBERED: Final = 1024  # runs whose newest offer is known; older offers than that have lapsed
REPLIES_HELD: Final = 1  # replies that may wait for the coordinator before the next message is worked on
FULL_S: Final = 0.01  # between looks whether fewer wait


class LaneClient:
    """Opens a lane for each offer and answers its messages with `app`, one at a time per run.

    The server is verified against `identity/root.pem` by the names in its certificate; `identity/cert.pem` and
    `key.pem` are presented. With `address`, offers that name any other place are declined. `proxy` is `client.proxy`.
    """

    def __init__(
        self, home: Path, app: App, max_message_bytes: int, *, address: str | None = None, proxy: str | None = DIRECT
    ) -> None:
        self._home, self._identity, self._app, self._proxy = home, home / "identity", app, proxy
        self._max_message_bytes, self._address = max_message_bytes, address
        self._lanes: dict[str, asyncio.Task[None]] = {}
        self._tokens: dict[str, str] = {}  # of the offers that these take up
        self._newest: OrderedDict[str, int] = OrderedDict()  # run → when the newest offer taken was issued, ms
        self._thread = LoopThread("lane")

    def open(self, offer: LaneOffer, context: Context) -> bool:
        """Join the run's lane in the background, in place of an older session of the same run; whether it was
        accepted. An offer that the agency has not signed, for this run and node and a moment ago, changes nothing.
        """
        if self._address is not None and offer.address != self._address:
            log.warning("lane: declined an offer to connect to %s, only %s is allowed", offer.address, self._address)
            return False
        try:
            check_offer(offer, Trust(self._identity), run_id=context.run_id, node_id=context.node_id, now=time.time())
        except IdentityError as error:
            log.warning("lane: an offer was refused: %s", error)
            return False
        return asyncio.run_coroutine_threadsafe(self._open(offer, context), self._thread.loop).result()

    async def _open(self, offer: LaneOffer, context: Context) -> bool:
        if offer.issued <= self._newest.get(offer.run, -1):
            log.warning("lane: run %s: an offer was refused: not newer than the last one", offer.run)
            return False
        self._lanes = {run: task for run, task in self._lanes.items() if not task.done()}
        if offer.run in self._lanes and self._tokens.get(offer.run) == offer.token:
            return True  # made again before it was seen that it is taken up
        if (older := self._lanes.pop(offer.run, None)) is not None:
            older.cancel()
        if len(self._lanes) >= MAX_LANES:
            log.warning("lane: declined an offer, %d lanes are open", len(self._lanes))
            return False
        self._tokens = {run: token for run, token in self._tokens.items() if run in self._lanes}
        self._newest[offer.run], self._tokens[offer.run] = offer.issued, offer.token
        self._newest.move_to_end(offer.run)
        if len(self._newest) > MAX_REMEMBERED:
            self._newest.popitem(last=False)
        self._lanes[offer.run] = asyncio.create_task(self._keep(offer, context))
        return True

    def close(self) -> None:
        """Leave all lanes. A message that is being worked on is not waited for."""
        self._thread.close()

    async def _keep(self, offer: LaneOffer, context: Context) -> None:
        """Carry the run's messages until the coordinator ends it or the relay refuses us."""
        inbox, over = SimpleQueue[memoryview | None](), threading.Event()
        end = LaneEnd(
            session_number(offer.token),
            self._max_message_bytes,
            lambda _, data: inbox.put(data),
            asyncio.get_running_loop(),
            _in_memory,
        )
        threading.Thread(target=self._work, args=(end, inbox, over, context), name="lane-app", daemon=True).start()
        try:
            await self._stay_connected(offer, context.node_id, end)
        finally:
            over.set()
            inbox.put(None)

    async def _stay_connected(self, offer: LaneOffer, node_id: int, end: LaneEnd) -> None:
        proof, pause = (TOKEN_KEY, offer.token), BACK_OFF_S[0]
        while True:
            met = end.streams
            try:
                status, proof = await self._connect(offer, node_id, end, proof)
            except IdentityError as error:
                log.critical("lane: run %s: %s", offer.run, error)
                status = grpc.StatusCode.UNAUTHENTICATED
            if status is grpc.StatusCode.OK:
                log.info("lane: run %s is over", offer.run)
                return
            if status is grpc.StatusCode.PERMISSION_DENIED:
                log.warning("lane: run %s: refused; waiting for a new offer", offer.run)
                return
            log.info("lane: run %s: stream broken (%s), opening it again", offer.run, status.name)
            pause = BACK_OFF_S[0] if end.streams > met else min(2 * pause, BACK_OFF_S[1])
            await asyncio.sleep(pause)

    async def _connect(
        self, offer: LaneOffer, node_id: int, end: LaneEnd, proof: tuple[str, str]
    ) -> tuple[grpc.StatusCode, tuple[str, str]]:
        """Carry messages over one stream; how it ended, and what proves who we are on the next."""
        metadata = ((RUN_KEY, offer.run), (NODE_KEY, str(node_id)), proof)
        options = (*STREAM_OPTIONS, *FAR, *grpc_options(proxy_for(offer.address, self._proxy, self._home)))
        async with grpc.aio.secure_channel(offer.address, self._credentials(), options=options) as channel:
            call = open_stream(channel, JOIN, *metadata)
            try:
                session = dict(await call.initial_metadata()).get(SESSION_KEY)
                if isinstance(session, str):
                    proof = (SESSION_KEY, session)
                await self._pump(end, call)
            except ProtocolError as error:
                log.warning("lane: run %s: the stream is given up: %s", offer.run, error)
                call.cancel()
            except (grpc.RpcError, asyncio.InvalidStateError) as error:
                log.debug("lane: run %s: %s", offer.run, error)
            return await call.code(), proof

    async def _pump(self, end: LaneEnd, call: grpc.aio.StreamStreamCall[bytes, bytes]) -> None:
        """Carry messages over `call` until it ends, or the certificate is renewed: the relay goes on judging the one
        that it was opened with.
        """
        both = [asyncio.create_task(end.pump(call)), asyncio.create_task(self._renewed())]
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            if both[0].done():
                both[0].result()
            else:
                log.info("lane: the certificate was renewed; the stream is opened again with it")
                call.cancel()
        finally:
            for task in both:
                task.cancel()
            await asyncio.gather(*both, return_exceptions=True)

    async def _renewed(self) -> None:
        """Wait until `cert.pem` is another file."""
        path = self._identity / "cert.pem"
        stamp = path.stat().st_mtime_ns
        while path.stat().st_mtime_ns == stamp:  # noqa: ASYNC110 - nobody tells of it
            await asyncio.sleep(LOOK_S)

    def _credentials(self) -> grpc.ChannelCredentials:
        """Read afresh for each connection, so that a renewed certificate is used."""
        return grpc.ssl_channel_credentials((self._identity / "root.pem").read_bytes(), *read_pair(self._identity))

    def _work(
        self, end: LaneEnd, inbox: SimpleQueue[memoryview | None], over: threading.Event, context: Context
    ) -> None:
        """Answer messages one after another, until the lane is `over`; a message is acknowledged with its reply."""
        while (data := inbox.get()) is not None and not over.is_set():
            reply = self._answer(data, context)
            del data
            while reply is not None and end.outstanding > REPLIES_HELD and not over.wait(FULL_S):
                pass
            end.answer(reply)
            del reply

    def _answer(self, data: memoryview, context: Context) -> Outgoing | None:
        """The serialised reply to `data`, or None where none is due: a message that is not for this node and run."""
        try:
            message = unpack(data)
        except ProtocolError as error:
            log.warning("lane: a message was refused: %s", error)
            return None
        metadata = message.metadata
        addressed = (metadata.run_id, metadata.src_node_id, metadata.dst_node_id)
        if addressed != (context.run_id, SERVER_NODE_ID, context.node_id):
            log.warning("lane: a message was refused: run %d, from node %d to node %d", *addressed)
            return None
        try:
            reply = pack(self._app(message, context))
        except Exception:  # what the app could not turn into a reply of its own crosses the wire as a fixed sentence
            log.exception("lane: the ClientApp failed")
            return pack(error_reply(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, WIRE_SENTENCES["failed"], message))
        if reply.size > self._max_message_bytes:
            log.error("lane: a reply of %d bytes, limit is %d", reply.size, self._max_message_bytes)
            return pack(error_reply(ErrorCode.REPLY_MESSAGE_UNAVAILABLE, WIRE_SENTENCES["protocol"], message))
        return reply


async def _in_memory(size: int, head: memoryview) -> Plot:
    """Room for a long message in a file of memory, which goes on to the trainer as it is."""
    shift = shift_of(head)
    return Plot(size, in_memory(size + shift), shift)
