"""How often runs may ask, and how often a failure may show: counted over restarts in `home/privacy/allowance.json`.

Two things are bounded by run and by day. Sums without privacy, each an exact question about the records; a private run
is bounded by the ledger. And failures: that an institution could not do the work depends on its records, its disk or
its memory, so after a few it says nothing of the kind any more, until the operator has looked and cleared the count.
"""

from __future__ import annotations

import json
import logging
import time
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Final

from sovfed.federation.errors import PolicyError
from sovfed.federation.files import private_directory, stamp, write_private
from sovfed.federation.messages import EvaluateRequest, PrivateRequest, SumRequest
from sovfed.federation.schema import bind, bounded
from sovfed.federation.secagg.request import whole_run

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sovfed.clients.home.policy import Policy

log = logging.getLogger(__name__)
FILE: Final = "privacy/allowance.json"  # where a sealed trainer may write
DAY_S: Final = 86_400
RUNS: Final = 256  # counted one by one, the newest; all of them count for the day
AHEAD: Final = 32  # sums are written down so many at a time, before they are answered: a crash forfeits some


@dataclass(frozen=True)
class Tally:
    """What was answered and what failed, of a run or of a day."""

    sums: int = bounded(0, 0, 2**53)
    evaluations: int = bounded(0, 0, 2**53)
    failures: int = bounded(0, 0, 2**53)

    def plus(self, sums: int = 0, evaluations: int = 0, failures: int = 0) -> Tally:
        return Tally(self.sums + sums, self.evaluations + evaluations, self.failures + failures)


@dataclass(frozen=True)
class State:
    """What the file holds. `reason` is the last failure's own code, which stays here; `at` its Unix time.

    `lacking` are the runs, with how many sums, that went on without records of this institution: told here alone, and
    nothing is refused for it, since what is refused is seen.
    """

    day: int = 0
    today: Tally = field(default_factory=Tally)
    runs: dict[str, Tally] = field(default_factory=dict)  # newest last
    stopped: bool = False
    reason: str = ""
    at: float = 0.0
    lacking: dict[str, int] = field(default_factory=dict)  # newest last

    @property
    def failures(self) -> int:
        """Of today, or of the runs that are counted, whichever is more."""
        return max(self.today.failures, sum(tally.failures for tally in self.runs.values()))


