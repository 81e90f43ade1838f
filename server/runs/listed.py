"""The runs of an agency as they are listed: those that are proposed and have not begun too, and who has withdrawn."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from sovfed.federation.errors import ProtocolError, SovfedError
from sovfed.federation.text import day
from sovfed.server.orders.approved import approved
from sovfed.server.orders.making import FILE as ORDER
from sovfed.server.orders.making import read_order
from sovfed.server.orders.withdrawn import withdrawn_from
from sovfed.server.runs.folders import STATE, read_runs

if TYPE_CHECKING:
    from pathlib import Path

    from sovfed.federation.orders.order import Proposal
    from sovfed.server.runs.control import ControlClient

PROPOSED: Final = "proposed"


def listed(home: Path, control: ControlClient | None, now: float) -> list[dict[str, Any]]:
    """Each run as `read_run` has it, with who has `withdrawn`, and each that is proposed, as far as it goes.

    The newest first.
    """
    runs = [{**run, "withdrawn": _withdrawn(home / "runs" / run["name"])} for run in read_runs(home, control)]
    folders = (path.parent for path in (home / "runs").glob(f"*/{ORDER}"))
    runs += [_proposed(home, folder, now) for folder in folders if not (folder / STATE).exists()]
    return sorted(runs, key=lambda run: -float(run["started"]))


def _proposed(home: Path, folder: Path, now: float) -> dict[str, Any]:
    """The run in `folder`, which has not begun; `started` is when it was proposed."""
    run = {"name": folder.name, "task": "", "status": PROPOSED, "reason": "", "rounds": 0, "rounds_done": 0,
           "institutions": 0, "started": folder.stat().st_mtime, "withdrawn": []}  # fmt: skip
    try:
        proposal = read_order(folder)
    except (ProtocolError, OSError) as error:
        return {**run, "reason": str(error)}
    if proposal is None:  # it was taken away meanwhile
        return run
    order = proposal.order
    return {
        **run, "task": order.task, "reason": _next(home, proposal, now), "rounds": order.rounds,
        "started": order.proposed, "epsilon": order.epsilon if order.kind == "private" else None,
    }  # fmt: skip


def _next(home: Path, proposal: Proposal, now: float) -> str:
    """What a run that is proposed waits for."""
    order = proposal.order
    if now >= order.expires:
        return f"its order ended on {day(order.expires)}; propose it anew"
    return approved(home, proposal).lacking or f"`sovfed run start --proposed {order.run}` begins it"


def _withdrawn(folder: Path) -> list[str]:
    """Who has withdrawn; where that cannot be read, that."""
    try:
        return sorted(withdrawn_from(folder))
    except SovfedError as error:
        return [str(error)]
