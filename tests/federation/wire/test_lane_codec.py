"""The lane's serialisation is Flower's own, byte for byte in meaning, without its copies."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.common.serde import message_to_proto
from flwr.proto.message_pb2 import Message as ProtoMessage

from sovfed.federation.errors import ProtocolError
from sovfed.federation.stored import Plot, in_memory, origin
from sovfed.federation.wire.flower import RAW, arrays_of, new_message, size_bytes
from sovfed.federation.wire.lane import Outgoing
from sovfed.federation.wire.lane_codec import content_parts, error_reply, pack, shift_of, unpack

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


def joined(message: Outgoing) -> bytes:
    return b"".join(message.slice(0, message.size))


def test_the_bytes_mean_what_flower_would_have_sent() -> None:
    message = new_message(RECORDS, run_id=2**63, node_id=2**64 - 1, kind="train", group="3")
    data = joined(pack(message))
    assert ProtoMessage.FromString(data) == message_to_proto(message)
    back = unpack(bytearray(data))
    assert back.metadata == message.metadata
    assert list(back.content) == list(RECORDS) and back.content == RECORDS


def test_content_given_as_parts_is_shared_and_not_copied() -> None:
    parts = content_parts(RECORDS)
    assert any(part is DATA for part in parts)
    messages = [pack(new_message(RECORDS, run_id=1, node_id=node, kind="train", group="1"), parts) for node in (5, 6)]
    assert all(any(part is DATA for part in message.parts) for message in messages)
    assert [unpack(bytearray(joined(m))).metadata.dst_node_id for m in messages] == [5, 6]


def test_a_message_is_gone_with_its_last_user_and_not_with_the_next_search_for_circles() -> None:
    """Else each large message stays in memory for rounds: Flower's own views of records are such circles."""
    data = joined(pack(new_message(RECORDS, run_id=1, node_id=5, kind="train", group="1")))
    gc.disable()
    try:
        stored = in_memory(len(data))
        stored.write(0, data)
        stored.seal()
        message, gone = unpack(stored.view()), weakref.ref(stored)
        assert sum(len(array.data) for array in arrays_of(message.content)) == len(DATA)
        assert size_bytes(message) == len(DATA) + 2
        del stored
        assert gone() is not None
        del message
        assert gone() is None
    finally:
        gc.enable()


def test_an_error_crosses_as_code_and_sentence() -> None:
    question = new_message(RECORDS, run_id=1, node_id=5, kind="train", group="1")
    back = unpack(bytearray(joined(pack(error_reply(2, "A fixed sentence.", question)))))
    assert (back.has_content(), back.error.code, back.error.reason) == (False, 2, "A fixed sentence.")


@pytest.mark.parametrize("data", [b"", b"\xff\xff", ProtoMessage().SerializeToString() + b"\x0a\x02\x08\x01"])
def test_what_is_no_message_is_refused(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        unpack(bytearray(data))


@pytest.mark.parametrize("chunk", [900, 1_000, 1_100])
def test_a_long_array_is_aligned_in_its_file_and_goes_on_from_there_unread(chunk: int) -> None:
    message = new_message(RECORDS, run_id=1, node_id=5, kind="train", group="1")
    data = memoryview(joined(pack(message)))
    shift = shift_of(data[:chunk])
    plot = Plot(len(data), in_memory(len(data) + shift), shift)
    plot.write(0, data)
    back = unpack(plot.whole())
    assert back.content == RECORDS
    array = back.content.array_records["vectors"]["model"].data
    stretch = origin(memoryview(array))
    assert stretch is not None
    assert (stretch.length, stretch.offset % 8) == (1_200, 0)
    again = pack(back)
    assert [part for part in again.parts if part == stretch] == [stretch]
    assert joined(again) == data


@pytest.mark.parametrize("head", [b"", b"\xff" * 20, b"\x08\x01", b"\x12\xff\xff\xff\xff\x0f\x0a"])
def test_a_head_that_lies_moves_nothing(head: bytes) -> None:
    assert shift_of(memoryview(head)) == 0
