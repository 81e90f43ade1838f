"""Entries of a log that are on disk before they are in its database: `audit/ahead`, a line each.

A database's transaction waits for the disk five times, a line once. Whoever writes next enters what stands here before
anything else (`store.py`), and the one process that writes lines has it entered twice a second. The first line names
the file: the database holds how much of which file it has, so that nothing is entered twice or left out, whoever dies
in the middle. A line that is not whole belonged to a reply that never left. Each begins with a code of its file, its
place and its content by the log's key: who has not got that adds, changes and moves none.
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
from typing import TYPE_CHECKING, Any, Final

from sovfed.federation.errors import EvidenceError, ServiceError
from sovfed.federation.evidence.entries import canonical
from sovfed.federation.files import write_private

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

FILE: Final = "audit/ahead"
NAME_BYTES: Final = 33  # 32 hexadecimal digits and the end of the line
CODE_BYTES: Final = 64  # HMAC-SHA256, in hexadecimal digits
RENEW_BYTES: Final = 1 << 16  # a file as long as this is begun anew once all of it was entered,
RENEW_S: Final = 60.0  # and so is one to which nothing was added for so long: what the log deletes is here no more


class Ahead:
    """Writes lines, for one process of the home in `home`."""

    def __init__(self, home: Path) -> None:
        self._path, self._lock = home / FILE, threading.Lock()
        self._file = self._folder = -1
        self._key, self._name = b"", ""
        self._entered, self._added_at = 0, 0.0

    @property
    def is_open(self) -> bool:
        """Whether this process writes the file."""
        return self._file >= 0

    def begin(self, key: bytes, enter: Callable[[], bool]) -> bool:
        """Begin the file anew, once `enter` has entered what stands in it; whether this process writes it now.

        `key` is the one that lines are authenticated by.

        It does not where another one does, where nothing can be entered, or where the file system does not let it.
        """
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            folder = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            stack.callback(os.close, folder)
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if enter():
                self._key = key
                self._renew()
                self._folder = folder
                stack.pop_all()
        return self.is_open

    def add(self, kind: str, at: int, fields: dict[str, Any]) -> None:
        """Write an entry down; it is on disk after `sync`. Raises ServiceError, and then nothing is written."""
        content = canonical({"kind": kind, "at": at, "fields": fields})
        with self._lock:
            end, self._added_at = os.lseek(self._file, 0, os.SEEK_END), time.monotonic()
            line = _code(self._key, self._name, end - NAME_BYTES, content) + content + b"\n"
            try:
                whole = os.write(self._file, line) == len(line)
            except OSError as error:
                self._take_back(end)
                raise ServiceError(f"{self._path}: cannot be written ({error.strerror}); nothing was sent") from error
            if not whole:
                self._take_back(end)
                raise ServiceError(f"{self._path}: the disk is full; nothing was sent")

    def sync(self) -> None:
        """All that was added is on disk afterwards. Raises ServiceError; what was added then counts as not sent."""
        with self._lock:
            try:
                os.fdatasync(self._file)  # of a file that was begun anew since: what stood in the old one was entered
            except OSError as error:
                raise ServiceError(f"{self._path}: cannot be written ({error.strerror}); nothing was sent") from error

    def enter(self, enter: Callable[[], bool], *, renew: bool = False) -> None:
        """Have what is new entered by `enter`, which enters all that stands here, or says that it could not.

        `renew` begins the file anew then, however short it is.
        """
        size = self._size()
        if size > self._entered and enter():
            self._entered = size
        if not 0 < size == self._entered:
            return
        if renew or size >= RENEW_BYTES or time.monotonic() - self._added_at > RENEW_S:
            with self._lock:
                if self._size() == size:
                    self._renew()

    def _size(self) -> int:
        """How long the file is, its name not counted."""
        return os.fstat(self._file).st_size - NAME_BYTES if self._file >= 0 else 0

    def _renew(self) -> None:
        self._name = secrets.token_hex(16)
        write_private(self._path, self._name.encode() + b"\n")
        file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW)
        if self._file >= 0:
            os.close(self._file)
        self._file, self._entered = file, 0

    def _take_back(self, end: int) -> None:
        with contextlib.suppress(OSError):
            os.ftruncate(self._file, end)

    def close(self) -> None:
        """Let another process write it."""
        if self._file >= 0:
            os.close(self._file)
            os.close(self._folder)
            self._file = -1


def stands_ahead(home: Path) -> bool:
    """Whether there is such a file with a line in it, entered or not."""
    try:
        return (home / FILE).stat().st_size > NAME_BYTES
    except OSError:
        return False


def read_ahead(home: Path) -> tuple[str, bytes]:
    """The name of the file and its whole lines, as they stand there now. Raises EvidenceError where it is damaged."""
    data = (home / FILE).read_bytes()
    name, lines = data[: NAME_BYTES - 1].decode("ascii", "replace"), data[NAME_BYTES:]
    if data[NAME_BYTES - 1 : NAME_BYTES] != b"\n":
        raise EvidenceError(f"{home / FILE}: its first line is no name")
    return name, lines[: lines.rfind(b"\n") + 1]


def read_lines(key: bytes, name: str, lines: bytes, start: int) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """Kind, Unix time and fields of each entry from the place `start` on.

    Raises EvidenceError where one was not written there with `key`.
    """
    for line in lines[start:].splitlines(keepends=True):
        content = line[CODE_BYTES:-1]
        if not hmac.compare_digest(line[:CODE_BYTES], _code(key, name, start, content)):
            raise EvidenceError(f"{FILE}: a line is damaged, or not by whoever has the log's key")
        values = json.loads(content)
        yield values["kind"], values["at"], values["fields"]
        start += len(line)


def _code(key: bytes, name: str, place: int, content: bytes) -> bytes:
    return hmac.digest(key, name.encode() + place.to_bytes(8, "big") + content, "sha256").hex().encode()
