"""A release of a run's model: one file with all that is said of it, which the agency signs and logs.

The model must be the one that the run's summary and the agency's log name. Nothing in the file is a time of its making:
equal runs, logs and cosignatures make equal files.
"""

from __future__ import annotations

import hashlib
import json
import statistics
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sovfed.federation.archive import zipped
from sovfed.federation.certificates import certificate_fingerprint, to_der, to_pem
from sovfed.federation.config import ServerConfig
from sovfed.federation.errors import ConfigError, DataError, EvidenceError, PolicyError
from sovfed.federation.evidence.entries import listed
from sovfed.federation.evidence.notes import read_checkpoint
from sovfed.federation.evidence.store import record
from sovfed.federation.evidence.witness import cosignatures
from sovfed.federation.files import read_bounded
from sovfed.federation.identity import issuer_of, load_certificate, load_roots
from sovfed.federation.orders.answers import WITHDRAWN
from sovfed.federation.release import lineage, ordered, sealed
from sovfed.federation.release.agreement import BILL, MODEL
from sovfed.federation.release.checking import (
    ENVELOPE,
    MAX_BYTES,
    PUBLIC_KEY,
    REVOKED,
    SIGNATURE,
    check_release,
)
from sovfed.federation.revocation import lists_of
from sovfed.server.home import SETTINGS, load_settings
from sovfed.server.orders.making import read_answers, read_order
from sovfed.server.orders.unlearning import left_before, left_since, read_unlearning, stated
from sovfed.server.orders.withdrawn import withdrawn_from
from sovfed.server.rounds.checkpoint import config_digest
from sovfed.server.runs import declarations
from sovfed.server.runs.bill import bill_of_materials
from sovfed.server.runs.curves import read_rounds
from sovfed.server.runs.declarations import declared
from sovfed.server.runs.folders import read_summary, run_folder, stored_config
from sovfed.server.runs.gates import audits_of, require_audits, require_cosigners
from sovfed.server.runs.release import DIGEST, FILES, digest

if TYPE_CHECKING:
    from collections.abc import Mapping

STATEMENTS: Final = ("privacy.json", "privacy.html")
LAST: Final = 5  # rounds whose metrics tell how much the evaluation moves
WAIT_LOOK_S: Final = 0.2


def release(home: Path, run: str, *, wait_s: float) -> bytes:
    """The release of the finished `run`, signed and in the agency's log.

    Waits `wait_s` at most until all who took part have cosigned the log with it. Raises ConfigError where the run has
    no model, DataError or EvidenceError where that is not the one that the run made.
    """
    folder, summary = run_folder(home, run), read_summary(home, run)
    if summary is None:
        raise ConfigError(f"run '{run}' has not finished, so it has no model to release")
    if "table" in summary:
        raise ConfigError(f"run '{run}' made a table and no model; `sovfed run table {run}` gives its table away")
    if digest(folder / FILES[0]) != summary[DIGEST]:
        raise DataError(f"{folder / FILES[0]}: not the model that the run's summary names")
    _require_nobody_withdrew(home, folder)
    lineage.require_kept(home, run)
    server = load_settings(home).server if (home / SETTINGS).exists() else ServerConfig()
    require_audits(home, run, summary[DIGEST], server)
    size = record(home, "release", name=run, sha256=summary[DIGEST]) + 1
    _wait(home, size, set(summary["institutions"]), wait_s)
    if server.release_cosigners:
        list_of = revoked(home, to_der(load_certificate(home / "identity" / "cert.pem")))
        require_cosigners(home, size, server.release_cosigners, list_of)
    _require_nobody_withdrew(home, folder)  # while it was waited
    data = _sealed(home, run, summary)
    check_release(data, load_roots(home / "identity" / "root.pem"))
    return data


def _require_nobody_withdrew(home: Path, folder: Path) -> None:
    """Raise PolicyError if an institution has withdrawn from the run in `folder`, recorded or by its own answer."""
    proposal, roots = read_order(folder), load_roots(home / "identity" / "root.pem")
    words = ordered.holding(read_answers(folder), roots) if proposal else {}
    said = {
        name for name, word in words.items()
        if word.decision == WITHDRAWN and proposal and word.order == proposal.order.digest
    }  # fmt: skip
    if gone := sorted(withdrawn_from(folder) | said):
        raise PolicyError(
            f"{', '.join(gone)} withdrew from run '{folder.name}'; `sovfed run withdraw` records it, and "
            f"`sovfed run unlearn {folder.name}` makes the model anew"
        )
    if gone := sorted(left_since(home, folder.name)):
        raise PolicyError(
            f"{', '.join(gone)} withdrew from the run with whose model '{folder.name}' begins, and is in that; "
            "`sovfed run unlearn` of that run makes it anew"
        )
    if gone := sorted(left_before(home, folder.name)):
        raise PolicyError(
            f"{', '.join(gone)} withdrew from a run from whose model '{folder.name}' was trained further; "
            "`sovfed run unlearn` of that run makes its model anew: train further from that"
        )


