"""The ledger's rules: never above the limits, each release as granted, each refusal with its numbers and on record."""

from __future__ import annotations

import dataclasses
import math
import os
import re
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from tests.clients.ledger.crash import BUDGET, CODE, POPULATION, WitnessedLedger, Z, gaussian_delta, plan, release

from sovfed.clients.ledger import book as module
from sovfed.clients.ledger.book import PrivacyLedger, replay
from sovfed.clients.ledger.entries import Budget, Closed, Grant, Refused, Release, Unbounded
from sovfed.clients.ledger.file import create_ledger, ledger_path, read_ledger
from sovfed.clients.ledger.limits import Limit, too_much
from sovfed.federation.errors import PrivacyError
from sovfed.federation.privacy.accounting import Accountant
from sovfed.federation.privacy.events import Event
from sovfed.federation.schema import bind

DAY = 86_400.0
NOW = 1_800_000_000.0


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def home(tmp_path: Path) -> Path:
    create_ledger(tmp_path, POPULATION, NOW)
    return tmp_path


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def open_ledger(home: Path, clock: Clock) -> Iterator[Callable[..., WitnessedLedger]]:
    opened: list[WitnessedLedger] = []

    def open_again(budget: Budget = BUDGET) -> WitnessedLedger:
        while opened:
            opened.pop().unlock()
        opened.append(WitnessedLedger(home, budget, clock))
        return opened[-1]

    yield open_again
    while opened:
        opened.pop().unlock()


def live_on(ledger: WitnessedLedger, clock: Clock, days: int) -> None:
    """Days pass as a trainer that runs lets its ledger see them."""
    for _ in range(days):
        clock.now += DAY
        ledger.beat()


def entries(home: Path) -> list[Any]:
    return [line.entry for line in read_ledger(home, POPULATION)[0]]


def refusals(home: Path) -> list[str]:
    return [entry.reason for entry in entries(home) if isinstance(entry, Refused)]


def most_steps(epsilon: float, z: float = Z) -> int:
    """How many Gaussian releases of everybody fit, by the exact formula."""
    count = 0
    while gaussian_delta(epsilon, count + 1, z) <= BUDGET.delta:
        count += 1
    return count


# --- authorise -----------------------------------------------------------------------------------------------------


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


# --- spend ---------------------------------------------------------------------------------------------------------


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


# --- what one run can take from others ------------------------------------------------------------------------------


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


# --- runs without privacy -------------------------------------------------------------------------------------------


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


# --- time -----------------------------------------------------------------------------------------------------------


class Clocks:
    """A wall clock that anybody may set, and the time that really passes."""

    def __init__(self, home: Path) -> None:
        self.home, self.wall, self.real = home, NOW, 0.0
        self.budget = dataclasses.replace(BUDGET, annual_epsilon=2.0)
        self.ledger = self.open()

    def open(self) -> PrivacyLedger:
        found = PrivacyLedger(self.home, self.budget, lambda: self.wall, lambda: self.real)
        seq, head = found.position()
        found.countersign("17", seq, head.hex(), b"signed", ours=True)
        return found

    def restart(self, days_off: float = 0.0) -> None:
        self.ledger.unlock()
        self.real += days_off * DAY
        self.ledger = self.open()

    def spend_the_year(self) -> None:
        steps = most_steps(2.0)
        grant = self.ledger.authorise("first", plan(steps), asked_in="17")
        self.ledger.spend(grant, release(grant.plan, 0, steps=steps), asked_in="17")

    def ask(self, name: str = "second") -> None:
        self.ledger.authorise(name, plan(1), asked_in="17")

    def live_on(self, days: int) -> None:
        for _ in range(days):
            self.wall, self.real = self.wall + DAY, self.real + DAY
            self.ledger.beat()


@pytest.fixture
def clocks(home: Path) -> Iterator[Clocks]:
    found = Clocks(home)
    found.spend_the_year()
    yield found
    found.ledger.unlock()


@pytest.mark.parametrize("restarted", [False, True])
def test_clock_that_jumps_ahead_frees_nothing_until_the_operator_confirms_it(clocks: Clocks, restarted: bool) -> None:
    clocks.wall += 367 * DAY
    for _ in range(3):
        if restarted:
            clocks.restart()
        with pytest.raises(PrivacyError, match=r"the clock says 2028-01-17, but the last .* confirm-clock 2028-01-17"):
            clocks.ask()
    assert read_ledger(clocks.home, POPULATION)[0][-1].at == NOW  # no entry carries the date that nobody believes
    clocks.ledger.confirm_clock()
    clocks.ask()


