"""Runs in groups that differ in nothing but the seed, and what each is called beside the others.

A run is called as its folder is, within a sweep by the settings that it varies.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

from sovfed.simulations.compare import PLAN, RUNS, Group, Run, settings_text, telling

INSIDE: Final = (RUNS, "agency")  # folders of a deployment that tell nothing of its runs
JOINED: Final = 3  # names of runs that share a line


def group_runs(runs: Sequence[Run]) -> list[Group]:
    """The runs by what differs in their settings but the seed; an unfinished run stands alone."""
    keys, names = telling(runs), _named(runs)
    groups: dict[Any, tuple[dict[str, Any], list[Run]]] = {}
    for run in runs:
        values = {key: run.config.get(key) for key in keys} if run.finished else {}
        groups.setdefault(settings_text(values) if run.finished else run.folder, (values, []))[1].append(run)
    return [Group(_joined([names[run.folder] for run in alike]), values, alike) for values, alike in groups.values()]


def _named(runs: Sequence[Run]) -> dict[Path, str]:
    """A name for the run in each folder."""
    sweeps = {run.folder: run.folder.parent for run in runs if (run.folder.parent / PLAN).exists()}
    places = _shortest({sweeps.get(run.folder, run.folder) for run in runs})
    names = {run.folder: places[run.folder] for run in runs if run.folder not in sweeps}
    for place in dict.fromkeys(sweeps.values()):
        members = [run for run in runs if sweeps.get(run.folder) == place]
        names |= _within(members, places[place], alone=len(places) == 1)
    return {run.folder: names[run.folder] + ("" if run.finished else " (unfinished)") for run in runs}


def _joined(names: Iterable[str]) -> str:
    """The names of runs that share a line."""
    distinct = list(dict.fromkeys(names))
    more = f" and {len(distinct) - JOINED} more" if len(distinct) > JOINED else ""
    return ", ".join(distinct[:JOINED]) + more


def _within(members: Sequence[Run], sweep: str, *, alone: bool) -> dict[Path, str]:
    """The runs of one sweep; its own name stands before their settings unless it is `alone`."""
    keys = telling(members)
    names = {}
    for run in members:
        own = settings_text({key: run.config.get(key) for key in keys}) if run.finished else run.name
        names[run.folder] = own if alone and own else f"{sweep}: {own}" if own else sweep
    return names


def _shortest(folders: Iterable[Path]) -> dict[Path, str]:
    """The last part of each path, with the one before it, or all of it, where others end alike."""
    names = {folder: folder.resolve().name for folder in folders}
    for longer in (_with_parent, str):
        often = Counter(names.values())
        names = {folder: longer(folder.resolve()) if often[name] > 1 else name for folder, name in names.items()}
    return names


def _with_parent(folder: Path) -> str:
    return "/".join([part for part in folder.parts if part not in INSIDE][-2:])
