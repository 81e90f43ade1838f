"""What must hold before a model is released, by the agency's settings: audits that passed, cosigners of the log."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Any, Final

from sovfed.federation.errors import ConfigError, PolicyError
from sovfed.federation.evidence.notes import read_checkpoint
from sovfed.federation.evidence.store import LogReader, has_log
from sovfed.federation.evidence.witness import holding_cosignatures
from sovfed.federation.identity import load_roots
from sovfed.federation.release.lineage import counts

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sovfed.federation.config import ServerConfig

DAY_S: Final = 86_400
AUDITS: Final = ("canary", "imprint", "membership")
_DEMAND: Final = re.compile(rf"({'|'.join(AUDITS)})(?:<=([0-9.]+))?")


def audits_of(home: Path, run: str, model: str) -> list[dict[str, Any]]:
    """The newest result of each audit of the run's `model` (SHA-256), as the log has it, by the audit's name."""
    newest = dict[str, dict[str, Any]]()
    for entry in LogReader(home).newest() if has_log(home) else ():
        if entry["kind"] == "audit" and (entry["name"], entry["model"]) == (run, model):
            newest.setdefault(entry["audit"], entry)
    return [newest[name] for name in sorted(newest)]


def require_audits(home: Path, run: str, model: str, server: ServerConfig) -> None:
    """Raise PolicyError unless each audit of `server.release_audits` passed on this model, lately, within its bound."""
    results = {entry["audit"]: entry for entry in audits_of(home, run, model)}
    reasons = [reason for demand in server.release_audits if (reason := _lacks(demand, results, server, run))]
    if reasons:
        raise PolicyError(f"run '{run}' is not released: {'; '.join(reasons)}")


def require_cosigners(home: Path, size: int, least: int, revoked: bytes) -> None:
    """Raise PolicyError unless `least` institutions, none on the list `revoked`, cosigned the first `size` entries."""
    names = sorted(_cosigners(home, size, revoked))
    if len(names) < least:
        who = ", ".join(names) or "nobody"
        raise PolicyError(f"the log with this release is cosigned by {who}; release_cosigners is {least}")


def _lacks(demand: str, results: dict[str, dict[str, Any]], server: ServerConfig, run: str) -> str:
    """Why `demand` is not met; "" if it is."""
    match = _DEMAND.fullmatch(demand)
    if match is None:
        raise ConfigError(f"release_audits: {demand!r} is none of {', '.join(AUDITS)}, or NAME<=NUMBER")
    name, bound = match[1], match[2]
    result = results.get(name)
    if result is None or time.time() - result["at"] > server.release_audit_days * DAY_S:
        within = f"within {server.release_audit_days} days"
        return f"no {name} audit of its model {within}: `sovfed audit {name} --run {run}`"
    if not result["passed"]:
        return f"its {name} audit contradicts the claim: {result['figure']:g}"
    if bound and result["figure"] > float(bound):
        return f"its {name} audit found {result['figure']:g}, allowed {bound}"
    return ""


def _cosigners(home: Path, size: int, revoked: bytes) -> Iterator[str]:
    roots = load_roots(home / "identity" / "root.pem")
    for voucher, note in holding_cosignatures(home, roots):
        if read_checkpoint(note).size >= size and counts(voucher, roots, revoked):
            yield voucher.origin.rpartition("/")[2]
