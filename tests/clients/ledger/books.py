"""A ledger to open again, its clock, and what stands in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.clients.ledger.crash import BUDGET, POPULATION, WitnessedLedger, Z, gaussian_delta

from sovfed.clients.ledger.entries import Refused
from sovfed.clients.ledger.file import read_ledger

DAY = 86_400.0


NOW = 1_800_000_000.0


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


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
