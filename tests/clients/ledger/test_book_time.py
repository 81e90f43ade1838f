"""Budgets come back as time passes, and by no clock that somebody set."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.clients.ledger.books import DAY, NOW, most_steps
from tests.clients.ledger.crash import BUDGET, POPULATION, plan, release

from sovfed.clients.ledger.book import PrivacyLedger
from sovfed.clients.ledger.file import read_ledger
from sovfed.federation.errors import PrivacyError


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
