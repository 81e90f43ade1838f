"""Messages survive the codec unchanged, and nothing malformed becomes a message."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from flwr.app import RecordDict
from hypothesis import given
from hypothesis import strategies as st

from sovfed.federation.codec import decode, encode
from sovfed.federation.errors import (
    WIRE_SENTENCES,
    BoundError,
    ConfigError,
    DataError,
    NotPrivateError,
    OrderError,
    ProtocolError,
    SovfedError,
    TrainingError,
    WholeModelError,
    WrongTaskError,
    wire_code,
)
from sovfed.federation.messages import (
    KINDS,
    EvaluateReply,
    EvaluateRequest,
    LaneOffer,
    LaneReply,
    LedgerReply,
    LedgerRequest,
    MaskedReply,
    Message,
    PrivateReply,
    PrivateRequest,
    ProfileReply,
    ProfileRequest,
    Refusal,
    ReleaseReply,
    ReleaseRequest,
    RunReply,
    RunRequest,
    SecaggReply,
    SecaggRequest,
    TrainReply,
    TrainRequest,
)
from sovfed.federation.wire.flower import from_records, to_records

MODEL, SCALE = np.arange(5, dtype=np.float32), np.ones(4)
TRAIN = TrainRequest("r", 1, "heart", 2**63 - 1, 2, 16, 0.1, 0.0, MODEL, SCALE)
BLOB, WORDS = np.arange(9, dtype=np.uint8), np.arange(3, dtype=np.uint64) - np.uint64(2)
MESSAGES: list[Message] = [
    ProfileRequest("r", "heart"),
    ProfileReply(np.arange(7.0)),
    TRAIN,
    TrainReply(1, 303, 0.5, 0.7, MODEL, SCALE),
    EvaluateRequest("r", 0, "heart", MODEL, SCALE),
    EvaluateReply(3, 0.1, SCALE),
    PrivateRequest(
        "r", "g", 1, "heart", "silo", 10, 5, 2, 1.1, 0.1, 1.0, 1e-6, 3, 16, 25.0, 7, 1, 16, 0.1, MODEL, BLOB
    ),
    MaskedReply(0.5, BLOB, WORDS),
    PrivateReply(BLOB, WORDS),
    RunRequest("r", BLOB, 31, 103, 2, 3, 32, 1.0, 1_000, order=BLOB),
    RunReply("max_rounds,privacy", "signed", BLOB),
    SecaggRequest("r", BLOB, "reveal"),
    SecaggReply(BLOB, "roster"),
    LedgerRequest("r", BLOB, BLOB, BLOB, BLOB, 7),
    LedgerReply(BLOB, BLOB, BLOB, 7),
    ReleaseRequest("r", 3, "heart", MODEL, SCALE, BLOB, "0" * 64),
    ReleaseReply(),
    LaneOffer("r", "agency.example:8445", "t" * 32, 1_700_000_000_000, BLOB, BLOB),
    LaneReply(True),
    Refusal("failed"),
]


def equal(a: object, b: object) -> bool:
    return type(a) is type(b) and all(
        np.array_equal(getattr(a, field.name), getattr(b, field.name))
        for field in dataclasses.fields(a)  # type: ignore[arg-type]
    )


def with_scalars(**changes: Any) -> tuple[str, dict[str, Any], dict[str, Any]]:
    kind, scalars, vectors = encode(TRAIN)
    return kind, {**scalars, **changes}, dict(vectors)


def test_every_kind_of_message_is_covered_here() -> None:
    assert {type(message) for message in MESSAGES} == set(KINDS.values())


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_a_message_survives_the_codec(message: Message) -> None:
    assert equal(decode(*encode(message)), message)


def test_a_field_that_came_later_is_sent_only_where_it_says_something() -> None:
    """Else an agency of today could not speak to an institution of yesterday."""
    private = next(message for message in MESSAGES if isinstance(message, PrivateRequest))
    few = dataclasses.replace(private, person_records=3)
    assert "person_records" not in encode(private)[1] and encode(few)[1]["person_records"] == 3
    assert equal(decode(*encode(few)), few)


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_a_message_survives_flowers_records(message: Message) -> None:
    """Seen: a field called `kind` took the place of the message's own in the header, once it left the process."""
    carried = to_records(message)
    assert equal(from_records(RecordDict({name: carried[name] for name in carried})), message)


@given(
    st.integers(1, 1_000_000),
    st.floats(0.0, 1e9),
    st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=50),
)
def test_any_values_in_range_survive_the_codec(number: int, seconds: float, values: list[float]) -> None:
    message = TrainReply(number, 1, seconds, 0.0, np.array(values, dtype=np.float32), SCALE)
    assert equal(decode(*encode(message)), message)


def test_vectors_are_not_copied() -> None:
    assert encode(TRAIN)[2]["model"] is MODEL


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ProtocolError, match="unknown message kind"):
        decode("run-this-code", {"version": 1}, {})


