"""A malicious coordinator during a round, with up to t − 1 holders or real colluders on its side."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest

from sovfed.federation.errors import IdentityError, PolicyError, PrivacyError, ProtocolError, SovfedError
from sovfed.federation.messages import Vector
from sovfed.federation.secagg import client, wire
from sovfed.federation.secagg.client import Upload
from sovfed.federation.secagg.coordinator import Round
from sovfed.federation.secagg.local import Federation, establish, found, random_updates
from sovfed.federation.secagg.mask import hash_vector
from sovfed.federation.secagg.roster import commit_self, commitments_digest
from sovfed.federation.secagg.shares import interpolate

SIZE = 40
MODEL: Vector = np.zeros(SIZE, np.float32)


def uploads_of(federation: Federation, round_: Round, members: list[int], model: Vector = MODEL) -> dict[int, Upload]:
    updates = random_updates(len(federation.institutions), SIZE)
    return {index: federation.upload(round_, index, model, updates[index], 10) for index in members}


def ask_for(
    federation: Federation, round_: Round, uploads: dict[int, Upload], survivors: list[int]
) -> dict[int, bytes]:
    """M3 for a sum over `survivors`, made honestly from what they uploaded in this round."""
    copy = Round(
        federation.roster, federation.sign, federation.upload_keys, round_.begin, round_.begin_bytes, round_.ctx,
        np.zeros_like(round_._words), np.zeros_like(round_._header),
    )  # fmt: skip
    for index in survivors:
        copy.add(uploads[index].message, uploads[index].payload)
    return copy.ask()


def answers(federation: Federation, asks: dict[int, bytes], holders: list[int]) -> dict[int, bytes]:
    """The shares of those of `holders` that answer."""
    given = {}
    for holder in holders:
        try:
            given[holder] = wire.Reveal.decode(federation.institutions[holder].reveal(asks[holder])).shares
        except SovfedError:
            continue
    return given


def own_seed_found(round_: Round, upload: Upload, victim: int, position: int, given: dict[int, bytes]) -> bool:
    """Whether any set of the shares obtained gives the victim's own seed."""
    committed = wire.Masked.decode(upload.message).commit_self
    shares = {holder: shares[32 * position : 32 * position + 32] for holder, shares in given.items()}
    return any(
        commit_self(round_.ctx, victim, interpolate({holder: shares[holder] for holder in chosen})) == committed
        for size in range(1, len(shares) + 1)
        for chosen in combinations(shares, size)
    )


def test_a_member_named_survivor_and_dropped_at_once_cannot_be_expressed() -> None:
    """Overlapping lists: dropped = cohort without survivors, computed by the holder; shares of the victim's pairwise
    seeds are not even sent when nobody dropped, and its own seed's not when it did."""
    federation = found(4)
    round_ = federation.open(1, MODEL)
    uploads = uploads_of(federation, round_, [0, 1, 2, 3])
    whole = wire.Ask.decode(ask_for(federation, round_, uploads, [0, 1, 2, 3])[0])
    fewer = wire.Ask.decode(ask_for(federation, round_, uploads, [0, 1, 2])[0])
    pairs = [item.sealed_pairs for item in (*fewer.items, fewer.items[0])]
    items = [replace(item, sealed_pairs=sealed) for item, sealed in zip(whole.items, pairs, strict=True)]
    mixed = replace(whole, items=tuple(items))
    with pytest.raises(ProtocolError, match="pairwise shares"):
        federation.institutions[0].reveal(mixed.sign(federation.sign).encode())
    answer = wire.Reveal.decode(federation.institutions[0].reveal(ask_for(federation, round_, uploads, [0, 1, 2])[0]))
    assert len(answer.shares) == 32 * (3 + 3)  # own seeds of the survivors; of their pairs, only those with the dropped


def test_two_survivor_sets_of_one_round_never_both_reach_a_quorum() -> None:
    """Alternate U1: the coordinator splits the holders in every possible way; one sum at most comes out."""
    federation = found(5)
    for first_group in range(2**5):
        model = MODEL + first_group
        round_ = federation.open(first_group + 1, model)
        uploads = uploads_of(federation, round_, [0, 1, 2, 3, 4], model)
        one, other = (ask_for(federation, round_, uploads, survivors) for survivors in ([0, 1, 2, 3, 4], [0, 1, 2, 3]))
        group = [holder for holder in range(5) if first_group >> holder & 1]
        counts = [len(answers(federation, one, group)), len(answers(federation, other, list(range(5))))]
        assert counts == [len(group), 5 - len(group)]
        assert sum(count >= federation.roster.threshold for count in counts) <= 1


