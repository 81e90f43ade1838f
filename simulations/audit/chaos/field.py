"""A federation to be tried by faults: some of its disks are small, and its roads lead through the weather."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

from sovfed.federation.compose import compose
from sovfed.federation.errors import ServiceError
from sovfed.federation.files import write_private
from sovfed.server.runs import folders
from sovfed.server.runs.curves import read_rounds
from sovfed.simulations.audit.chaos import disks
from sovfed.simulations.audit.chaos.machine import Machine
from sovfed.simulations.audit.chaos.points import MEMBER
from sovfed.simulations.audit.chaos.runs import Runs
from sovfed.simulations.audit.chaos.weather import Weather
from sovfed.simulations.deployment import POLICY, Institution, LocalFederation
from sovfed.simulations.federation import institution_names, sites

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from sovfed.federation.config import Config
    from sovfed.simulations.audit.chaos.moments import Watch

KeptT = TypeVar("KeptT")
AGENCY_MB: Final = 160
INSTITUTION_MB: Final = 24
SETTLE_S: Final = 180.0
FINISH_S: Final = 300.0  # a run that hangs; one that is slow is none, on a machine that others use too
ROUNDS: Final = 12
ENDLESS: Final = 1000  # rounds of a run that is stopped once it has shown what it is for, however fast it is
OVERRIDES: Final = (
    "server.min_cohort=3", "server.start_cohort=4", "privacy.colluders=0", "server.round_deadline_s=15",
    "server.node_wait_s=20", "server.lane=stream", "server.lane_timeout_s=60",
    f"rounds={ROUNDS}", "task.local_epochs=40", "task.batch_size=4",
)  # fmt: skip


@dataclass(frozen=True)
class Field:
    """What the faults are tried at. `member` has a small disk, `fleet` and `lane` are the weather on all roads."""

    machine: Machine
    runs: Runs
    fleet: Weather
    lane: Weather
    config: Config
    member: str = MEMBER
    stack: contextlib.ExitStack = dataclasses.field(default_factory=contextlib.ExitStack)
    entered: dict[Any, Any] = dataclasses.field(default_factory=dict)

    def kept(self, manager: Callable[[Path], contextlib.AbstractContextManager[KeptT]]) -> KeptT:
        """What `manager` gives for a folder of its own: entered once, and left when the field is."""
        if manager not in self.entered:
            folder = self.machine.federation.folder / manager.__name__
            self.entered[manager] = self.stack.enter_context(manager(folder))
        kept: KeptT = self.entered[manager]
        return kept

    @property
    def agency(self) -> Path:
        return self.machine.federation.home

    @property
    def home(self) -> Path:
        return self.machine.federation.client_home(self.member)

    def changed(self, **server: Any) -> Config:
        """The usual configuration with other settings of the server."""
        return dataclasses.replace(self.config, server=dataclasses.replace(self.config.server, **server))

    def rounds(self, name: str) -> list[dict[str, Any]]:
        return read_rounds(folders.run_folder(self.agency, name))

    def begun(self, rounds: int = 2, config: Config | None = None) -> tuple[str, Watch]:
        """A run that has come to `rounds`."""
        name, watch = self.runs.begin(config or self.config)
        watch.await_rounds(rounds)
        return name, watch

    def require_finished(self, name: str, watch: Watch, rounds: int = ROUNDS) -> None:
        """Wait for the run's end. Raises ServiceError unless it finishes with each of its rounds once."""
        finished, _ = self.runs.await_end(name, watch, time.monotonic(), 0, FINISH_S)
        if not finished:
            state = self.runs.state(name)
            raise ServiceError(f"the run waits for an operator: {state['status']}, {state['reason']}")
        self._require_each_once(name, rounds)

    def require_stopped(self, name: str) -> None:
        """Stop the run, as its operator. Raises ServiceError unless it did, with each of its rounds once."""
        folders.stop_run(self.machine.federation.control, self.agency, name)
        state = self.runs.state(name)
        require(state["status"] == "stopped", f"told to stop, the run is {state['status']}: {state['reason']}")
        self._require_each_once(name, len(self.rounds(name)))

    def _require_each_once(self, name: str, rounds: int) -> None:
        numbers = [line["round"] for line in self.rounds(name)]
        require(numbers == list(range(1, rounds + 1)), f"rounds {numbers}, expected 1 to {rounds}")

    def await_member(self, name: str, member: str, *, present: bool) -> None:
        """Until the run's last round was with `member`, or without it. Raises ServiceError if that does not come."""
        with_or_without = "with" if present else "without"
        wait_until(
            lambda: (member in self.rounds(name)[-1]["participants"]) == present,
            f"a round of {name} {with_or_without} {member}",
        )

    def took_part(self, name: str, member: str) -> list[int]:
        """The rounds in which `member` took part."""
        return [line["round"] for line in self.rounds(name) if member in line["participants"]]


def require(condition: bool, what: str) -> None:
    """Raises ServiceError saying `what` if the condition does not hold."""
    if not condition:
        raise ServiceError(what)


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float = SETTLE_S) -> None:
    """Raises ServiceError saying `what` did not happen in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise ServiceError(f"not within {timeout_s:g} s: {what}")
        time.sleep(0.1)


@contextlib.contextmanager
def tried_field(folder: Path) -> Iterator[Field]:
    """A field with four institutions, set up and running."""
    config = compose(list(OVERRIDES)).config
    data = sites(config)
    members = [Institution(name, source) for name, source in zip(institution_names(data), data, strict=True)]
    policy = dataclasses.replace(POLICY, max_local_epochs=1000, min_batch_size=1)
    federation = LocalFederation(folder, members, config, policy)
    server = federation.config.server
    fleet, lane = Weather(server.fleet_port), Weather(server.lane_port)
    server = dataclasses.replace(server, lane_address=f"127.0.0.1:{lane.port}")
    federation.config = dataclasses.replace(federation.config, server=server)
    small = [(federation.home, AGENCY_MB), (federation.client_home(MEMBER), INSTITUTION_MB)]
    mounted = small if disks.have_own_mounts() else []
    for home, size_mb in mounted:
        disks.mount_small(home, size_mb)
    try:
        federation.build_agency()
        with Machine(federation) as machine:
            machine.start(SETTLE_S, partial(_lead_through, federation, fleet))
            field = Field(machine, Runs(machine, MEMBER), fleet, lane, federation.config)
            with field.stack:
                yield field
    finally:
        federation.stop()
        fleet.close()
        lane.close()
        for home, _ in mounted:
            disks.unmount(home)


def _lead_through(federation: LocalFederation, fleet: Weather) -> None:
    """Have the institutions reach the fleet port through the weather."""
    for member in federation.institutions:
        path = federation.client_home(member.name) / "identity" / "institution.json"
        values = json.loads(path.read_text(encoding="utf-8"))
        write_private(path, json.dumps({**values, "fleet_address": f"127.0.0.1:{fleet.port}"}).encode())
