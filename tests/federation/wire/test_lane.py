"""The lane's two state machines: exactly once and in order under any cuts, and bounded under any frames."""

from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sovfed.federation.errors import ProtocolError, ServiceError
from sovfed.federation.wire import lane
from sovfed.federation.wire.lane import (
    ACK,
    DATA,
    HELLO,
    WINDOW,
    Frame,
    Outgoing,
    Receiver,
    Sender,
    ack_frame,
    parse_frame,
)

GIB = 1 << 30


def frame(sequence: int, offset: int, size: int, payload: bytes, ack: int = 0) -> Frame:
    return parse_frame(Frame(DATA, sequence, offset, size, ack, memoryview(payload)).to_bytes())


def sender(*messages: bytes) -> Sender:
    found = Sender(max_messages=64, max_bytes=GIB)
    for message in messages:
        found.push(Outgoing((message,)))
    return found


def transfer(source: Sender, sink: Receiver, cut: Callable[[], bool] = lambda: False) -> list[bytes]:
    """What `sink` gets when streams break wherever `cut` says; its side consumes at once and acknowledges by the
    way.
    """
    received: list[bytes] = []
    while True:
        hello = parse_frame(sink.hello(1))
        source.resume(hello.sequence, hello.offset, hello.ack)
        while (data := source.next_frame(0)) is not None:
            if cut():
                break  # this frame, and whatever the sender believed sent, is lost
            if (message := sink.accept(parse_frame(data))) is not None:
                received.append(bytes(message))
                sink.consume()
                if not cut():  # or the acknowledgement is lost
                    source.acknowledge(sink.consumed)
        else:
            if not len(source):
                return received


@given(
    messages=st.lists(st.binary(min_size=1, max_size=60), max_size=8),
    cuts=st.lists(st.booleans(), max_size=200),
    chunk=st.integers(min_value=1, max_value=20),
)
def test_any_cuts_give_the_same_messages_once_and_in_order(messages: list[bytes], cuts: list[bool], chunk: int) -> None:
    whole = lane.CHUNK_BYTES
    lane.CHUNK_BYTES = chunk  # type: ignore[misc]
    try:
        assert transfer(sender(*messages), Receiver(100), lambda: bool(cuts) and cuts.pop()) == messages
    finally:
        lane.CHUNK_BYTES = whole  # type: ignore[misc]


@given(parts=st.lists(st.binary(max_size=9), max_size=6), start=st.integers(0, 60), length=st.integers(0, 60))
def test_a_slice_of_parts_is_the_slice_of_their_concatenation(parts: list[bytes], start: int, length: int) -> None:
    views = Outgoing(tuple(parts)).slice(start, length)
    assert b"".join(views) == b"".join(parts)[start : start + length]


@settings(max_examples=300)
@given(
    frames=st.lists(
        st.one_of(
            st.binary(max_size=60),
            st.builds(
                lambda head, payload: struct.pack(">BQQQQ", *head) + payload,
                st.tuples(st.integers(0, 4), *[st.one_of(st.integers(0, 5), st.integers(0, 2**64 - 1))] * 4),
                st.binary(max_size=30),
            ),
        ),
        max_size=40,
    )
)
def test_hostile_frames_are_refused_and_allocate_no_more_than_the_bound(frames: list[bytes]) -> None:
    limit, sink, source = 4096, Receiver(4096), sender(b"x" * 50)
    tracemalloc.start()
    try:
        for data in frames:
            try:
                found = parse_frame(data)
                if found.kind == HELLO:
                    source.resume(found.sequence, found.offset, found.ack)
                elif found.kind == ACK:
                    source.acknowledge(found.ack)
                else:
                    sink.accept(found)
            except ProtocolError:
                continue
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < WINDOW * limit + 200_000  # and what the test itself and the errors' texts take


