"""Frames: what is read of them, and those that lie."""

from __future__ import annotations

import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from tests.clients.trainer.test_socket import train_request

from sovfed.clients.trainer.frames import frame_and_file, from_frame, to_frame
from sovfed.federation.errors import ProtocolError
from sovfed.federation.messages import ProfileReply, TrainRequest
from sovfed.federation.stored import in_memory
from sovfed.federation.wire.trainer_pb2 import Envelope, Vector

MIB = 1 << 20


@pytest.mark.parametrize("size", [1, 2, 31, 1000])
def test_a_frame_gives_the_message_back_without_copying_its_vectors(size: int) -> None:
    request = train_request(size)
    frame = to_frame(request)
    found = from_frame(frame)
    assert isinstance(found, TrainRequest)
    assert np.array_equal(found.model, request.model)
    assert np.array_equal(found.scale, request.scale)
    assert (found.learning_rate, found.run, found.seed) == (0.1, "r", 1)
    assert np.shares_memory(found.model, np.frombuffer(frame, dtype=np.uint8))
    assert found.model.flags.aligned
    assert found.scale.flags.aligned


def _frame(envelope: bytes, payload: bytes = b"") -> bytes:
    return struct.pack("<I", len(envelope)) + envelope + bytes(-(4 + len(envelope)) % 8) + payload


def _profile(payload: bytes = bytes(24), **changes: object) -> bytes:
    vector = {"name": "sums", "dtype": "float64", "length": 3, **changes}
    envelope = Envelope(kind="profile-reply", scalars='{"version": 1}', vectors=[Vector(**vector)])  # type: ignore[arg-type]
    return _frame(envelope.SerializeToString(), payload)


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"\xff\xff\xff\xff",
        _frame(b"\xff\xff"),
        _frame(Envelope(kind="profile", scalars="{").SerializeToString()),
        _frame(Envelope(kind="profile", scalars="[]").SerializeToString()),
        _frame(Envelope(kind="profile", scalars="[" * 20_000).SerializeToString()),
        _frame(Envelope(kind="steal", scalars="{}").SerializeToString()),
        _profile(dtype="object"),
        _profile(length=2_500_000_000),  # a claim of 20 GB
        _profile(length=2**64 - 1),
        _profile(length=2),
        _profile(payload=bytes(32)),
        _profile(payload=np.array([1.0, np.nan, 1.0]).tobytes()),
        to_frame(train_request())[:-1],
        to_frame(train_request()) + b"\0",
    ],
)
def test_a_frame_that_lies_is_refused(frame: bytes) -> None:
    assert isinstance(from_frame(_profile()), ProfileReply)
    with pytest.raises(ProtocolError):
        from_frame(frame)


def test_a_long_vector_lies_in_a_sealed_file_and_is_not_copied(home: Path) -> None:
    parts, stored = frame_and_file(train_request(100_000))
    assert stored is not None
    assert sum(map(len, parts)) < 2_000
    found = from_frame(b"".join(parts), stored)
    assert isinstance(found, TrainRequest)
    assert np.array_equal(found.model, np.arange(100_000, dtype=np.float32))
    assert frame_and_file(found)[1] is stored  # and goes on as it is
    with pytest.raises(ValueError, match="read-only"):
        found.model[0] = 1


def test_a_vector_beyond_the_end_of_its_file_is_refused() -> None:
    stored = in_memory(32)
    stored.seal()
    for offset, length in ((0, 5), (8, 4), (2**64 - 8, 1), (0, 2**61)):
        vector = Vector(name="sums", dtype="float64", length=length, offset=offset)
        envelope = Envelope(kind="profile-reply", scalars='{"version": 1}', vectors=[vector]).SerializeToString()
        with pytest.raises(ProtocolError, match="does not fit"):
            from_frame(_frame(envelope), stored)
        with pytest.raises(ProtocolError, match="does not fit"):
            from_frame(_frame(envelope))


def test_many_vectors_over_the_same_bytes_take_no_memory() -> None:
    """A gateway that was taken over could have had the trainer copy one file a thousand times."""
    stored = in_memory(32 * MIB)
    stored.seal()
    vectors = [Vector(name=f"v{number}", dtype="float64", length=4 * MIB - 1, offset=1) for number in range(1_000)]
    envelope = Envelope(kind="profile-reply", scalars='{"version": 1}', vectors=vectors).SerializeToString()
    tracemalloc.start()
    try:
        with pytest.raises(ProtocolError, match="same bytes"):
            from_frame(_frame(envelope), stored)
        assert tracemalloc.get_traced_memory()[1] < 40 * MIB
    finally:
        tracemalloc.stop()
