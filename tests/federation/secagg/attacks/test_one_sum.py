"""One sum a model and run, at every size: the coordinator and every bearable number of colluding holders against it.

Colluders forget what they answered and answer everything. The coordinator has all uploads before it asks anybody, and
asks each honest holder for the sum where it helps most.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import pytest

from sovfed.federation.errors import PrivacyError, SovfedError
from sovfed.federation.secagg.coordinator import Round
from sovfed.federation.secagg.local import Federation, establish, found
from sovfed.federation.secagg.mask import hash_vector
from sovfed.federation.secagg.purpose import Purpose
from sovfed.federation.secagg.terms import RECORD, Terms, colluders_tolerated, shared_holders, threshold

SIZES = range(3, 17)
CASES = [(n, c) for n in SIZES for c in range(colluders_tolerated(n) + 1) if c + 3 <= n]
NUMBERS = itertools.count(1)


def terms(colluders: int) -> Terms:
    return Terms(min_cohort=colluders + 3, colluders=colluders, max_size=2**40, post_quantum=False, differencing=RECORD)


@cache
def federation_of(count: int, colluders: int) -> Federation:
    return found(count, min_cohort=colluders + 3, terms=terms(colluders), post_quantum=False)


@dataclass
class Sum:
    """A masked sum that only awaits its quorum."""

    federation: Federation
    round: Round
    asks: dict[int, bytes]

    def answers(self, holder: int) -> bool:
        """Whether the roster's member `holder` helps to open it."""
        try:
            self.round.answer(self.federation.institutions[holder].reveal(self.asks[holder]))
        except SovfedError:
            return False
        return True

    @property
    def opened(self) -> bool:
        return self.round.solve() is not None


def masked(federation: Federation, model: np.ndarray, cohort: Collection[int], survivors: Collection[int] = ()) -> Sum:
    """A sum over `survivors` of `cohort` (all of it by default), under a number of its own."""
    round_ = federation.open(next(NUMBERS), model, cohort=cohort, purpose=Purpose.STEP)
    for index in cohort:
        institution = federation.institutions[index]
        permit = institution.begin(round_.begin_bytes, hash_vector(model), federation.now)
        upload = institution.mask(permit, np.ones(1, np.int32), 1, ())
        if index in (survivors or cohort):
            round_.add(upload.message, upload.payload)
    return Sum(federation, round_, round_.ask())


def forget(federation: Federation, colluders: Collection[int]) -> None:
    for index in colluders:
        history = federation.institutions[index].history
        history.revealed.clear()
        history.sums.clear()


def attack(sums: Sequence[Sum], colluders: Collection[int], turns: Sequence[Sequence[int]]) -> list[bool]:
    """Ask the honest holders for each sum in its turn's order until it opens; colluders answer for all of them."""
    for one, order in zip(sums, turns, strict=True):
        forget(one.federation, colluders)
        for holder in colluders:
            one.answers(holder)
        for holder in order:
            if one.opened:
                break
            one.answers(holder)
    return [one.opened for one in sums]


def model_of(number: int) -> np.ndarray:
    return np.full(1, number, np.float32)


@pytest.mark.parametrize(("count", "colluding"), CASES)
def test_two_cohorts_never_both_open(count: int, colluding: int) -> None:
    """Cohorts that overlap least and most; colluders at either end, quorums from both ends."""
    federation, least = federation_of(count, colluding), colluding + 3
    pairs = [(range(least), range(count - least, count), range(colluding))]
    pairs += [(range(count), range(count - 1), range(count - colluding, count))] if count > least else []
    for one, other, colluders in pairs:
        if set(one) != set(other):
            model = model_of(next(NUMBERS))
            sums = [masked(federation, model, one), masked(federation, model, other)]
            honest = [index for index in range(count) if index not in colluders]
            assert attack(sums, colluders, [honest, honest[::-1]]) == [True, False]


@pytest.mark.parametrize(("count", "colluding"), [case for case in CASES if case[0] >= 2 * (case[1] + 3) + 1])
def test_three_sums_that_isolate_one_institution_never_open(count: int, colluding: int) -> None:
    """S1 = A ∪ B ∪ {v}, S2 = A, S3 = B, with quorums that share as few holders as they can."""
    federation, least = federation_of(count, colluding), colluding + 3
    a, b, v = list(range(least)), list(range(least, 2 * least)), 2 * least
    colluders, model = [i for i in range(count)[::-1] if i != v][:colluding], model_of(next(NUMBERS))
    sums = [masked(federation, model, cohort) for cohort in ([*a, *b, v], a, b)]
    honest = [index for index in range(count) if index not in colluders]
    third = len(honest) // 3
    turns = [honest, honest[third:] + honest[:third], honest[::-1]]
    assert sum(attack(sums, colluders, turns)) == 1


