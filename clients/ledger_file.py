"""A privacy ledger's file: entries chained by hash, each with a MAC, each on disk before anything leaves.

H/privacy/ (0700) holds, all 0600:
    mac.key            made with the institution's first ledger; beside a ledger or a head it is never made anew
    <dataset>.ledger   one line of JSON an entry: {at, entry, kind, prev, seq, v, mac}, the MAC over all before it
    <dataset>.head     the newest head that the coordinator countersigned

`prev` is the SHA-256 of the line before, and the head that of the last line, so an edit, a swap or a gap shows. A last
line without its end was never acted upon, as its fsync had not returned: it is kept when whole (started = spent) and
dropped when torn. Lines cut from the end do not show in the file: they show against the countersigned head, of which
the coordinator keeps a copy, since whoever can roll back this folder can roll back the head with it.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sovfed.clients.ledger_entries import Entry, Opened
from sovfed.clients.ledger_lines import Line, encode, genesis, read_lines, seal, unseal
from sovfed.federation.errors import PrivacyError, ServiceError
from sovfed.federation.files import private_directory, read_private, write_private
from sovfed.federation.schema import bind, bounded

FOLDER: Final = "privacy"
KEY: Final = "mac.key"
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")


@dataclass(frozen=True)
class Countersigned:
    """The head of line `seq`, and the coordinator's signature over its 32 bytes, hexadecimal."""

    dataset: str = bounded(low=1, high=64)
    seq: int = bounded(low=0)
    head: str = bounded(low=64, high=64)
    signature: str = bounded(low=2, high=20_000)


def create_ledger(home: Path, dataset: str, now: float) -> None:
    """Make the empty ledger of `dataset`, for an institution that enrols; one that is there already goes on.

    Raises PrivacyError if a countersigned head shows that there was one, or if the key is missing beside other ledgers.
    """
    folder = private_directory(home / FOLDER)
    path = ledger_path(home, dataset)
    if path.exists():
        return
    if path.with_suffix(".head").exists():
        raise PrivacyError(f"{path} is missing, but a head of it was countersigned: restore it")
    if not (folder / KEY).exists() and not (any(folder.glob("*.ledger")) or any(folder.glob("*.head"))):
        _write_new(folder / KEY, os.urandom(32))
    line = encode(_key(home), 0, genesis(dataset), now, Opened(dataset))
    _write_new(path, line)


def ledger_path(home: Path, dataset: str) -> Path:
    """Where the ledger of `dataset` is. Raises PrivacyError unless the name is fit for a file."""
    if not _NAME.fullmatch(dataset):
        raise PrivacyError(f"dataset '{dataset}': a ledger's name is 1 to 64 of a-z 0-9 _ . - and begins with a-z 0-9")
    return home / FOLDER / f"{dataset}.ledger"


def datasets(home: Path) -> list[str]:
    """The datasets of which the home has a ledger, or a countersigned head that asks for one."""
    return sorted({path.stem for kind in ("*.ledger", "*.head") for path in (home / FOLDER).glob(kind)})


def read_ledger(home: Path, dataset: str) -> tuple[list[Line], Countersigned | None]:
    """All entries, checked in full, without locking out the trainer. Raises PrivacyError on any damage."""
    path, key = ledger_path(home, dataset), _key(home)
    signed = _load_head(path, key, dataset)  # first, since the trainer may be writing: the ledger is never behind it
    file = _open(path, os.O_RDONLY)
    try:
        lines, _ = read_lines(file, path, key, dataset)
    finally:
        os.close(file)
    _check_head(path, signed, [line.head for line in lines])
    return lines, signed


