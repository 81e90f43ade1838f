"""Tables of statistics of runs that are over, as the trainer keeps them in `HOME/received`: noised sums, no records."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from sovfed.federation.errors import DataError, ProtocolError
from sovfed.federation.files import private_directory, write_private
from sovfed.federation.schema import bind, nearest

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from sovfed.federation.messages import ReleaseRequest
    from sovfed.federation.tasks import Task

log = logging.getLogger(__name__)
SUFFIX: Final = ".statistics.json"
MAX_TABLES: Final = 256
MAX_BYTES: Final = 8 << 20


@dataclass(frozen=True)
class ReceivedTable:
    """A run's noised sums. `published` is the SHA-256 of the agency's own table, `owner` Flower's number of the run."""

    run: str
    owner: str
    task: str
    digest: str
    question: str
    institutions: int
    epsilon: float
    deviation: float
    published: str
    sums: tuple[float, ...]


def received_table(request: ReleaseRequest, task: Task) -> ReceivedTable:
    """The table in `request`, whose lengths were checked. Raises ProtocolError if it is none."""
    from sovfed.federation.models.facts import from_told

    run, deviation = from_told(request.facts.tobytes()).run, float(request.scale[0])
    if not (0 < deviation < 1e15 and np.abs(request.model).max() < 1e15):
        raise ProtocolError("a table whose counts or noise are none")
    return ReceivedTable(
        run.name, request.run, task.name, task.digest, request.statistics, len(run.institutions),
        run.privacy.epsilon if run.privacy else 0.0, deviation, request.sha256, tuple(request.model.tolist()),
    )  # fmt: skip


def keep_table(folder: Path, table: ReceivedTable) -> None:
    """Keep `table` as the only one of its owner, or say in the own log why not: whoever sent it is told neither."""
    key = hashlib.sha256(table.owner.encode()).hexdigest()[:24]
    path = folder / f"{key}{SUFFIX}"
    try:
        private_directory(folder)
        if not path.exists() and len(list(folder.glob(f"*{SUFFIX}"))) >= MAX_TABLES:
            log.warning(
                "the table of run %r is not kept: there are %d; remove some of %s", table.run, MAX_TABLES, folder
            )
            return
        write_private(path, json.dumps(asdict(table)).encode())
    except OSError as error:
        log.warning("the table of run %r is not kept: %s", table.run, error)
    else:
        log.info("the table of run %r is kept: `sovfed client statistics %s` shows it", table.run, table.run)


def tables_in(folder: Path) -> Sequence[ReceivedTable]:
    """The tables that are kept, the newest first. Raises DataError naming one that was damaged."""
    paths = sorted(folder.glob(f"*{SUFFIX}"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
    return [_read(path) for path in paths]


def find_table(folder: Path, run: str) -> ReceivedTable:
    """The newest table of `run`. Raises DataError if none was received."""
    tables = tables_in(folder)
    for table in tables:
        if table.run == run:
            return table
    raise DataError(f"no table of run '{run}' was received here{nearest(run, {table.run for table in tables})}")


def _read(path: Path) -> ReceivedTable:
    try:
        with path.open("rb") as file:
            values = json.loads(file.read(MAX_BYTES))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: no table that was received here") from error
    if not isinstance(values, dict):
        raise DataError(f"{path}: no table that was received here")
    return bind(ReceivedTable, values, str(path), DataError)
