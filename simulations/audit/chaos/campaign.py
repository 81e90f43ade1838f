"""`sovfed audit chaos`: one federation, set up once; runs are disturbed at each point, and nobody lifts a finger.

The model of a run is compared with a simulation of the same (seeded, four of four institutions in every round), within
what undisturbed runs differ by. Two controls must be found out: a run of one round less, as if one had been lost, and
one that waits for an operator.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import signal
import tempfile
import time
from datetime import UTC, datetime
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
    exit_when_told,
    send,
    stopped,
    whole,
)
from sovfed.simulations.audit.chaos.moments import KIND
from sovfed.simulations.audit.chaos.outcomes import Controls, Outcome
from sovfed.simulations.audit.chaos.pace import Pace
from sovfed.simulations.audit.chaos.points import ALL, EVERYBODY, INSTITUTIONS, MEMBER, Point
from sovfed.simulations.audit.chaos.runs import FINISH_S, Runs
from sovfed.simulations.deployment import POLICY, Institution, LocalFederation
from sovfed.simulations.federation import institution_names, simulate, sites

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from sovfed.federation.config import Config
    from sovfed.federation.messages import Vector
    from sovfed.simulations.audit.chaos.moments import Watch
    from sovfed.simulations.audit.chaos.record import Record

ROUNDS: Final = 8
MOST_ROUNDS: Final = 24  # of a run that is disturbed again and again
BEFORE: Final = 2  # rounds before a process is disturbed in the middle of a run
SHUT_DOWN_S: Final = 0.05  # from the order to stop to the signal
SETTLE_S: Final = 180.0
CONTROL_S: Final = 8.0
HANG_S: Final = 15.0  # instead of 60, so that what is stopped takes a quarter of the time
REVIVED_S: Final = HANG_S + 60.0  # within which what was stopped must be started anew, on a busy machine
NOISE: Final = 1e-5  # more than undisturbed runs were ever seen to differ by, which is 3e-6; a round less is 8e-2
POPULATION: Final = "persons"
COHORT: Final = (
    "server.min_cohort=4", "server.start_cohort=4", "privacy.colluders=0", "server.round_deadline_s=15",
    "server.lane=stream", "server.lane_timeout_s=60", f"server.hang_s={HANG_S:g}", f"client.hang_s={HANG_S:g}",
)  # fmt: skip
# some 0.1 s of training a round, so that a signal lands inside one
PLAIN: Final = (*COHORT, "task.local_epochs=20", "task.batch_size=4")
PRIVATE: Final = (
    *COHORT, f"rounds={ROUNDS}", "privacy=distributed", "privacy.epsilon=0.2", "privacy.population=400",
    "privacy.spare_steps=8", "task.learning_rate=1.0",
)  # fmt: skip
BUDGET: Final = Budget(epsilon=1000.0, annual_epsilon=1000.0, max_share_per_run=1.0)


@contextlib.contextmanager
def small_federation(folder: Path) -> Iterator[Machine]:
    """Four institutions with the breast cancer data, enrolled, and kept up as by their machines."""
    config = compose(list(PLAIN)).config
    data = sites(config)
    members = [Institution(name, source) for name, source in zip(institution_names(data), data, strict=True)]
    policy = dataclasses.replace(POLICY, max_local_epochs=1000, min_batch_size=1, privacy=BUDGET)
    federation = LocalFederation(folder, members, config, policy)
    with whole(federation, SETTLE_S) as machine:
        yield machine


class Campaign:
    """Runs at one federation, which is whole again after each."""

    def __init__(self, machine: Machine, folder: Path, noise: float = NOISE, rounds: int = ROUNDS) -> None:
        """`noise` is how far undisturbed runs lie from the simulation at most."""
        self._machine, self._federation, self._folder = machine, machine.federation, folder
        self._plain = dataclasses.replace(self._federation.config, rounds=rounds)
        self._private = dataclasses.replace(compose(list(PRIVATE)).config, server=self._plain.server)
        self._runs = Runs(machine, MEMBER)
        self._shorter = self._simulated(rounds - 1)
        self.reference = checks.Reference(self._simulated(rounds, resume=True), noise)

    def play(self, points: Sequence[Point]) -> list[Outcome]:
        """Disturb one run at each of `points` and see how it comes out; then all must be whole again by itself.

        The run's verdict is that of each point until the first whose moment did not come; those behind it have none.
        """
        started, hit = time.monotonic(), 0
        name, watch = self._runs.next_watch()
        config = self._private if any(point.private for point in points) else self._plain
        struck, waits, problem, finished = list[int](), list[float](), "", False
        try:
            self._begin(points[0], config, name, struck)
            for point in points:
                self._disturb(point, config, watch, struck)
                hit += 1
                at, count = time.monotonic(), watch.rounds()
                if point is not points[-1]:
                    watch.await_rounds(count + 1)
                    waits.append(time.monotonic() - at)
            finished, next_round_s = self._runs.await_end(name, watch, at, count, FINISH_S)
            waits.append(next_round_s)
        except ServiceError as error:
            problem, finished = str(error), self._runs.finished(name)
        verdict = self._judge(config, name, finished, time.monotonic() - started).and_problem(problem)
        verdict = dataclasses.replace(verdict, hung=self._still_stopped(struck))
        if not finished:
            self._abandon(name)
        try:
            self._machine.settle(SETTLE_S)
        except ServiceError as error:
            verdict = dataclasses.replace(verdict.and_problem(str(error)), needed_operator=True)
        ended = datetime.now(UTC).isoformat(timespec="seconds")
        waits += [math.inf] * (len(points) - len(waits))
        known = points[: max(1, hit + finished)]
        return [
            dataclasses.replace(
                verdict, point=point.name, seconds_to_next_round=wait, ended=ended, missed=finished and number > hit
            )
            for number, (point, wait) in enumerate(zip(known, waits, strict=False), 1)
        ]

    def controls(self) -> Controls:
        """Whether a run of one round less is told by its model, and one that waits for an operator by its state."""
        told = self.reference.error(self._shorter) > self.reference.tolerance
        return Controls(told and self.control_operator(), self.reference.noise, self.reference.tolerance)

    def _simulated(self, rounds: int, *, resume: bool = False) -> Vector:
        data = [member.data for member in self._federation.institutions]
        config = dataclasses.replace(self._plain, rounds=rounds)
        return simulate(config, data, self._folder / "simulated", resume=resume).model

    def control_operator(self) -> bool:
        """Whether a run that an operator has stopped, and that nobody resumes, is seen to wait for one."""
        name, watch = self._runs.begin(self._plain)
        watch.await_rounds(BEFORE)
        folders.stop_run(self._federation.control, self._federation.home, name)
        finished, _ = self._runs.await_end(name, watch, time.monotonic(), watch.rounds(), CONTROL_S)
        return not finished

    def _begin(self, point: Point, config: Config, name: str, struck: list[int]) -> None:
        """Start the run, and before that send the signals of a point whose moment is then."""
        if point.moment == "idle":
            self._strike(point, struck)
        elif point.moment == "start-up" and point.process != COORDINATOR_NAME:
            self._strike_starting(point, struck)
        self._runs.start(name, config)

    def _disturb(self, point: Point, config: Config, watch: Watch, struck: list[int]) -> None:
        """Send the point's signals when its moment has come."""
        if point.moment in ("idle", "start-up"):
            if point.process == COORDINATOR_NAME:
                self._strike(point, struck)
            return
        self._await(point.moment, config, watch)
        if point.moment == "shut-down":
            for owner in self._owners(point):
                send(self._machine.services[owner].pid or 0, signal.SIGTERM)
            time.sleep(SHUT_DOWN_S)
        self._strike(point, struck)
        for _ in range(point.times - 1):
            self._strike_again(point, struck)

    def _await(self, moment: str, config: Config, watch: Watch) -> None:
        if moment not in ("setup", "last"):
            watch.await_rounds(BEFORE)
        if moment in KIND:
            if moment != "setup":
                watch.drain()
            watch.await_entry(moment)
        elif moment == "last":
            watch.await_rounds(config.rounds)
        elif moment == "between":
            watch.await_rounds(watch.rounds() + 1)
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

    def _still_stopped(self, struck: Sequence[int]) -> bool:
        """Whether a process that was stopped was not started anew in time; then it is ended, for the next point."""
        deadline = time.monotonic() + REVIVED_S
        while (hung := [pid for pid in struck if stopped(pid)]) and time.monotonic() < deadline:
            time.sleep(0.1)
        for pid in hung:
            send(pid, signal.SIGKILL)
        return bool(hung)

    def _judge(self, config: Config, name: str, finished: bool, seconds: float) -> Outcome:
        home, problems, error = self._federation.home, list[str](), None
        outcome = Outcome("", not finished, False, False, False, math.inf, seconds)
        private = config.privacy.mechanism != "none"
        rounds = read_rounds(folders.run_folder(home, name))
        charges = [charge for member in self._federation.institutions if private
                   for charge in checks.wrong_charges(self._federation.client_home(member.name), POPULATION, config,
                                                     name, rounds, member.name)]  # fmt: skip
        problems += [why for why, _ in charges]
        if not finished:
            state = self._runs.state(name) if (folders.run_folder(home, name) / folders.STATE).exists() else {}
            problems.append(f"{state.get('status', 'not started')}: {state.get('reason', '')}")
            return dataclasses.replace(outcome, overspent=bool(charges), problem="; ".join(problems))
        if not private:
            error = self.reference.error(checks.model_of(home, name))
        wrong = not checks.rounds_once(home, name, config.rounds) or (
            error is not None and error > self.reference.tolerance
        )
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


