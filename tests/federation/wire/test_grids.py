"""The fall-back Grid: whose reply counts."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from flwr.app import Context, Error, RecordDict
from flwr.app import Message as FlowerMessage
from flwr.proto.node_pb2 import NodeInfo
from tests.lane_fixture import RUN_ID, DirectGrid

from sovfed.federation.messages import LaneReply
from sovfed.federation.wire.flower import SERVER_NODE_ID, new_message, to_records
from sovfed.federation.wire.grids import FlowerGrid


def institution(node_id: int, author: int, failed: bool) -> Any:
    """A node that answers as `author`."""

    def app(message: FlowerMessage, context: Context) -> FlowerMessage:
        content: Any = Error(code=5, reason="gone") if failed else to_records(LaneReply(True))
        reply = FlowerMessage(content, reply_to=message)
        reply.metadata.__dict__["_src_node_id"] = author
        return reply

    node = NodeInfo(node_id=node_id, public_key=b"", name=f"hospital-{node_id}")
    return SimpleNamespace(
        home=Path(), node=node, lane=object(), app=app, context=lambda: Context(RUN_ID, node_id, {}, RecordDict(), {})
    )


@pytest.mark.parametrize(
    ("author", "failed", "counts"),
    [(7, False, True), (7, True, True), (SERVER_NODE_ID, True, True), (8, False, False), (8, True, False),
     (SERVER_NODE_ID, False, False)],
)  # fmt: skip
def test_a_reply_counts_only_from_the_node_that_was_asked(author: int, failed: bool, counts: bool) -> None:
    """The SuperLink itself says that a node is gone; it answers no question."""
    grid = FlowerGrid(DirectGrid([institution(7, author, failed), institution(8, 8, False)]))
    asked = [
        new_message(to_records(LaneReply()), run_id=RUN_ID, node_id=node, kind="query.lane", group="1")
        for node in (7, 8)
    ]
    replies = list(grid.replies(asked, 5.0))
    assert len(replies) == 1 + counts
    assert 8 in {reply.metadata.src_node_id for reply in replies}