def test_colluders_who_answer_twice_do_not_make_two_quorums() -> None:
    """n=8, t=6, c=3: the colluders answer for both sums, the five honest once each; 3 + 5 < 2·6 − 3."""
    federation = found(8)
    round_ = federation.open(1, MODEL)
    uploads = uploads_of(federation, round_, list(range(8)))
    one, other = (ask_for(federation, round_, uploads, survivors) for survivors in (list(range(8)), list(range(7))))
    colluders, honest = [0, 1, 2], [3, 4, 5, 6, 7]
    for size in range(6):
        for index in (*colluders, *honest):
            federation.institutions[index].history.revealed.clear()
            federation.institutions[index].history.sums.clear()
        first = answers(federation, one, honest[:size])
        second = answers(federation, other, honest)
        assert len(second) == 5 - size
        assert (len(first) + 3 >= 6) + (len(second) + 3 >= 6) <= 1
        fewer = first if len(first) < len(second) else second
        position, victim = 6, 6
        assert not own_seed_found(round_, uploads[victim], victim, position, fewer)


def test_a_second_attempt_with_a_smaller_cohort_gives_no_second_sum() -> None:
    """Cross-attempt differencing (trap b): n=12, t=9; a second attempt among 6, before the first is asked for."""
    federation = found(12)
    first = federation.open(1, MODEL)
    uploads = uploads_of(federation, first, list(range(12)))
    second = federation.open(1, MODEL, attempt=2, cohort=range(6))
    again = uploads_of(federation, second, list(range(6)))
    asks_first = ask_for(federation, first, uploads, list(range(12)))
    asks_second = ask_for(federation, second, again, list(range(6)))
    given_second = answers(federation, asks_second, list(range(5)))
    given_first = answers(federation, asks_first, list(range(12)))
    assert (len(given_second), len(given_first)) == (5, 7) and federation.roster.threshold == 9
    assert not own_seed_found(second, again[0], 0, 0, given_second)
    assert not own_seed_found(first, uploads[0], 0, 0, dict(list(given_first.items())[:8]))


def test_no_new_attempt_after_a_sum_is_out() -> None:
    federation = found(4)
    round_ = federation.open(1, MODEL)
    uploads = uploads_of(federation, round_, [0, 1, 2])
    answers(federation, ask_for(federation, round_, uploads, [0, 1, 2]), [0, 1, 2, 3])
    with pytest.raises(PrivacyError, match="revealed already"):
        uploads_of(federation, federation.open(1, MODEL, attempt=2), [3])


@pytest.mark.parametrize("attempt", [1, 0])
def test_a_context_is_masked_under_once(attempt: int) -> None:
    federation = found(4)
    uploads_of(federation, federation.open(1, MODEL), [0])
    with pytest.raises(PrivacyError, match="burnt"):
        uploads_of(federation, federation.open(1, MODEL, attempt=attempt), [0])


def test_the_same_model_over_a_cohort_shrunk_by_one_is_refused() -> None:
    """At M1 where the cohort says so, and at M3 where the coordinator lets one drop out."""
    federation = found(6)
    assert federation.run(1, MODEL, random_updates(6, SIZE), dict.fromkeys(range(6), 10)) is not None
    with pytest.raises(PrivacyError, match="summed over 6 other institutions"):
        uploads_of(federation, federation.open(2, MODEL, cohort=range(5)), [0])
    round_ = federation.open(2, MODEL)
    asks = ask_for(federation, round_, uploads_of(federation, round_, list(range(5))), list(range(5)))
    for institution in federation.institutions:
        with pytest.raises(PrivacyError, match="summed over 6 other institutions"):
            institution.reveal(asks[institution.index])
    same = federation.run(3, MODEL, random_updates(6, SIZE), dict.fromkeys(range(6), 10))
    assert same is not None  # the very same cohort again reveals nothing new


