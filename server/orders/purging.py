"""The end of a permit at the agency: what its runs need no more is erased, and a signed receipt says what remains."""

from __future__ import annotations

import contextlib
import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Final

from sovfed.federation.errors import ConfigError, SovfedError
from sovfed.federation.evidence.keys import own_origin
from sovfed.federation.files import drafts, private_directory, write_private
from sovfed.federation.orders.events import OrderEvent, tell
from sovfed.federation.orders.receipts import Receipt
from sovfed.federation.secagg.files import load_identity
from sovfed.federation.text import NAME, day
from sovfed.server.orders.making import read_order
from sovfed.server.rounds.checkpoint import KEPT
from sovfed.server.rounds.checkpoint import NAME as CHECKPOINT
from sovfed.server.rounds.stopping import BEST
from sovfed.server.runs.folders import ACTIVE, BEGINNING, STATE, lock, read_state

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FOLDER: Final = "receipts"
REMAINS: Final = (
    "the models and tables that the runs ended with, their summaries, rounds and privacy statements",
    "the orders with approvals and answers, the log, MLflow's copies",
    "what institutions hold",
)


def purge(home: Path, permit: str, now: float) -> Receipt:
    """Erase the checkpoints of all runs under `permit`, and write the receipt.

    Raises ConfigError if one of them goes on, or there is none.
    """
    if not NAME.fullmatch(permit):
        raise ConfigError(f"'{permit[:64]}' is no name of a permit")
    runs = [*_under(home, permit)]
    if not runs:
        raise ConfigError(f"no run here was proposed under permit '{permit}'")
    with contextlib.ExitStack() as held:  # no coordinator begins meanwhile
        if active := [run.name for run in runs if _goes_on(home, run, held)]:
            raise ConfigError(f"{', '.join(active)} goes on; `sovfed run stop` first: nothing was erased")
        erased = []
        for path in (path for run in runs for path in _needed_no_more(run)):
            path.unlink()
            erased.append(str(path.relative_to(home)))
    names = tuple(run.name for run in runs)
    receipt = Receipt(permit, own_origin(home), int(now), names, tuple(erased), REMAINS)
    receipt = receipt.signed(load_identity(home / "identity"))
    write_private(private_directory(home / FOLDER) / f"{permit}.json", json.dumps(asdict(receipt), indent=1).encode())
    tell(home, OrderEvent("purged", "", ", ".join(names)[:128]))
    return receipt


def is_purged(home: Path, permit: str) -> bool:
    """Whether what was under `permit` has been erased here."""
    return (home / FOLDER / f"{permit}.json").exists()


def unpurged(home: Path, now: float) -> Iterator[str]:
    """Under which permits every order has ended, with their runs not purged here, and how that is done."""
    ends = dict[str, int]()
    for folder in sorted((home / "runs").glob("*")):
        with contextlib.suppress(SovfedError, OSError):
            proposal = read_order(folder)
            if proposal is not None and (permit := proposal.order.permit):
                ends[permit] = max(ends.get(permit, 0), proposal.order.expires)
    for permit, end in sorted(ends.items()):
        if end < now and not is_purged(home, permit):
            yield f"permit {permit}: its last order ended on {day(end)}; `sovfed run purge {permit}` erases the rest"


def _needed_no_more(run: Path) -> Iterator[Path]:
    """What only training reads: checkpoints, the best model, the copy of the one that it began with; halves of them."""
    yield from (path for path in (run / CHECKPOINT, run / BEST, run / BEGINNING) if path.exists())
    yield from drafts(run)
    yield from sorted((run / KEPT).glob("*.safetensors"))
    yield from drafts(run / KEPT)


def _under(home: Path, permit: str) -> Iterator[Path]:
    for folder in sorted((home / "runs").glob("*")):
        with contextlib.suppress(SovfedError, OSError):
            proposal = read_order(folder)
            if proposal is not None and proposal.order.permit == permit:
                yield folder


def _goes_on(home: Path, run: Path, held: contextlib.ExitStack) -> bool:
    """Whether somebody has the run in hand, or will take it up; else it is `held`, and nobody can."""
    from filelock import Timeout

    try:
        held.enter_context(lock(run).acquire(timeout=0.5))
    except Timeout:
        return True
    return (run / STATE).exists() and read_state(home, run.name)["status"] in ACTIVE
