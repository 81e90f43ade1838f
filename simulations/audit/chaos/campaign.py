"""`sovfed audit chaos`: one federation, set up once; at each point a run is disturbed, and nobody lifts a finger.

The model of a run is compared with a simulation of the same (seeded, four of four institutions in every round), within
what undisturbed runs differ by. Two controls must be found out: a run of one round less, as if one had been lost, and
one that waits for an operator.
"""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sovfed.clients.ledger.entries import Budget
from sovfed.federation.compose import compose
from sovfed.federation.errors import ServiceError
from sovfed.server.runs import folders
from sovfed.server.runs.curves import read_rounds
from sovfed.simulations.audit.chaos import checks
from sovfed.simulations.audit.chaos.machine import (
    AGENCY,
    COORDINATOR_NAME,
    SUPERVISOR,
    Machine,
    send,
    stopped,
)
from sovfed.simulations.audit.chaos.moments import KIND
from sovfed.simulations.audit.chaos.points import ALL, EVERYBODY, INSTITUTIONS, MEMBER, Point
from sovfed.simulations.audit.chaos.runs import FINISH_S, Runs
from sovfed.simulations.deployment import POLICY, Institution, LocalFederation
from sovfed.simulations.federation import institution_names, simulate, sites

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from sovfed.federation.config import Config
    from sovfed.federation.messages import Vector
    from sovfed.simulations.audit.chaos.moments import Watch

ROUNDS: Final = 8
BEFORE: Final = 2  # rounds before a process is disturbed in the middle of a run
SHUT_DOWN_S: Final = 0.05  # from the order to stop to the signal
SETTLE_S: Final = 180.0
CONTROL_S: Final = 8.0
UNDISTURBED: Final = 2  # runs
NOISE: Final = 1e-5  # more than undisturbed runs were ever seen to differ by
POPULATION: Final = "persons"
COHORT: Final = (
    "server.min_cohort=4", "server.start_cohort=4", "privacy.colluders=0", "server.round_deadline_s=15",
    "server.lane=stream", "server.lane_timeout_s=60",
)  # fmt: skip
# some 0.2 s of training a round, so that a signal lands inside one
PLAIN: Final = (*COHORT, f"rounds={ROUNDS}", "task.local_epochs=40", "task.batch_size=4")
PRIVATE: Final = (
    *COHORT, f"rounds={ROUNDS}", "privacy=distributed", "privacy.epsilon=0.2", "privacy.population=400",
    "privacy.spare_steps=8", "task.learning_rate=1.0",
)  # fmt: skip
BUDGET: Final = Budget(epsilon=1000.0, annual_epsilon=1000.0, max_share_per_run=1.0)


@dataclass(frozen=True)
class Outcome:
    """How a disturbed run came out; `hung`: a process that was stopped was never started anew."""

    point: str
    needed_operator: bool
    wrong_model: bool
    overspent: bool
    mlflow_lacks: bool
    seconds_to_next_round: float
    seconds: float
    model_error: float | None = None
    hung: bool = False
    problem: str = ""

    @property
    def good(self) -> bool:
        return not (self.needed_operator or self.wrong_model or self.overspent or self.mlflow_lacks)


@contextlib.contextmanager
def small_federation(folder: Path) -> Iterator[Machine]:
    """Four institutions with the breast cancer data, enrolled, and kept up as by their machines."""
    config = compose(list(PLAIN)).config
    data = sites(config)
    members = [Institution(name, source) for name, source in zip(institution_names(data), data, strict=True)]
    policy = dataclasses.replace(POLICY, max_local_epochs=1000, min_batch_size=1, privacy=BUDGET)
    federation = LocalFederation(folder, members, config, policy)
    try:
        federation.build_agency()
        federation.start_agency()
        federation.enrol()
    finally:
        federation.stop()
    with Machine(federation) as machine:
        machine.settle(SETTLE_S)
        try:
            yield machine
        finally:
            federation.stop()