class LedgerFile:
    """The ledger of `dataset`, locked against a second trainer of the same home; `lines` is what was in it at first."""

    def __init__(self, home: Path, dataset: str) -> None:
        self._dataset, self._path, self._key = dataset, ledger_path(home, dataset), _key(home)
        self._file = _open(self._path, os.O_RDWR | os.O_APPEND)
        try:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise ServiceError(f"{self._path}: in use by another trainer") from error
            self.lines, whole = read_lines(self._file, self._path, self._key, dataset)
            self._heads = [line.head for line in self.lines]
            self._last_at = self.lines[-1].at
            self.countersigned = _load_head(self._path, self._key, dataset)
            _check_head(self._path, self.countersigned, self._heads)
            self._mend(whole)
            self._size = whole
        except BaseException:
            os.close(self._file)
            raise
        self._sound = True

    @property
    def head(self) -> str:
        return self._heads[-1]

    def append(self, entry: Entry, now: float) -> Line:
        """Put `entry` on disk; only then may what it pays for leave. Times never run backwards.

        Raises ServiceError if the disk fails: the file is then in doubt, and has to be opened anew.
        """
        if not self._sound:
            raise ServiceError(f"{self._path}: an earlier write failed; restart the trainer")
        at = max(now, self._last_at)
        encoded = encode(self._key, len(self._heads), self.head, at, entry)
        self._check_place()
        self._sound = False
        try:
            written = os.write(self._file, encoded)
            os.fsync(self._file)
        except OSError as error:
            raise ServiceError(f"{self._path}: cannot be written ({error.strerror}); nothing was sent") from error
        if written != len(encoded):
            raise ServiceError(f"{self._path}: the disk is full; nothing was sent")
        self._sound = True
        self._heads.append(hashlib.sha256(encoded).hexdigest())
        self._last_at, self._size = at, self._size + written
        return Line(len(self._heads) - 1, at, entry, self.head)

    def countersign(self, head: str, signature: bytes) -> None:
        """Keep the newest head that the coordinator signed. Raises PrivacyError if this ledger never had that head."""
        if head not in self._heads:
            raise PrivacyError(f"{self._path}: has no head {head[:16]}…: it was rolled back, or is another ledger")
        seq = self._heads.index(head)
        if self.countersigned is None or seq > self.countersigned.seq:
            body = {"dataset": self._dataset, "seq": seq, "head": head, "signature": signature.hex()}
            found = bind(Countersigned, body, "head", PrivacyError)
            write_private(self._path.with_suffix(".head"), seal(body, self._key))
            self.countersigned = found

    def reread(self) -> list[Line]:
        """All entries as they stand on disk, checked in full. Raises PrivacyError if they are not what was written."""
        lines, _ = read_lines(self._file, self._path, self._key, self._dataset)
        heads = [line.head for line in lines]
        _check_head(self._path, _load_head(self._path, self._key, self._dataset), heads)
        if heads != self._heads:
            raise PrivacyError(f"{self._path}: ends at line {len(heads)}, {len(self._heads)} were written")
        return lines

    def close(self) -> None:
        os.close(self._file)

    def _check_place(self) -> None:
        """Raises PrivacyError if somebody put another file in this one's place, or wrote to it, since it was opened."""
        ours, there = os.fstat(self._file), self._path.lstat() if self._path.exists() else None
        if there is None or not os.path.samestat(ours, there) or ours.st_size != self._size:
            raise PrivacyError(f"{self._path}: was moved, replaced or changed while this trainer had it open")

    def _mend(self, whole: int) -> None:
        """Finish or drop a last line that a crash left without its end."""
        size = os.fstat(self._file).st_size
        if size == whole:
            return
        try:
            if size == whole - 1:
                os.write(self._file, b"\n")
            else:
                os.ftruncate(self._file, whole)
            os.fsync(self._file)
        except OSError as error:
            raise ServiceError(f"{self._path}: cannot be written ({error.strerror})") from error


def _load_head(ledger: Path, key: bytes, dataset: str) -> Countersigned | None:
    path = ledger.with_suffix(".head")
    if not path.exists():
        return None
    try:
        signed = bind(Countersigned, unseal(read_private(path), key), "head", PrivacyError)
    except PrivacyError as error:
        raise PrivacyError(f"{path}: {error}") from error
    if signed.dataset != dataset:
        raise PrivacyError(f"{path}: is of dataset '{signed.dataset}'")
    return signed


def _check_head(ledger: Path, signed: Countersigned | None, heads: list[str]) -> None:
    """Raises PrivacyError if the head that the coordinator countersigned is not among `heads`."""
    if signed and signed.seq >= len(heads):
        raise PrivacyError(
            f"{ledger}: ends at entry {len(heads) - 1}, but the coordinator countersigned entry {signed.seq}: "
            f"lines were cut off, or an old copy was put back"
        )
    if signed and heads[signed.seq] != signed.head:
        raise PrivacyError(f"{ledger}: entry {signed.seq} is not the one that was countersigned")


def _key(home: Path) -> bytes:
    path = home / FOLDER / KEY
    if not path.exists():
        raise PrivacyError(f"{path} is missing: restore it; a new key would not fit the ledgers beside it")
    private_directory(path.parent)
    key = read_private(path)
    if len(key) != 32:
        raise PrivacyError(f"{path}: {len(key)} bytes, expected 32")
    return key


def _open(path: Path, flags: int) -> int:
    try:
        file = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as error:
        raise PrivacyError(f"{path}: no privacy ledger; restore it, or enrol: nothing private runs without") from error
    found = os.fstat(file)
    if not stat.S_ISREG(found.st_mode) or found.st_mode & 0o177 or found.st_uid != os.geteuid():
        os.close(file)
        raise PrivacyError(f"{path}: mode {found.st_mode & 0o7777:04o}, expected 0600 and owned by this user")
    return file


def _write_new(path: Path, data: bytes) -> None:
    """`write_private` for a file that must not be there yet: whole or not at all, and never over another."""
    draft = path.with_name(f".{path.name}.new")
    write_private(draft, data)
    try:
        path.hardlink_to(draft)
    except FileExistsError as error:
        raise PrivacyError(f"{path}: made by another process at the same time") from error
    finally:
        draft.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