@pytest.mark.parametrize(("count", "colluding"), [case for case in CASES if case[0] >= case[1] + 4])
def test_one_upload_gives_no_two_sums(count: int, colluding: int) -> None:
    """The same uploads with and without one survivor, which alternate quorums would tell apart."""
    federation, model = federation_of(count, colluding), model_of(next(NUMBERS))
    round_ = federation.open(next(NUMBERS), model, purpose=Purpose.STEP)
    uploads = []
    for institution in federation.institutions:
        permit = institution.begin(round_.begin_bytes, hash_vector(model), federation.now)
        uploads.append(institution.mask(permit, np.ones(1, np.int32), 1, ()))
    sums = []
    for survivors in (range(count), range(count - 1)):
        one = Round(
            federation.roster, federation.sign, federation.upload_keys, round_.begin, round_.begin_bytes, round_.ctx,
            np.zeros_like(round_._words), np.zeros_like(round_._header),
        )  # fmt: skip
        for index in survivors:
            one.add(uploads[index].message, uploads[index].payload)
        sums.append(Sum(federation, one, one.ask()))
    honest = list(range(colluding, count))
    assert attack(sums, range(colluding), [honest, honest[::-1]]) == [True, False]


@pytest.mark.parametrize(("count", "colluding"), CASES)
def test_two_rosters_never_both_open(count: int, colluding: int) -> None:
    """A second roster within the first: its sum is refused at once, or lacks a quorum beside the first's.

    Sizes on either side of the edge; the first is asked of those outside of the second roster before all others.
    """
    allowed = [size for size in range(colluding + 3, count) if colluders_tolerated(size) >= colluding]
    safe = [size for size in allowed if shared_holders(range(count), range(size)) > colluding]
    for size in (*safe[:1], *[size for size in allowed if size not in safe][-1:]):
        usual = federation_of(count, colluding)
        copies = [replace(one, history=deepcopy(one.history)) for one in usual.institutions]
        first, model = replace(usual, institutions=copies), model_of(next(NUMBERS))
        before = masked(first, model, range(count))
        kept = first.institutions[-size:]  # colluders are among them
        second = establish(
            first.authority, first.sign, replace(first.roster.offer, epoch=2), [one.identity for one in kept],
            terms(colluding), [one.history for one in kept], post_quantum=False,
        )  # fmt: skip
        shared = threshold(count) + threshold(size) - count
        assert shared == shared_holders(range(count), range(count - size, count))
        if shared <= colluding:
            with pytest.raises(PrivacyError, match="share no honest holder"):
                masked(second, model, range(size))
            continue
        after = masked(second, model, range(size))
        honest = list(range(count - colluding))
        opened = attack([before], range(count - colluding, count), [honest])
        assert opened == [True]
        honest = list(range(size - colluding))[::-1]
        assert attack([after], range(size - colluding, size), [honest]) == [False]


def test_the_very_same_institutions_may_be_summed_again() -> None:
    federation, model = federation_of(5, 1), model_of(next(NUMBERS))
    for _ in range(2):
        one = masked(federation, model, range(5))
        assert attack([one], [], [range(5)]) == [True]


def test_once_a_holder_answered_no_other_cohort_is_begun() -> None:
    """Nor one that cannot end in the same survivors; one that can is begun, and opens over them alone."""
    federation, model = federation_of(5, 1), model_of(next(NUMBERS))
    assert masked(federation, model, range(4)).answers(0)
    with pytest.raises(PrivacyError, match="summed over 4 other institutions"):
        masked(federation, model, (0, 1, 2, 4))
    for institution in federation.institutions[1:]:
        assert hash_vector(model) not in {key[2] for key in institution.history.sums}
    more, same = masked(federation, model, range(5)), masked(federation, model, range(5), range(4))
    assert not more.answers(0)
    assert same.answers(0)


@pytest.mark.parametrize("purpose", [Purpose.PROFILE, Purpose.TRAIN, Purpose.EVALUATE, Purpose.SILO])
def test_the_rule_holds_for_every_purpose(purpose: Purpose) -> None:
    federation, model = federation_of(6, 1), model_of(next(NUMBERS))
    outcomes = []
    for cohort in (range(6), range(1, 6)):
        round_ = federation.open(next(NUMBERS), model, cohort=cohort, purpose=purpose)
        for index in cohort:
            institution = federation.institutions[index]
            try:
                permit = institution.begin(round_.begin_bytes, hash_vector(model), federation.now)
            except PrivacyError:
                continue
            upload = institution.mask(permit, np.ones(1, np.float32), 1, ())
            round_.add(upload.message, upload.payload)
        if len(round_.survivors) >= 4:
            one = Sum(federation, round_, round_.ask())
            outcomes.append(attack([one], [], [range(6)]))
    assert outcomes == [[True]]


def test_purposes_are_apart() -> None:
    """A model is trained over one cohort and evaluated over another: two quantities, each summed once."""
    federation, model = federation_of(6, 1), model_of(next(NUMBERS))
    for purpose, cohort in ((Purpose.TRAIN, range(6)), (Purpose.EVALUATE, range(5))):
        round_ = federation.open(next(NUMBERS), model, cohort=cohort, purpose=purpose)
        for index in cohort:
            institution = federation.institutions[index]
            permit = institution.begin(round_.begin_bytes, hash_vector(model), federation.now)
            upload = institution.mask(permit, np.zeros(1, np.float32), 1, ())
            round_.add(upload.message, upload.payload)
        assert attack([Sum(federation, round_, round_.ask())], [], [range(6)]) == [True]
