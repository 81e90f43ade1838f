"""Keeps the trainer going as short jobs of Slurm: one at most, only while somebody asks, the next when one ends.

`python -m sovfed.clients.node.slurm --home H --config JSON`, in the trainer's stead under `sovfed client up`. It holds
no key, opens no record and no port: it looks into the spool (`clients/trainer/spool.py`), asks `squeue --json`, calls
`sbatch`. It is not in the gateway, which speaks with the network: who may submit jobs can read the records.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sovfed.clients.trainer.spool import make_folders, waiting
from sovfed.federation.config import ClientConfig
from sovfed.federation.errors import ConfigError, ServiceError, SovfedError
from sovfed.federation.files import private_directory
from sovfed.federation.host.begin import begin
from sovfed.federation.host.leaving import leave
from sovfed.federation.host.processes import exit_code
from sovfed.federation.host.quiet import python_command
from sovfed.federation.host.settings import passed_settings
from sovfed.federation.schema import bind

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sovfed.federation.config import ClusterConfig

log = logging.getLogger("sovfed.slurm")
LIVES: Final = frozenset(
    {"PENDING", "RUNNING", "CONFIGURING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT", "RESIZING"}
)
LOOK_S: Final = 1.0  # into the spool
ASK_S: Final = 10.0  # the scheduler, of a job that it has
BACK_OFF_S: Final = (10.0, 300.0)
COMMAND_TIMEOUT_S: Final = 60.0
GRACE_S: Final = 30  # between the word that the time is over and the end
OUTPUT: Final = Path("run/trainer/job.log")


class Slurm:
    """The jobs of one home, by Slurm's own commands."""

    def __init__(self, home: Path, config_file: Path, cluster: ClusterConfig) -> None:
        self._home, self._config_file, self._cluster = home, config_file, cluster
        self.name = f"sovfed-{hashlib.sha256(os.fsencode(home)).hexdigest()[:12]}"

    def submit(self) -> str:
        """A new job's number. Raises ServiceError."""
        argv = python_command(
            "sovfed.clients.node.sandbox", "trainer", "--home", str(self._home), "--config", str(self._config_file)
        )
        script = f"#!/bin/sh\nexec {shlex.join(argv)}\n"  # the signal is for the batch shell, so it becomes the trainer
        said = _run([
            "sbatch", "--parsable", *self._cluster.options, f"--job-name={self.name}", "--dependency=singleton",
            "--no-requeue", f"--time={self._cluster.time_limit_min}", f"--signal=B:TERM@{GRACE_S}",
            f"--chdir={self._home}", f"--output={self._home / OUTPUT}", "--open-mode=append", "--export=ALL",
        ], script)  # fmt: skip
        return said.strip().partition(";")[0]  # "number" or "number;cluster"

    def living(self) -> list[str]:
        """The numbers of this home's jobs that wait or run. Raises ServiceError if the scheduler does not answer."""
        try:
            jobs = json.loads(_run(["squeue", "--json"]))["jobs"]
            jobs = [job for job in jobs if job["name"] == self.name and _is_own(job)]
            return [str(job["job_id"]) for job in jobs if LIVES & set(_states(job))]
        except (ValueError, KeyError, TypeError) as error:
            raise ServiceError(f"squeue --json: not understood: {error}") from error

    def cancel(self, job: str) -> None:
        """End `job`. Raises ServiceError."""
        _run(["scancel", job])


def _is_own(job: dict[str, Any]) -> bool:
    """Whether `job` is this user's, as far as it tells: anybody may give a job the name of ours."""
    user = job.get("user_id")
    return not isinstance(user, int) or user == os.geteuid()


def _states(job: dict[str, Any]) -> Sequence[str]:
    """The states of `job`: one text before Slurm 23.11, a list since."""
    state = job["job_state"]
    return [state] if isinstance(state, str) else state


def _run(argv: list[str], given: str = "") -> str:
    try:
        done = subprocess.run(
            argv, input=given, capture_output=True, text=True, check=False, timeout=COMMAND_TIMEOUT_S
        )  # fmt: skip
    except FileNotFoundError as error:
        raise ConfigError(f"there is no {argv[0]} on this machine; is client.cluster.scheduler meant?") from error
    except subprocess.TimeoutExpired as error:
        raise ServiceError(f"{argv[0]}: no answer within {COMMAND_TIMEOUT_S:g} s") from error
    if done.returncode != 0:
        raise ServiceError(f"{argv[0]}: {done.stderr.strip() or f'exit code {done.returncode}'}")
    return done.stdout


class Keeper:
    """Submits a job when requests wait and none lives; `step` is to be called again and again."""

    def __init__(self, slurm: Slurm, home: Path) -> None:
        self._slurm, self._home = slurm, home
        self.job: str | None = None
        self._pause_s, self._not_before, self._asked = BACK_OFF_S[0], 0.0, 0.0
        self._output = Tail(home / OUTPUT)

    def step(self) -> None:
        """Look once. Raises nothing but ConfigError: a scheduler that is away is asked again."""
        self._output.pass_on()
        try:
            self._look()
        except ServiceError as error:
            if isinstance(error, ConfigError):
                raise
            log.warning("%s; tried again in %.0f s", error, self._pause_s)
            self._not_before = time.monotonic() + self._pause_s
            self._pause_s = min(2 * self._pause_s, BACK_OFF_S[1])

    def _look(self) -> None:
        now = time.monotonic()
        if now < self._not_before or (self.job is not None and now - self._asked < ASK_S):
            return
        if self.job is None and not waiting(self._home):
            return
        self._asked = now
        living = self._slurm.living()
        if self.job is not None and self.job not in living:
            log.info("job %s is over", self.job)
            self.job = None
        if self.job is None and living:
            self.job = living[0]
            log.info("job %s is ours from before", self.job)
        if self.job is None and waiting(self._home):
            self.job = self._slurm.submit()
            log.info("submitted job %s: %d requests wait", self.job, len(waiting(self._home)))
        self._pause_s = BACK_OFF_S[0]

    def stop(self) -> None:
        """End the job: nobody would ask it anything."""
        if self.job is not None:
            with contextlib.suppress(SovfedError):
                self._slurm.cancel(self.job)
        self._output.pass_on()


class Tail:
    """Passes on what is added to a file, from the end that it had at first."""

    def __init__(self, path: Path) -> None:
        self._path, self._offset = path, path.stat().st_size if path.exists() else 0

    def pass_on(self) -> None:
        """Write the new lines to our own output, which the supervisor bounds and keeps."""
        with contextlib.suppress(OSError), self._path.open("rb") as file:
            if os.fstat(file.fileno()).st_size < self._offset:
                self._offset = 0
            file.seek(self._offset)
            added = file.read(1 << 20)
            self._offset += len(added)
            sys.stderr.write(added.decode(errors="replace"))


def main(arguments: list[str] | None = None) -> int:
    """Keep jobs going until SIGTERM. Exit code 2 for a bad configuration, or where there is no Slurm."""
    home, settings = begin("Keeps the trainer going as jobs of Slurm", arguments)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        config = bind(ClientConfig, passed_settings(settings))
        make_folders(home)
        for folder in OUTPUT.parent.parent, OUTPUT.parent:
            private_directory(home / folder)
        (home / OUTPUT).unlink(missing_ok=True)
        keeper = Keeper(Slurm(home, settings, config.cluster), home)
        while not stop.wait(LOOK_S):
            keeper.step()
        keeper.stop()
    except SovfedError as error:
        log.critical("%s", error)
        return exit_code(error)
    return 0


if __name__ == "__main__":
    leave(main)
