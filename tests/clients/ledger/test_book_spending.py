"""What a granted run has spent is on disk before it leaves, and never too little."""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.clients.ledger.books import DAY, Clock, entries, most_steps, refusals
from tests.clients.ledger.crash import BUDGET, CODE, POPULATION, WitnessedLedger, Z, gaussian_delta, plan, release

from sovfed.clients.ledger import book as module
from sovfed.clients.ledger.entries import Budget, Closed
from sovfed.clients.ledger.file import ledger_path, read_ledger
from sovfed.federation.errors import PrivacyError
from sovfed.federation.privacy.events import Event


def test_spend_is_on_disk_before_it_returns(
    open_ledger: Callable[..., WitnessedLedger], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = open_ledger()
    grant = ledger.authorise("r", plan())
    calls: list[tuple[str, int]] = []
    write, fsync = os.write, os.fsync

    def seen_write(file: int, data: bytes) -> int:
        calls.append(("write", file))
        return write(file, data)

    def seen_fsync(file: int) -> None:
        calls.append(("fsync", file))
        fsync(file)

    monkeypatch.setattr(os, "write", seen_write)
    monkeypatch.setattr(os, "fsync", seen_fsync)
    first = release(grant.plan, 0)
    receipt = ledger.spend(grant, first)
    (_, written), (_, synced) = calls
    assert [name for name, _ in calls] == ["write", "fsync"] and written == synced
    lines, _ = read_ledger(home, POPULATION)
    assert lines[-1].entry.release == first  # type: ignore[union-attr]
    assert receipt.head == lines[-1].head == ledger.head


def test_receipts_never_say_too_little(open_ledger: Callable[..., WitnessedLedger]) -> None:
    """Two grants in turns: each ε covers what is spent, exceeds neither what is granted nor, much, what is spent."""
    ledger = open_ledger()
    grants = [ledger.authorise(name, plan(20)) for name in ("a", "b")]
    spent, before = 0, 0.0
    for step in range(20):
        for grant in grants:
            receipt = ledger.spend(grant, release(grant.plan, step))
            spent += 1
            assert receipt.epsilon_before == before
            assert gaussian_delta(receipt.epsilon_after, spent) <= BUDGET.delta
            assert gaussian_delta(receipt.epsilon_after - 0.01, min(spent + 30, 40)) >= BUDGET.delta
            assert before <= receipt.epsilon_after <= grants[1].epsilon_after + 1e-9
            before = receipt.epsilon_after


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"event": Event(Z / 2, 1.0, 1)}, "noise_multiplier is 4.0, granted 8.0"),
        ({"event": Event(2 * Z, 1.0, 1)}, "noise_multiplier is 16.0, granted 8.0"),
        ({"event": Event(Z, 0.5, 1)}, "sampling_rate is 0.5, granted 1.0"),
        ({"clip": 2.0}, "clip is 2.0, granted 1.0"),
        ({"mechanism": "institution"}, "mechanism is institution, granted distributed"),
        ({"config": "f" * 64}, f"config is {'f' * 64}, granted {CODE}"),
        ({"round": 9}, "round is 9, granted up to 5"),
        ({"round": 2}, "round is 2 (attempt 0), round 3 (attempt 2) was spent already"),
        ({"round": 3, "first_step": 2}, "round is 3 (attempt 0), round 3 (attempt 2) was spent already"),
        ({"round": 3, "attempt": 1, "first_step": 2}, "round 3 attempt 1 was spent before: digest is "),
        ({"round": 3, "attempt": 3, "first_step": 4}, "attempt 3 is for steps 4–4, attempt 2 was for 2–2"),
        ({"first_step": 2}, "first_step is 2, steps up to 2 are spent"),
        ({"first_step": 5}, "steps are 5–5, granted 5 in all, of which 2 are left"),
        ({"event": Event(Z, 1.0, 3), "first_step": 3}, "steps are 3–5, granted 5 in all, of which 2 are left"),
    ],
)
def test_server_that_asks_for_more_is_refused_and_the_ledger_says_why(
    open_ledger: Callable[..., WitnessedLedger], home: Path, change: dict[str, Any], words: str
) -> None:
    ledger = open_ledger()
    grant = ledger.authorise("r", plan(5, rounds=5))
    for round_, attempt, step in ((1, 0, 0), (3, 1, 2), (3, 2, 2)):
        ledger.spend(grant, release(grant.plan, round_, attempt, step))
    head = ledger.head
    good = release(grant.plan, 4, first=3)
    with pytest.raises(PrivacyError, match=re.escape(f"run 'r', train: {words}")):
        ledger.spend(grant, dataclasses.replace(good, **change))
    assert len(refusals(home)) == 1 and refusals(home)[0].startswith(words)
    assert ledger.head != head
    ledger.spend(grant, good)


def test_steps_of_repeats_are_paid_too(open_ledger: Callable[..., WitnessedLedger]) -> None:
    ledger = open_ledger()
    grant = ledger.authorise("r", plan(3))
    for attempt in range(3):
        ledger.spend(grant, release(grant.plan, 0, attempt))
    with pytest.raises(PrivacyError, match="steps are 1–1, granted 3 in all, of which 0 are left"):
        ledger.spend(grant, release(grant.plan, 1))


