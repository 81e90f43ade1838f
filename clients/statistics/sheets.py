"""Signed tables of runs that are over, as the trainer keeps them in `HOME/received`; anybody checks one by the root."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from sovfed.federation.errors import DataError, OrderError, ProtocolError
from sovfed.federation.files import private_directory, write_private
from sovfed.federation.identity import load_roots
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
        if order is not None and (predicate["order"], predicate["run"]["name"]) != (order.digest, order.run):
            raise OrderError(f"the table is of another order than {order.digest[:12]} of run {order.run}")
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

    def list(self) -> Sequence[KeptSheet]:
        """The tables that are kept, the newest first. Raises DataError or EvidenceError naming one that was damaged."""
        paths = sorted(self._folder.glob(f"*{SUFFIX}"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
        roots = load_roots(self._root) if paths else ()
        return [KeptSheet(path, check_sheet(_read(path), roots).predicate) for path in paths]

    def find(self, run: str) -> KeptSheet:
        """The newest table of `run`. Raises DataError if none was received."""
        sheets = self.list()
        for sheet in sheets:
            if sheet.run == run:
                return sheet
        raise DataError(f"no signed table of run '{run}' was received here{nearest(run, {s.run for s in sheets})}")


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MAX_BYTES)
    except OSError as error:
        raise DataError(f"{path}: no table that was received here") from error
