"""Lines of a privacy ledger: sealed with a MAC, chained by hash, checked in full whenever they are read."""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from sovfed.clients.ledger.entries import KIND_OF, KINDS, Entry, Opened, Renamed
from sovfed.federation.errors import PrivacyError
from sovfed.federation.schema import bind

_VERSION: Final = 1
_MAC: Final = b',"mac":"%s"}\n'
_NO_MAC: Final = bytes(64)
_ENDED: Final = re.compile(rb',"mac":"[0-9a-f]{64}"}')


@dataclass(frozen=True)
class Line:
    """An entry, when (POSIX seconds) and where it was written, and the head that it makes."""

    seq: int
    at: float
    entry: Entry
    head: str


def genesis(dataset: str) -> str:
    return hashlib.sha256(b"sovfed/privacy/ledger/1\n" + dataset.encode()).hexdigest()


def read_lines(file: int, path: Path, key: bytes) -> tuple[list[Line], int]:
    """The entries of an open ledger, and the bytes that they take with the last one's end. Raises PrivacyError."""
    with os.fdopen(os.dup(file), "rb") as stream:
        stream.seek(0)
        content = stream.read()
    *complete, tail = content.split(b"\n")
    lines: list[Line] = []
    at = 0
    for text in complete:
        try:
            lines.append(_decode(text + b"\n", key, lines[-1] if lines else None))
        except PrivacyError as error:
            raise PrivacyError(f"{path}: damaged at line {len(lines) + 1} (byte {at}): {error}") from error
        at += len(text) + 1
    if tail and lines:
        try:
            lines.append(_decode(tail + b"\n", key, lines[-1]))
        except PrivacyError as error:
            if _ENDED.search(tail):
                raise PrivacyError(f"{path}: damaged at line {len(lines) + 1} (byte {at}): {error}") from error
            return lines, at  # torn: what it was to pay for never left
        at += len(tail) + 1
    if not lines:
        raise PrivacyError(f"{path}: has no first line")
    return lines, at


def name_of(lines: Sequence[Line]) -> str:
    """The population's name as the ledger has it: the newest."""
    named = [line.entry for line in lines if isinstance(line.entry, Opened | Renamed)]
    return named[-1].dataset if isinstance(named[-1], Opened) else named[-1].name


def encode(key: bytes, seq: int, prev: str, at: float, entry: Entry) -> bytes:
    """The line of `entry`; raises PrivacyError for an entry that could not be read back."""
    kind = KIND_OF[type(entry)]
    body = dataclasses.asdict(entry)
    bind(KINDS[kind], body, kind, PrivacyError)
    return seal({"v": _VERSION, "seq": seq, "prev": prev, "at": at, "kind": kind, "entry": body}, key)


def _decode(text: bytes, key: bytes, last: Line | None) -> Line:
    """The line that stands after `last`, or the first of all."""
    fields = unseal(text, key)
    if fields["v"] != _VERSION or fields["kind"] not in KINDS:
        raise PrivacyError(f"version {fields['v']}, kind '{fields['kind']}': written by a newer program")
    seq = last.seq + 1 if last else 0
    if fields["seq"] != seq:
        raise PrivacyError(f"entry {fields['seq']} stands where entry {seq} should: lines were removed or moved")
    entry = bind(KINDS[fields["kind"]], fields["entry"], fields["kind"], PrivacyError)
    if (last is None) != isinstance(entry, Opened):
        raise PrivacyError(f"an entry '{fields['kind']}' has no place here")
    if fields["prev"] != (last.head if last else genesis(entry.dataset) if isinstance(entry, Opened) else ""):
        raise PrivacyError("it does not follow from the line before")
    if last and fields["at"] < last.at:
        raise PrivacyError("it is older than the line before")
    return Line(seq, fields["at"], entry, hashlib.sha256(text).hexdigest())


def seal(record: Mapping[str, Any], key: bytes) -> bytes:
    body = json.dumps(record, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
    return body[:-1] + _MAC % hmac.new(key, body, hashlib.sha256).hexdigest().encode()


def unseal(line: bytes, key: bytes) -> Any:
    """The record of a sealed line; nothing is parsed before its MAC holds. Raises PrivacyError."""
    body = line[: -len(_MAC % _NO_MAC)] + b"}"
    if not hmac.compare_digest(line, body[:-1] + _MAC % hmac.new(key, body, hashlib.sha256).hexdigest().encode()):
        raise PrivacyError("its MAC does not hold: it was changed, or written with another key")
    return json.loads(body)
