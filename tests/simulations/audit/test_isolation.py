"""`sovfed audit isolation` on a real institution: nothing gets through, and what is open on purpose is found."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from sovfed.federation.host import landlock, seccomp
from sovfed.simulations.cli_audit import audit

pytestmark = [
    pytest.mark.deploy,
    pytest.mark.skipif(seccomp.this_machine() is None or landlock.version() == 0, reason="needs seccomp and Landlock"),
]


def test_nothing_gets_through_and_the_controls_are_found(tmp_path: Path) -> None:
    result = CliRunner().invoke(audit, ["isolation", "--quick", "--json", str(tmp_path / "report.json")])
    assert result.exit_code == 0, (result.output, result.exception)
    document = json.loads((tmp_path / "report.json").read_text())
    assert document["ratios"] == {"escapes": 0.0}
    assert [row["escapes"] for row in document["rows"] if not row["control"]] == [[]] * 6
    assert min(row["tried"] for row in document["rows"]) >= 5
    trainer, gateway, outside = (set(row["escapes"]) for row in document["rows"] if row["control"])
    assert {"TCP", "UDP", "abstract Unix stream", "Unix datagram", "the gateway's secrets"} <= trainer
    assert {"the records", "secagg", "privacy"} <= gateway
    assert {"a thread without filter", "started with others' modules within reach"} <= outside
