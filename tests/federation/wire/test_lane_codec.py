"""The lane's serialisation is Flower's own, byte for byte in meaning, without its copies."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.common.serde import message_to_proto
from flwr.proto.message_pb2 import Message as ProtoMessage

from sovfed.federation.errors import ProtocolError
from sovfed.federation.wire.flower import RAW, new_message
from sovfed.federation.wire.lane_codec import content_parts, error_reply, pack, unpack

DATA = np.arange(300, dtype=np.float32).tobytes()
RECORDS = RecordDict(
    {
        "header": ConfigRecord({"kind": "train", "round": 3, "flag": True, "raw": b"\x00\xff", "rates": [0.5, 1.5]}),
        "empty": ArrayRecord(),
        "vectors": ArrayRecord(
            {
                "model": Array(dtype="float32", shape=(300,), stype=RAW, data=DATA),
                "": Array(dtype="float64", shape=(2, 0), stype="numpy.ndarray", data=b""),
            }
        ),
        "metrics": MetricRecord({"loss": 0.25, "counts": [1, 2, 3]}),
    }
)


def test_the_bytes_mean_what_flower_would_have_sent() -> None:
    message = new_message(RECORDS, run_id=2**63, node_id=2**64 - 1, kind="train", group="3")
    data = b"".join(pack(message).parts)
    assert ProtoMessage.FromString(data) == message_to_proto(message)
    back = unpack(bytearray(data))
    assert back.metadata == message.metadata
    assert list(back.content) == list(RECORDS) and back.content == RECORDS


def test_content_given_as_parts_is_shared_and_not_copied() -> None:
    parts = content_parts(RECORDS)
    assert any(part is DATA for part in parts)
    messages = [pack(new_message(RECORDS, run_id=1, node_id=node, kind="train", group="1"), parts) for node in (5, 6)]
    assert all(any(part is DATA for part in message.parts) for message in messages)
    assert [unpack(bytearray(b"".join(m.parts))).metadata.dst_node_id for m in messages] == [5, 6]


def test_an_error_crosses_as_code_and_sentence() -> None:
    question = new_message(RECORDS, run_id=1, node_id=5, kind="train", group="1")
    back = unpack(bytearray(b"".join(pack(error_reply(2, "A fixed sentence.", question)).parts)))
    assert (back.has_content(), back.error.code, back.error.reason) == (False, 2, "A fixed sentence.")


@pytest.mark.parametrize("data", [b"", b"\xff\xff", ProtoMessage().SerializeToString() + b"\x0a\x02\x08\x01"])
def test_what_is_no_message_is_refused(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        unpack(bytearray(data))
