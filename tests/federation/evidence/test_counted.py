"""A flood of refusals is one entry a minute, and nothing of it is lost."""

from __future__ import annotations

from pathlib import Path

from sovfed.federation.evidence.checking import check_log
from sovfed.federation.evidence.counted import Counted
from sovfed.federation.evidence.store import LogReader, record


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


def test_an_entry_that_would_be_too_long_is_written_with_digests_of_its_longest_values(hospital: Path) -> None:
    """A cohort of long names, of whom each refuses with another code, ends no run."""
    names = [f"{number:04}-{'x' * 58}" for number in range(512)]
    refused = dict.fromkeys(("policy", "order", "busy", "failed"), names[:256])

    record(hospital, "round", name="long", participants=names[:256], late=names[256:], refused=refused, attempts=2)

    (newest,) = [values for values in LogReader(hospital).newest() if values.get("name") == "long"]
    assert newest["attempts"] == 2 and newest["refused"].keys() == {"bytes", "sha256"}
    assert check_log(hospital).size == 8
