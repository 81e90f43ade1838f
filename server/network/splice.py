"""Pairs of streams: what comes in on one goes out on the other, one frame at a time in each direction."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field
from enum import Enum
from typing import TypeAlias

import grpc

Context: TypeAlias = "grpc.aio.ServicerContext[bytes, bytes]"


class Side(Enum):
    """Whose stream it is."""

    COORDINATOR = "coordinator"
    INSTITUTION = "institution"

    @property
    def other(self) -> Side:
        return Side.INSTITUTION if self is Side.COORDINATOR else Side.COORDINATOR


class Leg:
    """One stream of a pair. `ended` is set, with the status to end it with, by whoever ends it."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.partner: Leg | None = None
        self._paired = asyncio.Event()
        self.ended: asyncio.Future[grpc.StatusCode] = asyncio.get_running_loop().create_future()

    def pair(self, partner: Leg) -> None:
        self.partner = partner
        self._paired.set()

    def end(self, status: grpc.StatusCode) -> None:
        if not self.ended.done():
            self.ended.set_result(status)

    async def carry(self) -> grpc.StatusCode:
        """Pass this stream's frames to the partner's until either ends; the status that is due to this stream."""
        forward = asyncio.ensure_future(self._forward())
        try:
            await asyncio.wait((forward, self.ended), return_when=asyncio.FIRST_COMPLETED)
        finally:
            forward.cancel()
            with contextlib.suppress(
                asyncio.CancelledError, grpc.RpcError, grpc.aio.BaseError, asyncio.InvalidStateError
            ):
                await forward
        return self.ended.result() if self.ended.done() else grpc.StatusCode.UNAVAILABLE

    async def _forward(self) -> None:
        await self._paired.wait()
        while self.partner is not None and isinstance(frame := await self.context.read(), bytes):
            await self.partner.context.write(frame)


@dataclass
class Seat:
    """A node of a run: what it must show, and the streams that are here.

    `token` is that of the newest offer, `spent` whether a stream has shown it.
    """

    key_digest: str = ""
    token: bytes | None = None
    spent: bool = False
    session: bytes | None = None
    legs: dict[Side, Leg] = field(default_factory=dict)

    def offer(self, key_digest: str, token: bytes) -> None:
        """A fresh token; whatever session there was ends. The same token once more may be shown once more."""
        if self.token != token:
            self.key_digest, self.token, self.session = key_digest, token, None
            self.end(grpc.StatusCode.UNAVAILABLE)
        self.spent = False

    def end(self, status: grpc.StatusCode) -> None:
        for leg in self.legs.values():
            leg.end(status)
        self.legs.clear()

    def enter(self, side: Side, leg: Leg) -> None:
        """Take the place of an older stream of `side` and pair up with the other side's, if it waits."""
        if (older := self.legs.get(side)) is not None:
            self.leave(side, older)
        self.legs[side] = leg
        if (opposite := self.legs.get(side.other)) is not None:
            leg.pair(opposite)
            opposite.pair(leg)

    def leave(self, side: Side, leg: Leg) -> None:
        """End `leg` and its partner."""
        for end, gone in ((side, leg), (side.other, leg.partner)):
            if gone is not None:
                gone.end(grpc.StatusCode.UNAVAILABLE)
                if self.legs.get(end) is gone:
                    del self.legs[end]
