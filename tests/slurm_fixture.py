"""A real Slurm on this machine: munged, slurmctld and slurmd of this user, in a folder, on free loopback ports."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel", "sinfo")
CONFIGURATION = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
KillWait=5
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
JobCompType=jobcomp/none
AccountingStorageType=accounting_storage/none
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str:
    """Why no Slurm can run here; "" if it can."""
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    absent = [name for name in PROGRAMS if shutil.which(name, path=path) is None]
    if absent:
        return f"not installed: {', '.join(absent)} (Debian: slurmctld slurmd slurm-client munge)"
    return "" if os.geteuid() == 0 else "slurmd starts jobs as root only"


def jobs() -> list[dict[str, Any]]:
    done = subprocess.run(["squeue", "--json"], capture_output=True, text=True, check=True)
    listed: list[dict[str, Any]] = json.loads(done.stdout)["jobs"]
    return listed


@contextlib.contextmanager
def slurm() -> Iterator[Path]:
    """A cluster of this one machine, which SLURM_CONF names while the block runs; its folder. Skips without Slurm."""
    if missing():
        pytest.skip(missing())
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    for name in ("state", "spool"):
        (folder / name).mkdir()
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(1024))
    key.chmod(0o600)
    text = CONFIGURATION.format(
        host=socket.gethostname().partition(".")[0], ports=_free_ports(), user="root", folder=folder,
        cpus=os.cpu_count(),
    )  # fmt: skip
    (folder / "slurm.conf").write_text(text)
    munged = [
        "munged", "--force", "--foreground", f"--key-file={key}", f"--socket={folder}/munge.sock",
        f"--pid-file={folder}/munged.pid", f"--log-file={folder}/munged.log", f"--seed-file={folder}/munged.seed",
    ]  # fmt: skip
    environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf"), "PATH": f"{os.environ['PATH']}:/usr/sbin"}
    with contextlib.ExitStack() as stack:
        monkeypatch = stack.enter_context(pytest.MonkeyPatch.context())
        monkeypatch.setenv("SLURM_CONF", environment["SLURM_CONF"])
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        stack.enter_context(_daemon(munged, environment, folder / "munged.out"))
        _until((folder / "munge.sock").exists, folder)
        stack.enter_context(_daemon(["slurmctld", "-D", "-c"], environment, folder / "slurmctld.out"))
        stack.enter_context(_daemon(["slurmd", "-D", "-c"], environment, folder / "slurmd.out"))
        _until(lambda: "idle" in _said(["sinfo", "--noheader", "--format=%T"]), folder)
        stack.callback(_end_jobs)
        yield folder


@contextlib.contextmanager
def _daemon(argv: list[str], environment: dict[str, str], output: Path) -> Iterator[None]:
    program = shutil.which(argv[0], path=environment["PATH"])
    with output.open("wb") as file:
        process = subprocess.Popen([str(program), *argv[1:]], env=environment, stdout=file, stderr=file)
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _end_jobs() -> None:
    for job in jobs():
        subprocess.run(["scancel", "--signal=KILL", "--full", str(job["job_id"])], capture_output=True, check=False)
        subprocess.run(["scancel", str(job["job_id"])], capture_output=True, check=False)


def _said(argv: list[str]) -> str:
    return subprocess.run(argv, capture_output=True, text=True, check=False).stdout


def _until(condition: Any, folder: Path) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        logs = "".join(path.read_text()[-1000:] for path in folder.glob("*.log"))
        assert time.monotonic() < deadline, f"Slurm did not start:\n{logs}"
        time.sleep(0.1)


def _free_ports() -> list[int]:
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(2)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
