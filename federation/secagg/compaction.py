"""What of a journal must be kept once the keys of a run are gone: that it is over, and what judges later sums.

A run is `live` while the institution has its session, without which it can neither mask nor reveal anything in it. Of
another run the rounds may be forgotten, if it can never be joined again: then nothing is left that could be answered
twice. What is judged across runs stays whole: the cohorts summed without privacy, the rosters masked under, the bounds.
Which *later* sums could be differenced with those cohorts (`History.near`, for the institution's own eyes) is not kept.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Final

from sovfed.federation.secagg import wire
from sovfed.federation.secagg.history import Dated, Entry, Joined, Pinned, Spent, name_tag
from sovfed.federation.secagg.purpose import Purpose

OVER: Final = 2**32 - 1  # an epoch that no offer's exceeds


def essence(entries: Sequence[Entry], live: Collection[bytes]) -> list[Entry]:
    """The entries of `live` runs, what later sums are judged by, and for every other run that it is over."""
    judged = list(_judged(entries, live))
    needed = {entry.run for entry in judged if not isinstance(entry, Pinned)}
    kept = {id(entry) for entry in judged}
    kept |= {id(entry) for entry in entries if isinstance(entry, Joined) and entry.run in needed and entry.epoch < OVER}
    kept |= {id(entry) for entry in entries if isinstance(entry, Dated) and entry.run in needed}
    titles = {entry.run: entry.title for entry in entries if isinstance(entry, Joined)}
    over = [
        Joined(run, OVER, bytes(wire.HASH), title if run in needed else "", ())
        for run, title in titles.items() if run not in live
    ]  # fmt: skip
    return [*(entry for entry in entries if id(entry) in kept), *over]


def _judged(entries: Sequence[Entry], live: Collection[bytes]) -> Iterator[Entry]:
    """All of live runs, and of others the first sum of each cohort and the first masking under each roster.

    Of tables, those of each run: they judge others by their age.
    """
    rosters, pinned = dict[bytes, frozenset[bytes]](), False
    masked, cohorts = set[tuple[bytes, frozenset[bytes]]](), set[tuple[bytes, frozenset[bytes]]]()
    for entry in entries:
        fresh = False
        if isinstance(entry, Joined):
            rosters[entry.roster] = frozenset(map(name_tag, entry.names))
        elif isinstance(entry, Pinned):
            fresh, pinned = not pinned, True
        elif not isinstance(entry, Dated) and (purpose := Purpose(entry.purpose)).tells_apart:
            known, names = (
                (masked, rosters.get(entry.roster, frozenset[bytes]())) if isinstance(entry, Spent)
                else (cohorts, frozenset(entry.names))
            )  # fmt: skip
            sum_ = (entry.run if purpose is Purpose.COUNT else b"", names)
            fresh = sum_ not in known
            known.add(sum_)
        if fresh or (not isinstance(entry, Pinned) and entry.run in live):
            yield entry
