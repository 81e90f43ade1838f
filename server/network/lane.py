"""The lane's relay: pairs institutions' streams with the coordinator's and passes frames on unread.

It runs in the registry's process. Institutions come in over mutual TLS (`Join`), the coordinator over the agency's
own Unix socket (`Control` registers runs, `Attach` is one stream per node). A pair lives and dies together: when
either stream ends, so does the other, and both ends come back and agree where to go on (`federation/wire/lane.py`).
Each direction of a pair holds one frame at a time, so a slow reader holds up the sender behind it and nobody else.

To join, a node shows a certificate that `Trust` accepts and that is bound to the node key registered for this run and
node, and either the token of its last offer, which is then spent, or the session secret that it got in exchange. An
offer that nobody has taken up is made again with its token, so that whoever is slow need not hurry for the newest.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NoReturn, Protocol

import grpc
from google.protobuf.message import DecodeError

from sovfed.federation.errors import IdentityError
from sovfed.federation.identity import PeerIdentity
from sovfed.federation.wire.lane_end import (
    ATTACH,
    CONTROL,
    JOIN,
    KEEPALIVE,
    NODE_KEY,
    RUN_KEY,
    SERVICE,
    SESSION_KEY,
    TOKEN_KEY,
)
from sovfed.federation.wire.lane_pb2 import LaneRun, LaneRunReply
from sovfed.server.network.splice import Context, Leg, Seat, Side

log = logging.getLogger(__name__)
SERVER_OPTIONS: Final = KEEPALIVE
REFUSAL: Final = "The lane refused this stream."
GRACE_S: Final = 30.0  # a run outlives its coordinator's connection by this
MAX_RUNS: Final = 64
MAX_NODES: Final = 4096
RECHECK_S: Final = 10.0  # a revoked certificate loses its stream after this at the latest


class AuthContextVerifier(Protocol):
    """What the relay needs of `federation.identity.Trust`."""

    def verify_auth_context(self, auth_context: Mapping[str, Iterable[bytes]]) -> PeerIdentity: ...


@dataclass
class _Run:
    owner: bytes
    nodes: dict[int, Seat] = field(default_factory=dict)
    controls: int = 0  # open control streams
    expiry: asyncio.TimerHandle | None = None


class Relay:
    """The runs that the coordinators have registered, and the handlers of the three kinds of stream."""

    def __init__(self, trust: AuthContextVerifier, grace_s: float, recheck_s: float) -> None:
        self._trust, self._grace_s, self._recheck_s = trust, grace_s, recheck_s
        self._runs: dict[str, _Run] = {}

    @property
    def runs(self) -> dict[str, int]:
        """Registered runs and how many of their nodes are connected through."""
        return {
            name: sum(leg.partner is not None for seat in run.nodes.values() for leg in seat.legs.values()) // 2
            for name, run in self._runs.items()
        }

    async def control(self, _: Any, context: Context) -> None:
        """The coordinator's control stream: it registers a run and its nodes, and ends it."""
        name, run, known = "", None, True
        try:
            while isinstance(data := await context.read(), bytes):
                request = _parse(data)
                if request is None or name not in ("", request.run):
                    await _refuse(context, "a malformed registration")
                if run is None:
                    name, known, run = request.run, *self._take_up(request)
                if run is None or self._runs.get(name) is not run or not _seat_all(run, request):
                    await _refuse(context, f"run {name!r}: over, taken over, or too many runs or nodes")
                if request.over:
                    self._drop(name)
                await context.write(LaneRunReply(known=known).SerializeToString())
                known = True
        finally:
            if run is not None:
                run.controls -= 1
                if self._runs.get(name) is run and run.controls == 0:
                    run.expiry = asyncio.get_running_loop().call_later(self._grace_s, self._drop, name)

    def _take_up(self, request: LaneRun) -> tuple[bool, _Run | None]:
        """Whether this owner had the run already, and the run; None if there is no room for it."""
        run = self._runs.get(request.run)
        known = run is not None and hmac.compare_digest(run.owner, request.owner)
        if not known:
            self._drop(request.run)
            if len(self._runs) >= MAX_RUNS:
                return False, None
            run = self._runs[request.run] = _Run(request.owner)
        if run is not None:
            run.controls += 1
            if run.expiry is not None:
                run.expiry.cancel()
                run.expiry = None
        return known, run

    def _drop(self, name: str) -> None:
        """End the run: its institutions' streams end in order, and their tokens and sessions are worth nothing."""
        if (run := self._runs.pop(name, None)) is None:
            return
        if run.expiry is not None:
            run.expiry.cancel()
        for seat in run.nodes.values():
            seat.token = seat.session = None
            seat.end(grpc.StatusCode.OK)

    async def attach(self, _: Any, context: Context) -> None:
        """The coordinator's stream for one node."""
        name, node_id, _token = _names(context)
        seat = self._seat(name, node_id)
        await context.send_initial_metadata(())
        if seat is None or self._seat(name, node_id) is not seat:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such run or node")
        await _serve(seat, Side.COORDINATOR, Leg(context))

    async def join(self, _: Any, context: Context) -> None:
        """An institution's stream."""
        try:
            seat, session = self._admit(context)
        except IdentityError as error:
            log.warning("lane: run %.64r, node %s, from %s: %s", *_names(context)[:2], context.peer(), error)
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, REFUSAL)
        await context.send_initial_metadata(((SESSION_KEY, session),))
        leg = Leg(context)
        if seat.session != _sha256(session):  # the run ended, or made a new offer, meanwhile
            leg.end(grpc.StatusCode.UNAVAILABLE)
        watch = asyncio.ensure_future(self._watch(leg))
        try:
            await _serve(seat, Side.INSTITUTION, leg)
        finally:
            watch.cancel()

    async def _watch(self, leg: Leg) -> None:
        """End `leg` once its certificate is revoked or expired."""
        while True:
            await asyncio.sleep(self._recheck_s)
            try:
                self._trust.verify_auth_context(leg.context.auth_context())
            except IdentityError as error:
                log.warning("lane: %s is cut off: %s", leg.context.peer(), error)
                leg.end(grpc.StatusCode.PERMISSION_DENIED)

    def _seat(self, run: str, node_id: int) -> Seat | None:
        return self._runs[run].nodes.get(node_id) if run in self._runs else None

    def _admit(self, context: Context) -> tuple[Seat, str]:
        """The seat of the node that this stream is, and its session secret. Raises IdentityError if anything does not
        hold.
        """
        peer = self._trust.verify_auth_context(context.auth_context())
        name, node_id, token = _names(context)
        seat = self._seat(name, node_id)
        if seat is None:
            raise IdentityError(f"{peer.institution}: no such run, or the node is not of it")
        if not hmac.compare_digest(seat.key_digest.encode(), peer.node_key_digest.encode()):
            raise IdentityError(f"{peer.institution}: the certificate is bound to another node key")
        session = _metadata(context).get(SESSION_KEY, "")
        if session:
            if seat.session is None or not hmac.compare_digest(seat.session, _sha256(session)):
                raise IdentityError(f"{peer.institution}: unknown or superseded session")
            return seat, session
        if seat.spent or seat.token is None or not hmac.compare_digest(seat.token, _sha256(token)):
            raise IdentityError(f"{peer.institution}: the token is unknown or spent")
        session = secrets.token_urlsafe(32)
        seat.spent, seat.session = True, _sha256(session)
        return seat, session


