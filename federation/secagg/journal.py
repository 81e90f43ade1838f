"""The file of what an institution must never forget: the entries of `history.py`.

An entry is on disk (fsync) before the reply that it allows leaves, so after a crash either no reply went out or the
entry is there. Entries are chained by hash: a torn last entry belonged to a reply that was never sent and is cut off,
anything else that does not fit is refused. A journal that was rolled back cannot be told from a true one without
hardware; a missing one is never made anew but by enrolment.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from sovfed.federation.errors import ServiceError
from sovfed.federation.files import sync_folder
from sovfed.federation.secagg import wire
from sovfed.federation.secagg.history import KINDS, Entry, History

_HEAD: Final = b"sovfed/secagg/journal/2\n"
_CHAIN: Final = 16  # bytes of the running hash that end a record
_PREFIX: Final = 8  # its length, and 4 bytes that show the length to be right


class Journal:
    """The file behind a `History`, locked against a second trainer of the same home."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError as error:
            raise ServiceError(f"{path}: no journal; this institution must enrol anew") from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._file)
            raise ServiceError(f"{path}: in use by another trainer") from error
        self.history = History()
        self._sound = True
        try:
            content = _content(self._file)
            self._chain, intact_bytes = _replay(content, self.history, path)
            if intact_bytes < len(content):
                os.ftruncate(self._file, intact_bytes)  # torn: its reply never left
                os.fsync(self._file)
        except BaseException:
            self.close()
            raise

    @staticmethod
    def create(path: Path) -> None:
        """Make the empty journal of a newly enrolled institution; raises ServiceError if there is one."""
        try:
            file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except FileExistsError as error:
            raise ServiceError(f"{path}: a journal exists; removing it allows secrets to be asked for twice") from error
        with contextlib.ExitStack() as stack:
            stack.callback(os.close, file)
            os.write(file, _HEAD)
            os.fsync(file)
        sync_folder(path.parent)

    def commit(self, entries: Iterable[Entry]) -> None:
        """Put `entries` on disk; only then may the reply that came with them be sent.

        Raises ServiceError if the disk fails; what was half written is taken back, and if that fails too nothing more
        is written until the trainer starts again.
        """
        for entry in entries:
            if not self._sound:
                raise ServiceError("journal: an earlier write failed; restart the trainer")
            record = _record(self._chain, entry.encode())
            end = os.lseek(self._file, 0, os.SEEK_END)
            self._sound = False
            try:
                complete = os.write(self._file, record) == len(record)
                os.fsync(self._file)
            except OSError as error:
                self._take_back(end)
                raise ServiceError(f"journal: cannot be written ({error.strerror}); nothing was sent") from error
            if not complete:
                self._take_back(end)
                raise ServiceError("journal: the disk is full; nothing was sent")
            self._sound = True
            self._chain = record[-_CHAIN:]
            self.history.add(entry)

    @property
    def size_bytes(self) -> int:
        return os.fstat(self._file).st_size

    def entries(self) -> list[Entry]:
        """All that the file holds, in order."""
        listed = _Listed()
        _replay(_content(self._file), listed, self._path)
        return listed.entries

    def rewrite(self, entries: Iterable[Entry]) -> None:
        """Put `entries` in the place of all there are, in one step: a crash leaves the old file or the new one.

        Raises ServiceError if the disk fails; the old one then goes on.
        """
        chain, content, history = hashlib.sha256(_HEAD).digest(), bytearray(_HEAD), History()
        for entry in entries:
            record = _record(chain, entry.encode())
            chain = record[-_CHAIN:]
            content += record
            history.add(entry)
        draft = self._path.with_suffix(".new")
        try:
            file = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # nobody takes it between its birth and our next write
                with os.fdopen(os.dup(file), "wb") as whole:
                    whole.write(content)
                os.fsync(file)
                draft.replace(self._path)
            except BaseException:
                os.close(file)
                draft.unlink(missing_ok=True)
                raise
        except OSError as error:
            raise ServiceError(f"journal: cannot be rewritten ({error.strerror}); it goes on as it is") from error
        os.close(self._file)
        self._file, self._chain, self.history, self._sound = file, chain, history, True
        sync_folder(self._path.parent)

    def close(self) -> None:
        os.close(self._file)

    def _take_back(self, end: int) -> None:
        """Cut the file to `end`, its length before a write that failed; the next record then fits the chain again."""
        with contextlib.suppress(OSError):
            os.ftruncate(self._file, end)
            os.fsync(self._file)
            self._sound = True


def read_history(path: Path) -> History:
    """The history in the journal at `path`, for reading only: its trainer may be running. Raises ServiceError."""
    history = History()
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as error:
        raise ServiceError(f"{path}: cannot be read ({error.strerror})") from error
    with contextlib.closing(os.fdopen(file, "rb")) as opened:
        _replay(opened.read(), history, path)
    return history


@dataclass
class _Listed:
    """Entries as they are, where `History` indexes them."""

    entries: list[Entry] = field(default_factory=list)

    def add(self, entry: Entry) -> None:
        self.entries.append(entry)


def _content(file: int) -> bytes:
    with os.fdopen(os.dup(file), "rb") as opened:
        opened.seek(0)
        return opened.read()


def _prefix(chain: bytes, length: int) -> bytes:
    size = wire.number(length, 4)
    return size + hashlib.sha256(chain + size).digest()[:4]


def _record(chain: bytes, data: bytes) -> bytes:
    body = _prefix(chain, len(data)) + data
    return body + hashlib.sha256(chain + body).digest()[:_CHAIN]


def _replay(content: bytes, history: History | _Listed, path: Path) -> tuple[bytes, int]:
    """Add the entries of `content` to `history`; the chain after the last whole one, and where it ends."""
    if not content.startswith(_HEAD):
        older = content.startswith(_HEAD.rpartition(b"/")[0])
        fix = "; an older sovfed wrote it, and this institution must enrol anew" if older else ""
        raise ServiceError(f"{path}: not a journal of this version{fix}")
    chain, at = hashlib.sha256(_HEAD).digest(), len(_HEAD)
    while at < len(content):
        prefix = content[at : at + _PREFIX]
        length = int.from_bytes(prefix[:4], "big")
        record = content[at : at + _PREFIX + length + _CHAIN]
        data = record[_PREFIX:-_CHAIN]
        if _prefix(chain, length) == prefix and _record(chain, data) == record and len(data) == length:
            chain = record[-_CHAIN:]
            history.add(KINDS[data[5]].decode(data))
            at += len(record)
        elif len(prefix) < _PREFIX or (_prefix(chain, length) == prefix and at + len(record) == len(content)):
            break
        else:
            raise ServiceError(f"{path}: damaged at byte {at}; this institution must enrol anew")
    return chain, at
