"""What an institution types to join, as far as the agency knows it: its tasks, its smallest cohort, its approvals."""

from __future__ import annotations

import contextlib
import shlex
from typing import TYPE_CHECKING

from sovfed.federation.archive.kept import folders, read_kept
from sovfed.federation.errors import SovfedError
from sovfed.federation.orders.approving import USUAL
from sovfed.federation.secagg.terms import LEAST_COHORT, Terms
from sovfed.federation.tasks.registry import names
from sovfed.federation.text import ARCHIVE
from sovfed.server.home import load_settings
from sovfed.server.orders.making import FILE as ORDER
from sovfed.server.orders.making import read_order

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sovfed.federation.config import ServerConfig


def join_options(home: Path) -> str:
    """The options of `sovfed client join` that suit the agency in `home`, each with a space before it."""
    server = load_settings(home).server
    return "".join([*_task(home), *_cohort(server), *_officers(server)])


def _task(home: Path) -> Iterator[str]:
    """The task of the order that was made last; of one that is a file, the file by its usual name."""
    orders = []
    for path in (home / "runs").glob(f"*/{ORDER}"):
        with contextlib.suppress(SovfedError, OSError):
            if (proposal := read_order(path.parent)) is not None:
                orders.append(proposal.order)
    if orders:
        newest = max(orders, key=lambda order: order.proposed)
        yield f" --task {shlex.quote(f'{newest.task}{_ending(home, newest.task)}')}"


def _ending(home: Path, task: str) -> str:
    """How the file of `task` is called, beside its name; "" if the task is installed."""
    for folder in folders(home):
        with contextlib.suppress(SovfedError, OSError):
            if read_kept(folder).manifest.name == task:
                return ARCHIVE
    return "" if task in names() else ".yaml"


def _cohort(server: ServerConfig) -> Iterator[str]:
    """What the institution has to allow if it is to answer runs with this agency's minimum cohort."""
    if LEAST_COHORT <= server.min_cohort < Terms.min_cohort:
        yield f" --min-cohort {server.min_cohort}"


def _officers(server: ServerConfig) -> Iterator[str]:
    """Where people of the agency approve, that the institution can ask for them, and for an officer of its own."""
    if server.min_approvers:
        yield " --officers"
        if server.min_approvers < USUAL:
            yield f" --approvers {server.min_approvers}"
