"""Fixtures of several files here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.clients.ledger.books import NOW, Clock
from tests.clients.ledger.crash import BUDGET, POPULATION, WitnessedLedger

from sovfed.clients.ledger.entries import Budget
from sovfed.clients.ledger.file import create_ledger


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