@pytest.mark.parametrize("step", [31, 20, 5])
def test_clock_that_creeps_ahead_in_leaps_frees_nothing(clocks: Clocks, step: int) -> None:
    """Each leap would be believed; a trainer that is restarted between them cannot tell, but all of them together."""
    for _ in range(367 // step + 1):
        clocks.wall += step * DAY
        clocks.restart()
    with pytest.raises(PrivacyError, match="confirm-clock"):
        clocks.ask()


def test_clock_that_creeps_ahead_under_a_running_trainer_frees_nothing(clocks: Clocks) -> None:
    for _ in range(367):
        clocks.wall += DAY
        clocks.ledger.beat()
    with pytest.raises(PrivacyError, match="confirm-clock"):
        clocks.ask()


def test_clock_that_is_set_back_stops_nothing_for_good(clocks: Clocks) -> None:
    """Years too early, or a wrong date that the operator confirmed and put right: time goes on as it is seen to."""
    clocks.wall -= 5_000 * DAY
    clocks.restart()
    with pytest.raises(PrivacyError, match="annual_epsilon"):
        clocks.ask()
    clocks.live_on(367)
    clocks.ask()
    clocks.wall += 5_000 * DAY
    clocks.live_on(1)
    clocks.ask("third")
    clocks.wall += 9_000 * DAY
    clocks.ledger.confirm_clock()
    clocks.wall -= 9_000 * DAY
    clocks.restart()
    clocks.ask("fourth")


def test_year_that_was_seen_to_pass_frees_the_budget(clocks: Clocks) -> None:
    clocks.live_on(365)
    with pytest.raises(PrivacyError, match="annual_epsilon"):
        clocks.ask()
    clocks.live_on(2)
    clocks.ask()


def test_nights_and_weekends_off_need_no_operator(clocks: Clocks) -> None:
    for _ in range(74):
        clocks.live_on(2)
        clocks.wall += 3 * DAY
        clocks.restart(days_off=3)
    clocks.ask()


# --- any order of everything ---------------------------------------------------------------------------------------


class Trainer(RuleBasedStateMachine):
    """Runs, releases, refusals and crashes in any order, against a model that only counts."""

    BUDGET = dataclasses.replace(BUDGET, epsilon=2.0, annual_epsilon=2.0)
    ROOM = most_steps(2.0)

    @initialize()
    def start(self) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="sovfed-ledger-")
        self.home = Path(self.folder.name)
        create_ledger(self.home, POPULATION, NOW)
        self.ledger = WitnessedLedger(self.home, self.BUDGET, lambda: NOW)
        self.grants: dict[str, Grant] = {}
        self.spent: dict[str, list[Release]] = {}
        self.closed: set[str] = set()

    def left(self, run: str) -> int:
        return self.grants[run].plan.event.count - sum(one.event.count for one in self.spent[run])

    @rule(run=st.sampled_from("abcdef"), steps=st.integers(1, 12))
    def authorise(self, run: str, steps: int) -> None:
        asked = plan(steps)
        used = self.used()
        if run in self.grants and (run in self.closed or asked != self.grants[run].plan):
            with pytest.raises(PrivacyError, match=r"a grant never changes|was closed"):
                self.ledger.authorise(run, asked)
        elif run not in self.grants and used + steps > self.ROOM:
            with pytest.raises(PrivacyError, match="over the limit"):
                self.ledger.authorise(run, asked)
        else:
            grant = self.ledger.authorise(run, asked)
            assert grant == self.grants.setdefault(run, grant)
            self.spent.setdefault(run, [])

    @precondition(lambda self: self.grants)
    @rule(data=st.data(), steps=st.integers(1, 3), again=st.booleans())
    def spend(self, data: st.DataObject, steps: int, again: bool) -> None:
        run = data.draw(st.sampled_from(sorted(self.grants)))
        last = self.spent[run][-1] if self.spent[run] else None
        if last and again:
            asked = release(self.grants[run].plan, last.round, last.attempt + 1, last.first_step, last.event.count)
        else:
            asked = release(self.grants[run].plan, last.round + 1 if last else 0, 0, last.stop if last else 0, steps)
        allowed = (
            run not in self.closed
            and asked.event.count <= self.left(run)
            and asked.stop <= self.grants[run].plan.event.count
        )
        if allowed:
            self.ledger.spend(self.grants[run], asked)
            self.spent[run].append(asked)
        else:
            with pytest.raises(PrivacyError):
                self.ledger.spend(self.grants[run], asked)

    @precondition(lambda self: any(self.spent.values()))
    @rule(data=st.data())
    def send_again(self, data: st.DataObject) -> None:
        run = data.draw(st.sampled_from(sorted(run for run, known in self.spent.items() if known)))
        old = data.draw(st.sampled_from(self.spent[run]))
        head = self.ledger.head
        assert self.ledger.spend(self.grants[run], old).head == head
        with pytest.raises(PrivacyError, match="was spent before: digest is"):
            self.ledger.spend(self.grants[run], dataclasses.replace(old, digest="0" * 64))

    @precondition(lambda self: self.grants)
    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        run = data.draw(st.sampled_from(sorted(self.grants)))
        assert self.ledger.close(run) == (0 if run in self.closed else self.left(run))
        self.closed.add(run)

    @rule(torn=st.integers(0, 60))
    def crash(self, torn: int) -> None:
        self.ledger.unlock()
        path = ledger_path(self.home, POPULATION)
        whole = path.read_bytes()
        path.write_bytes(whole + whole.splitlines()[-1][:torn])  # a write that was cut short
        self.ledger = WitnessedLedger(self.home, self.BUDGET, lambda: NOW)
        assert path.read_bytes() == whole

    def used(self) -> int:
        spent = sum(one.event.count for known in self.spent.values() for one in known)
        return spent + sum(self.left(run) for run in self.grants if run not in self.closed)

    @invariant()
    def never_above_the_limit_and_all_on_record(self) -> None:
        history = replay(read_ledger(self.home, POPULATION)[0])
        assert sum(event.count for event in history.spent() + history.reserved()) == self.used() <= self.ROOM
        for run, known in self.spent.items():
            assert list(history.grants[run, "train"].releases.values()) == known

    def teardown(self) -> None:
        if hasattr(self, "ledger"):
            self.ledger.verify()
            self.ledger.unlock()
            self.folder.cleanup()


TestAnyOrder = Trainer.TestCase
TestAnyOrder.settings = settings(max_examples=25, stateful_step_count=25, suppress_health_check=[HealthCheck.too_slow])
