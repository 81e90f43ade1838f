"""What a regulator is told of an incident: the log's entries of that time with their proofs, signed by the home.

It holds no record, weight, count of records or name of a person, for no entry of a log does. A supervisory authority
that has the root's certificate checks it offline, and later holds the whole log to its head.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import platform
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from sovfed import __version__
from sovfed.federation.archive import zipped
from sovfed.federation.errors import ConfigError, EvidenceError
from sovfed.federation.evidence.entries import RETENTION, canonical
from sovfed.federation.evidence.keys import AGENCY, INSTITUTION, own_origin
from sovfed.federation.evidence.notes import read_checkpoint
from sovfed.federation.evidence.retention import Deleted, retired_in
from sovfed.federation.evidence.store import LogReader, has_log, record
from sovfed.federation.evidence.witness import problems
from sovfed.federation.identity import verify_lapsed
from sovfed.federation.release import lineage, sealed
from sovfed.federation.release.holding import holding

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from cryptography import x509

    from sovfed.federation.evidence.retention import Retired
    from sovfed.federation.release.lineage import Lineage

REPORT: Final = "incident.dsse.json"
MAX_BYTES: Final = 1 << 30
LARGEST: Final = MAX_BYTES + (4 << 20)  # with the names of its files
RETOLD: Final = {  # kinds of entries, in the order in which a reader asks for them
    "split": "a log that does not go on from what was seen of it", "refusal": "refused", "revocation": "revoked",
    "removal": "removed", "admission": "admitted", "login": "logged in", "policy": "settings changed",
    "order": "orders", "withdrawal": "withdrew", "run": "runs begun or ended", "round": "rounds", "release": "released",
}  # fmt: skip


@dataclass(frozen=True)
class Incident:
    """A bundle that holds: whose it is, what it says, and its entries."""

    origin: str
    report: dict[str, Any]
    entries: tuple[dict[str, Any], ...]
    log: Lineage


def make_bundle(home: Path, begin: int, end: int, note: str, *, early: bool) -> bytes:
    """The bundle of what the log of `home` has from `begin` to `end` (Unix time), signed by the home and in its log.

    An `early` one, for the first 24 hours, has counts and heads and no entries. Raises ConfigError without a log.
    """
    if not has_log(home):
        raise ConfigError(f"{home}: no log, so nothing to tell")
    log = LogReader(home)
    size = read_checkpoint(log.head()).size
    logged = [(seq, json.loads(data)) for seq, data in log.entries(0, size)]
    around = _around([values["at"] for _, values in logged], begin, end)
    seqs = [logged[place][0] for place in around]
    gaps = _gaps(seqs, 0 if around.start == 0 else seqs[0])
    telling = {retired.seq for retired in retired_in(logged) if any(_meets(gap, retired) for gap in gaps)}
    shown = set[int]() if early else {*seqs, *telling}
    files = lineage.show(home, lambda seq, _: seq in shown, size)
    entries = _within([values for _, values in logged], begin, end)
    report = {
        "origin": own_origin(home), "from": begin, "to": end, "early": early, "note": note,
        "versions": {"sovfed": __version__, "python": platform.python_version(), "system": platform.system()},
        "counts": dict(Counter(str(values["kind"]) for values in entries)), "problems": problems(home),
        "no_longer_kept": _length(gaps),
        "files": {name: hashlib.sha256(data).hexdigest() for name, data in files.items()},
    }  # fmt: skip
    payload = canonical(report)
    data = zipped.write(
        {**files, REPORT: sealed.Envelope(payload, (sealed.sign(payload, home),)).to_bytes()}, most=MAX_BYTES
    )
    record(home, "incident", begin=begin, end=end, early=early, sha256=hashlib.sha256(data).hexdigest())
    return data


def check_bundle(data: bytes, roots: Sequence[x509.Certificate]) -> Incident:
    """What the bundle says, once its signature and each entry's proof hold. Raises EvidenceError, and nothing else."""
    with holding("the incident bundle"):
        return _checked(data, roots)


def told(incident: Incident) -> list[str]:
    """It in plain words."""
    report = incident.report
    versions = ", ".join(f"{name} {value}" for name, value in report["versions"].items())
    lines = [f"{incident.origin}, {_day(report['from'])} to {_day(report['to'])}; {versions}"]
    lines += ["an early word: counts by its own account, and no entries"] if report["early"] else []
    lines += [report["note"]] if report["note"] else []
    lines += [f"problem: {why}" for why in report["problems"].values()]
    if count := report.get("no_longer_kept", 0):
        lines += [f"of that time, or next to it, what {count} entries said is no longer kept, by the log's retention"]
    shown = zip(incident.log.seqs, incident.log.entries, strict=True)
    lines += [f"the log: {retired.told()}" for retired in retired_in(shown)]
    lines += [f"{report['counts'][kind]} × {words}" for kind, words in RETOLD.items() if kind in report["counts"]]
    log = incident.log
    lines += [
        f"of the log's {log.size} entries the first {size} are cosigned by {name} on {_day(log.times[name])}"
        for name, size in log.cosigned.items()
    ] or [f"nobody has cosigned the log of {log.size} entries: its home alone says that this is all"]
    return lines


