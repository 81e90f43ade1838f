"""Malicious members against the coordinator and each other: wrong shares, wrong payloads, wrong numbers."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from sovfed.federation.errors import IdentityError, ProtocolError
from sovfed.federation.messages import Vector
from sovfed.federation.secagg import client, ring, wire
from sovfed.federation.secagg.client import Upload
from sovfed.federation.secagg.coordinator import Lie, Round
from sovfed.federation.secagg.keys import Entropy
from sovfed.federation.secagg.local import Federation, found, random_updates
from sovfed.federation.secagg.shares import split

SIZE = 40
MODEL: Vector = np.zeros(SIZE, np.float32)


def filled(federation: Federation, members: list[int], replaced: dict[int, Upload] | None = None) -> Round:
    round_ = federation.open(1, MODEL)
    updates = random_updates(len(federation.institutions), SIZE)
    for index in members:
        upload = (replaced or {}).get(index) or federation.upload(round_, index, MODEL, updates[index], 10)
        round_.add(upload.message, upload.payload)
    return round_


def answer(federation: Federation, round_: Round, lying: dict[int, int] | None = None) -> None:
    """All holders answer; those in `lying` change the share at that position, under their own signature."""
    for holder, ask in round_.ask().items():
        institution = federation.institutions[holder]
        reveal = wire.Reveal.decode(institution.reveal(ask))
        if lying and holder in lying:
            at = 32 * lying[holder]
            shares = reveal.shares[:at] + os.urandom(32) + reveal.shares[at + 32 :]
            reveal = replace(reveal, shares=shares).sign(institution.identity.sign)
        round_.answer(reveal.encode())


@pytest.mark.parametrize("liars", [{0: 2}, {4: 0}, {0: 1, 3: 1}])
def test_a_holder_that_forges_shares_is_named_and_outvoted(liars: dict[int, int]) -> None:
    federation = found(8)
    round_ = filled(federation, list(range(8)))
    answer(federation, round_, liars)
    aggregate = round_.solve()
    assert aggregate is not None
    names = federation.roster.names
    assert set(aggregate.lies) == {Lie(names[dealer], names[holder]) for holder, dealer in liars.items()}
    plain = np.mean([random_updates(8, SIZE)[index] for index in range(8)], axis=0)
    assert np.abs(aggregate.mean - plain).max() < 1e-4


def test_a_forged_share_of_a_pairwise_seed_is_found_too() -> None:
    federation = found(5)
    round_ = filled(federation, [0, 1, 2, 3])
    answer(federation, round_, {2: 4 + 1})  # survivors' own seeds first, then the pairs with the dropped: dealer 1
    aggregate = round_.solve()
    assert aggregate is not None and aggregate.lies == (Lie("hospital-001", "hospital-002"),)


def test_with_no_holder_to_spare_a_forged_share_stops_the_round() -> None:
    federation = found(3)
    round_ = filled(federation, [0, 1, 2])
    answer(federation, round_, {1: 2})
    with pytest.raises(ProtocolError, match="hospital-002 fit no secret"):
        round_.solve()


def test_an_inconsistent_dealer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Member 1 deals shares of nothing: random strings, sealed and signed as they should be."""
    federation = found(5)

    def deal(secret: bytes, threshold: int, holders: int, entropy: Entropy) -> list[bytes]:
        return [entropy(len(secret)) for _ in range(holders)]

    round_ = federation.open(1, MODEL)
    monkeypatch.setattr(client, "split", deal)
    dishonest = federation.upload(round_, 1, MODEL, MODEL, 10)
    monkeypatch.setattr(client, "split", split)
    round_ = filled(federation, [0, 1, 2, 3, 4], {1: dishonest})
    answer(federation, round_)
    with pytest.raises(ProtocolError, match="dealt by hospital-001 fit no secret"):
        round_.solve()


@pytest.mark.parametrize("change", ["shorter", "longer", "other type", "one bit"])
def test_a_payload_that_is_not_what_was_signed_changes_nothing(change: str) -> None:
    federation = found(4)
    round_ = federation.open(1, MODEL)
    upload = federation.upload(round_, 0, MODEL, random_updates(4, SIZE)[0], 10)
    payload = upload.payload.copy()
    payload[3] ^= np.uint64(1 << 40)
    wrong: dict[str, Any] = {
        "shorter": upload.payload[:-1], "longer": np.append(upload.payload, np.uint64(0)),
        "other type": upload.payload.view(np.uint32), "one bit": payload,
    }  # fmt: skip
    with pytest.raises(ProtocolError):
        round_.add(upload.message, wrong[change])
    assert round_.survivors == () and not round_._words.any() and not round_._header.any()
    round_.add(upload.message, upload.payload)


@pytest.mark.parametrize("bad", [{2}, {0, 3}, {0, 1, 2, 3}, {5}, {4, 5}])
def test_a_bad_payload_among_four_is_named_and_leaves_no_trace_in_the_sum(bad: set[int]) -> None:
    """Six uploads of three segments: four added in one pass, two by `ask`. A relay changed the last bit of `bad`."""
    size = 140_000
    federation, model, updates = found(6), np.zeros(size, np.float32), random_updates(6, size)
    round_ = federation.open(1, model)
    uploads = [federation.upload(round_, index, model, updates[index], 10) for index in range(6)]
    for index, upload in enumerate(uploads):
        payload = upload.payload.copy()
        payload[-1] ^= np.uint64(index in bad)
        round_.take(upload.message, payload)
    if len(bad) < 4:
        asks = round_.ask()
    else:  # they may send again, what they signed
        round_.settle()
        assert set(round_.refused) == bad
        for index in sorted(bad):
            round_.take(uploads[index].message, uploads[index].payload)
        asks, bad = round_.ask(), set()
    names = federation.roster.names
    assert {index: str(error) for index, error in round_.refused.items()} == {
        index: f"round 1, {names[index]}: the payload is not the one that was signed" for index in bad
    }
    for holder, ask in asks.items():
        round_.answer(federation.institutions[holder].reveal(ask))
    aggregate = round_.solve()
    assert aggregate is not None and aggregate.survivors == tuple(names[i] for i in range(6) if i not in bad)
    plain = np.mean([updates[index] for index in range(6) if index not in bad], axis=0)
    assert np.abs(aggregate.mean - plain).max() < 1e-4


