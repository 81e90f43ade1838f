"""The keeper of a cluster's jobs: which process it stands for, and what it says where there is no cluster."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sovfed.clients.node.sandbox import Places, places_of
from sovfed.clients.node.slurm import Slurm, _states
from sovfed.clients.node.up import processes
from sovfed.clients.trainer.spool import REQUESTS, make_folders
from sovfed.federation.config import ClientConfig, ClusterConfig
from sovfed.federation.host.quiet import quiet_environment
from sovfed.federation.host.settings import settings_file

CLUSTER = ClientConfig(runtime_port=1, cluster=ClusterConfig(scheduler="slurm"))


def test_the_trainer_s_jobs_are_kept_by_a_process_in_its_stead(tmp_path: Path) -> None:
    modules = {process.name: process.argv[4:6] for process in processes(tmp_path, CLUSTER)}
    assert modules["trainer"] == ["sovfed.clients.node.slurm", "--home"]
    assert modules["gateway"] == ["sovfed.clients.node.sandbox", "gateway"]


def test_who_must_not_ask_the_scheduler_is_known_before_anything_is_loaded(tmp_path: Path) -> None:
    passed = json.loads(settings_file(tmp_path, CLUSTER).read_text())
    assert places_of(passed).scheduled
    assert places_of({"cluster": 7}) == places_of({"cluster": {"scheduler": "none"}}) == Places()


@pytest.mark.parametrize("option", ["partition=gpu", "--wrap x", "-p", "--gres=gpu:1\n--uid=0", "; id", "--Mem=1"])
def test_what_is_no_option_of_sbatch_is_refused(option: str) -> None:
    with pytest.raises(ValueError, match="no option of sbatch"):
        ClusterConfig(options=(option,))


def test_options_of_sbatch_pass() -> None:
    assert ClusterConfig(options=("--partition=gpu", "--gres=gpu:a100:1", "--exclusive")).options[2] == "--exclusive"


def test_states_are_read_from_old_and_new_versions() -> None:
    assert list(_states({"job_state": "RUNNING"})) == ["RUNNING"]  # Slurm 22.05
    assert list(_states({"job_state": ["RUNNING", "COMPLETING"]})) == ["RUNNING", "COMPLETING"]  # 23.11


def test_without_slurm_it_says_so_for_good(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    settings = settings_file(tmp_path, CLUSTER)
    make_folders(tmp_path)
    (tmp_path / REQUESTS / ("a" * 32)).write_bytes(b"x")
    done = subprocess.run(
        [sys.executable, "-m", "sovfed.clients.node.slurm", "--home", str(tmp_path), "--config", str(settings)],
        env={**quiet_environment(tmp_path), "PATH": "/nonexistent", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "there is no squeue on this machine" in done.stderr


def test_another_user_s_job_of_the_same_name_is_not_taken_for_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else nobody's trainer would ever be started: the name follows from the home's path."""
    slurm = Slurm(tmp_path, tmp_path / "config.json", ClusterConfig())
    states = {"name": slurm.name, "job_state": ["RUNNING"]}
    listed = [{**states, "job_id": 1, "user_id": os.geteuid() + 1}, {**states, "job_id": 2, "user_id": os.geteuid()}]
    (tmp_path / "jobs").write_text(json.dumps({"jobs": listed}))
    (tmp_path / "squeue").write_text(f"#!/bin/sh\ncat {tmp_path / 'jobs'}\n")
    (tmp_path / "squeue").chmod(0o700)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert slurm.living() == ["2"]
