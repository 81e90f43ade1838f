"""How many processors this process may use: those it is bound to, and no more than its control group's quota."""

from __future__ import annotations

import contextlib
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

GROUPS: Final = Path("/sys/fs/cgroup")
MEMBERSHIP: Final = Path("/proc/self/cgroup")


def usable() -> int:
    """At least one: what a container's `--cpus` or a unit's `CPUQuota` leaves of this machine, rounded up."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        limit = quota(GROUPS, MEMBERSHIP.read_text(encoding="utf-8"))
    except OSError:
        limit = None
    return bound if limit is None else max(1, min(bound, math.ceil(limit)))


def quota(groups: Path, membership: str) -> float | None:
    """The smallest quota, in processors, of the groups in `membership` (/proc/self/cgroup) and all above them."""
    limits = [limit for folder in _folders(groups, membership) if (limit := _limit(folder)) is not None]
    return min(limits, default=None)


def _folders(groups: Path, membership: str) -> Iterator[Path]:
    for line in membership.splitlines():
        number, controllers, path = line.split(":", 2)
        names = controllers.split(",")
        if number == "0":
            roots = [groups, groups / "unified"]
        elif "cpu" in names:
            roots = [groups / controllers, groups / "cpu"]
        else:
            continue
        group = Path(path.lstrip("/"))
        for root in roots:  # in a container the path may be the host's, and the root is the container's own
            yield from (root / inner for inner in (group, *group.parents))


def _limit(folder: Path) -> float | None:
    with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
        amount, period = (folder / "cpu.max").read_text(encoding="utf-8").split()
        return None if amount == "max" else float(amount) / float(period)
    with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
        amount = (folder / "cpu.cfs_quota_us").read_text(encoding="utf-8")
        period = (folder / "cpu.cfs_period_us").read_text(encoding="utf-8")
        return None if float(amount) <= 0 else float(amount) / float(period)
    return None
