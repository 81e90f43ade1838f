from __future__ import annotations

import os
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sovfed.federation.errors import ProtocolError
from sovfed.federation.secagg import history, session, wire
from sovfed.federation.secagg.keys import CLASSICAL, HYBRID, KEM_CIPHERTEXT_BYTES, KEM_PUBLIC_BYTES

H, S = bytes(range(32)), bytes(range(64))
BEGIN = wire.Begin(S, H, 3, 1, 1, (0, 2, 254), 1000, 2, H, H, H)
EXAMPLES: list[wire.Wire] = [
    wire.Offer(S, bytes(16), 1, H, 32, 1.0, 1000, 24, 5, 10**6, 6, 2_000_000_000, H, b"certificate"),
    wire.KeyAd(S, H, HYBRID, H, bytes(KEM_PUBLIC_BYTES), H, 2_000_000_000, b"certificate"),
    wire.KeyAd(S, H, CLASSICAL, H, b"", H, 2_000_000_000, b"certificate"),
    wire.RosterList((b"one", b"two", b"")),
    wire.Capsules(H, 1, HYBRID, (wire.Capsule(bytes(KEM_CIPHERTEXT_BYTES), H, S),) * 2),
    wire.CapsulesFor(H, 2, CLASSICAL, (wire.Capsule(b"", H, S),)),
    wire.Confirmations(H, 2, (H, H)),
    wire.ConfirmationsFor(H, 0, ()),
    wire.Complaint(3, 0),
    BEGIN,
    wire.Masked(H, 1, bytes(64), H, H, (H[:16],) * 2, (S[:48],) * 3, (bytes(80),) * 3, S),
    wire.Ask(S, BEGIN.encode(), 4, (0, 2), (wire.Survivor(H, S[:48], b""),) * 2),
    wire.Ask(S, BEGIN.encode(), 4, (0, 2), (wire.Survivor(H, S[:48], bytes(80)),) * 2),
    wire.Reveal(S, H, H, 1, H * 4),
    history.Joined(bytes(16), 1, H, "run", ("hospital-1", "hospital-2")),
    history.Spent(bytes(16), H, 1, 2, 1, H, H, H, H),
    history.Revealed(bytes(16), 1, H, 1, H, H, 3, (H[:8],) * 4),
    session._Stored(1, b"offer", wire.RosterList((b"one", b"two")).encode(), (H, H), H),
]
DECODERS = sorted({type(example) for example in EXAMPLES}, key=lambda cls: cls.KIND)
NAMES = [f"{type(example).__name__}-{place}" for place, example in enumerate(EXAMPLES)]


@pytest.mark.parametrize("example", EXAMPLES, ids=NAMES)
def test_decoding_gives_the_message_back(example: wire.Wire) -> None:
    assert type(example).decode(example.encode()) == example


def test_kinds_are_distinct() -> None:
    assert len({cls.KIND for cls in DECODERS}) == len(DECODERS)


@pytest.mark.parametrize("example", EXAMPLES, ids=NAMES)
def test_every_truncation_and_any_byte_more_is_refused(example: wire.Wire) -> None:
    data = example.encode()
    for size in {*range(min(len(data), 300)), *range(0, len(data), 97)}:
        with pytest.raises(ProtocolError):
            type(example).decode(data[:size])
    with pytest.raises(ProtocolError, match="too many"):
        type(example).decode(data + b"\0")


@pytest.mark.parametrize("example", EXAMPLES, ids=NAMES)
def test_other_versions_and_kinds_are_refused(example: wire.Wire) -> None:
    data = bytearray(example.encode())
    for place in (0, 4, 5):
        changed = bytearray(data)
        changed[place] ^= 1
        with pytest.raises(ProtocolError, match="starts with"):
            type(example).decode(bytes(changed))
    for other in DECODERS:
        if other is not type(example):
            with pytest.raises(ProtocolError):
                other.decode(bytes(data))


@given(data=st.data())
@settings(max_examples=1500)
def test_no_input_crashes_a_decoder_or_survives_differently(data: st.DataObject) -> None:
    """Random tails, and mutations of valid messages: refused with ProtocolError, or encoded again to the same bytes."""
    example = data.draw(st.sampled_from(EXAMPLES))
    original = example.encode()
    if data.draw(st.booleans()):
        fuzzed = original[:6] + data.draw(st.binary(max_size=600))
    else:
        mutable = bytearray(original)
        for place, value in data.draw(
            st.lists(st.tuples(st.integers(0, len(original) - 1), st.integers(0, 255)), max_size=4)
        ):
            mutable[place] = value
        fuzzed = bytes(mutable[: data.draw(st.integers(len(original) - 40, len(original)))])
    try:
        decoded = type(example).decode(fuzzed)
    except ProtocolError:
        return
    assert decoded.encode() == fuzzed or any(part != part for part in vars(decoded).values())  # NaN is not itself


@pytest.mark.parametrize("cls", DECODERS, ids=lambda cls: cls.__name__)
def test_a_decoder_allocates_no_more_than_it_was_given(cls: type[wire.Wire]) -> None:
    """Counts and lengths all at their largest, over a short message and over one beyond the limit."""
    head = wire.MAGIC + bytes((wire.VERSION, cls.KIND))
    for body in (b"\xff" * 2_000, os.urandom(2_000), b"\xff" * (cls.LIMIT + 1)):
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        with pytest.raises(ProtocolError):
            cls.decode(head + body)
        peak = tracemalloc.get_traced_memory()[1] - before
        tracemalloc.stop()
        assert peak < 3 * (len(body) + 20_000)
