"""What the agency's console shows, read from its home and its superlink anew each time; nothing is kept here."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sovfed.federation.certificates import check_csr
from sovfed.federation.errors import ConfigError, SovfedError
from sovfed.federation.host.processes import read_status
from sovfed.federation.identity import parse_certificate
from sovfed.server.home import load_settings
from sovfed.server.orders.approved import approved
from sovfed.server.orders.foreseen import foreseen
from sovfed.server.orders.making import FILE as ORDER
from sovfed.server.orders.making import read_answers, read_order
from sovfed.server.orders.purging import unpurged
from sovfed.server.orders.told import officer_commands, order_lines, said_lines
from sovfed.server.registry.enrolment import members, waiting_requests
from sovfed.server.rounds.ledger_heads import behind
from sovfed.server.runs.attendance import absences, attendance, missed_by
from sovfed.server.runs.awaiting import ago, nodes_of, why_waiting
from sovfed.server.runs.control import ControlClient
from sovfed.server.runs.curves import read_rounds
from sovfed.server.runs.folders import DAMAGED, STATE, read_run, read_runs, read_summary, run_folder

if TYPE_CHECKING:
    from sovfed.federation.host.processes import ProcessStatus
    from sovfed.federation.orders.order import Proposal
    from sovfed.server.runs.control import NodeRecord

SOON_S: Final = 14 * 86_400.0  # a certificate that ends within this is told in warning
SHOWN: Final = 25  # rounds, the newest


@dataclass(frozen=True)
class InstitutionView:
    """An enrolled institution: `last_run` is the newest it took part in, `behind` that its ledger lacks a head."""

    name: str
    status: str
    online_until: float
    certificate_end: float
    last_run: str
    missed: int
    behind: bool

    @property
    def ends_soon(self) -> bool:
        return self.certificate_end - time.time() < SOON_S


@dataclass(frozen=True)
class OrderView:
    """The order of `run`: what it asks, what was said to it, why it will be refused, what an officer types.

    `lacking` are the approvals without which the agency begins no run.
    """

    run: str
    state: str
    lines: tuple[str, ...]
    said: tuple[str, ...]
    against: tuple[str, ...]
    officers: tuple[str, ...]
    file: str
    lacking: str = ""


@dataclass(frozen=True)
class RequestView:
    """A certificate request that waits for the authority, its age, and the fingerprint to compare."""

    name: str
    age: str
    fingerprint: str
    path: str


class Overview:
    """The agency in `home`, as it is now."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._port = load_settings(home).server.control_port

    def processes(self) -> tuple[ProcessStatus, ...]:
        status = read_status(self._home)
        return status.processes if status else ()

    def nodes(self) -> list[NodeRecord] | None:
        """What the superlink knows of its nodes, None if it is away."""
        with ControlClient(self._home, self._port) as control:
            return nodes_of(control)

    def institutions(self, nodes: list[NodeRecord] | None) -> list[InstitutionView]:
        """Every enrolled institution by name."""
        by_name = {node.name: node for node in nodes or () if node.status != "unregistered"}
        runs = [(run, read_rounds(run_folder(self._home, run["name"]))) for run in read_runs(self._home)[:SHOWN]]
        lacking = behind(self._home)
        views = []
        for member in members(self._home):
            node = by_name.get(member.institution)
            certificate = parse_certificate(member.certificate, member.institution)
            views.append(
                InstitutionView(
                    name=member.institution,
                    status="unknown" if nodes is None else node.status if node else "not registered",
                    online_until=node.online_until if node else 0.0,
                    certificate_end=certificate.not_valid_after_utc.timestamp(),
                    last_run=_last_run(runs, member.institution),
                    missed=max((missed_by(lines, member.institution) for run, lines in runs if _on(run)), default=0),
                    behind=member.institution in lacking,
                )
            )
        return views

    def runs(self) -> list[dict[str, Any]]:
        return read_runs(self._home)

    def run(self, name: str, nodes: list[NodeRecord] | None) -> dict[str, Any]:
        """One run: its state, what it waits for, its rounds, refusals and summary. Raises ConfigError if unknown."""
        run, folder = read_run(self._home, name), run_folder(self._home, name)
        lines = read_rounds(folder)
        return {
            "run": run, "waiting": why_waiting(run, folder, nodes), "lines": lines, "newest": lines[: -SHOWN - 1 : -1],
            "summary": read_summary(self._home, name), "left": _left(run, lines), "lacking": self._lacking(run, folder),
            "refusals": _refusals(lines), "absences": absences(attendance(lines), len(lines)),
        }  # fmt: skip

    def _lacking(self, run: dict[str, Any], folder: Path) -> str:
        """The approvals without which the run is not begun or taken up again."""
        if run["status"] == "finished":
            return ""
        try:
            return approved(self._home, read_order(folder)).lacking
        except SovfedError as error:
            return str(error)

    def waiting(self, nodes: list[NodeRecord] | None) -> dict[str, list[str]]:
        """What each active run waits for."""
        return {
            run["name"]: why_waiting(run, run_folder(self._home, run["name"]), nodes)
            for run in self.runs()
            if run["status"] not in ("finished", "failed", "stopped")
        }

    def orders(self) -> list[OrderView]:
        """The orders of runs that were proposed or started, the newest first; one that is damaged is left out."""
        orders = []
        for path in (self._home / "runs").glob(f"*/{ORDER}"):
            with contextlib.suppress(SovfedError, OSError, ValueError):
                proposal = read_order(path.parent)
                if proposal is not None:
                    orders.append((proposal, path))
        orders.sort(key=lambda pair: -pair[0].order.proposed)
        return [self._order(proposal, path) for proposal, path in orders[:SHOWN]]

    def _order(self, proposal: Proposal, path: Path) -> OrderView:
        name = path.parent.name
        begun = (path.parent / STATE).exists()
        return OrderView(
            name, self._status(name) if begun else "proposed", tuple(order_lines(proposal)),
            self._said(proposal, path.parent), tuple(foreseen(self._home, proposal.order)),
            officer_commands(name), str(path), approved(self._home, proposal).lacking,
        )  # fmt: skip

    def _said(self, proposal: Proposal, folder: Path) -> tuple[str, ...]:
        try:
            return tuple(said_lines(proposal, read_answers(folder)))
        except ConfigError as error:  # damaged: the other orders are shown all the same
            return (str(error),)

    def _status(self, name: str) -> str:
        try:
            return str(read_run(self._home, name)["status"])
        except ConfigError:
            return DAMAGED

    def _summary(self, run: dict[str, Any]) -> dict[str, Any] | None:
        """The summary of a run that has finished; None also of one that is damaged, as its own page says."""
        with contextlib.suppress(ConfigError):
            return read_summary(self._home, run["name"])
        return None

    def unpurged(self) -> list[str]:
        """Which permits have ended with something of their runs still here, and how that is erased."""
        return list(unpurged(self._home, time.time()))

    def budgets(self) -> list[dict[str, Any]]:
        """The private runs, with what they were planned for and, of those that finished, what they promise."""
        return [{"run": run, "summary": self._summary(run)} for run in self.runs() if run["epsilon"] is not None]

    def releases(self) -> list[dict[str, Any]]:
        """The models that runs ended with, the newest first."""
        summaries = ((run, self._summary(run)) for run in self.runs())
        return [{"run": run, "summary": summary} for run, summary in summaries if summary is not None]

    def requests(self) -> list[RequestView]:
        """The requests that wait, the oldest first."""
        from sovfed.federation.certificates import key_fingerprint

        views = []
        for path in waiting_requests(self._home):
            try:
                fingerprint = key_fingerprint(check_csr(path.read_bytes())[1])
                age = time.time() - path.stat().st_mtime
            except (SovfedError, OSError):
                continue  # it was signed, or replaced, meanwhile
            views.append((age, RequestView(path.stem, ago(age), fingerprint, str(path))))
        return [view for _, view in sorted(views, key=lambda pair: -pair[0])]


def _on(run: dict[str, Any]) -> bool:
    return bool(run["status"] == "running")


def _last_run(runs: list[tuple[dict[str, Any], list[dict[str, Any]]]], name: str) -> str:
    """The newest run in which `name` took part, "" if in none of these."""
    return next(
        (run["name"] for run, lines in runs if any(name in line["participants"] for line in reversed(lines))), ""
    )


def _left(run: dict[str, Any], lines: list[dict[str, Any]]) -> str:
    """How long a running run still takes at the pace of its last rounds, "" if that is not known."""
    if not _on(run) or not lines:
        return ""
    last = [float(line["seconds"]) for line in lines[-SHOWN:]]
    return ago(sum(last) / len(last) * (run["rounds"] - run["rounds_done"]))


def _refusals(lines: list[dict[str, Any]]) -> list[tuple[str, str, int, int]]:
    """(institution, code, how often, the last round) of all refusals."""
    counted: dict[tuple[str, str], tuple[int, int]] = {}
    for line in lines:
        for name, code in line["refused"].items():
            counted[name, code] = counted.get((name, code), (0, 0))[0] + 1, line["round"]
    return [(name, code, count, last) for (name, code), (count, last) in sorted(counted.items())]
