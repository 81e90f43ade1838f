"""Our side of a benchmark: a deployed federation that runs rounds of the echo, on the lane or on Flower's own Grid."""

from __future__ import annotations

import dataclasses
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from sovfed.clients.home.folder import NODE_ID
from sovfed.federation.compose import compose
from sovfed.federation.config import ServerConfig
from sovfed.federation.errors import ServiceError
from sovfed.server.runs import folders
from sovfed.server.runs.curves import read_rounds
from sovfed.simulations.benchmarks.process_tree import memory_file_bytes, peak_bytes, resident_bytes
from sovfed.simulations.deployment import POLICY, Institution, LocalFederation
from sovfed.simulations.federation import institution_names, sites

POLL_S: Final = 0.1
SIGN_ON_S: Final = 60.0


@dataclass(frozen=True)
class Weight:
    """The server after so many rounds: memory of superlink, registry and coordinator, and the superlink's database."""

    rounds: int
    resident_bytes: int
    database_bytes: int


@dataclass(frozen=True)
class Run:
    """The coordinator's lines, with `bytes` both ways; its seconds from first round to summary; the server's weights.

    Weights are taken ten times a second, the last one before the last round ends: then the coordinator draws curves,
    which is not a cost of rounds. `peaks` are the largest resident sets so far of the coordinator, the registry, and
    the first institution's processes, in bytes, and the most that was seen in files of memory of that institution:
    where no process has mapped them, they are in no resident set.
    """

    lines: list[dict[str, Any]]
    seconds: float
    weights: list[Weight]
    peaks: dict[str, int] = dataclasses.field(default_factory=dict)


class Ours:
    """Use as a context: `with Ours(folder, 4) as ours: ours.run_rounds("stream", 200, 2_500, timeout_s=60)`."""

    def __init__(self, folder: Path, institutions: int, *, megabytes: int = 0) -> None:
        """For vectors of `megabytes` at most, where that is more than a federation takes by default."""
        folder.mkdir(mode=0o700, parents=True)
        counts = ("server.min_cohort", "server.start_cohort", "simulation.institutions")
        limits = ("server.max_message_bytes", "client.max_message_bytes")
        settings = {
            "task": "echo", "secagg": "none", **dict.fromkeys(counts, institutions),
            **dict.fromkeys(limits, max(ServerConfig.max_message_bytes, 2 * megabytes * 1_000_000)),
        }  # fmt: skip
        self.config = compose([f"{key}={value}" for key, value in settings.items()]).config
        data = sites(self.config)
        places = [Institution(name, source) for name, source in zip(institution_names(data), data, strict=True)]
        longest = max(POLICY.max_parameters, megabytes * 1_000_000 // 4)
        policy = dataclasses.replace(POLICY, allow_plain_updates=True, max_parameters=longest)
        self.federation = LocalFederation(folder, places, self.config, policy)
        self._runs = 0

    def start(self) -> Self:
        """Build the federation and start it; returns when every process is ready and every node signed on.

        A node that is stopped while it signs on is refused for a minute afterwards. Raises ServiceError.
        """
        self.federation.start()
        homes, deadline = [self.federation.client_home(site.name) for site in self.federation.institutions], SIGN_ON_S
        while missing := [home.name for home in homes if not (home / NODE_ID).exists()]:
            if (deadline := deadline - POLL_S) < 0:
                self.stop()
                raise ServiceError(f"sovfed: not signed on after {SIGN_ON_S:g} s: {', '.join(missing)}")
            time.sleep(POLL_S)
        return self

    def stop(self) -> None:
        self.federation.stop()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def roots(self) -> list[int]:
        """The process ids that the supervisors started."""
        statuses = [supervisor.status() for supervisor in self.federation.supervisors.values()]
        return [process.pid for status in statuses for process in status.processes if process.pid is not None]

    def run_rounds(self, lane: str, rounds: int, parameters: int, timeout_s: float, *, masked: bool = False) -> Run:
        """Run `rounds` rounds of the echo with a vector of `parameters`, `masked` by secure aggregation or not.

        Raises ServiceError if the run fails, does not travel on `lane`, or time is out.
        """
        self._runs += 1
        home, name, deadline = self.federation.home, f"{lane}-{self._runs}", time.monotonic() + timeout_s
        server = dataclasses.replace(self.federation.config.server, lane=lane)
        task = dataclasses.replace(self.config.task, parameters=parameters)
        secagg = dataclasses.replace(self.config.secagg, enabled=masked)
        config = dataclasses.replace(self.config, rounds=rounds, task=task, server=server, secagg=secagg)
        folder, control, weights = folders.run_folder(home, name), self.federation.control, list[Weight]()
        peaks = dict[str, int]()
        folders.start_run(control, home, name, config, resume=False)
        run = folders.read_run(home, name)
        while run["status"] in folders.ACTIVE:
            if 0 < run["rounds_done"] < rounds:
                weights.append(self._weigh(folder, run["rounds_done"]))
                peaks |= self._peaks(folder, peaks.get("files", 0))
            if time.monotonic() > deadline:
                raise ServiceError(f"sovfed: {rounds} rounds not within {timeout_s:g} s; logs in {home / 'logs'}")
            time.sleep(POLL_S)
            # Flower is asked only while the run's own process has not yet told that it is there.
            run = folders.read_run(home, name, control if run["status"] == "starting" else None)
        peaks |= self._peaks(folder, peaks.get("files", 0), over=True)
        summary = folders.read_summary(home, name)
        if run["status"] != "finished" or summary is None:
            raise ServiceError(f"sovfed: run {name} {run['status']}: {run['reason']}; logs in {home / 'logs'}")
        if summary["transport"] != lane:
            raise ServiceError(f"sovfed: run {name} travelled on '{summary['transport']}', asked was '{lane}'")
        lines = [{**line, "bytes": line["bytes_down"] + line["bytes_up"]} for line in read_rounds(folder)]
        return Run(lines, summary["seconds_training"], weights, peaks)

    def _peaks(self, folder: Path, files: int, *, over: bool = False) -> dict[str, int]:
        """As `Run` has them; once the run is `over` without the coordinator, which has ended."""
        first = self.federation.institutions[0].name
        pids = {name: self.federation.pid(first, name) for name in ("gateway", "trainer", "supernode")}
        pids["registry"] = self.federation.pid("agency", "registry")
        if not over:
            pids["coordinator"] = json.loads((folder / folders.STATE).read_text())["pid"]
        files = max(files, memory_file_bytes((pids["gateway"], pids["trainer"])))
        return {name: peak for name, pid in pids.items() if (peak := peak_bytes(pid))} | {"files": files}

    def identities(self) -> tuple[Path, list[Path]]:
        """The folders of the agency's key and certificate, and of each institution's."""
        homes = [self.federation.client_home(member.name) for member in self.federation.institutions]
        return self.federation.home / "identity", [home / "identity" for home in homes]

    def _weigh(self, folder: Path, rounds_done: int) -> Weight:
        processes = [self.federation.pid("agency", name) for name in ("superlink", "registry")]
        processes.append(json.loads((folder / folders.STATE).read_text())["pid"])
        database = (self.federation.home / "superlink").glob("state.db*")  # with its write-ahead log
        return Weight(rounds_done, sum(map(resident_bytes, processes)), sum(file.stat().st_size for file in database))
