"""A trainer that spends and releases until it is killed, over and over, and the count of what went wrong.

`python tests/clients/ledger/crash.py FOLDER KILLS SEED` prints one line of JSON. Half of the kills are at a random
point between the ledger and its disk (around each write and fsync, and within a write), half at a random moment.
The children are forked from this process, which has loaded what they need; reads, writes and fsyncs are real.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from sovfed.clients.ledger.book import HOME, PrivacyLedger, Receipt, replay
from sovfed.clients.ledger.entries import Budget, Grant, Granted, Plan, Release, Whose
from sovfed.clients.ledger.file import create_ledger, read_ledger
from sovfed.federation.errors import PrivacyError
from sovfed.federation.privacy.accounting import Accountant
from sovfed.federation.privacy.events import Event

POPULATION = "heart"
RUN = "17"  # on the wire
CODE = hashlib.sha256(b"code and configuration").hexdigest()
BUDGET = Budget(
    population_name=POPULATION, max_share_per_run=1.0, epsilon=4.0, annual_epsilon=4.0, delta=1e-6, population=100_000
)  # fmt: skip
Z = 8.0
STEPS, ROUNDS = 7, 5  # of a run: two steps are spare, for rounds that a kill made us repeat
SPENT, REFUSED, FAILED = 0, 3, 4  # exit codes of a child


class WitnessedLedger(PrivacyLedger):
    """A ledger to which the agency has shown a head, in the one run that there is; `wall` is its only clock."""

    def __init__(
        self,
        home: Path,
        budget: Budget = BUDGET,
        wall: Callable[[], float] = time.time,
        others: Mapping[str, Budget] | None = None,
    ) -> None:
        super().__init__(home, budget, wall, wall, others)
        self._shown[RUN] = None

    def authorise(self, run: str, plan: Plan, *, asked_in: str = RUN, whose: Whose = HOME) -> Grant:
        return super().authorise(run, plan, asked_in=asked_in, whose=whose)

    def spend(self, grant: Grant, release: Release, *, asked_in: str = RUN) -> Receipt:
        return super().spend(grant, release, asked_in=asked_in)

    def countersign_head(self, head: str | None = None) -> None:
        """What an honest agency does at the end of a run."""
        seq = self._file.seq if head is None else self._file._heads.index(head)
        self.countersign(RUN, seq, head or self.head, b"signed", ours=True)


def plan(steps: int = STEPS, z: float = Z, q: float = 1.0, delta: float = BUDGET.delta, rounds: int = 10**6) -> Plan:
    return Plan(Event(z, q, steps), "distributed", clip=1.0, delta=delta, rounds=rounds, config=CODE)


def release(of: Plan, round_: int, attempt: int = 0, first: int | None = None, steps: int = 1) -> Release:
    """A release that fits `of`, of other bytes each time; steps are numbered like rounds unless `first` is given."""
    event = Event(of.event.noise_multiplier, of.event.sampling_rate, steps)
    begin = round_ if first is None else first
    digest = hashlib.sha256(os.urandom(16)).hexdigest()
    return Release(event, round_, attempt, begin, of.mechanism, of.clip, of.config, digest)


def gaussian_delta(epsilon: float, releases: int, z: float = Z) -> float:
    """δ of `releases` Gaussian mechanisms of everybody, exactly: Balle & Wang 2018, arXiv:1805.06530, Theorem 8."""
    if releases == 0:
        return 0.0
    mu = math.sqrt(releases) / z

    def normal(x: float) -> float:
        return math.erfc(-x / math.sqrt(2)) / 2

    return normal(mu / 2 - epsilon / mu) - math.exp(epsilon) * normal(-mu / 2 - epsilon / mu)


class Killer:
    """Kills its own process at the n-th point: before, within and after each write, before and after each fsync."""

    def __init__(self, point: int) -> None:
        self._left = point
        self._write, self._fsync = os.write, os.fsync
        os.write, os.fsync = self.write, self.fsync  # type: ignore[assignment]

    def pass_point(self) -> None:
        if self._left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        self._left -= 1

    def write(self, file: int, data: bytes) -> int:
        self.pass_point()
        if self._left == 0:
            self._write(file, data[: random.randrange(len(data))])
        self.pass_point()
        written = self._write(file, data)
        self.pass_point()
        return written

    def fsync(self, file: int) -> None:
        self.pass_point()
        self._fsync(file)
        self.pass_point()


@dataclass
class Course:
    """Where a run goes on."""

    grant: Grant
    round: int
    attempt: int
    left: int


def spend_on(home: Path, sent: int) -> None:
    """What a trainer does from a fresh start: two runs at a time, each step spent and then written to `sent`."""
    known = replay(read_ledger(home, POPULATION)[0]).grants
    ledger = WitnessedLedger(home)
    number = sum(granted.closed for granted in known.values()) // 2 * 2
    while True:
        runs = [f"run-{number}", f"run-{number + 1}"]
        open_runs = [run for run in runs if (run, "train") not in known or not known[run, "train"].closed]
        courses = [_go_on(ledger.authorise(run, plan()), known.get((run, "train"))) for run in open_runs]
        for round_ in range(ROUNDS):
            for course in courses:
                if round_ >= course.round and course.left:
                    _spend(ledger, course, round_, sent)
        for course in courses:
            ledger.close(course.grant.run)
        number += 2


def _go_on(grant: Grant, granted: Granted | None) -> Course:
    """After a restart nobody knows whether the last release left, so its round is repeated and paid again."""
    if granted is None or granted.last is None:
        return Course(grant, 0, 0, grant.plan.event.count)
    return Course(grant, granted.last.round, granted.last.attempt + 1, granted.reserved)


def _spend(ledger: WitnessedLedger, course: Course, round_: int, sent: int) -> None:
    attempt = course.attempt if round_ == course.round else 0
    paid = release(course.grant.plan, round_, attempt)
    receipt = ledger.spend(course.grant, paid)
    os.write(sent, _line(course.grant.run, paid).encode() + b"\n")
    course.left -= 1
    if round_ == ROUNDS - 1:
        ledger.countersign_head(receipt.head)


def _line(run: str, paid: Release) -> str:
    return f"{run} {paid.round} {paid.attempt} {paid.digest}"


def one_life(home: Path, rng: random.Random) -> tuple[int, list[str]]:
    """Fork a child, let it be killed: its status as `waitpid` gives it, and what it released."""
    point = rng.randrange(40) if rng.random() < 0.5 else None
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        code = FAILED
        try:
            random.seed(os.urandom(8))
            if point is not None:
                Killer(point)
            spend_on(home, writing)
        except PrivacyError as error:
            code = REFUSED if "over the limit" in str(error) else FAILED
        finally:
            os._exit(code)
    os.close(writing)
    if point is None:
        time.sleep(rng.uniform(0, 0.04))
        os.kill(child, signal.SIGKILL)
    with os.fdopen(reading) as pipe:
        sent = [line.strip() for line in pipe if line.endswith("\n")]
    return os.waitpid(child, 0)[1], sent


def main(folder: Path, kills: int, seed: int) -> dict[str, int]:
    """Kill `kills` children; what must be 0 is `unrecorded`, `unreadable`, `overspent` and `failed`."""
    Accountant().plus(Event(Z, 1.0, 1)).epsilon(BUDGET.delta)  # loads the accountant's library, once for all children
    rng = random.Random(seed)
    count = Counter(dict.fromkeys(("unrecorded", "unreadable", "overspent", "failed"), 0))
    home, sent = folder, list[str]()
    refused = True
    while count["kills"] < kills:
        if refused:
            home, sent, refused = folder / f"home-{count['homes']}", [], False
            create_ledger(home, POPULATION, time.time())
            count["homes"] += 1
        status, released = one_life(home, rng)
        sent += released
        count["released"] += len(released)
        count["kills"] += os.WIFSIGNALED(status)
        refused = os.WIFEXITED(status) and os.WEXITSTATUS(status) == REFUSED
        count["refused"] += refused
        count["failed"] += os.WIFEXITED(status) and not refused
        try:
            lines, _ = read_ledger(home, POPULATION)
        except PrivacyError:
            count["unreadable"] += 1
            refused = True  # go on with another home
            continue
        history = replay(lines)
        known = {_line(spent.run, spent.release) for _, spent in history.spends}
        count["unrecorded"] += len(set(sent) - known)
        steps = sum(event.count for event in history.spent() + history.reserved())
        count["overspent"] += gaussian_delta(BUDGET.epsilon, steps) > BUDGET.delta
        count["spent_unsent"] += len(known) - len(set(sent)) if refused else 0
    return dict(count)


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))))  # noqa: T201
