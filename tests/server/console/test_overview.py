"""What the agency's page tells of a home in which a disk or a hand has left something else than was written."""

from __future__ import annotations

from pathlib import Path

from tests.server.seen_home import add_run, make_seen_home

from sovfed.server.console.overview import Overview
from sovfed.server.metrics import agency_metrics


def test_a_damaged_run_hides_no_other_from_the_page_and_the_monitor(tmp_path: Path) -> None:
    home = make_seen_home(tmp_path)
    add_run(home, "sound", "finished", 20, "privacy=distributed")
    lost, torn = (add_run(home, name, "finished", 20, "privacy=distributed") for name in ("lost", "torn"))
    (lost / "run.json").write_bytes(b"")
    (torn / "summary.json").write_bytes(b"{")
    overview = Overview(home)
    statuses = {run["name"]: run["status"] for run in overview.runs()}
    assert statuses == {"sound": "finished", "torn": "finished", "lost": "damaged"}
    assert {entry["run"]["name"] for entry in overview.budgets()} == {"sound", "torn"}
    releases = {entry["run"]["name"] for entry in overview.releases()}
    assert "sound" in releases and "torn" not in releases
    told = {
        (sample.labels["run"], sample.labels["status"])
        for metric in agency_metrics(home)
        for sample in metric.samples
        if sample.name == "sovfed_run_status" and sample.value == 1
    }
    assert told == {("sound", "finished"), ("torn", "finished"), ("lost", "damaged")}