class Campaign:
    """Runs at one federation, which is whole again after each."""

    def __init__(self, machine: Machine, folder: Path, undisturbed: int = UNDISTURBED) -> None:
        """`undisturbed` runs tell how far a model may be from the simulation's; none of them, `NOISE`."""
        self._machine, self._federation = machine, machine.federation
        self._plain, self._private = compose(list(PLAIN)).config, compose(list(PRIVATE)).config
        self._runs = Runs(machine, MEMBER)
        data = [member.data for member in self._federation.institutions]
        expected = simulate(self._plain, data, folder / "simulated").model
        noise = max((checks.distance(self._undisturbed(), expected) for _ in range(undisturbed)), default=NOISE)
        self.reference = checks.Reference(expected, noise)

    def play(self, point: Point) -> Outcome:
        """Disturb a run at `point` and see how it comes out, then make the federation whole."""
        self._machine.settle(SETTLE_S)
        started = time.monotonic()
        name, watch = self._runs.next_watch()
        config = self._private if point.private else self._plain
        struck: list[int] = []
        try:
            self._disturb(point, config, name, watch, struck)
            at, count = time.monotonic(), watch.rounds()
            finished, next_round_s = self._runs.await_end(name, watch, at, count, FINISH_S)
        except ServiceError as error:
            finished, next_round_s, problem = False, float("inf"), str(error)
        else:
            problem = ""
        hung = [pid for pid in struck if stopped(pid)]
        outcome = self._judge(point, config, name, finished, next_round_s, time.monotonic() - started, bool(hung))
        for pid in hung:
            send(pid, signal.SIGKILL)
        if not finished:
            self._abandon(name)
        return dataclasses.replace(outcome, problem=outcome.problem or problem)

    def control_lost_round(self) -> bool:
        """Whether a run of one round less would be told by its model."""
        return self.reference.error(self._undisturbed(rounds=ROUNDS - 1)) > self.reference.tolerance

    def control_operator(self) -> bool:
        """Whether a run that an operator has stopped, and that nobody resumes, is seen to wait for one."""
        name, watch = self._runs.begin(self._plain)
        watch.await_rounds(BEFORE)
        folders.stop_run(self._federation.control, self._federation.home, name)
        finished, _ = self._runs.await_end(name, watch, time.monotonic(), watch.rounds(), CONTROL_S)
        return not finished

    def _undisturbed(self, rounds: int = ROUNDS) -> Vector:
        name, watch = self._runs.begin(dataclasses.replace(self._plain, rounds=rounds))
        finished, _ = self._runs.await_end(name, watch, time.monotonic(), 0, FINISH_S)
        if not finished:
            raise ServiceError(f"an undisturbed run has not finished: {self._runs.state(name)}")
        return checks.model_of(self._federation.home, name)

    def _disturb(self, point: Point, config: Config, name: str, watch: Watch, struck: list[int]) -> None:
        """Start the run and send the point's signals, in the order that its moment asks for."""
        if point.moment == "idle":
            self._strike(point, struck)
        elif point.moment == "start-up" and point.process != COORDINATOR_NAME:
            self._strike_starting(point, struck)
        self._runs.start(name, config)
        if point.moment in ("idle", "start-up"):
            if point.process == COORDINATOR_NAME:
                self._strike(point, struck)
            return
        self._await(point.moment, watch)
        if point.moment == "shut-down":
            for owner in self._owners(point):
                send(self._machine.services[owner].pid or 0, signal.SIGTERM)
            time.sleep(SHUT_DOWN_S)
        self._strike(point, struck)
        for _ in range(point.times - 1):
            self._strike_again(point, struck)

    def _await(self, moment: str, watch: Watch) -> None:
        if moment not in ("setup", "last"):
            watch.await_rounds(BEFORE)
        if moment in KIND:
            if moment != "setup":
                watch.drain()
            watch.await_entry(moment)
        elif moment == "last":
            watch.await_rounds(ROUNDS)
        elif moment == "between":
            watch.await_rounds(BEFORE + 1)
        else:
            watch.await_work()

    def _owners(self, point: Point) -> Sequence[str]:
        members = [member.name for member in self._federation.institutions]
        return {EVERYBODY: [AGENCY, *members], INSTITUTIONS: members}.get(point.owner, [point.owner])

    def _strike(self, point: Point, struck: list[int]) -> None:
        if point.process == ALL:
            pids = [pid for owner in self._owners(point) for pid in self._machine.processes(owner)]
        else:
            pids = [self._machine.await_pid(point.owner, point.process, SETTLE_S)]
        for pid in pids:
            send(pid, point.number)
        struck += pids

    def _strike_starting(self, point: Point, struck: list[int]) -> None:
        """Kill what is meant, and signal its successor an instant after that has been started."""
        self._strike(dataclasses.replace(point, signal="kill"), struck)
        self._strike_again(point, struck)

    def _strike_again(self, point: Point, struck: list[int]) -> None:
        owner, process = self._owners(point)[0], SUPERVISOR if point.process == ALL else point.process
        self._machine.await_pid(owner, process, SETTLE_S, among=struck)
        self._strike(point, struck)

    def _judge(
        self, point: Point, config: Config, name: str, finished: bool, next_round_s: float, seconds: float, hung: bool
    ) -> Outcome:
        home, problems, error = self._federation.home, list[str](), None
        outcome = Outcome(point.name, not finished, False, False, False, next_round_s, seconds, hung=hung)
        rounds = read_rounds(folders.run_folder(home, name))
        charges = [found for member in self._federation.institutions if point.private
                   for found in checks.wrong_charges(self._federation.client_home(member.name), POPULATION, config,
                                                     name, rounds, member.name)]  # fmt: skip
        problems += [why for why, _ in charges]
        if not finished:
            state = self._runs.state(name) if (folders.run_folder(home, name) / folders.STATE).exists() else {}
            problems.append(f"{state.get('status', 'not started')}: {state.get('reason', '')}")
            return dataclasses.replace(outcome, overspent=bool(charges), problem="; ".join(problems))
        if not point.private:
            error = self.reference.error(checks.model_of(home, name))
        wrong = not checks.rounds_once(home, name, ROUNDS) or (error is not None and error > self.reference.tolerance)
        lacking = checks.lacking_in_mlflow(home, config, name)
        return dataclasses.replace(
            outcome, wrong_model=wrong, overspent=bool(charges), mlflow_lacks=bool(lacking), model_error=error,
            problem="; ".join(problems + lacking),
        )  # fmt: skip

    def _abandon(self, name: str) -> None:
        """End a run that waits for an operator, so that it does not disturb the next; the verdict has been given."""
        for pid in self._machine.coordinators():
            send(pid, signal.SIGKILL)
        with contextlib.suppress(ServiceError, OSError, LookupError):
            folders.stop_run(self._federation.control, self._federation.home, name)


def run_campaign(points: Sequence[Point], told: Callable[[Outcome], None]) -> tuple[list[Outcome], Campaign, bool]:
    """The outcome of each point, the campaign with its reference, and whether both controls were found out."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # and end what was started
    with tempfile.TemporaryDirectory(prefix="sovfed-") as name, small_federation(Path(name) / "f") as machine:
        campaign = Campaign(machine, Path(name))
        outcomes = []
        for point in points:
            outcomes.append(campaign.play(point))
            told(outcomes[-1])
        machine.settle(SETTLE_S)
        return outcomes, campaign, campaign.control_lost_round() and campaign.control_operator()
