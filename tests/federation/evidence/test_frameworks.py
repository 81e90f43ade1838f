"""Tables of frameworks name tests and settings that there are, and are filled from a home without a verdict."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from sovfed.clients.home.policy import Policy
from sovfed.federation.compose import compose
from sovfed.federation.config import ClientConfig
from sovfed.federation.errors import ConfigError
from sovfed.federation.evidence.frameworks.cli import evidence
from sovfed.federation.evidence.frameworks.table import NAMES, UNSET, load_framework

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize("name", NAMES)
def test_every_test_and_setting_that_a_table_names_is_there(name: str) -> None:
    config = compose([]).config
    known: dict[str, Any] = {
        "policy.yaml": asdict(Policy()), "client.yaml": asdict(ClientConfig()),
        "server.json": {"server": asdict(config.server)},
    }  # fmt: skip
    missing = []
    for row in load_framework(name).rows:
        for test in row.tests:
            path, _, function = test.partition("::")
            source = ROOT / path
            if not source.is_file() or (
                function != "*" and f"def {function}(" not in source.read_text(encoding="utf-8")
            ):
                missing.append(test)
        for setting in row.settings:
            file, _, key = setting.partition(" ")
            value = known[file]
            for part in key.split("."):
                value = value.get(part, missing) if isinstance(value, dict) else missing
            if value is missing:
                missing.append(setting)
    assert not missing
    assert not re.search(
        r"\b(compliant|certified against|passes|fulfilled)\b", json.dumps(asdict(load_framework(name)))
    )


def test_a_table_shows_settings_and_entries_of_a_home_and_no_name_in_them(hospital: Path) -> None:
    (hospital / "policy.yaml").write_text(
        "require_privacy: true\norders:\n  officers: [dr-ito=KEY]\n  mode: required\n"
    )

    told = CliRunner().invoke(evidence, ["--framework", "tehdas2", "--home", str(hospital)]).output

    assert "policy.yaml require_privacy = true" in told and f"allow_plain_updates = {UNSET}" in told
    assert "policy.yaml orders.officers = 1 named" in told and "ito" not in told
    assert "server.json" not in told
    assert f"policy.yaml log_retention_days = {UNSET}" in told and "no entry of retention" in told
    assert "no entry of release" in told
    rows = json.loads(CliRunner().invoke(evidence, ["--framework", "satre", "--home", str(hospital), "--json"]).output)
    assert any("7 entries" in row["log"].get("round", "") for row in rows["rows"])


def test_without_a_home_it_says_what_holds_in_general() -> None:
    assert "what is left" in CliRunner().invoke(evidence, ["--framework", "dspt"]).output
    with pytest.raises(ConfigError, match="there are sp800-226"):
        load_framework("iso")
