"""Runs, releases, refusals and crashes in any order, against a model that only counts."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from tests.clients.ledger.books import NOW, most_steps
from tests.clients.ledger.crash import BUDGET, POPULATION, WitnessedLedger, plan, release

from sovfed.clients.ledger.book import replay
from sovfed.clients.ledger.entries import Grant, Release
from sovfed.clients.ledger.file import create_ledger, ledger_path, read_ledger
from sovfed.federation.errors import PrivacyError


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
