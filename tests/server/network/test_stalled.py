"""An institution that announces a long upload and never sends it, over a real relay: nobody else notices."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import numpy as np
import pytest
from flwr.app import Context
from tests.lane_fixture import MAX_BYTES, Agency, Gateway, Stream, Trainer, agency, wait_until
from tests.server.network.test_stream_grid import messages, opened, request

from sovfed.clients.node.app import make_client_app
from sovfed.federation.messages import LaneOffer
from sovfed.federation.wire import lane_end
from sovfed.federation.wire.lane import CHUNK_BYTES, DATA, Frame, Receiver
from sovfed.federation.wire.lane_end import JOIN, NODE_KEY, RUN_KEY, TOKEN_KEY, session_number

MODEL = np.arange(CHUNK_BYTES // 2, dtype=np.float32)  # an update of 2 MiB


@dataclass
class Rogue:
    """Joins as it should, begins a message as long as may be, and sends no more of it."""

    gateway: Gateway
    channels: list[grpc.Channel] = field(default_factory=list)
    streams: list[Stream] = field(default_factory=list)

    def open(self, offer: LaneOffer, context: Context) -> bool:
        identity = [
            (self.gateway.home / "identity" / name).read_bytes() for name in ("root.pem", "key.pem", "cert.pem")
        ]
        self.channels.append(grpc.secure_channel(offer.address, grpc.ssl_channel_credentials(*identity)))
        names = ((RUN_KEY, offer.run), (NODE_KEY, str(context.node_id)), (TOKEN_KEY, offer.token))
        self.streams.append(Stream(self.channels[-1], JOIN, *names))
        self.streams[-1].send(Receiver(MAX_BYTES).hello(session_number(offer.token)))
        self.streams[-1].send(Frame(DATA, 1, 0, MAX_BYTES, 0, memoryview(b"x" * 1000)).to_bytes())
        return True

    def close(self) -> None:
        for channel in self.channels:
            channel.close()


@pytest.fixture
def found(tmp_path: Path) -> Iterator[Agency]:
    with agency(tmp_path) as made:
        first, *others = made.gateways
        rogue = Rogue(first)
        first.app = make_client_app(Trainer(), rogue.open)
        first.lane = rogue  # type: ignore[assignment]
        for gateway in others:
            gateway.start()
        yield made


def test_the_others_answer_and_its_place_is_given_back(found: Agency, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lane_end, "STALL_S", 2.0)
    rogue = int(found.gateways[0].node.node_id)
    with opened(found) as grid:
        uploads = grid._open_links._uploads
        wait_until(lambda: uploads._held == MAX_BYTES)
        replies = grid.replies(messages(found, request(1, MODEL)), 3.0)
        assert len({reply.metadata.src_node_id for reply in replies} - {rogue}) == 3
        wait_until(lambda: uploads._held == 0)
