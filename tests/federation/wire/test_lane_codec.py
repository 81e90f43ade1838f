"""The lane's serialisation is Flower's own, byte for byte in meaning, without its copies."""

from __future__ import annotations

import contextlib
import gc
import tracemalloc
import weakref

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.common.serde import message_to_proto, recorddict_to_proto
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.proto.recorddict_pb2 import Array as ProtoArray
from flwr.proto.recorddict_pb2 import ArrayRecord as ArrayRecordProto
from flwr.proto.recorddict_pb2 import ConfigRecord as Config
from flwr.proto.recorddict_pb2 import ConfigRecordValue as Value
from flwr.proto.recorddict_pb2 import RecordDict as Records
from flwr.proto.recorddict_pb2 import StringList
from hypothesis import given, settings
from hypothesis import strategies as st

from sovfed.federation.errors import ProtocolError
from sovfed.federation.messages import Message, Refusal, TrainReply, TrainRequest
from sovfed.federation.stored import Plot, in_memory, origin
from sovfed.federation.wire.flower import RAW, arrays_of, from_records, new_message, refusal_in, size_bytes, to_records
from sovfed.federation.wire.lane import Outgoing
from sovfed.federation.wire.lane_codec import _nested, content_parts, error_reply, pack, shift_of, unpack

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


@pytest.mark.parametrize("size", [3, 100_000])
@pytest.mark.parametrize("looked", [False, True])
def test_one_of_our_messages_is_what_flower_would_have_sent_and_comes_as_it_went(size: int, looked: bool) -> None:
    """Neither end makes Flower's records of it; who looks at them has them all the same."""
    sent = TrainRequest("r", 1, "heart", 2**63 - 1, 2, 16, 0.1, 0.0, np.arange(size, dtype=np.float32), np.ones(4))
    message = new_message(to_records(sent), run_id=1, node_id=5, kind="train", group="1")
    data = joined(pack(message))
    records = to_records(sent)
    for array in arrays_of(records):
        array.data = bytes(array.data)  # as Flower's own code needs it
    assert ProtoMessage.FromString(data).content == recorddict_to_proto(records)
    content = unpack(bytearray(data)).content
    if looked:
        assert content["header"]["kind"] == "train" and list(content["vectors"])[:2] == ["model", "scale"]
    back = from_records(content)
    assert isinstance(back, TrainRequest)
    assert all(np.array_equal(getattr(back, name), value) for name, value in vars(sent).items())


@pytest.mark.parametrize("said", ["failed", ""])
def test_a_refusal_is_known_without_its_records(said: str) -> None:
    reply = Refusal(reason=said) if said else TrainReply(1, 303, 0.5, 0.7, np.ones(5, np.float32), np.ones(2))
    message = new_message(to_records(reply), run_id=1, node_id=5, kind="train", group="1")
    back = unpack(bytearray(joined(pack(message))))
    assert [refusal_in(message.content), refusal_in(back.content)] == [said, said]
    assert back.content["header"]["kind"] and refusal_in(back.content) == said


def header(**values: Value) -> Records.Item:
    items = [Config.Item(key=name, value=value) for name, value in values.items()]
    return Records.Item(key="header", config_record=Config(items=items))


def arrays(*names: str, key: str = "vectors", shape: tuple[int, ...] = (1,)) -> Records.Item:
    values = [ProtoArray(dtype="float32", shape=shape, stype=RAW, data=bytes(4)) for _ in names]
    items = [ArrayRecordProto.Item(key=name, value=value) for name, value in zip(names, values, strict=True)]
    return Records.Item(key=key, array_record=ArrayRecordProto(items=items))


LONG = "\x1b[2J\n" + "x" * 50_000
KIND = header(kind=Value(string="refusal"), version=Value(sint64=1), reason=Value(string="failed"))


@pytest.mark.parametrize(
    "items",
    [
        [], [Records.Item(key="header")], [header()], [arrays(key="header")], [KIND, header()],
        [KIND, Records.Item(key="more", config_record=Config())], [KIND, arrays("model", "model")],
        [KIND, arrays("model"), arrays("model")], [KIND, arrays("model", shape=(1, 1))], [KIND, arrays("reason")],
        [header(kind=Value(sint64=1))], [header(kind=Value())], [KIND, arrays("model", shape=(-1,))],
        [header(kind=Value(string="refusal"), version=Value(sint64=1), reason=Value(string_list=StringList()))],
    ],
)  # fmt: skip
@pytest.mark.parametrize("looked", [False, True])
def test_records_that_are_no_message_of_ours_are_refused(items: list[Records.Item], looked: bool) -> None:
    question = new_message(RECORDS, run_id=1, node_id=5, kind="train", group="1")
    proto = ProtoMessage(metadata=message_to_proto(question).metadata, content=Records(items=items))
    with pytest.raises(ProtocolError):
        _read(proto.SerializeToString(), looked)


