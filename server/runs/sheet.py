"""A run's table, signed by the agency and in its log, for `sovfed verify`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from sovfed.federation.certificates import to_der
from sovfed.federation.errors import ConfigError, DataError, PolicyError
from sovfed.federation.evidence.store import record
from sovfed.federation.identity import load_certificate, load_roots
from sovfed.federation.release.sheet import check_sheet, make_sheet
from sovfed.server.orders.making import read_order
from sovfed.server.orders.withdrawn import withdrawn_from
from sovfed.server.rounds.checkpoint import config_digest
from sovfed.server.runs.certificate import revoked
from sovfed.server.runs.folders import read_summary, run_folder, stored_config
from sovfed.server.runs.release import DIGEST, TABLE, digest

if TYPE_CHECKING:
    from pathlib import Path


def table_in(home: Path, run: str) -> dict[str, Any]:
    """What the finished `run` told in its table. Raises ConfigError if it made none, DataError if it is another."""
    summary = read_summary(home, run)
    if summary is None or "table" not in summary:
        raise ConfigError(f"run '{run}' has no table: it has not finished, or trained a model")
    path = run_folder(home, run) / TABLE
    if digest(path) != summary[DIGEST]:
        raise DataError(f"{path}: not the table that the run's summary names")
    content: dict[str, Any] = json.loads(path.read_bytes())
    return content


def signed_table(home: Path, run: str) -> bytes:
    """The table of `run` as a file that anybody checks with the authority's root.

    Raises PolicyError where an institution has withdrawn from the run: its records are in the table.
    """
    return sign_table(home, run, table_in(home, run))


def sign_table(home: Path, run: str, content: dict[str, Any]) -> bytes:
    """`content`, the table in the folder of `run`, signed as `signed_table` has it, also before the run is over."""
    folder = run_folder(home, run)
    if gone := sorted(withdrawn_from(folder)):
        raise PolicyError(f"{', '.join(gone)} withdrew from run '{run}': its table is not signed any more")
    order, facts = read_order(folder), content["run"]
    sha256 = digest(folder / TABLE)
    predicate = {
        "run": {"name": run, "date": facts["date"], "task": content["task"],
                "config": config_digest(stored_config(home, run))},
        "order": "" if order is None else order.order.digest, "question": content["question"],
        "institutions": facts["institutions"], "privacy": facts["privacy"], "table": content["table"],
        "revoked": revoked(home, to_der(load_certificate(home / "identity" / "cert.pem"))).decode(),
    }  # fmt: skip
    data = make_sheet(predicate, {TABLE: sha256}, home)
    check_sheet(data, load_roots(home / "identity" / "root.pem"))
    record(home, "release", name=run, sha256=sha256)
    return data
