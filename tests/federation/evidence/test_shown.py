"""What a log tells is whole in 80 columns, and nothing in it steers a terminal."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest

from sovfed.clients.cli.institution import cli as client
from sovfed.federation.evidence.shown import entry_lines, hung
from sovfed.federation.evidence.store import record
from sovfed.server.cli.server import cli as server

DIGEST = "ab" * 32
ENTRIES: dict[str, dict[str, Any]] = {
    "short": {"code": "policy", "count": 8122},
    "round": {"run": "hip-fracture-1", "round": 3, "participants": [f"hospital-{n}" for n in range(12)], "late": []},
    "digest": {"configuration_of_the_run": DIGEST, "name": "hip-fracture-1"},
    "nested": {"answers": {"bytes": 90_000, "sha256": DIGEST}, "why": "x " * 90},
    "nothing": {},
}


@pytest.mark.parametrize("name", ENTRIES)
def test_no_line_is_wider_than_80_columns_and_nothing_is_lost(name: str) -> None:
    fields = ENTRIES[name]
    lines = entry_lines(17, {**fields, "kind": "withdrawal", "at": 1_790_000_000, "v": 1}, 80)
    assert all(len(line) <= 80 for line in lines), lines
    assert lines[0].startswith("    17  2026-09-21 14:13:20  withdrawal")
    assert len(lines) == 1 if name in ("short", "nothing") else len(lines) > 1
    told = "".join("".join(lines).split())
    for field, value in fields.items():
        assert "".join(f"{field}={json.dumps(value)}".split()) in told


def test_a_wide_terminal_has_an_entry_on_one_line() -> None:
    values = {**ENTRIES["round"], "kind": "round", "at": 1_790_000_000, "v": 1}
    assert len(entry_lines(17, values, 400)) == 1


def test_no_value_steers_the_terminal() -> None:
    assert "\x1b" not in entry_lines(1, {"by": "\x9b2J", "kind": "login", "at": 0, "v": 1}, 80)[0]
    assert "\x9b" not in "".join(entry_lines(1, {"by": "\x9b2J", "kind": "login", "at": 0, "v": 1}, 80))


def test_what_was_seen_of_others_is_whole_too() -> None:
    line = f"sovfed/institution/hospital-1 cosigned the first 48 entries of sovfed/agency/{'a' * 30}.example"
    told = hung(line, 80)
    assert all(len(part) <= 80 for part in told.splitlines()) and told.split() == line.split()


def test_on_a_terminal_of_80_columns_the_command_folds(hospital: Path) -> None:
    record(hospital, "round", **ENTRIES["round"])
    ours, theirs = pty.openpty()
    program = "from sovfed.cli import main; main()"
    environment = {**os.environ, "COLUMNS": "80", "PYTHONWARNINGS": "ignore"}
    with subprocess.Popen(
        [sys.executable, "-c", program, "client", "log", "show", "--home", str(hospital), "--last", "1"],
        stdout=theirs, stderr=subprocess.PIPE, env=environment,
    ) as process:  # fmt: skip
        os.close(theirs)
        said = b""
        try:
            while piece := os.read(ours, 4096):
                said += piece
        except OSError:  # how Linux says that the other end is closed
            pass
    os.close(ours)
    lines = said.decode().splitlines()
    assert process.returncode == 0 and len(lines) > 2
    assert all(len(line) <= 80 for line in lines) and "hospital-11" in said.decode()


def test_both_roles_have_every_option_in_one_process() -> None:
    """Seen: whichever role was loaded second had a `log verify` without options, which ended with a traceback."""
    logs = [log for role in (client, server) if isinstance(log := role.commands["log"], click.Group)]
    ours, theirs = (
        {name: [parameter.name for parameter in command.params] for name, command in log.commands.items()}
        for log in logs
    )
    assert ours == theirs and all("home" in options for options in ours.values())
    assert {"shown", "as_json"} <= {*ours["verify"]} and {"before", "dry_run", "yes"} <= {*ours["prune"]}
