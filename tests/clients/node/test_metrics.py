"""What an institution tells a monitor in its own house: budgets, certificate, ledger; no run and nothing of records."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from prometheus_client.core import Metric
from tests.clients.ledger.crash import BUDGET, POPULATION
from tests.clients.seen_home import HOSTILE, make_seen_house
from tests.server.agency import Authority, make_institution

from sovfed.clients.ledger.file import ledger_path
from sovfed.clients.node.metrics import institution_metrics


def told(metrics: Iterable[Metric]) -> dict[tuple[str, ...], float]:
    return {(sample.name, *sample.labels.values()): sample.value for metric in metrics for sample in metric.samples}


def test_budgets_and_counts_are_told_and_no_run_is_named(tmp_path: Path) -> None:
    home = make_seen_house(tmp_path / "home")
    metrics = told(institution_metrics(home))
    used = metrics["sovfed_ledger_epsilon", POPULATION, "year"]
    assert 0 < used < metrics["sovfed_ledger_epsilon_limit", POPULATION, "year"] == BUDGET.annual_epsilon
    assert metrics["sovfed_ledger_sound", POPULATION] == 1
    assert metrics["sovfed_failures",] == 1 and metrics["sovfed_refuses_all",] == 0
    words = " ".join(" ".join(key) for key in metrics)
    assert "heart-" not in words and HOSTILE not in words and "breast_cancer" not in words


def test_a_ledger_that_is_damaged_is_told_and_the_rest_too(tmp_path: Path) -> None:
    home = make_seen_house(tmp_path / "home")
    path = ledger_path(home, POPULATION)
    path.write_bytes(path.read_bytes().replace(b"heart", b"herat"))
    metrics = told(institution_metrics(home))
    assert metrics["sovfed_ledger_sound", POPULATION] == 0 and ("sovfed_failures",) in metrics


def test_a_ledger_that_was_rolled_back_is_told(tmp_path: Path) -> None:
    """An older copy is put back; it lacks the head that was countersigned, so nothing is paid from it."""
    home = make_seen_house(tmp_path / "home")
    path = ledger_path(home, POPULATION)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:3]))
    assert told(institution_metrics(home))["sovfed_ledger_sound", POPULATION] == 0


def test_the_end_of_the_certificate_is_told(tmp_path: Path) -> None:
    home = make_seen_house(tmp_path / "home")
    authority = Authority()
    make_institution(authority, home / "identity", "hospital-1")
    end = told(institution_metrics(home))["sovfed_certificate_end_seconds", "institution"]
    assert abs(end - authority.now.timestamp() - 30 * 86_400) < 86_400