class Allowance:
    """One institution's counts, of a run with all its parts. Only the trainer writes the file.

    One that cannot be read lets nothing start.
    """

    def __init__(self, home: Path, policy: Policy, clock: Callable[[], float] = time.time) -> None:
        """Raises PolicyError if the file is damaged."""
        self._home, self._policy, self._clock = home, policy, clock
        self._path = str(home / FILE)
        self._state = read_state(home)
        self._stamp = self._modified()
        self._ahead = 0  # sums that are in the file, and were not answered yet
        self._settling = -1  # sums of today at the last `settle`

    def require_open(self, run: str) -> None:
        """Raises PolicyError if too much has failed for anything to be tried."""
        state, run = self._current(), whole_run(run)
        if state.stopped or state.runs.get(run, Tally()).failures >= self._policy.max_failures_per_run:
            raise PolicyError("too many failures; see `sovfed client failures`, and --clear to go on")

    def take(self, request: SumRequest) -> None:
        """Count a request, before a record is read for it. Raises PolicyError where a bound is reached."""
        self.require_open(request.run)
        state, policy, name = self._state, self._policy, whole_run(request.run)
        run = state.runs.get(name, Tally())
        if isinstance(request, PrivateRequest):
            return
        evaluations = int(isinstance(request, EvaluateRequest))
        run, today = run.plus(1, evaluations), state.today.plus(1, evaluations)
        _at_most(run.sums, policy.max_sums_per_run, "max_sums_per_run")
        _at_most(today.sums, policy.max_sums_per_day, "max_sums_per_day")
        if evaluations:
            _at_most(run.evaluations, policy.max_evaluations_per_run, "max_evaluations_per_run")
            _at_most(today.evaluations, policy.max_evaluations_per_day, "max_evaluations_per_day")
        self._state = replace(state, today=today, runs=_with(state.runs, name, run))
        self._ahead -= 1
        if self._ahead < 0 or evaluations:
            self._ahead = AHEAD - 1
            self._write(self._ahead, name)

    def settle(self) -> None:
        """Write down what was answered and no more, once nothing was since the last call: people compare it."""
        sums = self._current().today.sums
        if self._ahead > 0 and sums == self._settling:
            self._ahead = 0
            _save(self._home, self._state)
            self._stamp = self._modified()
        self._settling = sums

    def failed(self, run: str, code: str) -> None:
        """Count a failure that the agency is about to see."""
        state, run = self._current(), whole_run(run)
        tally, today = state.runs.get(run, Tally()).plus(failures=1), state.today.plus(failures=1)
        stopped = state.stopped or today.failures >= self._policy.max_failures_per_day
        self._state = replace(
            state, today=today, runs=_with(state.runs, run, tally), stopped=stopped, reason=code, at=self._clock()
        )
        if stopped or tally.failures >= self._policy.max_failures_per_run:
            log.error(
                "too many failures of %s: refused until `sovfed client failures --clear`",
                "a day" if stopped else "a run",
            )
        self._write(max(self._ahead, 0), run)

    def lacking(self, run: str) -> None:
        """Count a sum of `run` that lacks something of this institution."""
        state, run = self._current(), whole_run(run)
        others = {name: count for name, count in state.lacking.items() if name != run}
        kept = dict([*others.items(), (run, state.lacking.get(run, 0) + 1)][-RUNS:])
        self._state = replace(state, lacking=kept, runs=_with(state.runs, run, state.runs.get(run, Tally())))
        self._write(max(self._ahead, 0), run)

    def _current(self) -> State:
        """The state of today, as the operator may have cleared it meanwhile; a clock set back begins no new day."""
        if (stamp := self._modified()) != self._stamp:
            self._state, self._stamp, self._ahead = read_state(self._home), stamp, 0
        day = int(self._clock() // DAY_S)
        if day > self._state.day:
            self._state, self._ahead = replace(self._state, day=day, today=Tally()), 0
        return self._state

    def _write(self, ahead: int, run: str) -> None:
        state = self._state
        runs = _with(state.runs, run, state.runs[run].plus(ahead))
        _save(self._home, replace(state, today=state.today.plus(ahead), runs=runs))
        self._stamp = self._modified()

    def _modified(self) -> tuple[int, int, int] | None:
        return stamp(self._path)


def read_state(home: Path) -> State:
    """What was counted so far. Raises PolicyError if the file is there and cannot be read."""
    path = home / FILE
    if not path.exists():
        return State()
    try:
        content = json.loads(path.read_bytes())
        runs = {str(run): bind(Tally, tally, str(path), PolicyError) for run, tally in content.pop("runs").items()}
        today = bind(Tally, content.pop("today"), str(path), PolicyError)
        lacking = {str(run): int(count) for run, count in content.get("lacking", {}).items()}
        return State(
            int(content["day"]), today, runs, bool(content["stopped"]), str(content["reason"]), float(content["at"]),
            lacking,
        )  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise PolicyError(f"{path}: cannot be read; remove it only if you know why") from error


def clear_failures(home: Path) -> State:
    """Let runs go on after the operator has looked; what was answered stays counted. Returns what was cleared."""
    state = read_state(home)
    runs = {run: replace(tally, failures=0) for run, tally in state.runs.items()}
    _save(
        home,
        replace(state, today=replace(state.today, failures=0), runs=runs, stopped=False, reason="", at=0.0, lacking={}),
    )
    return state


def _save(home: Path, state: State) -> None:
    private_directory((home / FILE).parent)
    write_private(home / FILE, json.dumps(asdict(state), indent=1).encode())


def _with(runs: dict[str, Tally], run: str, tally: Tally) -> dict[str, Tally]:
    """`runs` with `run` as the newest; of failures none is forgotten before the operator has seen them."""
    tallies = {name: counts for name, counts in runs.items() if name != run}
    spare = [name for name, counts in tallies.items() if not counts.failures]
    for name in spare[: max(0, len(tallies) + 1 - RUNS)]:
        del tallies[name]
    return {**tallies, run: tally}


def _at_most(count: int, bound: int, name: str) -> None:
    if count > bound:
        raise PolicyError(f"this would be sum {count}, {name} is {bound}")
