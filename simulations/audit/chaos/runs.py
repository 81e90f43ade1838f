"""Runs at a federation that nobody looks after: begun as soon as they can be, and watched until they end."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

from sovfed.federation.errors import ServiceError
from sovfed.server.runs import folders
from sovfed.simulations.audit.chaos.moments import Watch

if TYPE_CHECKING:
    from sovfed.federation.config import Config
    from sovfed.simulations.audit.chaos.machine import Machine

FINISH_S: Final = 240.0  # a run that has not finished by then waits for an operator
START_S: Final = 180.0  # from a request for a run until the agency takes it: it may be starting again
LOOK_S: Final = 0.02


class Runs:
    """Runs of the machine's federation; moments are watched for at `member`."""

    def __init__(self, machine: Machine, member: str) -> None:
        self.machine, self._member, self._count = machine, member, 0

    def next_watch(self) -> tuple[str, Watch]:
        """The name of a run that is yet to be started, and its watch."""
        self._count += 1
        name, federation = f"run-{self._count}", self.machine.federation
        return name, Watch(federation.home, federation.client_home(self._member), name, FINISH_S)

    def begin(self, config: Config) -> tuple[str, Watch]:
        """A run that was started, and its watch."""
        name, watch = self.next_watch()
        self.start(name, config)
        return name, watch

    def start(self, name: str, config: Config) -> None:
        """Ask for the run until the agency takes it. Raises ServiceError after `START_S`."""
        deadline, federation = time.monotonic() + START_S, self.machine.federation
        while True:
            try:
                folders.start_run(federation.control, federation.home, name, config, resume=False)
            except (ServiceError, OSError):
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)
            else:
                return

    def await_end(self, name: str, watch: Watch, since: float, rounds: int, timeout_s: float) -> tuple[bool, float]:
        """Whether the run finishes by itself, and seconds from `since` to its next round, or to its end."""
        next_round_s = 0.0
        while time.monotonic() - since < timeout_s:
            if not next_round_s and watch.rounds() > rounds:
                next_round_s = time.monotonic() - since
            if (status := self.state(name)["status"]) not in folders.ACTIVE:
                return status == "finished", next_round_s or time.monotonic() - since
            time.sleep(LOOK_S)
        return False, next_round_s or timeout_s

    def finished(self, name: str) -> bool:
        """Whether the run has finished; False of one that was never begun."""
        begun = (folders.run_folder(self.machine.federation.home, name) / folders.STATE).exists()
        return begun and self.state(name)["status"] == "finished"

    def state(self, name: str) -> dict[str, Any]:
        return folders.read_state(self.machine.federation.home, name)
