"""Pruning deletes what nothing needs any more, and nothing else."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from click.testing import CliRunner

from sovfed.server.cli.run import cli
from sovfed.server.runs.folders import STATE

DAY_S = 86_400


def make_run(home: Path, name: str, status: str, days: int) -> Path:
    """A run that came to that status so many days ago."""
    folder = home / "runs" / name
    folder.mkdir(parents=True)
    at = time.time() - days * DAY_S
    (folder / STATE).write_text(
        json.dumps({"flower_run_id": 1, "status": status, "reason": "", "started": at, "at": at, "config": {}})
    )
    for file in ("checkpoint.safetensors", "model.safetensors", "rounds.jsonl", "summary.json"):
        (folder / file).write_bytes(b"x" * 1000)
    return folder


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_finished_run_gives_back_its_checkpoint_and_one_that_can_be_resumed_does_not(tmp_path: Path) -> None:
    old, new = make_run(tmp_path, "old", "finished", 100), make_run(tmp_path, "new", "finished", 1)
    failed = make_run(tmp_path, "failed", "failed", 100)
    logs = tmp_path / "logs"
    logs.mkdir()
    for name, days in (("coordinator-1.log", 100), ("coordinator-2.log", 1), ("superlink.log", 100)):
        (logs / name).write_bytes(b"x")
        os.utime(logs / name, (time.time() - days * DAY_S,) * 2)
    done = CliRunner().invoke(cli, ["prune", "--days", "90", "--home", str(tmp_path)], catch_exceptions=False)
    assert done.exit_code == 0 and "freed 0.0 MB" in done.output
    assert names(old) == {"run.json", "model.safetensors", "rounds.jsonl", "summary.json"}
    assert "checkpoint.safetensors" in names(new) & names(failed)
    assert names(logs) == {"coordinator-2.log", "superlink.log"}