def test_a_claim_of_ten_gigabytes_is_refused_before_allocation() -> None:
    tracemalloc.start()
    with pytest.raises(ProtocolError, match=r"10737418240 bytes, limit is 1048576"):
        Receiver(1 << 20).accept(frame(1, 0, 10 * GIB, b"x"))
    assert tracemalloc.get_traced_memory()[1] < 100_000
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("found", "why"),
    [
        (frame(2, 0, 4, b"abcd"), "chunk 2:0, expected 1:2"),
        (frame(1, 0, 4, b"ab"), "chunk 1:0, expected 1:2"),
        (frame(1, 3, 4, b"d"), "chunk 1:3, expected 1:2"),
        (frame(1, 2, 5, b"cd"), "announced 4 bytes, then 5"),
        (frame(1, 2, 4, b"cde"), "5 bytes, announced 4"),
    ],
)
def test_only_the_next_chunk_of_the_announced_message_is_taken(found: Frame, why: str) -> None:
    sink = Receiver(100)
    assert sink.accept(frame(1, 0, 4, b"ab")) is None
    with pytest.raises(ProtocolError, match=why):
        sink.accept(found)
    assert bytes(sink.accept(frame(1, 2, 4, b"cd")) or b"") == b"abcd"


def test_a_repeated_chunk_is_taken_only_at_the_expected_position() -> None:
    source, sink = sender(b"abc"), Receiver(100)
    first = source.next_frame(0)
    assert first is not None
    source.resume(1, 0, 0)  # the peer never saw it
    assert bytes(sink.accept(parse_frame(source.next_frame(0) or b"")) or b"") == b"abc"
    with pytest.raises(ProtocolError, match="chunk 1:0, expected 2:0"):
        sink.accept(parse_frame(first))


def test_a_peer_that_ignores_the_window_is_refused() -> None:
    sink = Receiver(100)
    for number in range(1, WINDOW + 1):
        assert bytes(sink.accept(frame(number, 0, 1, b"x")) or b"") == b"x"
    with pytest.raises(ProtocolError, match="before message 1 was acknowledged"):
        sink.accept(frame(WINDOW + 1, 0, 1, b"x"))


def test_a_sender_waits_for_acknowledgements() -> None:
    source = sender(*[b"x"] * (WINDOW + 1))
    for _ in range(WINDOW):
        assert source.next_frame(0) is not None
    assert source.next_frame(0) is None
    source.acknowledge(1)
    assert source.next_frame(0) is not None


def test_a_sender_holds_no_more_than_its_bounds() -> None:
    source = Sender(max_messages=2, max_bytes=10)
    source.push(Outgoing((b"123456",)))
    with pytest.raises(ServiceError, match="1 messages of 6 bytes"):
        source.push(Outgoing((b"12345",)))
    source.push(Outgoing((b"1234",)))
    with pytest.raises(ServiceError, match="limits are 2 and 10"):
        source.push(Outgoing((b"1",)))


def test_a_withdrawn_message_is_not_sent_and_leaves_no_gap() -> None:
    source, sink = sender(b"one"), Receiver(100)
    second = Outgoing((b"two",))
    source.push(second)
    source.push(Outgoing((b"three",)))
    source.withdraw(second)
    assert transfer(source, sink) == [b"one", b"three"]
    assert source.held_bytes == 0


@pytest.mark.parametrize(
    ("sequence", "offset", "ack"), [(0, 0, 0), (3, 0, 0), (1, 3, 0), (2, 1, 0), (2, 0, 2), (1, 0, 1)]
)
def test_a_peer_cannot_resume_where_nothing_was_sent(sequence: int, offset: int, ack: int) -> None:
    source = sender(b"abc", b"def")
    assert source.next_frame(0) is not None
    with pytest.raises(ProtocolError):
        source.resume(sequence, offset, ack)


def test_a_peer_cannot_go_back_behind_its_acknowledgement() -> None:
    source = sender(b"abc")
    assert source.next_frame(0) is not None
    source.acknowledge(1)
    with pytest.raises(ProtocolError, match="wants to go on at 1:0"):
        source.resume(1, 0, 1)


@pytest.mark.parametrize(
    "data",
    [b"", b"\x02", ack_frame(1) + b"x", Frame(DATA, 1, 0, 1, 0).to_bytes(), b"\x09" + ack_frame(1)[1:]],
    ids=["empty", "short", "payload on an ack", "data without payload", "unknown kind"],
)
def test_malformed_frames_are_refused(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        parse_frame(data)
