"""The points of the campaign: which process is sent which signal at which moment of a run."""

from __future__ import annotations

import random
from dataclasses import dataclass
from signal import SIGKILL, SIGSTOP, SIGTERM, Signals
from typing import TYPE_CHECKING, Final

from sovfed.federation.errors import ConfigError
from sovfed.federation.schema import nearest
from sovfed.simulations.audit.chaos.machine import AGENCY, COORDINATOR_NAME, SUPERVISOR

if TYPE_CHECKING:
    from collections.abc import Sequence

MEMBER: Final = "hospital-2"  # whose processes are killed
ALL: Final = "all"  # processes of a side, its supervisor with them
EVERYBODY: Final = "everybody"
INSTITUTIONS: Final = "institutions"

MOMENTS: Final = {
    "idle": "no run is on",
    "start-up": "the process was started an instant ago, for a run that begins",
    "setup": "the institution has just joined secure aggregation's setup, and has not said so yet",
    "mid-round": "the round's work is going on",
    "masking": "the institution has masked its update, which has not left yet",
    "unmasking": "the institution has given out its shares, which have not left yet",
    "between": "a round was just written down, its checkpoint perhaps not",
    "last": "the last round was just written down: evaluation, release and tracking are left",
    "shut-down": "its side was told to stop a moment ago, in the middle of a run",
}
SIGNALS: Final = {"kill": SIGKILL, "term": SIGTERM, "stop": SIGSTOP}
AT_INSTITUTION: Final = ("trainer", "gateway", "supernode", SUPERVISOR)
AT_AGENCY: Final = ("superlink", "registry", "executor", COORDINATOR_NAME, SUPERVISOR)
GROUPS: Final = ((MEMBER, ALL), (INSTITUTIONS, ALL), (AGENCY, ALL), (EVERYBODY, ALL))


@dataclass(frozen=True)
class Point:
    """`process` of `owner` is sent `number` at `moment`, `times` times in a row; in a private run if `private`."""

    owner: str
    process: str
    moment: str
    signal: str = "kill"
    times: int = 1
    private: bool = False

    @property
    def name(self) -> str:
        suffix = ("twice",) if self.times > 1 else ()
        return ":".join((self.target, self.moment, self.signal, *suffix, *(("private",) if self.private else ())))

    @property
    def target(self) -> str:
        """Who is meant, in words."""
        if self.process == ALL:
            return {MEMBER: "institution", AGENCY: "agency"}.get(self.owner, self.owner)
        if self.process == SUPERVISOR:
            return "agency-supervisor" if self.owner == AGENCY else "institution-supervisor"
        return self.process

    @property
    def number(self) -> Signals:
        return SIGNALS[self.signal]


def every_point() -> list[Point]:
    """Every process at every moment by every signal; each side and everything at once; twice in a row; private runs."""
    single = [(MEMBER, process) for process in AT_INSTITUTION] + [(AGENCY, process) for process in AT_AGENCY]
    points = [
        Point(owner, process, moment, number)
        for owner, process in single for moment in MOMENTS for number in SIGNALS
        if not (process == COORDINATOR_NAME and moment == "idle")  # there is none
    ]  # fmt: skip
    points += [Point(*group, moment) for group in GROUPS for moment in MOMENTS]
    points += [Point(owner, process, "mid-round", times=2) for owner, process in (*single, *GROUPS)]
    points += [
        Point(owner, process, moment, private=True)
        for owner, process in (*single, *GROUPS) for moment in ("masking", "unmasking", "between", "last")
    ]  # fmt: skip
    return points


MIDDLE, PRIVATE_MIDDLE = 4, 2  # points of one run between its beginning and its end
# by run, each of which is disturbed at one point after the other
QUICK: Final = (
    (
        "supernode:setup:kill", "trainer:masking:kill", "gateway:mid-round:kill", "registry:unmasking:kill",
        "executor:mid-round:term", "coordinator:last:kill",
    ),
    (
        "institution-supervisor:shut-down:kill", "coordinator:between:kill", "agency-supervisor:mid-round:kill",
        "superlink:mid-round:stop", "everybody:masking:kill",
    ),
    ("trainer:unmasking:kill:private",),
)  # fmt: skip


def shared(points: Sequence[Point]) -> list[list[Point]]:
    """`points` by run, of which each has at most one point as it begins, some in the middle and one as it ends.

    Fuller runs come first; private ones, which pay for each repeat and so take fewer, are spread among the others.
    """
    kinds = [_packed([point for point in points if point.private is private], most)
             for private, most in ((False, MIDDLE), (True, PRIVATE_MIDDLE))]  # fmt: skip
    placed = [(number / len(runs), run) for runs in kinds for number, run in enumerate(runs, 1)]
    return [run for _, run in sorted(placed, key=lambda pair: pair[0])]


def _packed(points: Sequence[Point], most: int) -> list[list[Point]]:
    slots = {0: 1, 1: most, 2: 1}
    runs = list[list[Point]]()
    for point in points:
        slot = _slot(point)
        run = next((run for run in runs if sum(_slot(other) == slot for other in run) < slots[slot]), None)
        if run is None:
            runs.append(run := [])
        run.append(point)
    return sorted((sorted(run, key=_slot) for run in runs), key=len, reverse=True)


def _slot(point: Point) -> int:
    """Where in a run its moment is: 0 as it begins, 1 in the middle, 2 as it ends."""
    return 0 if point.moment in ("idle", "start-up", "setup") else 2 if point.moment == "last" else 1


def chosen(names: Sequence[str], *, quick: bool) -> list[list[Point]]:
    """The points of these names, or, of a name that none has, those that begin so; of no names, all or the quick ones.

    They stand in lists, one a run; those that are named in runs of their own. All are in an order that is ever the
    same and begins with points of every kind, as a campaign may be cut short. ConfigError for a name that no point has.
    """
    points = every_point()
    by_name = {point.name: point for point in points}
    if not names:
        if quick:
            return [[by_name[name] for name in run] for run in QUICK]
        return shared(random.Random(1).sample(points, len(points)))  # noqa: S311 - no secret
    wanted = dict[Point, None]()
    for name in names:
        named = (
            [by_name[name]]
            if name in by_name
            else [point for point in points if point.name.startswith(f"{name.rstrip(':')}:")]
        )
        if not named:
            raise ConfigError(f"there is no point '{name}'{nearest(name, list(by_name))}")
        wanted |= dict.fromkeys(named)
    return [[point] for point in wanted]