def _read(data: bytes, looked: bool) -> Message:
    content = unpack(bytearray(data)).content
    assert refusal_in(content) in ("", "failed")  # and raises nothing
    if looked:
        list(content)
    return from_records(content)


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


def crowded(*path: int, count: int = 1 << 20) -> bytes:
    """A message that has, below the fields at `path`, so many fields of two bytes."""
    data = b"\x0a\x00" * count
    for field in reversed(path):
        data = joined(Outgoing(_nested(field, (data,))))
    return data


IN_RECORDS = (ProtoMessage.CONTENT_FIELD_NUMBER,)
IN_CONFIG = (*IN_RECORDS, Records.ITEMS_FIELD_NUMBER, Records.Item.CONFIG_RECORD_FIELD_NUMBER)
IN_ARRAYS = (*IN_RECORDS, Records.ITEMS_FIELD_NUMBER, Records.Item.ARRAY_RECORD_FIELD_NUMBER)
IN_ARRAY = (*IN_ARRAYS, ArrayRecordProto.ITEMS_FIELD_NUMBER, ArrayRecordProto.Item.VALUE_FIELD_NUMBER)


@pytest.mark.parametrize("path", [(), IN_RECORDS, IN_CONFIG, IN_ARRAYS, IN_ARRAY])
def test_a_message_crowded_with_fields_is_refused_before_anything_is_made_of_them(path: tuple[int, ...]) -> None:
    """Two bytes each, they took a hundred times their memory and a second a megabyte, on the thread that all lanes of a
    run share: 8 MB of one institution made the others wait for 10 s."""
    data = bytearray(crowded(*path))
    tracemalloc.start()
    try:
        with pytest.raises(ProtocolError) as refused:
            unpack(data)
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()
    assert "more than" in str(refused.value.__cause__)
    assert shift_of(memoryview(data)) == 0


def test_a_field_that_is_no_array_may_not_be_as_long_as_one() -> None:
    """It would be in memory three times before anybody looked at it."""
    question = new_message(RECORDS, run_id=1, node_id=5, kind="train", group="1")
    with pytest.raises(ProtocolError):
        unpack(bytearray(joined(pack(error_reply(2, "x" * (1 << 20), question)))))
    long = header(kind=Value(string="refusal"), version=Value(sint64=1), reason=Value(string="x" * (1 << 20)))
    with pytest.raises(ProtocolError):
        unpack(bytearray(ProtoMessage(content=Records(items=[long])).SerializeToString()))


@pytest.mark.parametrize(
    "items",
    [
        [header(kind=Value(string="refusal"), version=Value(string=LONG), reason=Value(string="failed"))],
        [header(kind=Value(string="refusal"), version=Value(sint64=1), reason=Value(string=LONG))],
        [header(kind=Value(string="run-reply"), version=Value(sint64=1), beyond=Value(string=LONG))],
        [KIND, arrays(*(f"{number}{LONG[:9_000]}" for number in range(4)))],
        [KIND, arrays("model", key=LONG)],
    ],
)  # fmt: skip
@pytest.mark.parametrize("looked", [False, True])
def test_what_is_said_of_a_refused_message_is_short(items: list[Records.Item], looked: bool) -> None:
    """It goes into the log of whoever got it: 60 KB a message of somebody else's choosing would fill a disk."""
    question = new_message(RECORDS, run_id=1, node_id=5, kind="train", group="1")
    proto = ProtoMessage(metadata=message_to_proto(question).metadata, content=Records(items=items))
    with pytest.raises(ProtocolError) as refused:
        _read(proto.SerializeToString(), looked)
    assert len(str(refused.value)) <= 600


@given(st.data())
@settings(max_examples=300)
def test_a_message_that_somebody_has_damaged_is_read_or_refused_and_nothing_else(data: st.DataObject) -> None:
    """Any other error would end the lane of whoever reads it."""
    damaged = bytearray(joined(pack(new_message(RECORDS, run_id=1, node_id=5, kind="train", group="1"))))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, min(len(damaged), 250)))
        damaged[place : place + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=6))
    with contextlib.suppress(ProtocolError):
        shift_of(memoryview(damaged))
        message = unpack(bytearray(damaged + bytes(data.draw(st.sampled_from((0, 1 << 16))))))
        if message.has_content():
            refusal_in(message.content)
            from_records(message.content)
