"""Sums of the same records over almost the same institutions, in one run and over runs: refused, or recorded."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from sovfed.clients.cli.institution import cli
from sovfed.federation.errors import PolicyError, ServiceError
from sovfed.federation.messages import Vector
from sovfed.federation.secagg import local
from sovfed.federation.secagg.files import FOLDER, JOURNAL, create_journal, near_sums
from sovfed.federation.secagg.history import History, Joined, Pinned, Revealed, Spent, name_tag
from sovfed.federation.secagg.journal import Journal
from sovfed.federation.secagg.local import SUBJECT, Federation, establish, found, random_updates
from sovfed.federation.secagg.opened import MAX_COHORTS, check_apart, check_differencing, groups
from sovfed.federation.secagg.purpose import Purpose
from sovfed.federation.secagg.terms import RECORD, REFUSE, Terms
from sovfed.federation.secagg.wire import RUN_BYTES

SIZE = 8
MODEL: Vector = np.zeros(SIZE, np.float32)
STRICT = Terms(min_cohort=4, colluders=1, max_size=2**40, post_quantum=False)
S = bytes(32)


def federation_of(count: int, terms: Terms = STRICT) -> Federation:
    return found(count, min_cohort=4, terms=terms, post_quantum=False)


def another_run(federation: Federation, members: Collection[int], epoch: int = 1) -> Federation:
    """A new run of `members`, who keep their journals."""
    kept = [federation.institutions[index] for index in members]
    offer = replace(federation.roster.offer, run=np.random.default_rng().bytes(RUN_BYTES), epoch=epoch)
    return establish(
        federation.authority, federation.sign, offer, [one.identity for one in kept], kept[0].terms,
        [one.history for one in kept], post_quantum=False,
    )  # fmt: skip


def opens(federation: Federation, number: int, cohort: Collection[int], purpose: Purpose = Purpose.TRAIN) -> bool:
    """A sum of a model of its own over `cohort`, asked of everybody. Raises what the first institution refuses with."""
    model = MODEL + number
    round_ = federation.open(number, model, cohort=cohort, purpose=purpose)
    for index, update in random_updates(len(federation.institutions), SIZE).items():
        if index in cohort:
            upload = federation.upload(round_, index, model, update.astype(purpose.dtype), 10)
            round_.add(upload.message, upload.payload)
    for holder, ask in round_.ask().items():
        round_.answer(federation.institutions[holder].reveal(ask))
    return round_.solve() is not None


@pytest.mark.parametrize("first", [Purpose.PROFILE, Purpose.TRAIN, Purpose.EVALUATE])
@pytest.mark.parametrize("second", [Purpose.PROFILE, Purpose.TRAIN, Purpose.EVALUATE])
def test_one_institution_less_is_refused_in_the_same_run_and_in_another(first: Purpose, second: Purpose) -> None:
    federation = federation_of(7)
    assert opens(federation, 1, range(7), first)
    for later in (federation, another_run(federation, range(7)), another_run(federation, range(6))):
        with pytest.raises(PolicyError, match=r"differ by hospital-006, fewer than 4.*differencing: refuse"):
            opens(later, 2, range(6), second)
    assert opens(federation, 3, range(7), second)  # the very same institutions are no news


def test_a_survivor_that_drops_out_is_refused_when_holders_are_asked() -> None:
    """The announced cohort is that of before; the coordinator then calls one dropped."""
    federation = federation_of(7)
    assert opens(federation, 1, range(7))
    round_ = federation.open(2, MODEL + 2)
    for index in range(6):
        upload = federation.upload(round_, index, MODEL + 2, MODEL, 10)
        round_.add(upload.message, upload.payload)
    for holder, ask in round_.ask().items():
        with pytest.raises(PolicyError, match="differ by hospital-006"):
            federation.institutions[holder].reveal(ask)


@pytest.mark.parametrize(("second", "allowed"), [(range(4), True), (range(4, 8), True), (range(3, 8), False)])
def test_the_bound_is_the_minimum_cohort(second: range, allowed: bool) -> None:
    """Eight, then four of them, who differ by four: as many as the minimum cohort. Five differ by three."""
    federation = federation_of(8)
    assert opens(federation, 1, range(8))
    if allowed:
        assert opens(federation, 2, second)
    else:
        with pytest.raises(PolicyError, match="differ by hospital-000, hospital-001, hospital-002, fewer than 4"):
            opens(federation, 2, second)


def test_the_offered_minimum_counts_where_it_is_the_larger() -> None:
    """Own terms of 4, an offer of 5: a difference of four is refused."""
    federation = found(9, min_cohort=5, terms=STRICT, post_quantum=False)
    assert opens(federation, 1, range(9))
    with pytest.raises(PolicyError, match="fewer than 5"):
        opens(federation, 2, range(5))


def test_three_sums_that_isolate_one_are_refused_by_whoever_helped_with_two() -> None:
    """S1 = A ∪ B ∪ {v}, S2 = A, S3 = B: any two differ by four or more, S1 − S2 − S3 is v."""
    federation = federation_of(9)
    assert opens(federation, 1, range(9))
    assert opens(federation, 2, range(4))
    with pytest.raises(PolicyError, match="single out 1 institutions"):
        opens(federation, 3, range(4, 8))


@pytest.mark.parametrize("purpose", [Purpose.STEP, Purpose.SILO])
def test_private_sums_are_answered_and_leave_no_trace(purpose: Purpose) -> None:
    """Each is a release of its own, noised and charged."""
    federation = federation_of(7)
    assert opens(federation, 1, range(7))
    for number, cohort in ((2, range(6)), (3, range(5))):
        model = MODEL + number
        round_ = federation.open(number, model, cohort=cohort, purpose=purpose)
        for index in cohort:
            upload = federation.upload(round_, index, model, np.zeros(SIZE, purpose.dtype), 10)
            round_.add(upload.message, upload.payload)
        for holder, ask in round_.ask().items():
            round_.answer(federation.institutions[holder].reveal(ask))
        assert round_.solve() is not None
    assert opens(federation, 4, range(7))


@pytest.mark.parametrize(
    ("first", "second"),
    [(Purpose.COUNT, Purpose.COUNT), (Purpose.COUNT, Purpose.TRAIN), (Purpose.TRAIN, Purpose.COUNT)],
)
def test_a_table_and_a_sum_without_privacy_judge_each_other(first: Purpose, second: Purpose) -> None:
    federation = federation_of(7)
    assert opens(federation, 1, range(7), first)
    for later in (federation, another_run(federation, range(6))):
        with pytest.raises(PolicyError, match=r"differ by hospital-006, fewer than 4"):
            opens(later, 2, range(6), second)
    assert opens(federation, 3, range(7), second)


def test_tables_are_not_judged_where_the_policy_says_so_and_exact_sums_still_are() -> None:
    federation = federation_of(7, replace(STRICT, table_days=0))
    assert opens(federation, 1, range(7), Purpose.COUNT)
    assert opens(federation, 2, range(6), Purpose.COUNT)
    assert opens(federation, 3, range(7))
    with pytest.raises(PolicyError, match=r"differ by hospital-006, fewer than 4"):
        opens(federation, 4, range(6))


def test_a_roster_that_shares_too_few_holders_with_a_table_s_is_refused_while_that_judges() -> None:
    federation = federation_of(16)
    assert opens(federation, 1, range(16), Purpose.COUNT)
    later = another_run(federation, range(5))
    with pytest.raises(PolicyError, match="roster of 16, which shares too few holders with this one of 5"):
        opens(later, 2, range(5), Purpose.COUNT)
    for one in later.institutions:
        one.history.days = dict.fromkeys(one.history.days, 0)  # in 1970
    assert opens(later, 3, range(5), Purpose.COUNT)


def test_a_roster_that_shares_too_few_holders_is_refused() -> None:
    """Sixteen, then five of them: eleven of the sixteen may have opened a sum that no four of the five know of."""
    federation = federation_of(16)
    assert opens(federation, 1, range(16))
    kept = federation.institutions[:5]
    later = establish(
        federation.authority, federation.sign, replace(federation.roster.offer, run=bytes(RUN_BYTES)),
        [one.identity for one in kept], STRICT, [one.history for one in kept], post_quantum=False,
    )  # fmt: skip
    with pytest.raises(PolicyError, match="roster of 16, which shares too few holders with this one of 5"):
        opens(later, 2, range(5))


def test_under_record_it_is_answered_and_named(tmp_path: Path) -> None:
    create_journal(tmp_path)
    federation = federation_of(7, replace(STRICT, differencing=RECORD))
    journal = Journal(tmp_path / FOLDER / JOURNAL)
    run = federation.roster.offer.run
    journal.commit([Joined(run, 1, federation.roster.digest, "heart\x1b[2J", federation.roster.names)])
    assert opens(federation, 1, range(7), Purpose.PROFILE)
    assert opens(federation, 2, range(6))
    own = federation.institutions[0].history
    journal.commit([own.revealed[run, 1], own.revealed[run, 2]])
    first, second = "run heart?[2J, sum 1 (profile)", "run heart?[2J, sum 2 (train)"
    expected = f"{second} can be differenced with {first}; they differ by hospital-006"
    assert near_sums(tmp_path) == [expected]  # while the trainer holds the journal
    assert near_sums(tmp_path / "nowhere") == []
    assert f"1 sums could be differenced with an earlier one, the newest:\n  {expected}\n" in CliRunner().invoke(
        cli, ["status", "--home", str(tmp_path)]
    ).output  # fmt: skip


def test_a_damaged_journal_is_told_of_by_status(tmp_path: Path) -> None:
    create_journal(tmp_path)
    (tmp_path / FOLDER / JOURNAL).write_bytes(b"something else")
    with pytest.raises(ServiceError, match=r"not a journal of this version$"):
        near_sums(tmp_path)
    (tmp_path / FOLDER / JOURNAL).write_bytes(b"sovfed/secagg/journal/1\n")
    with pytest.raises(ServiceError, match="an older sovfed wrote it, and this institution must enrol anew"):
        near_sums(tmp_path)


def entry(number: int, names: Collection[str], subject: bytes = S) -> Revealed:
    return Revealed(bytes(16), number, S, 1, S, subject, 4, tuple(sorted(name_tag(name) for name in names)))


def test_the_number_of_cohorts_is_bounded_whatever_the_policy() -> None:
    history = History()
    for number in range(MAX_COHORTS):
        history.add(entry(number, [f"{number}-{place}" for place in range(4)]))
    assert len(history.near) == 0
    for differencing in (RECORD, REFUSE):
        terms = replace(STRICT, differencing=differencing)
        known = frozenset(history.cohorts.popitem()[0])
        history.cohorts[known] = entry(0, [])
        check_differencing(history, terms, known, 4, "round 1", 0)
        with pytest.raises(PolicyError, match="holds 2000 cohorts"):
            check_differencing(history, terms, frozenset({b"a", b"b", b"c", b"d"}), 4, "round 1", 0)


def test_the_same_records_under_a_task_with_other_columns_are_the_same_records() -> None:
    """What M1 calls them is the coordinator's word: no rule looks at it."""
    history = History()
    history.add(entry(1, "abcdefg", subject=bytes(31) + b"\1"))
    fewer = frozenset(name_tag(name) for name in "abcdef")
    with pytest.raises(PolicyError, match="differ by"):
        check_differencing(history, STRICT, fewer, 4, "round 1", 0)
    history.add(Joined(bytes(RUN_BYTES), 1, S, "run", tuple("abcdefg")))
    history.add(Spent(bytes(RUN_BYTES), S, 1, 1, Purpose.TRAIN, S, bytes(31) + b"\1", S, S))
    others = frozenset(name_tag(name) for name in "ghijklm")
    with pytest.raises(PolicyError, match="too few holders"):
        check_apart(history, STRICT, others, "round 1", 0)


