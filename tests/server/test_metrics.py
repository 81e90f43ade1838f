"""What the agency tells a monitor, of a home with a past."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from filelock import FileLock
from prometheus_client.core import Metric
from tests.server.seen_home import NAMES, add_run, make_seen_home

from sovfed.server.metrics import agency_metrics
from sovfed.server.rounds.ledger_heads import behind, note_behind


def told(metrics: Iterable[Metric]) -> dict[tuple[str, ...], float]:
    return {(sample.name, *sample.labels.values()): sample.value for metric in metrics for sample in metric.samples}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    made = make_seen_home(tmp_path_factory.mktemp("metrics"))
    add_run(made, "done", "finished", 20, "privacy=distributed")
    running = add_run(made, "on", "running", 7)
    with FileLock(running / "lock"):
        yield made


def test_runs_certificates_and_requests_are_told_while_the_superlink_is_away(home: Path) -> None:
    metrics = told(agency_metrics(home))
    assert metrics["sovfed_run_status", "on", "running"] == metrics["sovfed_run_status", "done", "finished"] == 1
    assert (metrics["sovfed_run_rounds_done", "on"], metrics["sovfed_run_rounds", "on"]) == (7, 20)
    assert metrics["sovfed_run_participants", "on"] == 3
    assert metrics["sovfed_run_epsilon", "done"] > 0 and ("sovfed_run_epsilon", "on") not in metrics
    assert 0 <= time.time() - metrics["sovfed_run_progress_seconds", "on"] < 600
    days = {name: (metrics["sovfed_certificate_end_seconds", name] - time.time()) / 86_400 for name in NAMES}
    assert days["hospital-4"] < 14 < days["hospital-1"]
    assert metrics["sovfed_enrolment_requests",] == 1
    assert metrics["sovfed_revocation_list_end_seconds",] > time.time()


def test_a_ledger_that_lacks_a_head_is_told_until_it_has_it_again(home: Path) -> None:
    note_behind(home, ["hospital-1", "hospital-2"], ["hospital-2"])
    assert told(agency_metrics(home))["sovfed_institution_ledger_behind", "hospital-1"] == 1
    note_behind(home, ["hospital-2"], ["hospital-2"])
    assert behind(home) == ["hospital-1"]
    note_behind(home, ["hospital-1"], ["hospital-1"])
    assert behind(home) == []