def _sealed(home: Path, run: str, summary: Mapping[str, Any]) -> bytes:
    folder = run_folder(home, run)
    models = {name: (folder / name).read_bytes() for name in FILES}
    certificate = to_der(load_certificate(home / "identity" / "cert.pem"))
    facts = json.loads(models["model.json"])
    files = {
        **{f"{Path(MODEL).parent}/{name}": data for name, data in models.items()},
        **{name: (folder / name).read_bytes() for name in STATEMENTS if (folder / name).exists()},
        **lineage.gather(home, run),
        **_orders(home, folder, summary),
        **declarations.files_of(folder, summary["institutions"]),
        SIGNATURE: sealed.model_signature(models, home),
        PUBLIC_KEY: sealed.public_pem(certificate),
        REVOKED: revoked(home, certificate),
        BILL: bill_of_materials(facts, summary[DIGEST]),
    }
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    payload = sealed.statement(digests, _predicate(home, run, summary, facts))
    envelope = sealed.Envelope(payload, (sealed.sign(payload, home),))
    return zipped.write({**files, ENVELOPE: envelope.to_bytes()}, most=MAX_BYTES)


def _predicate(home: Path, run: str, summary: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, Any]:
    """What the agency states of the model."""
    task, folder = facts["task"], run_folder(home, run)
    lines = read_rounds(folder)
    return {
        "run": {
            "name": run, "rounds": summary["rounds"], "strategy": summary["strategy"], "sovfed": facts["sovfed"],
            "config": config_digest(stored_config(home, run)), "transport": summary["transport"],
            "task": {"name": task["name"], "digest": task["digest"], "version": task["version"]},
        },
        "model": {"sha256": summary[DIGEST], "round": summary["model_of_round"], "parameters": task["parameters"]},
        "institutions": listed(summary["institutions"]),
        "privacy": _privacy(folder, summary),
        "secure_aggregation": summary.get("secure_aggregation_details", ""),
        "secure_aggregation_terms": summary.get("secure_aggregation_terms", {}),
        "isolation": summary.get("isolation", {}),
        "evaluation": {
            "of": "held-out records of all institutions together", "metrics": summary["metrics"],
            "over_last_rounds": _moved([line["metrics"] for line in lines[-LAST:] if line["metrics"]]),
            "over_institutions": _spread(summary["metrics_by_institution"]),
        },
        "attendance": summary["attendance"] if len(summary["attendance"]) <= zipped.MAX_FILES else {},
        "orders": _stated_orders(folder), "training_content": sorted(declared(folder, summary["institutions"])),
        "audits": audits_of(home, run, summary[DIGEST]),
        **({"started_from": begun} if (begun := summary.get("started_from_sha256")) else {}),
        **({"unlearning": stated(made)} if (made := read_unlearning(folder)) else {}),
    }  # fmt: skip


def _orders(home: Path, folder: Path, summary: Mapping[str, Any]) -> dict[str, bytes]:
    """The run's order and what was said to it; nothing of a run that showed none."""
    proposal = read_order(folder)
    if proposal is None or not proposal.signature:
        return {}
    roots = load_roots(home / "identity" / "root.pem")
    return ordered.files_of(proposal, read_answers(folder), summary["institutions"], roots)


def _stated_orders(folder: Path) -> list[dict[str, Any]]:
    proposal = read_order(folder)
    return [] if proposal is None or not proposal.signature else [ordered.summary_of(proposal.order)]


def _privacy(folder: Path, summary: Mapping[str, Any]) -> dict[str, Any] | None:
    """ε, δ and what they rest on, as the run's privacy statement has it."""
    path = folder / STATEMENTS[0]
    if summary.get("epsilon") is None or not path.exists():
        return None
    statement = json.loads(path.read_text())
    honest, colluders = statement["threshold"], statement["colluders"]
    assumed = f"{honest} of {statement['cohort']} institutions add their noise, at most {colluders} collude"
    return {
        "unit": statement["unit"], "adjacency": statement["adjacency"], "mechanism": statement["mechanism"],
        "epsilon": summary["epsilon"], "delta": summary["delta"], "clip": statement["clip"],
        "accountant": statement["accountant"], "assumed": assumed, "statement": STATEMENTS[0],
    }  # fmt: skip


def _moved(metrics: list[Mapping[str, float]]) -> dict[str, list[float]]:
    """The least and the largest of each metric over rounds."""
    names = sorted({name for values in metrics for name in values})
    by_name = {name: [values[name] for values in metrics if name in values] for name in names}
    return {name: [min(values), max(values)] for name, values in by_name.items()}


def _spread(by_institution: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """How far each metric differs among institutions; none where the agency has seen sums alone."""
    if len(by_institution) < 2:
        return {}
    names = sorted({name for values in by_institution.values() for name in values})
    spread = {}
    for name in names:
        values = [metrics[name] for metrics in by_institution.values() if name in metrics]
        spread[name] = {"least": min(values), "most": max(values), "deviation": statistics.pstdev(values)}
    return spread


def revoked(home: Path, certificate: bytes) -> bytes:
    """The lists in force, of each root that is trusted: that of the agency's own certificate must be there."""
    roots = load_roots(home / "identity" / "root.pem")
    lists = lists_of(read_bounded(home / "identity" / "crl.pem"), roots, datetime.now(UTC))
    root = certificate_fingerprint(issuer_of(certificate, roots))
    if root not in lists:
        raise EvidenceError("there is no revocation list of the root that signed the agency's certificate")
    return b"".join(map(to_pem, lists.values()))


def _wait(home: Path, size: int, expected: set[str], wait_s: float) -> None:
    """Until all of `expected` have cosigned the first `size` entries of the log, or the time is over."""
    deadline = time.monotonic() + wait_s
    while time.monotonic() < deadline:
        cosigned = {
            voucher.origin.rpartition("/")[2]
            for voucher, note in cosignatures(home)
            if read_checkpoint(note).size >= size
        }
        if expected <= cosigned:
            return
        time.sleep(WAIT_LOOK_S)