def test_same_bytes_may_be_sent_again_at_no_cost(open_ledger: Callable[..., WitnessedLedger], home: Path) -> None:
    ledger = open_ledger()
    grant = ledger.authorise("r", plan())
    first, second = release(grant.plan, 0), release(grant.plan, 1)
    ledger.spend(grant, first)
    receipt = ledger.spend(grant, second)
    count = len(entries(home))
    again = open_ledger()
    for repeated in (first, second):
        assert again.spend(grant, repeated).head == receipt.head
    again.close(grant.run)
    assert again.spend(grant, second).epsilon_before == again.spend(grant, second).epsilon_after
    assert len(entries(home)) == count + 1


def test_started_is_spent_after_a_crash(open_ledger: Callable[..., WitnessedLedger]) -> None:
    ledger = open_ledger()
    grant = ledger.authorise("r", plan(2))
    ledger.spend(grant, release(grant.plan, 0))  # and the trainer dies before anything leaves
    ledger = open_ledger()
    with pytest.raises(PrivacyError, match="round 0 attempt 0 was spent before"):
        ledger.spend(ledger.authorise("r", plan(2)), release(grant.plan, 0))
    assert ledger.close(grant.run) == 1


def test_grant_of_another_ledger_is_refused(open_ledger: Callable[..., WitnessedLedger], home: Path) -> None:
    ledger = open_ledger()
    grant = ledger.authorise("r", plan())
    forged = dataclasses.replace(grant, plan=plan(100))
    for wrong in (forged, dataclasses.replace(grant, run="other")):
        with pytest.raises(PrivacyError, match="the grant is not one of this ledger"):
            ledger.spend(wrong, release(grant.plan, 0))
    with pytest.raises(PrivacyError, match="run 'other', train: no such grant in this ledger"):
        ledger.close("other")
    assert len(refusals(home)) == 2


def test_closed_grant_stays_closed(open_ledger: Callable[..., WitnessedLedger], home: Path) -> None:
    ledger = open_ledger()
    grant = ledger.authorise("r", plan())
    assert (ledger.close(grant.run), ledger.close(grant.run)) == (7, 0)
    with pytest.raises(PrivacyError, match="the grant was closed"):
        ledger.spend(grant, release(grant.plan, 0))
    with pytest.raises(PrivacyError, match="the grant was closed; start a new run"):
        open_ledger().authorise("r", plan())
    assert [entry.returned for entry in entries(home) if isinstance(entry, Closed)] == [7]


def test_finished_run_gives_its_spare_steps_back(open_ledger: Callable[..., WitnessedLedger], home: Path) -> None:
    ledger = open_ledger()
    grant = ledger.authorise("r", plan())
    assert ledger.next_attempt(grant, grant.plan.rounds) == 0
    last = dataclasses.replace(release(grant.plan, 0), round=grant.plan.rounds)
    ledger.spend(grant, last)
    assert ledger.next_attempt(grant, grant.plan.rounds) == 1
    assert not [entry for entry in entries(home) if isinstance(entry, Closed)]
    ledger.authorise("s", plan(3))
    assert [(entry.run, entry.returned) for entry in entries(home) if isinstance(entry, Closed)] == [("r", 6)]


def test_lowered_limit_holds_for_grants_that_are_open(open_ledger: Callable[..., WitnessedLedger], home: Path) -> None:
    grant = open_ledger().authorise("r", plan(most_steps(3.9)))
    ledger = open_ledger(dataclasses.replace(BUDGET, annual_epsilon=2.0))
    words = r"open grants would take the population to ε=3\.\d\d, over the limit annual_epsilon 2\.00 that policy"
    with pytest.raises(PrivacyError, match=words):
        ledger.spend(grant, release(grant.plan, 0))
    ledger.close(grant.run)
    small = ledger.authorise("s", plan(3))
    ledger.spend(small, release(small.plan, 0))
    assert [entry.annual_epsilon for entry in entries(home) if isinstance(entry, Budget)] == [4.0, 2.0]


def test_refusals_do_not_fill_the_disk(
    open_ledger: Callable[..., WitnessedLedger], home: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "REFUSALS_A_DAY", 5)
    ledger = open_ledger()
    for wanted in (5, 10):
        for _ in range(8):
            with pytest.raises(PrivacyError, match=r"policy\.yaml says"):
                ledger.authorise("r", plan(delta=1e-3))
        assert len(refusals(home)) == wanted
        clock.now += DAY


@pytest.mark.parametrize(
    "change",
    [{"config": "abc"}, {"mechanism": "none"}, {"clip": math.nan}, {"event": Event(math.inf, 1.0, 1)}, {"rounds": -1}],
)
def test_plan_out_of_range_leaves_the_ledger_as_it_was(
    open_ledger: Callable[..., WitnessedLedger], home: Path, change: dict[str, Any]
) -> None:
    ledger, before = open_ledger(), ledger_path(home, POPULATION).read_bytes()
    with pytest.raises(PrivacyError):
        ledger.authorise("r", dataclasses.replace(plan(), **change))
    assert ledger_path(home, POPULATION).read_bytes() == before