def test_a_message_of_another_run_round_or_attempt_is_refused() -> None:
    """Replay: an upload and an M3 of each other context, against the same members."""
    federation, other = found(4), found(4)
    round_ = federation.open(2, MODEL)
    uploads = uploads_of(federation, round_, [0, 1, 2, 3])
    for target in (federation.open(3, MODEL), federation.open(2, MODEL, attempt=2), other.open(2, MODEL)):
        with pytest.raises((ProtocolError, IdentityError)):
            target.add(uploads[0].message, uploads[0].payload)
    ask = ask_for(federation, round_, uploads, [0, 1, 2, 3])[0]
    with pytest.raises(ProtocolError, match="another roster"):
        other.institutions[0].reveal(ask)
    later = federation.open(3, MODEL)
    forged = replace(wire.Ask.decode(ask), begin=later.begin_bytes).sign(federation.sign).encode()
    with pytest.raises(PrivacyError, match="masked under"):
        federation.institutions[0].reveal(forged)
    uploads_of(federation, later, [0])
    with pytest.raises(ProtocolError, match="does not open"):
        federation.institutions[0].reveal(forged)


def test_members_given_different_models_share_no_sum() -> None:
    """Different models (Pasquini et al. 2022): the contexts differ, so neither uploads nor shares fit together."""
    federation, crafted = found(6), MODEL + 1
    honest, special = federation.open(1, MODEL), federation.open(1, crafted)
    uploads = uploads_of(federation, honest, [0, 1, 2, 3, 4])
    victim = uploads_of(federation, special, [5], crafted)[5]
    with pytest.raises(ProtocolError, match="another context"):
        honest.add(victim.message, victim.payload)
    asks = ask_for(federation, honest, uploads, [0, 1, 2, 3, 4])
    ask = wire.Ask.decode(asks[0])
    forced = replace(ask, survivors=(0, 1, 2, 3, 5)).sign(federation.sign).encode()
    with pytest.raises(ProtocolError, match="does not open"):
        federation.institutions[0].reveal(forced)


def test_a_model_other_than_the_one_announced_is_refused() -> None:
    federation = found(4)
    round_ = federation.open(1, MODEL)
    with pytest.raises(ProtocolError, match="not the one that was announced"):
        federation.institutions[0].begin(round_.begin_bytes, hash_vector(MODEL + 1), federation.now)
    with pytest.raises(ProtocolError, match="not the one that was announced"):
        federation.institutions[0].begin(round_.begin_bytes, hash_vector(MODEL), federation.now, task=bytes(32))


