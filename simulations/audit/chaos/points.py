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


# by run, each of which is disturbed at one point after the other
QUICK: Final = (
    (
        "supernode:setup:kill", "trainer:masking:kill", "gateway:mid-round:kill", "registry:unmasking:kill",
        "executor:mid-round:term", "coordinator:between:kill", "institution-supervisor:shut-down:kill",
        "agency-supervisor:mid-round:kill", "superlink:mid-round:stop", "everybody:masking:kill",
        "coordinator:last:kill",
    ),
    ("trainer:unmasking:kill:private",),
)  # fmt: skip


def chosen(names: Sequence[str], *, quick: bool) -> list[list[Point]]:
    """The points of these names, or, of a name that none has, those that begin so; of no names, all or the quick ones.

    They stand in lists, one a run, which but for the quick ones are of one point. All are in an order that is ever the
    same and begins with points of every kind, as a campaign may be cut short. ConfigError for a name that no point has.
    """
    points = every_point()
    by_name = {point.name: point for point in points}
    if not names:
        if quick:
            return [[by_name[name] for name in run] for run in QUICK]
        return [[point] for point in random.Random(1).sample(points, len(points))]  # noqa: S311 - no secret
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
