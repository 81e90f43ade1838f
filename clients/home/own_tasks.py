"""An institution's own tasks: added by its operator, allowed by its policy, told apart by their digests."""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sovfed.clients.home.policy import POLICY, load_policy
from sovfed.federation.archive.archive import read_archive
from sovfed.federation.archive.kept import folders, read_kept
from sovfed.federation.archive.shown import columns
from sovfed.federation.errors import PolicyError
from sovfed.federation.files import write_private
from sovfed.federation.tasks import registry
from sovfed.federation.tasks.shelf import DIGITS, Shelf, read_bounded
from sovfed.federation.text import ARCHIVE, AT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sovfed.federation.archive.manifest import Manifest
    from sovfed.federation.tasks import Task

SUFFIXES: Final = (".yaml", ".yml")
_ALLOWED: Final = re.compile(r"^allowed_tasks: \[(.*)\]$", re.MULTILINE)


def entry_of(task: Task | Manifest) -> str:
    """How `allowed_tasks` names this very task."""
    return f"{task.name}{AT}{task.digest[:DIGITS]}"


def added(home: Path, file: Path) -> Iterator[str]:
    """Add the task in `file`, a task.yaml or an archive, to `home`; lines for its operator. Raises SovfedError."""
    if file.suffix == ARCHIVE:
        from sovfed.clients.home.packages import added_archive

        yield from added_archive(home, file, load_policy(home))
        yield _next(read_archive(file).manifest)
        return
    shelf = Shelf(home)
    before = list(shelf.files())
    task, stored = shelf.put(file)
    yield f"task {task.name}, version {task.version}: {task.title}"
    yield f"digest {task.digest}"
    yield from (f"  {line}" for line in columns(task.schema))
    yield f"  model of {task.parameters} values; metrics: {task.headline} first"
    yield f"kept in {stored.parent}"
    older = [path for path in before if path.parent.name.rpartition("-")[0] == task.name and path != stored]
    if older:
        yield f"what differs from {older[-1].parent.name}:"
        yield from difference(older[-1], stored)
    yield _next(task)


def _next(task: Task | Manifest) -> str:
    return f"to let runs train it, policy.yaml needs in allowed_tasks: {entry_of(task)}"


def known_task(name: str) -> str:
    """The entry of `allowed_tasks` for an installed task's name, a task.yaml or an archive. Raises ConfigError."""
    if name.endswith(ARCHIVE):
        return entry_of(read_archive(Path(name)).manifest)
    if not name.endswith(SUFFIXES):
        registry.get_task(name)
        return name
    from sovfed.federation.tasks.declared import read_task

    return entry_of(read_task(Path(name)))


def keep_task(home: Path, name: str) -> None:
    """Keep a copy of a task.yaml; an installed task needs none, and an archive is added once the home is enrolled."""
    if name.endswith(SUFFIXES):
        Shelf(home).put(Path(name))


def difference(old: Path, new: Path) -> Iterator[str]:
    """The lines of two tasks that are not the same."""
    before, after = (read_bounded(path).decode(errors="replace").splitlines() for path in (old, new))
    yield from difflib.unified_diff(before, after, old.parent.name, new.parent.name, lineterm="", n=1)


def allow_task(home: Path, file: Path) -> str:
    """Write the task in `file` into `allowed_tasks` of the policy, as `allow_entry` does; its entry."""
    return allow_entry(home, known_task(str(file)))


def allow_entry(home: Path, entry: str) -> str:
    """Write `entry` into `allowed_tasks` of the policy, in the place of other versions of the task.

    Raises PolicyError if the policy is not as it was written first.
    """
    policy = load_policy(home)
    entries = [allowed for allowed in policy.allowed_tasks if allowed.partition(AT)[0] != entry.partition(AT)[0]]
    text = (home / POLICY).read_text(encoding="utf-8")
    names = ", ".join(f'"{name}"' for name in [*entries, entry])
    changed, count = _ALLOWED.subn(f"allowed_tasks: [{names}]", text)
    if count != 1:
        raise PolicyError(f"{home / POLICY}: no single line 'allowed_tasks: [...]'; add {entry} to it by hand")
    write_private(home / POLICY, changed.encode())
    load_policy(home)
    return entry


def listed(home: Path) -> Iterator[str]:
    """A line for each task of the home."""
    policy = load_policy(home)
    tasks: list[Task | Manifest] = [*Shelf(home).tasks(), *(read_kept(folder).manifest for folder in folders(home))]
    for task in tasks:
        yield f"{entry_of(task)}  {'allowed' if policy.allows_own(task) else 'not in allowed_tasks'}  {task.title}"
