"""Entries of a log that are on disk before they are in its database: `audit/ahead`, a line each.

A database's transaction waits for the disk five times, a line once. Whoever writes next enters what stands here before
anything else (`store.py`), and the one process that writes lines has it entered twice a second. The first line names
the file, which the database knows before it is there, with how much of it it holds: so nothing is entered twice or left
out, whoever dies in the middle, and no file of earlier is entered again. A line that is not whole belonged to a reply
that never left. Each begins with a code of its file, its place and its content by the log's key: who has not got that
adds, changes and moves none. Whoever writes lines remembers those that stand here, and enters them from memory where
somebody has changed the file beneath it.
"""

from __future__ import annotations

import contextlib
import fcntl
import hmac
import json
import os
import secrets
import threading
import time
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from sovfed.federation.errors import EvidenceError, ServiceError
from sovfed.federation.evidence.entries import canonical
from sovfed.federation.files import open_plain, write_private

if TYPE_CHECKING:
    from pathlib import Path

FILE: Final = "audit/ahead"
NAME_BYTES: Final = 33  # 32 hexadecimal digits and the end of the line
CLOSED: Final = "0" * 32  # the name of one that nobody writes: it may go
CODE_BYTES: Final = 64  # HMAC-SHA256, in hexadecimal digits
MAX_BYTES: Final = 1 << 22  # which the database never leaves standing here, unless it cannot be written for long
RENEW_BYTES: Final = 1 << 16  # a file as long as this is begun anew once all of it was entered,
RENEW_S: Final = 60.0  # and so is one to which nothing was added for so long: what the log deletes is here no more


class Standing(NamedTuple):
    """The name of a file ahead of a log, and the lines in it; the last may be half a line."""

    name: str
    lines: bytes


class Enter(Protocol):
    """Enters all that stands ahead, or says that it could not.

    It is what is `known` to stand there; None: what the file has. `changed` says that the file has something else.
    The file that is begun then `begins` with this name, if any.
    """

    def __call__(self, known: Standing | None, *, changed: bool = False, begins: str = "") -> bool: ...