@pytest.mark.parametrize(
    "changes",
    [
        {"version": 2},
        {"version": "1"},
        {"version": True + 1},
        {"extra": 1},
        {"round": 0},
        {"round": 1.0},
        {"round": True},
        {"run": ""},
        {"run": "r" * 65},
        {"seed": 2**63},
        {"learning_rate": float("nan")},
        {"learning_rate": float("inf")},
        {"model": 1},
    ],
    ids=str,
)
def test_a_wrong_scalar_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError):
        decode(*with_scalars(**changes))


def test_a_private_reply_has_no_place_for_seconds() -> None:
    kind, scalars, vectors = encode(PrivateReply(BLOB, WORDS))
    assert set(scalars) == {"version"}
    with pytest.raises(ProtocolError, match=r"unknown key 'private-reply\.seconds'"):
        decode(kind, {**scalars, "seconds": 0.1}, vectors)


def test_a_missing_scalar_or_version_is_refused() -> None:
    for name in ("round", "version"):
        kind, scalars, vectors = with_scalars()
        del scalars[name]
        with pytest.raises(ProtocolError):
            decode(kind, scalars, vectors)


@pytest.mark.parametrize(
    "model",
    [
        MODEL.astype(np.float64),
        MODEL.astype(">f4"),
        MODEL.reshape(1, 5),
        np.array(1.0, dtype=np.float32),
        np.array([1.0, np.nan], dtype=np.float32),
        np.array([1.0, np.inf], dtype=np.float32),
        np.array([np.inf, -np.inf], dtype=np.float32),
        np.broadcast_to(np.float32(0.0), (1_000_000_001,)),
    ],
    ids=["float64", "big-endian", "matrix", "scalar", "nan", "inf", "opposite-infs", "too-long"],
)
def test_a_wrong_vector_is_refused(model: Any) -> None:
    kind, scalars, vectors = with_scalars()
    with pytest.raises(ProtocolError):
        decode(kind, scalars, {**vectors, "model": model})


def test_finite_values_whose_sum_overflows_float32_are_accepted() -> None:
    large = np.full(4, np.finfo(np.float32).max, dtype=np.float32)
    kind, scalars, vectors = with_scalars()
    assert equal(decode(kind, scalars, {**vectors, "model": large}), dataclasses.replace(TRAIN, model=large))


@pytest.mark.parametrize("names", [[], ["model"], ["model", "scale", "more"]])
def test_missing_or_additional_vectors_are_refused(names: list[str]) -> None:
    kind, scalars, _ = with_scalars()
    with pytest.raises(ProtocolError, match="vectors"):
        decode(kind, scalars, dict.fromkeys(names, MODEL))


def test_a_refusal_says_a_fixed_sentence_and_takes_no_other_text() -> None:
    assert Refusal("failed").sentence == WIRE_SENTENCES["failed"]
    with pytest.raises(ProtocolError):
        decode("refusal", {"version": 1, "reason": "patient Maria Muster was not found"}, {})


def test_only_the_code_of_an_error_crosses_the_wire() -> None:
    assert wire_code(KeyError("Maria Muster")) == "failed"
    assert wire_code(ConfigError("x")) == "config"
    assert wire_code(NotPrivateError("x")) == "needs-privacy"


FORGED = [
    "x\nINFO sovfed.clients.trainer.service: run 7, round 1: 0 records",
    "\x1b]0;x\x07",
    "a b",
    "a/b",
    "[bold]x",
    "\u202ea",
    "ä",
]


@pytest.mark.parametrize("forged", FORGED)
@pytest.mark.parametrize(
    ("message", "field"),
    [
        (message, field.name)
        for message in MESSAGES
        for field in dataclasses.fields(message)
        if field.name in ("run", "task", "keep", "grant", "dataset")
    ],
    ids=lambda one: one if isinstance(one, str) else type(one).__name__,
)
def test_a_name_on_the_wire_forges_no_log_line(message: Message, field: str, forged: str) -> None:
    kind, scalars, vectors = encode(message)
    with pytest.raises(ProtocolError, match=f"{kind}.{field}") as caught:
        decode(kind, {**scalars, field: forged}, vectors)
    assert str(caught.value).isascii() and "\n" not in str(caught.value)


def test_no_text_or_key_on_the_wire_steers_a_terminal() -> None:
    kind, scalars, vectors = encode(LaneOffer("r", "agency.example:8445", "t" * 32, 1, BLOB, BLOB))
    with pytest.raises(ProtocolError, match="no control characters"):
        decode(kind, {**scalars, "address": "a\x1b[2J:1"}, vectors)
    with pytest.raises(ProtocolError) as caught:
        decode(kind, {**scalars, "x\nINFO y": 1}, vectors)
    assert str(caught.value).isprintable()


def test_no_code_tells_what_was_wrong_with_the_records() -> None:
    assert {wire_code(error("x")) for error in (DataError, TrainingError, SovfedError)} == {"failed"}
    codes = {error.code for error in SovfedError.__subclasses__()} | {
        BoundError.code,
        NotPrivateError.code,
        OrderError.code,
        WholeModelError.code,
        WrongTaskError.code,
        "failed",
    }
    assert codes - {DataError.code, TrainingError.code} == set(WIRE_SENTENCES)
