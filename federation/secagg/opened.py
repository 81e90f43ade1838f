"""Which sums may be opened beside those that were: once a model, over one roster or several, and not almost the same.

An institution takes all sums without privacy for sums about the same records, whatever the task is called and whichever
columns it names: a second task may read the same columns under other names, and which of an institution's studies are
about the same people is not the coordinator's to say. Nor is it a single institution's: what hides the one that stands
alone in a difference is that *others* refuse, and they do not know its files.

A table (`Purpose.COUNT`) is noised for persons: what an institution as a whole holds, two of them tell within that
noise. So tables are judged like sums without privacy, and judge these, for `Terms.table_days`.

Each rule looks at one pair of sums, and an honest institution judges it by what it did itself. The rules hold for the
federation because two quorums, of one roster or of two that pass `check_rosters`, have an honest holder in common.
The argument stands in `docs/secure-aggregation.md`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Final

from sovfed.federation.errors import PolicyError, PrivacyError
from sovfed.federation.secagg.history import Dated, History, Revealed
from sovfed.federation.secagg.purpose import Purpose
from sovfed.federation.secagg.ring import Ring
from sovfed.federation.secagg.terms import REFUSE, Terms, shared_holders

MAX_COHORTS: Final = 2_000  # different ones that the journal may hold; further ones are refused
_ADVICE: Final = "policy.yaml says secure_aggregation.differencing: refuse"
Names = frozenset[bytes]  # tags of institutions


def is_judged(purpose: Purpose, terms: Terms) -> bool:
    """Whether a sum for `purpose` is held against earlier ones of other institutions."""
    return purpose.without_privacy or (purpose.tells_apart and terms.table_days > 0)


def earlier_sums(history: History, terms: Terms, today: int) -> Mapping[Names, Revealed]:
    """The sums that another is held against, by their institutions: tables for `table_days`, others for ever."""
    days = terms.table_days
    return {n: sum_ for n, sum_ in history.tables.items() if history.recent(sum_.run, today, days)} | history.cohorts


def _earlier_rosters(history: History, terms: Terms, today: int) -> set[Names]:
    counted = history.rosters_counted.items()
    return history.rosters_masked | {n for n, run in counted if history.recent(run, today, terms.table_days)}


def dated(history: History, purpose: int, run: bytes, now: float) -> tuple[Dated, ...]:
    """The entry that goes before the first one of a run of tables; nothing for any other."""
    return (Dated(run, day_of(now)),) if purpose == Purpose.COUNT and run not in history.days else ()


def day_of(now: float) -> int:
    """The day (UTC, since 1970) of the time `now`."""
    return max(0, int(now // 86_400))


def check_rosters(history: History, terms: Terms, key: tuple[bytes, int, bytes], roster: Names, where: str) -> None:
    """Raise PrivacyError if this model was masked under a roster whose quorums need share no honest holder with ours.

    `key` is run, purpose and model.
    """
    for earlier in history.masked.get(key, ()):
        if earlier != roster and shared_holders(roster, earlier) <= terms.colluders:
            raise PrivacyError(
                f"{where}: this model was masked under a roster of {len(earlier)} institutions; a quorum of it and one "
                f"of the new roster of {len(roster)} need share no honest holder"
            )


def check_once(history: History, key: tuple[bytes, int, bytes], names: Names, where: str, *, announced: bool) -> None:
    """Raise PrivacyError if the model of `key` was summed over others than `names`, or, if `announced`, not within."""
    opened = history.sums.get(key)
    if opened is not None and not (opened <= names if announced else opened == names):
        raise PrivacyError(f"{where}: this model was summed over {len(opened)} other institutions in this run already")


def check_apart(history: History, terms: Terms, roster: Names, where: str, today: int) -> None:
    """Raise PolicyError if our records were masked under a roster that ours shares too few holders with.

    A sum under one could then be told apart from a sum under the other by nobody who answered both.
    """
    if terms.differencing != REFUSE:
        return
    for earlier in _earlier_rosters(history, terms, today):
        if earlier != roster and shared_holders(roster, earlier) <= terms.colluders:
            raise PolicyError(
                f"{where}: our records were summed in a roster of {len(earlier)}, which shares too "
                f"few holders with this one of {len(roster)} to tell their sums apart; {_ADVICE}"
            )


def check_bounds(history: History, terms: Terms, ring: Ring, where: str) -> None:
    """Raise PolicyError if our records were trained on under another clip or W_max, in whatever run.

    What either bound changes depends on records: of sums over the same institutions under many bounds, the difference
    of two tells of those alone whose update or record count lies between.
    """
    pinned = history.pinned
    if terms.differencing == REFUSE and pinned and (pinned.clip, pinned.max_weight) != (ring.clip, ring.max_weight):
        raise PolicyError(
            f"{where}: our records were trained on with clip {pinned.clip:g} and W_max {pinned.max_weight}, this "
            f"run says {ring.clip:g} and {ring.max_weight}; {_ADVICE}"
        )


def check_differencing(history: History, terms: Terms, names: Names, least: int, where: str, today: int) -> None:
    """Raise PolicyError if a sum over `names` would, with earlier ones, tell of fewer than `least`.

    `today` is a day since 1970.

    Two sums are refused if their institutions differ by fewer than `least`. Of more than two, every combination gives
    the same weight to those who were in the same sums; so `names` may not cut such a group to fewer than `least`.
    """
    cohorts = earlier_sums(history, terms, today)
    if names in cohorts:
        return
    if len(cohorts) >= MAX_COHORTS:
        raise PolicyError(f"{where}: the journal holds {len(cohorts)} cohorts; {_ADVICE}")
    if terms.differencing != REFUSE:
        return
    for cohort, earlier in cohorts.items():
        if len(names ^ cohort) < least:
            raise PolicyError(
                f"{where}: the institutions of this sum and of {history.describe(earlier)} differ by "
                f"{history.list_names(names ^ cohort)}, fewer than {least}; {_ADVICE}"
            )
    for group in groups(cohorts):
        inside, outside = group & names, group - names
        if inside and outside and min(len(inside), len(outside)) < least:
            raise PolicyError(f"{where}: with sums before, this one would single out {min(len(inside), len(outside))} "
                              f"institutions, fewer than {least}; {_ADVICE}")  # fmt: skip
    fresh = names.difference(*cohorts) if cohorts else frozenset[bytes]()
    if fresh and len(fresh) < least:
        raise PolicyError(f"{where}: with sums before, this one would single out {history.list_names(fresh)}, fewer "
                          f"than {least}; {_ADVICE}")  # fmt: skip


def groups(cohorts: Iterable[Names]) -> Collection[Names]:
    """The institutions that were in the very same of `cohorts`, together."""
    within: dict[bytes, int] = {}
    for index, cohort in enumerate(cohorts):
        for name in cohort:
            within[name] = within.get(name, 0) | 1 << index
    by_cohorts: dict[int, set[bytes]] = {}
    for name, sums in within.items():
        by_cohorts.setdefault(sums, set()).add(name)
    return [frozenset(group) for group in by_cohorts.values()]
