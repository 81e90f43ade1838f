"""The ledger under kill −9 at random points, with real writes and fsyncs: see `crash.py`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.clients.ledger import crash
from tests.clients.ledger.crash import BUDGET, POPULATION, WitnessedLedger

from sovfed.clients.ledger.file import ledgers

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("kills", [40, pytest.param(500, marks=[pytest.mark.deploy, pytest.mark.timeout(600)])])
def test_nothing_leaves_unrecorded_and_no_ledger_breaks_whenever_the_trainer_is_killed(
    tmp_path: Path, kills: int
) -> None:
    command = [sys.executable, crash.__file__, str(tmp_path), str(kills), str(kills)]
    path = os.pathsep.join((str(ROOT), str(ROOT / ".src")))
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": path})
    found = json.loads(done.stdout)
    print(found)  # noqa: T201 -- `pytest -s` shows the counts
    assert {name: found[name] for name in ("unrecorded", "unreadable", "overspent", "failed")} == {
        "unrecorded": 0, "unreadable": 0, "overspent": 0, "failed": 0,
    }  # fmt: skip
    assert found["kills"] == kills
    assert found["released"] > kills // 2  # the kills did not all come before the first release
    for home in tmp_path.iterdir():
        assert ledgers(home) == [POPULATION]
        ledger = WitnessedLedger(home, BUDGET)
        ledger.verify()
        ledger.unlock()