def _checked(data: bytes, roots: Sequence[x509.Certificate]) -> Incident:
    files = zipped.read(data, most=MAX_BYTES, what="incident bundle")
    envelope = sealed.read_envelope(files.pop(REPORT))
    report = json.loads(envelope.payload)
    (signed,) = envelope.signatures
    names = verify_lapsed(signed.certificate, roots)
    sealed.check(envelope.payload, signed, report["origin"])
    if canonical(report) != envelope.payload or report["origin"] != _origin(names):
        raise EvidenceError("the incident bundle is not signed by the home whose log it shows")
    if report["files"] != {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}:
        raise EvidenceError("the incident bundle holds other files than those that were signed")
    log = lineage.check(files, roots, of=report["origin"])
    entries = _within(log.entries, report["from"], report["to"])
    if report["early"] and log.entries:
        raise EvidenceError("an early incident bundle has no entries")
    if not report["early"]:
        _require_whole(log, report)
    counted = dict(Counter(str(values["kind"]) for values in entries))
    if not report["early"] and counted != report["counts"]:
        raise EvidenceError("the incident bundle counts other entries than it holds")
    incident = Incident(report["origin"], report, tuple(entries), log)
    told(incident)  # or it cannot be shown
    return incident


def _require_whole(log: Lineage, report: Mapping[str, Any]) -> None:
    """Raise EvidenceError unless the entries follow one another from before the report's time to after it.

    Its counts do not tell, for whoever leaves an entry out may leave it out of them too. Where what one said is no
    longer kept, an entry that is shown, be it a later one, tells of its deletion.
    """
    entries = dict(zip(log.seqs, log.entries, strict=True))
    deleted = Deleted(retired_in(entries.items()))
    gaps = [gap for gap in _gaps(log.seqs, log.seqs[0] if log.seqs else 0) if gap not in deleted]
    stop = gaps[0][0] if gaps else log.size  # what is shown from there on only tells of deletions before
    seqs = [seq for seq in log.seqs if seq < stop]
    if not seqs or any(values["kind"] != RETENTION for seq, values in entries.items() if seq >= stop):
        raise EvidenceError("the incident bundle leaves entries of its log out")
    from_first = all(gap in deleted for gap in _gaps(seqs[:1], 0))
    begins = from_first or entries[seqs[0]]["at"] < report["from"]
    ends = seqs[-1] + 1 == log.size or entries[seqs[-1]]["at"] > report["to"]
    if not begins or not ends:
        raise EvidenceError("the incident bundle does not reach over all of its report's time")
    if report.get("no_longer_kept", 0) != _length(_gaps(seqs, 0 if from_first else seqs[0])):
        raise EvidenceError("the incident bundle tells of other deletions than it shows")


def _gaps(seqs: Sequence[int], begin: int) -> list[tuple[int, int]]:
    """First and last of the numbers from `begin` on that stand between `seqs`, which ascend."""
    return [(low + 1, high - 1) for low, high in itertools.pairwise((begin - 1, *seqs)) if high - low > 1]


def _length(gaps: Sequence[tuple[int, int]]) -> int:
    return sum(last - first + 1 for first, last in gaps)


def _meets(gap: tuple[int, int], retired: Retired) -> bool:
    return any(first <= gap[1] and gap[0] <= last for first, last in retired.ranges)


def _around(times: Sequence[int], begin: int, end: int) -> range:
    """The places of the entries from the last before `begin` to the first after `end`, as far as there are such."""
    inside = [place for place, at in enumerate(times) if begin <= at <= end]
    last = inside[-1] if inside else -1
    stop = next((place for place in range(last + 1, len(times)) if times[place] > end), len(times) - 1)
    first = min([*inside[:1], stop])
    return range(next((place for place in range(first, -1, -1) if times[place] < begin), 0), stop + 1)


def _within(entries: Sequence[dict[str, Any]], begin: int, end: int) -> list[dict[str, Any]]:
    return [values for values in entries if begin <= values["at"] <= end]


def _origin(names: Any) -> str:
    hosts = getattr(names, "hosts", ())
    return AGENCY + hosts[0] if hosts else INSTITUTION + str(names.institution)


def _day(moment: int) -> str:
    return f"{datetime.fromtimestamp(moment, UTC):%F %T} UTC"