def test_a_late_upload_of_a_dropped_member_stays_masked() -> None:
    """The coordinator calls member 3 dropped, gets the seeds it shares with the survivors, and then has its payload."""
    federation = found(5)
    round_ = federation.open(1, MODEL)
    uploads = uploads_of(federation, round_, [0, 1, 2, 3, 4])
    asks = ask_for(federation, round_, uploads, [0, 1, 2, 4])
    given = answers(federation, asks, [0, 1, 2, 3, 4])
    assert len(given) == 5
    for position in range(len(given[0]) // 32):  # nothing among all those shares is the late member's own seed
        assert not own_seed_found(round_, uploads[3], 3, position, given)
    with pytest.raises(PrivacyError, match="another sum"):
        federation.institutions[0].reveal(ask_for(federation, round_, uploads, [0, 1, 2, 3, 4])[0])


@pytest.mark.parametrize("field", ["commitments", "sealed_self", "sealed_pairs"])
def test_a_tampered_survivor_is_refused(field: str) -> None:
    federation = found(4)
    round_ = federation.open(1, MODEL)
    uploads = uploads_of(federation, round_, [0, 1, 2])
    ask = wire.Ask.decode(ask_for(federation, round_, uploads, [0, 1, 2])[0])
    value = getattr(ask.items[1], field)
    item = replace(ask.items[1], **{field: bytes((value[0] ^ 1,)) + value[1:]})
    forged = replace(ask, items=(ask.items[0], item, ask.items[2])).sign(federation.sign).encode()
    with pytest.raises(ProtocolError, match="hospital-001: a sealed share does not open"):
        federation.institutions[0].reveal(forged)
    assert not federation.institutions[0].history.revealed


def test_survivors_that_never_uploaded_are_refused() -> None:
    """Sealed shares of one member passed off as another's, and shares sealed for another holder."""
    federation = found(4)
    round_ = federation.open(1, MODEL)
    uploads = uploads_of(federation, round_, [0, 1, 2])
    asks = {holder: wire.Ask.decode(ask) for holder, ask in ask_for(federation, round_, uploads, [0, 1, 2]).items()}
    for forged in (replace(asks[0], survivors=(0, 1, 3)), replace(asks[0], items=asks[1].items)):
        with pytest.raises(ProtocolError):
            federation.institutions[0].reveal(forged.sign(federation.sign).encode())


@pytest.mark.parametrize("survivors", [[0], [0, 1]])
def test_a_cohort_shrunk_below_the_minimum_is_refused(survivors: list[int]) -> None:
    federation = found(4)
    round_ = federation.open(1, MODEL)
    uploads = uploads_of(federation, round_, [0, 1, 2, 3])
    ask = wire.Ask.decode(ask_for(federation, round_, uploads, [0, 1, 2])[3])
    small = replace(ask, survivors=tuple(survivors), items=ask.items[: len(survivors)])
    with pytest.raises(PolicyError, match="terms: 3"):
        federation.institutions[3].reveal(small.sign(federation.sign).encode())
    with pytest.raises(PolicyError, match="terms: 3"):
        uploads_of(federation, federation.open(2, MODEL, cohort=survivors), [0])


def test_messages_not_signed_by_the_coordinator_are_refused() -> None:
    federation = found(4)
    round_ = federation.open(1, MODEL)
    uploads = uploads_of(federation, round_, [0, 1, 2, 3])
    ask = wire.Ask.decode(ask_for(federation, round_, uploads, [0, 1, 2, 3])[0])
    impostor = federation.institutions[1].identity.sign
    with pytest.raises(IdentityError, match="coordinator"):
        federation.institutions[0].reveal(ask.sign(impostor).encode())
    begin = replace(federation.open(2, MODEL).begin, cohort=(0, 1, 2)).encode()
    with pytest.raises(IdentityError, match="coordinator"):
        federation.institutions[0].begin(begin, hash_vector(MODEL), federation.now)


def test_a_second_roster_gives_no_second_sum_of_a_round() -> None:
    """Epochs: quorums of two rosters need share no honest holder, so a round is masked under one roster only."""
    federation = found(6)
    uploads_of(federation, federation.open(1, MODEL), [0, 1, 2, 3, 4, 5])
    kept = federation.institutions[:5]
    second = establish(
        federation.authority, federation.sign, replace(federation.roster.offer, epoch=2), [i.identity for i in kept],
        kept[0].terms, [institution.history for institution in kept],
    )  # fmt: skip
    with pytest.raises(PrivacyError, match="another roster"):
        uploads_of(second, second.open(1, MODEL, attempt=2), [0])
    assert second.run(2, MODEL, random_updates(5, SIZE), dict.fromkeys(range(5), 10)) is not None


def test_an_upload_shows_nothing_without_the_own_seed() -> None:
    """A coordinator that knows every pairwise seed of the victim (all others collude) still sees uniform words."""
    federation = found(3)
    round_ = federation.open(1, MODEL)
    payloads = []
    for _ in range(400):
        federation.institutions[0].history.spent.clear()
        payloads.append(federation.upload(round_, 0, MODEL, MODEL, 10).payload)
    bits = np.unpackbits(np.stack(payloads).view(np.uint8))
    assert abs(bits.mean() - 0.5) < 6 * 0.5 / np.sqrt(bits.size)
    assert np.unique(np.stack(payloads)[:, 0]).size == 400  # though s_ij, model and update were the same each time


def test_resealing_under_one_context_uses_other_keys() -> None:
    """A rolled-back journal would let a context be masked under twice: the sealed shares' keys differ all the same."""
    federation = found(3)
    round_ = federation.open(1, MODEL)
    first = wire.Masked.decode(federation.upload(round_, 0, MODEL, MODEL, 10).message)
    federation.institutions[0].history.spent.clear()
    second = wire.Masked.decode(federation.upload(round_, 0, MODEL, MODEL, 10).message)
    dealer = client._ShareKeys(federation.institutions[0].session, round_.ctx, 0)
    ciphertexts = [  # of the same zeros, so these are the keystreams
        dealer.seal(1, commitments_digest(m.ctx, 0, m.commit_self, m.commit_pairs), bytes(64)) for m in (first, second)
    ]
    assert (
        len({sealed[:32] for pair in ciphertexts for sealed in pair}) == 4 and first.commit_pairs == second.commit_pairs
    )


def test_keys_end_with_the_run() -> None:
    federation = found(4)
    round_ = federation.open(1, MODEL)
    with pytest.raises(ProtocolError, match="expired"):
        federation.institutions[0].begin(round_.begin_bytes, hash_vector(MODEL), federation.now + 4000)
