"""One entry of a log: plain values, in the one spelling of RFC 8785. No record, weight or name of a person is in it."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any, Final

import rfc8785

from sovfed.federation.errors import EvidenceError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

KINDS: Final = (
    "admission", "approval", "audit", "damage", "export", "incident", "login", "model", "order", "policy", "received",
    "refusal", "release", "removal", "retention", "revocation", "round", "run", "split", "trust", "unlearning",
    "withdrawal",
)  # fmt: skip
RETENTION: Final = "retention"  # the kind of entry that tells of deleted contents of others
DAMAGE: Final = "damage"  # that tells of lines ahead of the log that could not be entered
MAX_BYTES: Final = 65_535  # what tlog-tiles can say of an entry's length
MAX_LISTED: Final = 256
NAME: Final = "name"  # of the run that an entry is of
BEFORE: Final = "before"  # the place of the entry of the same run before it, -1 of its first


def entry(kind: str, at: int, fields: Mapping[str, Any]) -> bytes:
    """The bytes of an entry; of one that would be too long, the longest values are their digests.

    So whoever takes part under many long names ends no run. Raises EvidenceError if it is of no known kind.
    """
    if kind not in KINDS:
        raise EvidenceError(f"log: entry of kind '{kind}', expected one of {', '.join(KINDS)}")
    values = {**fields, "kind": kind, "at": at, "v": 1}
    data = canonical(values)
    for name in sorted(fields, key=lambda name: -len(canonical(fields[name]))) if len(data) > MAX_BYTES else ():
        values[name] = shortened(fields[name])
        data = canonical(values)
        if len(data) <= MAX_BYTES:
            return data
    return data


def shortened(value: Any) -> dict[str, Any]:
    """What stands in an entry for a value that is too long for it."""
    spelled = canonical(value)
    return {"bytes": len(spelled), "sha256": hashlib.sha256(spelled).hexdigest()}


def read_entry(data: bytes) -> dict[str, Any]:
    """What the bytes of an entry say. Raises EvidenceError if `entry` gives them for nothing."""
    try:
        values: Any = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise EvidenceError("not JSON") from error
    if not isinstance(values, dict) or canonical(values) != data:
        raise EvidenceError("not in the spelling in which entries are written")
    return values


def canonical(values: Any) -> bytes:
    """The one spelling of `values` (RFC 8785). Raises EvidenceError for what JSON cannot say."""
    try:
        return rfc8785.dumps(values)
    except (rfc8785.CanonicalizationError, UnicodeError) as error:
        raise EvidenceError(f"cannot be written as canonical JSON: {error}") from error


def listed(names: Collection[str]) -> list[str] | dict[str, Any]:
    """The names, sorted; where they are too many for an entry, how many and the digest of their list."""
    names = sorted(names)
    if len(names) <= MAX_LISTED:
        return names
    return {"count": len(names), "sha256": hashlib.sha256(canonical(names)).hexdigest()}