def test_a_whole_round_under_other_columns_is_held_against_those_before(monkeypatch: pytest.MonkeyPatch) -> None:
    federation = federation_of(7)
    assert opens(federation, 1, range(7))
    monkeypatch.setattr(local, "SUBJECT", bytes(31) + b"\1")  # of the coordinator's round and of every request
    for later in (federation, another_run(federation, range(6))):
        with pytest.raises(PolicyError, match="differ by hospital-006"):
            opens(later, 2, range(6))
    assert opens(federation, 3, range(7))


def test_groups_are_those_who_were_in_the_same_sums() -> None:
    cohorts = [frozenset(map(str.encode, names)) for names in ("abcdef", "abc", "cd")]
    assert sorted("".join(sorted(one.decode() for one in group)) for group in groups(cohorts)) == ["ab", "c", "d", "ef"]


@pytest.mark.parametrize("change", [{"clip": 2.0}, {"max_weight": 5}, {"clip": 2.0, "subject": bytes(31) + b"\1"}])
def test_the_same_records_are_not_trained_on_under_another_bound(change: dict[str, Any]) -> None:
    """Sums over the very same institutions under W_max 3000 and 3001 gave the update of the one with more records."""
    federation = federation_of(7)
    offer = federation.roster.offer
    pinned = replace(Pinned(SUBJECT, offer.clip, offer.max_weight), **change)
    for one in federation.institutions:
        one.history.add(pinned)
    with pytest.raises(PolicyError, match=r"trained on with clip .*differencing: refuse"):
        opens(federation, 1, range(7))
    assert opens(federation, 2, range(7), Purpose.EVALUATE)
    relaxed = federation_of(7, replace(STRICT, differencing=RECORD))
    for one in relaxed.institutions:
        one.history.add(pinned)
    assert opens(relaxed, 1, range(7))
