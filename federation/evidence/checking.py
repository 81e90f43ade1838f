"""Whether a home's log is still what was written, and which entry is the first that is not."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sovfed.federation.errors import EvidenceError, ServiceError, SovfedError
from sovfed.federation.evidence import merkle
from sovfed.federation.evidence.entries import BEFORE, DAMAGE, NAME, RETENTION, read_entry
from sovfed.federation.evidence.notes import Checkpoint, check_cosignature, check_note
from sovfed.federation.evidence.retention import Contents, Retired, read_retired
from sovfed.federation.evidence.store import LogReader, enter_ahead
from sovfed.federation.evidence.witness import holding_cosignatures
from sovfed.federation.identity import load_roots

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Iterator, Sequence
    from pathlib import Path


@dataclass(frozen=True)
class Checked:
    """A log that holds: its entries, who cosigned how many of them, and which tell of deleted contents of others.

    `damage` are the numbers of those that tell of something ahead of the log that was not what was written.
    """

    origin: str
    size: int
    root: bytes
    cosigned: dict[str, int]
    retired: tuple[Retired, ...] = ()
    damage: tuple[int, ...] = ()


def check_log(home: Path, shown: Sequence[bytes] = ()) -> Checked:
    """The log of `home`, once each of its entries is what was written.

    `shown` are heads of this log that somebody else has: the log must go on from each. Raises EvidenceError, which
    names the first entry that is wrong.
    """
    with contextlib.suppress(ServiceError, OSError):  # who may not write it reads what is in it
        enter_ahead(home)
    log = LogReader(home)
    roots_of_trust = load_roots(home / "identity" / "root.pem")
    log.voucher.check(roots_of_trust)
    roots, retired = _replayed(log)
    key, size = log.voucher.log_key, len(roots) - 1
    cosigned = {}
    for note in shown:
        _compare(check_note(note, key), roots, "a head that was shown to somebody")
    for voucher, note in holding_cosignatures(home, roots_of_trust):
        name = voucher.origin
        check_cosignature(note, voucher.witness_key)
        head = check_note(note, key)
        _compare(head, roots, f"a head that {name} cosigned")
        cosigned[name] = head.size
    damage = tuple(seq for seq, _ in log.of_kind(DAMAGE) if seq < size)
    return Checked(log.voucher.origin, size, roots[-1], cosigned, tuple(retired), damage)


def _replayed(log: LogReader) -> tuple[list[bytes], list[Retired]]:
    """The root of the first 0, 1, 2, … entries, and what tells of contents that are deleted.

    What is deleted meanwhile is no entry that is missing: then it is looked at again.
    """
    told, contents = len(log.of_kind(RETENTION)), Contents()
    try:
        roots = _roots(log, contents)
        contents.require_explained()
    except EvidenceError as error:
        telling = log.of_kind(RETENTION)
        if len(telling) > told:
            return _replayed(log)
        others = _readable(entry for entry in telling if entry[0] != contents.reached)
        contents.require_explained(others, str(error))  # what is missing comes before what is wrong later
        raise
    return roots, contents.retired


def _roots(log: LogReader, contents: Contents) -> list[bytes]:
    """The root of the first 0, 1, 2, … entries, each held to the head that was signed then."""
    roots, made = [merkle.root_hash(0, _none)], dict[tuple[int, int], bytes]()
    end, named = log.extent(), dict[str, int]()  # what is appended meanwhile is not looked at
    key, stored = log.voucher.log_key, {(level, at): value for level, at, value in log.nodes(end)}
    heads, last = iter(log.heads(end)), 0
    for seq, data in _gapless(log, end):
        contents.reached = seq
        leaf = stored.get((0, seq)) if data is None else merkle.leaf_hash(data)
        if leaf is None:
            raise EvidenceError(f"entry {seq} is missing")
        for level, position, value in merkle.completed(seq, leaf, lambda lv, at: made[lv, at]):
            made[level, position] = value
            if stored.get((level, position)) != value:
                raise EvidenceError(f"entry {seq}: was changed, or its hash was")
        roots.append(merkle.root_hash(seq + 1, lambda lv, at: made[lv, at]))
        size, note = next(heads, (0, b""))
        try:
            head = check_note(note, key) if size == seq + 1 else None
        except SovfedError as error:
            raise EvidenceError(f"entry {seq}: its head does not hold: {error}") from error
        if head is None or (head.size, head.root) != (seq + 1, roots[-1]):
            raise EvidenceError(f"entry {seq}: is not what the log's head was signed for")
        _read(contents, named, seq, data)
        last = seq + 1
    if (more := next(heads, None)) is not None:
        raise EvidenceError(f"entry {last} is missing: a head of {more[0]} entries was signed")
    if len(stored) != len(made):
        raise EvidenceError(f"entry {last} is missing: there are hashes of more")
    return roots


def _readable(entries: Iterable[tuple[int, bytes]]) -> Iterator[Retired]:
    """Which of `entries`, not looked at yet, tell of a deletion in a way that may hold."""
    for seq, data in entries:
        with contextlib.suppress(EvidenceError):
            yield read_retired(seq, read_entry(data))


def _gapless(log: LogReader, end: int) -> Iterator[tuple[int, bytes | None]]:
    """Number and content of each entry up to the last that has one; None where it has none any more."""
    expected = 0
    for seq, data in log.entries(0, end):
        yield from ((number, None) for number in range(expected, seq))
        yield seq, data
        expected = seq + 1


def _read(contents: Contents, named: dict[str, int], seq: int, data: bytes | None) -> None:
    """Take in what entry `seq` says, whose hash holds. Raises EvidenceError where it says what is not so."""
    if data is None:
        contents.missing(seq)
        return
    try:
        values = read_entry(data)
        _require_linked(values, seq, named, contents.gone)
        contents.kept(seq, values)
    except EvidenceError as error:
        raise EvidenceError(f"entry {seq}: {error}") from error


def _require_linked(values: dict[str, Any], seq: int, named: dict[str, int], gone: Container[int]) -> None:
    """Raise EvidenceError unless an entry of a run names the one of that run before it; older logs name none.

    One whose content is `gone` may have been of any run.
    """
    name = values.get(NAME)
    if not isinstance(name, str):
        return
    known = named.get(name, -1)
    before = values.get(BEFORE, known)
    if before != known and not (before in gone and before > known):
        raise EvidenceError(f"names another entry of '{name}' before it than there is")
    named[name] = seq


def _compare(head: Checkpoint, roots: Sequence[bytes], what: str) -> None:
    if head.size >= len(roots):
        raise EvidenceError(f"entry {len(roots) - 1} is missing: {what} has {head.size} entries")
    if head.root != roots[head.size]:
        raise EvidenceError(f"an entry before {head.size} is another than in {what}: the log was written anew")


def _none(level: int, position: int) -> bytes:
    raise EvidenceError(f"no hash of level {level} at {position}")