def _seat_all(run: _Run, request: LaneRun) -> bool:
    """Give the request's nodes their seats and tokens, if the run may have so many."""
    if len(run.nodes.keys() | {node.node_id for node in request.nodes}) > MAX_NODES:
        return False
    for node in request.nodes:
        run.nodes.setdefault(node.node_id, Seat()).offer(node.node_key_digest, node.token_sha256)
    return True


async def _serve(seat: Seat, side: Side, leg: Leg) -> None:
    seat.enter(side, leg)
    try:
        status = await leg.carry()
    finally:
        seat.leave(side, leg)
    if status is not grpc.StatusCode.OK:
        await leg.context.abort(
            status, REFUSAL if status is grpc.StatusCode.PERMISSION_DENIED else "the other side left"
        )


def add_lane(
    tls: grpc.aio.Server,
    uds: grpc.aio.Server,
    trust: AuthContextVerifier,
    *,
    grace_s: float = GRACE_S,
    recheck_s: float = RECHECK_S,
) -> Relay:
    """Serve the lane: institutions on `tls` (which must demand client certificates), the coordinator on `uds`.

    Both servers must be made with SERVER_OPTIONS, and before they are started.
    """
    relay = Relay(trust, grace_s, recheck_s)
    tls.add_generic_rpc_handlers((_handlers({JOIN: relay.join}),))
    uds.add_generic_rpc_handlers((_handlers({CONTROL: relay.control, ATTACH: relay.attach}),))
    return relay


def _handlers(behaviours: Mapping[str, Any]) -> grpc.GenericRpcHandler:
    """Handlers of raw bytes: the relay reads no frame, so nothing is parsed or copied for its sake."""
    methods: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
        name: grpc.stream_stream_rpc_method_handler(behaviour) for name, behaviour in behaviours.items()
    }
    return grpc.method_handlers_generic_handler(SERVICE, methods)


def _parse(data: bytes) -> LaneRun | None:
    try:
        request = LaneRun.FromString(data)
    except DecodeError:
        return None
    sound = request.run and len(request.owner) >= 16 and all(len(node.token_sha256) == 32 for node in request.nodes)
    return request if sound else None


async def _refuse(context: Context, why: str) -> NoReturn:
    log.warning("lane control: %s", why)
    await context.abort(grpc.StatusCode.INVALID_ARGUMENT, why)


def _metadata(context: Context) -> dict[str, str]:
    return {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}


def _names(context: Context) -> tuple[str, int, str]:
    """Run, node id and token that the stream names; values that are missing fit nothing."""
    metadata = _metadata(context)
    node = metadata.get(NODE_KEY, "")
    return (
        metadata.get(RUN_KEY, ""),
        int(node) if node.isdecimal() and len(node) <= 20 else -1,
        metadata.get(TOKEN_KEY, ""),
    )


def _sha256(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()
