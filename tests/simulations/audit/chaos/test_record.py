"""A campaign's file: each result is in it at once, the same command goes on, and nothing else is overwritten."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from sovfed.federation.errors import ConfigError
from sovfed.simulations.audit.chaos.outcomes import Controls, Outcome, ratios
from sovfed.simulations.audit.chaos.points import chosen, every_point
from sovfed.simulations.audit.chaos.record import Record

QUICK = [point.name for points in chosen((), quick=True) for point in points]


def record_of(path: Path) -> Record[Outcome | Controls]:
    record = Record[Outcome | Controls]("chaos", ratios, path)
    record.read(Outcome, Controls)
    return record


def outcome(point: str) -> Outcome:
    return Outcome(point, False, False, False, False, seconds_to_next_round=2.5, seconds=20.0, model_error=1e-6)


def test_a_campaign_goes_on_with_the_points_that_its_file_lacks(tmp_path: Path) -> None:
    path = tmp_path / "chaos.json"
    first = record_of(path)
    assert first.remaining(QUICK) == QUICK
    first.add(Controls(True, 2e-6, 8e-6))
    first.add(outcome(QUICK[3]))
    again = record_of(path)
    assert again.results == {"controls": Controls(True, 2e-6, 8e-6), QUICK[3]: outcome(QUICK[3])}
    assert again.remaining(QUICK) == [name for name in QUICK if name != QUICK[3]]


def test_what_went_wrong_is_counted_and_stays(tmp_path: Path) -> None:
    record = record_of(tmp_path / "chaos.json")
    record.add(outcome("trainer:masking:kill"))
    record.add(replace(outcome("agency:last:kill"), needed_operator=True))
    record.add(replace(outcome("superlink:idle:stop"), hung=True))
    content = json.loads((tmp_path / "chaos.json").read_text())
    assert content["ratios"] == {
        "points": 3, "needed_operator": 1, "wrong_model": 0, "overspent": 0, "mlflow_lacks": 0, "hung": 1, "missed": 0,
        "seconds_to_next_round_median": 2.5, "seconds_to_next_round_worst": 2.5,
    }  # fmt: skip
    assert [row["as_it_should_be"] for row in content["rows"]] == [True, False, False]
    assert "waits for an operator" in content["rows"][1]["sentence"]
    assert set(record_of(tmp_path / "chaos.json").results) == set(record.results)


def test_a_run_that_never_came_to_a_next_round_is_read_again(tmp_path: Path) -> None:
    record = record_of(tmp_path / "chaos.json")
    record.add(Outcome("trainer:idle:kill", True, False, False, False, math.inf, 240.0))
    assert record_of(tmp_path / "chaos.json").results == record.results
    assert ratios(record.results.values())["seconds_to_next_round_median"] == 0.0


@pytest.mark.parametrize("content", ["{", "[1]", '{"audit": "noise", "rows": [{"ratio": 1.0}]}'])
def test_another_file_is_refused_and_not_overwritten(tmp_path: Path, content: str) -> None:
    path = tmp_path / "other.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match="name another file"):
        record_of(path)
    assert path.read_text() == content


def test_a_campaign_begins_with_points_of_every_kind() -> None:
    assert chosen((), quick=False) == chosen((), quick=False)
    points = [point for points in chosen((), quick=False) for point in points]
    assert len({point.target for point in points[:60]}) == len({point.target for point in points})
    assert {point.signal for point in points[:60]} == {"kill", "term", "stop"}
    assert {point.private for point in points[:60]} == {True, False}
    assert len({point.moment for point in points[:60]}) == 9


def test_a_run_has_one_point_as_it_begins_and_one_as_it_ends_and_each_point_is_in_one() -> None:
    runs = chosen((), quick=False)
    assert sorted(point.name for run in runs for point in run) == sorted(point.name for point in every_point())
    for run in runs:
        early = [number for number, point in enumerate(run) if point.moment in ("idle", "start-up", "setup")]
        late = [number for number, point in enumerate(run) if point.moment == "last"]
        assert early in ([], [0]) and late in ([], [len(run) - 1])
        assert len({point.private for point in run}) == 1
