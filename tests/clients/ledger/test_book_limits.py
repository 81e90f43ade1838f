"""What one run, or runs without privacy, can take from others is bounded."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
from tests.clients.ledger.books import DAY, NOW, Clock, entries, live_on, most_steps
from tests.clients.ledger.crash import BUDGET, WitnessedLedger, plan, release

from sovfed.clients.ledger import book as module
from sovfed.clients.ledger.entries import Budget, Closed, Grant, Unbounded
from sovfed.federation.errors import PrivacyError
from sovfed.federation.privacy.accounting import Accountant
from sovfed.federation.privacy.events import Event


def test_one_run_cannot_reserve_a_year(open_ledger: Callable[..., WitnessedLedger]) -> None:
    ledger = open_ledger(dataclasses.replace(BUDGET, max_share_per_run=0.5))
    with pytest.raises(PrivacyError, match=r"over the limit max_share_per_run 2\.00 of policy\.yaml .*more steps fit"):
        ledger.authorise("greedy", plan(most_steps(2.0) + 1))
    ledger.authorise("modest", plan(most_steps(2.0) - 1))
    ledger.authorise("another", plan(most_steps(2.0) - 1))


def test_default_policy_lets_no_run_reserve_a_year() -> None:
    assert Budget().max_share_per_run <= 0.5 and Budget().lapse_days <= 31


def test_grant_that_releases_nothing_for_a_month_lapses(
    open_ledger: Callable[..., WitnessedLedger], clock: Clock, home: Path
) -> None:
    """One step of many, and then silence: the others get the rest back, and the silent one cannot go on."""
    ledger, room = open_ledger(), most_steps(BUDGET.epsilon)
    grant = ledger.authorise("silent", plan(room - 1))
    live_on(ledger, clock, 29)
    ledger.spend(grant, release(grant.plan, 0))
    live_on(ledger, clock, 29)
    with pytest.raises(PrivacyError, match="over the limit"):
        ledger.authorise("honest", plan(room - 20))
    live_on(ledger, clock, 2)
    ledger.authorise("honest", plan(room - 20))
    assert [(one.run, one.returned) for one in entries(home) if isinstance(one, Closed)] == [("silent", room - 2)]
    for again in (lambda: ledger.spend(grant, release(grant.plan, 1)), lambda: ledger.authorise("silent", grant.plan)):
        with pytest.raises(PrivacyError, match="the grant was closed"):
            again()


def test_grant_in_use_does_not_lapse(open_ledger: Callable[..., WitnessedLedger], clock: Clock) -> None:
    ledger = open_ledger()
    grant = ledger.authorise("slow", plan(9))
    for step in range(4):
        live_on(ledger, clock, 25)
        ledger.spend(grant, release(grant.plan, step))
    assert ledger.authorise("slow", plan(9)) == grant


def test_grants_of_one_day_are_few(open_ledger: Callable[..., WitnessedLedger], clock: Clock) -> None:
    ledger = open_ledger()
    for number in range(module.GRANTS_A_DAY):
        ledger.authorise(f"run-{number}", plan(1, z=1e4 + number))
    with pytest.raises(PrivacyError, match="24 grants within a day are enough"):
        ledger.authorise("one more", plan(1, z=1e5))
    live_on(ledger, clock, 1)
    ledger.authorise("one more", plan(1, z=1e5))


def test_releases_of_next_to_nothing_use_up_no_more_than_their_run_s_share(
    open_ledger: Callable[..., WitnessedLedger],
) -> None:
    """Seen: a million releases at ε 0.00 in one grant, the most that is accounted for; then nothing fitted for life."""
    ledger = open_ledger(dataclasses.replace(BUDGET, max_share_per_run=0.5))
    with pytest.raises(PrivacyError, match="limit max_share_per_run"):
        ledger.authorise("a million", plan(1_000_000, z=1e4, q=1e-9))
    ledger.authorise("honest", plan(5, q=0.1))


def test_thousand_grants_of_next_to_nothing_do_not_make_the_next_dear(
    open_ledger: Callable[..., WitnessedLedger], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of another kind; what is counted is how many distributions the accountant composes, not seconds."""
    ledger, random = open_ledger(), Random(7)
    composed: list[int] = []
    plus = Accountant.plus

    def counting(self: Accountant, *events: Event) -> Accountant:
        composed.append(sum(event.sampling_rate < 1 for event in events))
        return plus(self, *events)

    for number in range(1_000):
        kind = plan(1, z=10 ** random.uniform(2, 6), q=10 ** random.uniform(-9, -1))
        ledger._history.add(NOW - 2 * DAY, Grant(kind, f"tiny-{number}", 0.0, 0.0))
    monkeypatch.setattr(Accountant, "plus", counting)
    ledger.authorise("honest", plan(5, q=0.1))
    assert max(composed) <= 24 + 64 and sum(composed) <= 4 * (24 + 64)


def test_run_without_privacy_is_entered_once_a_purpose(open_ledger: Callable[..., WitnessedLedger], home: Path) -> None:
    ledger = open_ledger()
    for purpose in ("profile", "train", "train", "evaluate"):
        ledger.enter_unbounded("7", purpose, "heart")
    open_ledger().enter_unbounded("7", "train", "heart")
    assert [(one.run, one.purpose) for one in entries(home) if isinstance(one, Unbounded)] == [
        ("7", "profile"), ("7", "train"), ("7", "evaluate")
    ]  # fmt: skip


def test_private_grants_go_on_by_their_own_budget_beside_runs_without_bound(
    open_ledger: Callable[..., WitnessedLedger],
) -> None:
    ledger = open_ledger()
    ledger.enter_unbounded("7", "train", "heart")
    with pytest.raises(PrivacyError, match="over the limit"):
        ledger.authorise("r", plan(most_steps(BUDGET.epsilon) + 1))
    ledger.authorise("r", plan(most_steps(BUDGET.epsilon)))


def test_runs_without_privacy_are_bounded_by_the_day_and_more_are_refused(
    open_ledger: Callable[..., WitnessedLedger], home: Path, clock: Clock
) -> None:
    ledger = open_ledger()
    for number in range(module.UNBOUNDED_A_DAY):
        ledger.enter_unbounded(f"run-{number}", "train", "heart")
    with pytest.raises(PrivacyError, match="300 other entries of runs without privacy within a day"):
        ledger.enter_unbounded("one-more", "train", "heart")
    ledger.enter_unbounded("run-3", "train", "heart")  # is there already
    live_on(ledger, clock, 1)
    ledger.enter_unbounded("one-more", "train", "heart")
