"""Rules and dashboard ask for metrics that there are, and promtool, where Debian's package has it, plays the alerts."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "docs" / "monitoring"
SOURCES = ("federation/host/watch.py", "server/metrics.py", "clients/node/metrics.py")
PROMTOOL = shutil.which("promtool")
METRIC = re.compile(r"\bsovfed_[a-z_]+")
ALERTS = {"SovfedRoundStalled", "SovfedBudgetNearlySpent", "SovfedCertificateExpires", "SovfedLedgerRolledBack",
          "SovfedInstitutionDeaf"}  # fmt: skip


def made() -> set[str]:
    """The metrics that our code makes, with what the library adds to a counter's and an info's name."""
    names = {name for file in SOURCES for name in re.findall(r'"(sovfed(?:_[a-z_]+)?)"', (ROOT / file).read_text())}
    return names | {"sovfed_process_restarts_total", "sovfed_info"}


def rules() -> list[dict[str, str]]:
    groups = yaml.safe_load((FOLDER / "rules.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def test_rules_and_dashboard_ask_only_for_metrics_that_there_are() -> None:
    dashboard = json.loads((FOLDER / "dashboard.json").read_text())
    asked = [rule["expr"] for rule in rules()]
    asked += [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    for expression in asked:
        assert set(METRIC.findall(expression)) <= made(), expression


def test_what_somebody_must_be_told_of_has_an_alert_that_is_played() -> None:
    assert {rule["alert"] for rule in rules()} >= ALERTS
    played = (FOLDER / "rules_test.yml").read_text()
    assert all(re.search(rf"alertname: {alert}\n\s+exp_alerts:\n", played) for alert in ALERTS)


def test_the_page_names_every_metric() -> None:
    page = (ROOT / "docs" / "monitoring.md").read_text()
    assert {name for name in made() if name not in ("sovfed", "sovfed_process_restarts")} <= set(METRIC.findall(page))


@pytest.mark.skipif(PROMTOOL is None, reason="no promtool: Debian's package prometheus has it")
@pytest.mark.parametrize("arguments", [("check", "config", "prometheus.yml"), ("check", "rules", "rules.yml"),
                                       ("test", "rules", "rules_test.yml")])  # fmt: skip
def test_promtool_agrees(arguments: tuple[str, ...]) -> None:
    done = subprocess.run([str(PROMTOOL), *arguments], cwd=FOLDER, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
