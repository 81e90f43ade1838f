"""The ledger's rules: never above the limits, each release as granted, each refusal with its numbers and on record."""

from __future__ import annotations

import dataclasses
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.clients.ledger.books import DAY, NOW, Clock, live_on, most_steps, refusals
from tests.clients.ledger.crash import BUDGET, CODE, POPULATION, WitnessedLedger, Z, gaussian_delta, plan, release

from sovfed.clients.ledger import book as module
from sovfed.clients.ledger.entries import Budget
from sovfed.clients.ledger.file import read_ledger
from sovfed.clients.ledger.limits import Limit, too_much
from sovfed.federation.errors import PrivacyError
from sovfed.federation.privacy.accounting import Accountant
from sovfed.federation.privacy.events import Event
from sovfed.federation.schema import bind


@pytest.mark.parametrize(
    ("z", "q", "steps", "delta", "epsilon"),
    [  # PLD at 1e-4, which Microsoft's prv-accountant confirms within 2e-4
        (5.0, 1.0, 100, 1e-5, 9.9973),
        (1.0, 0.01, 1000, 1e-5, 1.8282),
        (2.0, 0.1, 300, 1e-3, 2.9255),
    ],
)
def test_grant_says_the_published_epsilon(
    open_ledger: Callable[..., WitnessedLedger], z: float, q: float, steps: int, delta: float, epsilon: float
) -> None:
    budget = dataclasses.replace(BUDGET, epsilon=12.0, annual_epsilon=12.0, delta=delta, population=100)
    grant = open_ledger(budget).authorise("r", plan(steps, z, q, delta))
    assert grant.epsilon_before == 0.0
    assert epsilon - 2e-4 <= grant.epsilon_after <= epsilon + 0.02


def test_refusal_says_what_it_would_cost_and_what_would_fit(
    open_ledger: Callable[..., WitnessedLedger], home: Path
) -> None:
    ledger, room = open_ledger(), most_steps(BUDGET.epsilon)
    ledger.authorise("first", plan(room - 20))
    with pytest.raises(PrivacyError) as caught:
        ledger.authorise("second", plan(60))
    text = str(caught.value)
    found = re.search(
        r"run 'second', train: this run would take the population from ε=(\S+) to (\S+) at δ=1e-06, over the limit "
        r"epsilon 4\.00 of policy\.yaml \(annual_epsilon 4\.00, max_share_per_run 4\.00\); at most (\d+) more steps "
        r"fit, or all of them with a noise multiplier of at least (\S+)$",
        text,
    )
    assert found, text
    before, after, steps, z = (float(number) for number in found.groups())
    assert gaussian_delta(before + 0.01, room - 20) <= BUDGET.delta <= gaussian_delta(before - 0.01, room - 20)
    assert gaussian_delta(after + 0.01, room + 40) <= BUDGET.delta <= gaussian_delta(after - 0.01, room + 40)
    assert steps == 20
    for multiplier, fits in ((z, True), (0.99 * z, False)):
        total = (room - 20) / Z**2 + 60 / multiplier**2  # Gaussians of everybody are one, with 1/z² = Σ 1/z_i²
        assert (gaussian_delta(BUDGET.epsilon, 1, total**-0.5) <= BUDGET.delta) == fits
    assert refusals(home) == [text.removeprefix("run 'second', train: ")]
    ledger.authorise("second", plan(20))


def test_nothing_fits_when_the_budget_is_used_up(open_ledger: Callable[..., WitnessedLedger]) -> None:
    ledger = open_ledger()
    ledger.authorise("first", plan(most_steps(BUDGET.epsilon)))
    ledger.authorise("quiet", plan(1, 1e5))
    with pytest.raises(PrivacyError, match="at most 0 more steps fit, or all of them with a noise multiplier of at "):
        ledger.authorise("second", plan(1))
    lower = dataclasses.replace(BUDGET, epsilon=1.0, annual_epsilon=1.0)
    with pytest.raises(PrivacyError, match=r"nothing more fits$"):
        open_ledger(lower).authorise("second", plan(1))


