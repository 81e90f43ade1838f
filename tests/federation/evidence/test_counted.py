"""A flood of refusals is one entry a minute, and nothing of it is lost."""

from __future__ import annotations

from pathlib import Path

from sovfed.federation.evidence.counted import Counted
from sovfed.federation.evidence.store import LogReader


def _refusals(home: Path) -> list[int]:
    return [values["count"] for values in LogReader(home).newest() if values["kind"] == "refusal"][::-1]


def test_a_flood_is_one_entry_a_minute_of_each_sort(hospital: Path) -> None:
    now = 1000.0
    counted = Counted(hospital, "refusal", lambda: now)
    for _ in range(3):
        for _ in range(500):
            counted.add(request="TrainRequest", code="policy")
            now += 0.1
        counted.look()
    counted.add(request="ProfileRequest", code="policy")
    counted.close()

    assert sum(_refusals(hospital)) == 1501
    assert len(_refusals(hospital)) == 5  # at once, after one and two minutes, the other sort, and at the end


def test_the_first_is_in_the_log_at_once(hospital: Path) -> None:
    Counted(hospital, "refusal").add(request="TrainRequest", code="policy")

    assert _refusals(hospital) == [1]
