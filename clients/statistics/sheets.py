"""Signed tables of runs that are over, as the trainer keeps them in `HOME/received`; anybody checks one by the root."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from sovfed.federation.errors import DataError, OrderError, ProtocolError, SovfedError
from sovfed.federation.files import private_directory, write_private
from sovfed.federation.identity import load_roots
from sovfed.federation.release.holding import holding
from sovfed.federation.release.ordered import LOOSE
from sovfed.federation.release.sheet import check_sheet
from sovfed.federation.schema import nearest

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from sovfed.federation.messages import ReleaseRequest
    from sovfed.federation.orders.order import RunOrder

log = logging.getLogger(__name__)
SUFFIX: Final = ".table"
MAX_TABLES: Final = 256
MAX_BYTES: Final = 8 << 20  # of one


@dataclass(frozen=True)
class KeptSheet:
    """A signed table that is kept here, and what is stated in it."""

    path: Path
    predicate: dict[str, Any]

    @property
    def run(self) -> str:
        return str(self.predicate["run"]["name"])


class KeptSheets:
    """Those of one institution, in `folder`; `root` is the file of the authority's roots, by which each is checked."""

    def __init__(self, folder: Path, root: Path) -> None:
        self._folder, self._root = folder, root

    def check(self, request: ReleaseRequest, order: RunOrder | None) -> bytes:
        """The table in `request`, once all of it holds and it is of the run's own `order`.

        Raises EvidenceError where it does not hold, OrderError where it is another's, ProtocolError on its size.
        """
        data = request.table.tobytes()
        if len(data) > MAX_BYTES:
            raise ProtocolError(f"a signed table of {len(data)} bytes, at most {MAX_BYTES} are kept")
        predicate = check_sheet(data, load_roots(self._root)).predicate
        if order is not None:
            with holding("the table"):
                other = _otherwise(predicate, order)
            if other:
                raise OrderError(f"the table is another than that of order {order.digest[:12]}, in: {', '.join(other)}")
        return data

    def keep(self, owner: str, data: bytes) -> None:
        """Keep a table that was checked as the only one of Flower's run `owner`, or say in the own log why not."""
        path = self._folder / f"{hashlib.sha256(owner.encode()).hexdigest()[:24]}{SUFFIX}"
        try:
            private_directory(self._folder)
            if not path.exists() and len(list(self._folder.glob(f"*{SUFFIX}"))) >= MAX_TABLES:
                log.warning("a signed table is not kept: there are %d; remove some of %s", MAX_TABLES, self._folder)
                return
            write_private(path, data)
        except OSError as error:
            log.warning("a signed table is not kept: %s", error)

    def list(self) -> tuple[Sequence[KeptSheet], Sequence[str]]:
        """The tables that are kept, the newest first; and why which do not hold (any more): they hide no other."""
        paths = sorted(self._folder.glob(f"*{SUFFIX}"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
        roots, sheets, wrong = load_roots(self._root) if paths else (), list[KeptSheet](), list[str]()
        for path in paths:
            try:
                sheets.append(KeptSheet(path, check_sheet(_read(path), roots).predicate))
            except SovfedError as error:
                wrong.append(f"{path}: {error}")
        return sheets, wrong

    def find(self, run: str) -> KeptSheet:
        """The newest table of `run`. Raises DataError if none was received, or that does not hold."""
        sheets, wrong = self.list()
        for sheet in sheets:
            if sheet.run == run:
                return sheet
        said = "; ".join([f"no signed table of run '{run}' was received here", *wrong])
        raise DataError(f"{said}{nearest(run, {sheet.run for sheet in sheets})}")


def _otherwise(predicate: dict[str, Any], order: RunOrder) -> Sequence[str]:
    """What the table says of itself otherwise than its order: whose it is, of what, at which cost, over whom."""
    privacy, named = predicate["privacy"], predicate["institutions"]
    limits = (
        ((predicate["order"], predicate["run"]["name"]) == (order.digest, order.run), "order"),
        (predicate["run"]["task"] == {"name": order.task, "digest": order.task_digest}, "task"),
        (predicate["question"] == order.statistics, "question"),
        ((privacy is not None) == (order.kind == "private"), "privacy"),
        (privacy is None or privacy["epsilon"] <= order.epsilon * (1 + LOOSE) + LOOSE, "ε"),
        (not order.cohort or set(named) <= set(order.cohort), "cohort"),
        (len(set(named)) >= order.min_cohort, "smallest cohort"),
    )
    return [what for holds, what in limits if not holds]


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MAX_BYTES)
    except OSError as error:
        raise DataError(f"{path}: no table that was received here") from error