def test_a_plan_without_room_is_looked_into_once_until_the_budget_changes(
    open_ledger: Callable[..., WitnessedLedger], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run asks again in every round; each look takes seconds of accounting."""
    ledger = open_ledger()
    looked: list[Any] = []

    def counted(*asked: Any) -> str:
        looked.append(asked)
        return too_much(*asked)

    monkeypatch.setattr(module, "too_much", counted)
    for run in ("a", "a", "b"):
        with pytest.raises(PrivacyError, match="over the limit"):
            ledger.authorise(run, plan(10_000))
    assert len(looked) == 1
    assert len(refusals(home)) == 3
    ledger.authorise("small", plan(1))
    with pytest.raises(PrivacyError, match="over the limit"):
        ledger.authorise("a", plan(10_000))
    assert len(looked) == 2


def test_what_would_fit_is_told_as_far_as_it_is_known_in_time() -> None:
    seconds = iter(range(1_000))
    limit = Limit("epsilon", "", 3.0, Accountant(), ())
    huge = Event(1.0, 1e-3, 10**9)
    said = too_much(limit, [limit], huge, 1e-6, lambda: float(next(seconds)))
    assert re.search(r"; at least 0 and fewer than \d+ more steps fit$", said)
    seconds = iter([0] * 10_000)
    assert re.search(r"; at most \d{2,6} more steps fit$", too_much(limit, [limit], huge, 1e-6, lambda: next(seconds)))


def test_runs_in_parallel_are_both_reserved(open_ledger: Callable[..., WitnessedLedger]) -> None:
    ledger, room = open_ledger(), most_steps(BUDGET.epsilon)
    outcomes: list[str] = []

    def ask(name: str) -> None:
        try:
            ledger.authorise(name, plan(room * 2 // 5))
            outcomes.append("granted")
        except PrivacyError:
            outcomes.append("refused")

    threads = [threading.Thread(target=ask, args=(f"run-{number}",)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["granted", "granted", "refused", "refused"]


def test_reserved_steps_count_though_none_is_spent_and_come_back_when_closed(
    open_ledger: Callable[..., WitnessedLedger],
) -> None:
    ledger, room = open_ledger(), most_steps(BUDGET.epsilon)
    grant = ledger.authorise("first", plan(room))
    for step in range(5):
        ledger.spend(grant, release(grant.plan, step))
    with pytest.raises(PrivacyError, match="over the limit"):
        ledger.authorise("second", plan(1))
    assert ledger.close(grant.run) == room - 5
    with pytest.raises(PrivacyError, match=f"at most {room - 5} more steps fit"):
        ledger.authorise("third", plan(room - 4))
    ledger.authorise("fourth", plan(room - 5))


def test_annual_limit_counts_a_year_and_the_other_the_whole_life(
    open_ledger: Callable[..., WitnessedLedger], clock: Clock
) -> None:
    budget = dataclasses.replace(BUDGET, epsilon=2.5, annual_epsilon=2.0)
    ledger, year, life = open_ledger(budget), most_steps(2.0), most_steps(2.5)
    grant = ledger.authorise("2027", plan(year))
    ledger.spend(grant, release(grant.plan, 0, steps=year))
    live_on(ledger, clock, 365)
    with pytest.raises(PrivacyError, match=r"366 days, over the limit annual_epsilon 2\.00 of .* \(epsilon 2\.50, "):
        ledger.authorise("too early", plan(1))
    live_on(ledger, clock, 2)
    left = life - year
    with pytest.raises(PrivacyError, match=r"over the limit epsilon 2\.50 of policy\.yaml \(annual_epsilon 2\.00, "):
        ledger.authorise("too long", plan(left + 1))
    ledger.authorise("2028", plan(left))


def test_clock_set_back_frees_nothing(open_ledger: Callable[..., WitnessedLedger], clock: Clock, home: Path) -> None:
    ledger = open_ledger(dataclasses.replace(BUDGET, annual_epsilon=2.0))
    grant = ledger.authorise("first", plan(most_steps(2.0)))
    ledger.spend(grant, release(grant.plan, 0, steps=most_steps(2.0)))
    clock.now -= 10_000 * DAY
    with pytest.raises(PrivacyError, match="annual_epsilon"):
        ledger.authorise("second", plan(1))
    assert [line.at for line in read_ledger(home, POPULATION)[0]] == [NOW] * 5


def test_same_question_gets_the_same_grant_also_after_a_restart(open_ledger: Callable[..., WitnessedLedger]) -> None:
    grant = open_ledger().authorise("r", plan())
    assert open_ledger().authorise("r", plan()) == grant
    assert open_ledger().authorise("r", dataclasses.replace(plan(), purpose="profile")) != grant


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"event": Event(Z / 2, 1.0, 7)}, "noise_multiplier is 4.0, granted 8.0"),
        ({"event": Event(Z, 0.5, 7)}, "sampling_rate is 0.5, granted 1.0"),
        ({"event": Event(Z, 1.0, 8)}, "count is 8, granted 7"),
        ({"clip": 2.0}, "clip is 2.0, granted 1.0"),
        ({"mechanism": "silo"}, "mechanism is silo, granted distributed"),
        ({"rounds": 1}, "rounds is 1, granted 1000000"),
        ({"delta": 1e-5}, "delta is 1e-05, granted 1e-06"),
        ({"config": "0" * 64}, f"config is {'0' * 64}, granted {CODE}"),
    ],
)
def test_second_plan_for_a_run_is_refused(
    open_ledger: Callable[..., WitnessedLedger], home: Path, change: dict[str, Any], words: str
) -> None:
    ledger = open_ledger()
    ledger.authorise("r", plan())
    with pytest.raises(PrivacyError, match=re.escape(f"{words}: a grant never changes")):
        ledger.authorise("r", dataclasses.replace(plan(), **change))
    assert refusals(home) == [f"{words}: a grant never changes"]


def test_delta_is_the_policys(open_ledger: Callable[..., WitnessedLedger], home: Path) -> None:
    with pytest.raises(PrivacyError, match=re.escape("delta is 0.0001, policy.yaml says 1e-06")):
        open_ledger().authorise("r", plan(delta=1e-4))
    assert len(refusals(home)) == 1


@pytest.mark.parametrize(
    ("delta", "population", "words"),
    [(2e-6, 1, "not a power of ten"), (1e-6, 100_001, "above 1 / "), (1e-4, 1_001, "above 1 / ")],
)
def test_delta_must_be_a_power_of_ten_and_small_for_the_population(delta: float, population: int, words: str) -> None:
    with pytest.raises(PrivacyError, match=words):
        bind(Budget, {"delta": delta, "population": population}, "budget", PrivacyError)


@pytest.mark.parametrize(("delta", "population"), [(1e-6, 100_000), (1e-4, 1_000), (1e-3, 100), (1e-15, 10**12)])
def test_delta_at_its_bound_holds(delta: float, population: int) -> None:
    assert Budget(delta=delta, population=population).delta == delta