def test_a_second_upload_while_the_first_is_waiting_is_refused() -> None:
    federation = found(4)
    round_ = federation.open(1, MODEL)
    upload = federation.upload(round_, 0, MODEL, MODEL, 10)
    round_.take(upload.message, upload.payload)
    with pytest.raises(ProtocolError, match="second"):
        round_.take(upload.message, upload.payload)
    round_.settle()
    assert round_.survivors == (federation.roster.names[0],)


def test_an_upload_in_anothers_name_is_refused() -> None:
    federation = found(4)
    round_ = federation.open(1, MODEL)
    upload = federation.upload(round_, 0, MODEL, MODEL, 10)
    forged = replace(wire.Masked.decode(upload.message), index=1).encode()
    with pytest.raises(IdentityError, match="hospital-001"):
        round_.add(forged, upload.payload)


def test_an_answer_in_anothers_name_or_about_another_sum_is_refused() -> None:
    federation = found(4)
    round_ = filled(federation, [0, 1, 2, 3])
    reveal = wire.Reveal.decode(federation.institutions[0].reveal(round_.ask()[0]))
    with pytest.raises(IdentityError, match="hospital-001"):
        round_.answer(replace(reveal, holder=1).encode())
    with pytest.raises(ProtocolError, match="another sum"):
        round_.answer(replace(reveal, chosen=bytes(32)).sign(federation.institutions[0].identity.sign).encode())
    with pytest.raises(ProtocolError, match="another number of members"):
        round_.answer(
            replace(reveal, shares=reveal.shares[32:]).sign(federation.institutions[0].identity.sign).encode()
        )


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_spoils_only_itself_and_shows_in_no_refusal(bad: float) -> None:
    federation = found(4)
    update = MODEL.copy()
    update[7] = bad
    round_ = federation.open(1, MODEL, metrics=1)
    uploads = {0: federation.upload(round_, 0, MODEL, update, 10, [bad])}
    for index in (1, 2, 3):
        uploads[index] = federation.upload(round_, index, MODEL, MODEL, 10, [1.0])
    for upload in uploads.values():
        round_.add(upload.message, upload.payload)
    answer(federation, round_)
    found_ = round_.solve()
    assert found_ is not None and found_.mean is not None
    expected = np.clip(MODEL, -1, 1)
    expected[7] *= 0.75
    np.testing.assert_allclose(found_.mean, expected, atol=1e-5)
    saturated = 0.0 if np.isnan(bad) else np.sign(bad) * 2.0**30
    assert found_.metrics.tolist() == [3.0 + saturated]


@pytest.mark.parametrize("weight", [1001, 2**63, 0, -5])
def test_a_weight_beyond_the_maximum_counts_as_the_maximum_and_none_as_one(weight: int) -> None:
    federation = found(4)
    round_ = federation.open(1, MODEL)
    uploads = [federation.upload(round_, index, MODEL, MODEL, weight if index == 0 else 10) for index in range(4)]
    for upload in uploads:
        round_.add(upload.message, upload.payload)
    answer(federation, round_)
    solved = round_.solve()
    assert solved is not None and solved.weight == (1000 if weight > 0 else 1) + 30


def test_a_member_that_counts_twice_has_the_sum_discarded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A member's own header says count = 2; masked, nobody sees it, but the sum's header shows it."""
    federation = found(4)
    honest = ring.pack_header

    def twice(*arguments: object) -> object:
        header = honest(*arguments)  # type: ignore[arg-type]
        header[0] = 2
        return header

    round_ = federation.open(1, MODEL)
    monkeypatch.setattr(client, "pack_header", twice)
    upload = federation.upload(round_, 0, MODEL, MODEL, 10)
    monkeypatch.setattr(client, "pack_header", honest)
    round_ = filled(federation, [0, 1, 2, 3], {0: upload})
    answer(federation, round_)
    with pytest.raises(ProtocolError, match="header is inconsistent"):
        round_.solve()


def test_a_wrong_mask_has_the_sum_discarded() -> None:
    """Member 2 masks with a seed that is not the one its peers use; the header decodes to noise."""
    federation = found(4)
    session = federation.institutions[2].session
    keys = tuple(bytes(32) if index == 0 else key for index, key in enumerate(session.keys))
    federation.institutions[2].session = replace(session, keys=keys)
    round_ = federation.open(1, MODEL)
    upload = federation.upload(round_, 2, MODEL, MODEL, 10)
    federation.institutions[2].session = session
    round_ = filled(federation, [0, 1, 2, 3], {2: upload})
    asks = round_.ask()
    with pytest.raises(ProtocolError, match="hospital-002: a sealed share does not open"):
        federation.institutions[0].reveal(asks[0])
    for holder in (1, 2, 3):
        round_.answer(federation.institutions[holder].reveal(asks[holder]))
    with pytest.raises(ProtocolError, match="header is inconsistent"):
        round_.solve()