class Ahead:
    """Writes lines, for one process of the home in `home`; `enter` enters them."""

    def __init__(self, home: Path, enter: Enter) -> None:
        self._home, self._path, self._enter, self._lock = home, home / FILE, enter, threading.Lock()
        self._file = self._folder = -1
        self._key, self._name, self._lines = b"", "", bytearray()
        self._entered, self._added_at = 0, 0.0
        self._loose = False  # whether lines may not be on disk yet

    @property
    def is_open(self) -> bool:
        """Whether this process writes the file."""
        return self._file >= 0

    def begin(self, key: bytes) -> bool:
        """Begin the file anew, once what stands in it is entered; whether this process writes it now.

        `key` is the one that lines are authenticated by.

        It does not where another one does, where nothing can be entered, or where the file system does not let it.
        """
        with self._lock, contextlib.suppress(OSError):
            if self.is_open:
                return True
            try:
                self._folder = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                fcntl.flock(self._folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._key = key
                self._renew()
            finally:
                if not self.is_open:
                    self._close()
        return self.is_open

    def add(self, kind: str, at: int, fields: dict[str, Any]) -> bool:
        """Write an entry down; it is on disk after `sync`. False where this process does not write the file any more.

        Raises ServiceError, and then nothing is written.
        """
        content = canonical({"kind": kind, "at": at, "fields": fields})
        with self._lock:
            try:
                if self.is_open and not self._stands():
                    self._renew(changed=True)
            except OSError as error:
                raise ServiceError(f"{self._path}: cannot be written ({error.strerror}); nothing was sent") from error
            if not self.is_open:
                return False
            line = _code(self._key, self._name, len(self._lines), content) + content + b"\n"
            if len(self._lines) + len(line) > MAX_BYTES - NAME_BYTES:
                raise ServiceError(f"{self._path}: is full, for the log does not take it in; nothing was sent")
            try:
                whole = os.write(self._file, line) == len(line)
            except OSError as error:
                self._take_back()
                raise ServiceError(f"{self._path}: cannot be written ({error.strerror}); nothing was sent") from error
            if not whole:
                self._take_back()
                raise ServiceError(f"{self._path}: the disk is full; nothing was sent")
            self._lines += line
            self._added_at, self._loose = time.monotonic(), True
        return True

    def sync(self) -> None:
        """All that was added is on disk afterwards. Raises ServiceError; what was added then counts as not sent."""
        with self._lock:
            if not self._loose:
                return
            if not self.is_open:
                raise ServiceError(
                    f"{self._path}: another has changed it, and the log did not take it in; nothing was sent"
                )
            try:
                os.fdatasync(self._file)
            except OSError as error:
                raise ServiceError(f"{self._path}: cannot be written ({error.strerror}); nothing was sent") from error
            self._loose = False

    def enter(self) -> None:
        """Have what is new entered. Raises OSError or SovfedError."""
        with self._lock:
            if not self.is_open:
                return
            if not self._unchanged():
                self._renew(changed=True)
                return
            known = self._standing()
        if len(known.lines) > self._entered and self._enter(known):
            with self._lock:
                if self._name == known.name:
                    self._entered = len(known.lines)
        with self._lock:
            size = len(self._lines)
            idle = time.monotonic() - self._added_at > RENEW_S
            if self.is_open and 0 < size == self._entered and (size >= RENEW_BYTES or idle):
                self._renew()

    def close(self) -> None:
        """Have all of it entered, leave nothing behind, and let another process write it. Raises as `enter`."""
        with self._lock:
            try:
                if self.is_open:
                    self._renew(CLOSED, changed=not self._unchanged())
            finally:
                self._close()

    def _standing(self) -> Standing:
        return Standing(self._name, bytes(self._lines))

    def _stands(self) -> bool:
        """Whether the file at its path is the one that is written here, as long as it was left."""
        try:
            there, ours = os.lstat(self._path), os.fstat(self._file)
        except OSError:
            return False
        same = (there.st_ino, there.st_dev) == (ours.st_ino, ours.st_dev)
        return same and ours.st_size == NAME_BYTES + len(self._lines)

    def _unchanged(self) -> bool:
        """Whether the file says what was written."""
        if not self._stands():
            return False
        try:
            return len(self._lines) == self._entered or read_ahead(self._home) == self._standing()
        except EvidenceError:
            return False

    def _renew(self, name: str = "", *, changed: bool = False) -> None:
        """Begin the file anew, once all of it is entered; this process writes it no more where that fails.

        Raises OSError or SovfedError.
        """
        name = name or secrets.token_hex(16)
        if not self._enter(self._standing() if self.is_open else None, changed=changed, begins=name):
            self._close()
            return
        self._loose = False  # the database has them
        try:
            write_private(self._path, name.encode() + b"\n")
            file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW)
        except BaseException:
            self._close()
            raise
        if self._file >= 0:
            os.close(self._file)
        self._file, self._name, self._lines, self._entered = file, name, bytearray(), 0

    def _take_back(self) -> None:
        with contextlib.suppress(OSError):
            os.ftruncate(self._file, NAME_BYTES + len(self._lines))

    def _close(self) -> None:
        for descriptor in (self._file, self._folder):
            if descriptor >= 0:
                os.close(descriptor)
        self._file = self._folder = -1


def stands_ahead(home: Path) -> bool:
    """Whether there is such a file with a line in it, entered or not."""
    try:
        return (home / FILE).stat().st_size > NAME_BYTES
    except OSError:
        return False


def read_ahead(home: Path) -> Standing | None:
    """What the file has now; None where there is none. Raises EvidenceError where it cannot be one."""
    path = home / FILE
    try:
        with open_plain(path) as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise EvidenceError(f"{FILE}: {error.strerror}") from error
    name, lines = data[: NAME_BYTES - 1].decode("ascii", "replace"), data[NAME_BYTES:]
    if data[NAME_BYTES - 1 : NAME_BYTES] != b"\n" or len(data) > MAX_BYTES:
        raise EvidenceError(f"{FILE}: its first line is no name" if len(data) <= MAX_BYTES else f"{FILE}: is too long")
    return Standing(name, lines)


def read_lines(key: bytes, standing: Standing, start: int) -> tuple[list[tuple[str, int, dict[str, Any]]], int]:
    """Kind, Unix time and fields of each entry from the place `start` on, and the place behind the last.

    They end where a line is not whole, or was not written there with `key`.
    """
    entries = []
    while end := standing.lines.find(b"\n", start) + 1:
        code, content = standing.lines[start : start + CODE_BYTES], standing.lines[start + CODE_BYTES : end - 1]
        if not hmac.compare_digest(code, _code(key, standing.name, start, content)):
            break
        values = json.loads(content)
        entries.append((values["kind"], values["at"], values["fields"]))
        start = end
    return entries, start


def _code(key: bytes, name: str, place: int, content: bytes) -> bytes:
    return hmac.digest(key, name.encode() + place.to_bytes(8, "big") + content, "sha256").hex().encode()
