"""An institution whose trainer is a job of a real Slurm: it comes and goes, and no round is lost for the others."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from tests.deploy.conftest import finished, make_config, make_federation, rounds_done, wait_for
from tests.slurm_fixture import jobs, slurm

from sovfed.federation.host.status import read_status

pytestmark = pytest.mark.deploy
SITE = "hospital-1"
ROUNDS = 30


def running_job() -> str:
    return next((str(job["job_id"]) for job in jobs() if "RUNNING" in job["job_state"]), "")


def test_job_ends(tmp_path: Path) -> None:
    config = make_config(f"rounds={ROUNDS}", "task.batch_size=16")
    with slurm():
        federation = make_federation(tmp_path, config)
        try:
            federation.build_agency()
            federation.start_agency()
            federation.enrol()
            settings = federation.client_home(SITE) / "client.yaml"
            text = settings.read_text().replace('scheduler: "none"', 'scheduler: "slurm"')
            settings.write_text(text.replace("idle_s: 300.0", "idle_s: 5.0"))
            federation.start_institutions()
            assert jobs() == []  # nobody asks anything yet
            federation.start_run("cluster", config)
            wait_for(lambda: rounds_done(federation, "cluster") >= 3, "three rounds with the trainer in a job")
            first = running_job()
            held = (federation.client_home(SITE) / "run" / "trainer" / "isolation.json").read_text()
            assert '"network": "' in held
            assert '"network": ""' not in held  # the job's trainer has no network either
            subprocess.run(["scancel", "--signal=KILL", "--full", first], check=True)  # as at the end of its time
            rounds = finished(federation, "cluster")
            assert len(rounds) == ROUNDS
            others = {f"hospital-{number}" for number in (2, 3, 4)}
            assert all(others <= set(line["participants"]) for line in rounds)
            assert SITE in rounds[-1]["participants"]  # it is back
            home = federation.client_home(SITE)
            wait_for(
                lambda: f"job {first} is over" in (home / "logs" / "trainer.log").read_text(), "its end to be told"
            )
            told = (home / "logs" / "trainer.log").read_text()
            assert told.count("submitted job") >= 2
            wait_for(lambda: running_job() == "", "the job to end when nobody asks")
            status = read_status(home)
            assert status is not None
            assert status.ready
        finally:
            federation.stop()