def run_campaign(
    runs: Sequence[Sequence[Point]], record: Record[Outcome | Controls],
    told: Callable[[Outcome | Controls, str], None], minutes: float | None,
) -> None:  # fmt: skip
    """Play those points of `runs` that are not in `record` yet, each taken into it; no run is begun after `minutes`.

    `told` gets each result and how much is left. Raises ServiceError if the federation does not come back whole.
    """
    exit_when_told()
    pace, known, several = Pace(minutes), record.results.get(Controls.name), any(len(points) > 1 for points in runs)
    remaining = [[point for point in points if point.name not in record.results] for points in runs]
    remaining = [points for points in remaining if points]
    if not remaining and known is not None:
        return
    with tempfile.TemporaryDirectory(prefix="sovfed-") as name, small_federation(Path(name) / "f") as machine:
        campaign = Campaign(machine, Path(name), rounds=MOST_ROUNDS if several else ROUNDS)
        if known is None:
            record.add(controls := campaign.controls())
            told(controls, "")
            machine.settle(SETTLE_S)
        for number, points in enumerate(remaining, start=1):
            if not pace.may_begin():
                return
            for outcome in campaign.play(points):
                record.add(outcome)
                told(outcome, pace.left(len(remaining) - number))
            if machine.unready():
                raise ServiceError("the federation is not whole any more; the same command begins with a new one")
