"""NVIDIA FLARE on this machine, as its documentation has it tried: `nvflare poc`, mutual TLS, its own FedAvg.

NVFlare needs packages of other versions than ours, so it lies in a virtual environment of its own, whose Python is
given. Its POC listens on fixed ports (8002 and 8003), so there can be only one on a machine.
"""

from __future__ import annotations

import os
import subprocess
import time
from itertools import pairwise
from pathlib import Path
from signal import SIGKILL
from typing import Any, Final, Self

from sovfed.federation.errors import ConfigError, ServiceError
from sovfed.federation.host.quiet import quiet_environment
from sovfed.simulations.benchmarks import process_tree

SCRIPT: Final = Path(__file__).parent / "nvflare" / "submit.py"
SERVER_LOG: Final = "*/prod_00/server/log.txt"
START_S: Final = 120.0


class NVFlare:
    """Use as a context: `with NVFlare(python, folder, 4) as peer: peer.run_rounds(3, 2_500, timeout_s=120)`."""

    def __init__(self, python: Path | None, folder: Path, nodes: int) -> None:
        """Raises ConfigError without a Python that has NVFlare's command beside it."""
        if python is None or not python.with_name("nvflare").is_file():
            raise ConfigError(
                f"NVFlare's Python is {python or 'not given'}: make a virtual environment, "
                "`pip install nvflare` in it, and name its bin/python"
            )
        self.python, self.folder, self.nodes = python.absolute(), folder, nodes
        self.workspace = folder / "poc"
        self._command, self._runs = self.python.with_name("nvflare"), 0

    def start(self) -> Self:
        """Prepare and start server and clients; returns when they are ready. Raises ServiceError."""
        self.folder.mkdir(parents=True)
        try:
            self._run(self._command, "poc", "prepare", "-n", str(self.nodes), "--force")
            self._run(
                self._command, "poc", "start", "--no-wait"
            )  # to wait may not end where the server is slow to start
            self._wait()
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """End everything that was started."""
        try:
            self._run(self._command, "poc", "stop")
        finally:
            process_tree.send(process_tree.tree(self.roots()), SIGKILL)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def roots(self) -> list[int]:
        """The process ids of server, clients and jobs: those that have our workspace on their command line."""
        return process_tree.mentioning(str(self.workspace))

    def run_rounds(self, rounds: int, parameters: int, timeout_s: float) -> list[dict[str, Any]]:
        """Run FedAvg for so many rounds more than one; of each but the last its seconds, from one model to the next.

        What the slowest institution took is the measure. Raises ServiceError if the job fails or time is out.
        """
        self._runs += 1
        folder = self.folder / f"run-{self._runs}"
        folder.mkdir()
        admin = next(self.workspace.glob("*/prod_00/admin@*"))
        counts = map(str, (self.nodes, rounds + 1, parameters, int(timeout_s)))
        told = self._run(self.python, str(SCRIPT), str(folder), str(admin), *counts, timeout_s=timeout_s + START_S)
        seconds = [_between(file.read_text()) for file in folder.glob("times-*")]
        if "FINISHED:COMPLETED" not in told or {len(each) for each in seconds} != {rounds} or len(seconds) < self.nodes:
            raise ServiceError(
                f"NVFlare: the job did not train {rounds} rounds; logs in {self.workspace}: {told[-300:]}"
            )
        return [
            {"seconds": max(each), "seconds_compute": 0.0, "bytes": 8 * parameters * self.nodes}
            for each in zip(*seconds, strict=True)
        ]

    def _wait(self) -> None:
        """Return when all clients have joined. Raises ServiceError."""
        deadline, everybody = time.monotonic() + START_S, f"Total clients: {self.nodes}"
        while not any(everybody in log.read_text(errors="replace") for log in self.workspace.glob(SERVER_LOG)):
            if time.monotonic() > deadline:
                raise ServiceError(f"NVFlare: not all clients within {START_S:g} s; logs in {self.workspace}")
            time.sleep(0.5)

    def _run(self, *command: Path | str, timeout_s: float = 2 * START_S) -> str:
        """What the command prints. Raises ServiceError if it fails."""
        path = os.pathsep.join([str(self.python.parent), os.environ.get("PATH", "")])
        environment = quiet_environment() | {"PATH": path, "NVFLARE_POC_WORKSPACE": str(self.workspace)}
        output = self.folder / "output.txt"  # no pipe: what `poc start` leaves behind would keep it open
        try:
            with output.open("wb") as file:
                done = subprocess.run(
                    list(map(str, command)), env=environment, stdin=subprocess.DEVNULL, stdout=file,
                    stderr=subprocess.STDOUT, timeout=timeout_s, check=False, cwd=self.folder,
                )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise ServiceError(f"NVFlare: not done within {timeout_s:g} s; logs in {self.workspace}") from error
        told = output.read_text(errors="replace")
        if done.returncode:
            raise ServiceError(f"NVFlare: {' '.join(map(str, command[1:3]))} failed: {told[-1000:]}")
        return told


def _between(text: str) -> list[float]:
    """Seconds between the lines "ROUND MONOTONIC_SECONDS"."""
    times = [float(line.split()[1]) for line in text.splitlines()]
    return [after - before for before, after in pairwise(times)]
