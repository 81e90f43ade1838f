"""A privacy ledger's file: entries chained by hash, each with a MAC, each on disk before anything leaves.

H/privacy/ (0700) holds, all 0600:
    mac.key             made with the institution's ledger; beside a ledger or a head it is never made anew
    <name>.ledger       one line of JSON an entry: {at, entry, kind, prev, seq, v, mac}, the MAC over all before it
    <name>.head         the newest head that the coordinator countersigned
    <name>.rolled-back  a head that this institution signed and the ledger does not have: until it does, nothing is paid

`prev` is the SHA-256 of the line before, and the head that of the last line, so an edit, a swap or a gap shows. A last
line without its end was never acted upon, as its fsync had not returned: it is kept when whole (started = spent) and
dropped when torn. Lines cut from the end do not show in the file: they show against the countersigned head, of which
the coordinator keeps a copy, since whoever can roll back this folder can roll back the head with it.

A home has one ledger, named after its own population in `policy.yaml`; further populations have accounts in it. Another
ledger beside it is refused, or the same persons would have two budgets; `sovfed client ledger adopt` brings it in.
"""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import hmac
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from sovfed.clients.ledger.entries import LEDGER_NAME, NAME_RULE, Entry, Opened
from sovfed.clients.ledger.lines import Line, encode, genesis, name_of, read_lines, seal, unseal
from sovfed.federation.errors import PrivacyError, ServiceError, SovfedError
from sovfed.federation.files import private_directory, read_private, sync_folder, write_private
from sovfed.federation.schema import bind, bounded

FOLDER: Final = "privacy"
KEY: Final = "mac.key"
MARK: Final = ".rolled-back"
Kept = TypeVar("Kept", "Countersigned", "RolledBack")


@dataclass(frozen=True)
class Countersigned:
    """The head of line `seq`, and the coordinator's signature over it for `run`, hexadecimal."""

    dataset: str = bounded(low=1, high=64)
    seq: int = bounded(low=0)
    head: str = bounded(low=64, high=64)
    signature: str = bounded(low=2, high=20_000)
    run: str = bounded("", 0, 64)


@dataclass(frozen=True)
class RolledBack:
    """A head that this institution signed and the ledger of `dataset` did not have: what it must have again."""

    dataset: str = bounded(low=1, high=64)
    seq: int = bounded(low=0)
    head: str = bounded(low=64, high=64)

    def __str__(self) -> str:
        return (
            f"this institution signed entry {self.seq}, head {self.head[:16]}…, which the ledger does not have: it was "
            f"rolled back, or a copy of this home went on without it; restore it, then `sovfed client ledger restored`"
        )

    @property
    def told(self) -> str:
        """What the operator has to do about it."""
        return (
            f"no private run is answered: {self}. `sovfed client down`, put {FOLDER}/{self.dataset}.ledger and .head "
            "of the home that went on in the place of these, `ledger restored`, `sovfed client up`"
        )


def create_ledger(home: Path, name: str, now: float) -> None:
    """Make the empty ledger of the population `name`; one that is there already goes on.

    Raises PrivacyError if a countersigned head shows that there was one, if the home has the ledger of another
    population, or if the key is missing beside a ledger.
    """
    folder = private_directory(home / FOLDER)
    path = ledger_path(home, name)
    require_alone(home, name)
    if path.exists():
        _key(home)
        return
    if path.with_suffix(".head").exists():
        raise PrivacyError(f"{path} is missing, but a head of it was countersigned: restore it")
    if not (folder / KEY).exists() and not ledgers(home):
        _write_new(folder / KEY, os.urandom(32))
    line = encode(_key(home), 0, genesis(name), now, Opened(name))
    _write_new(path, line)


def ledger_path(home: Path, name: str) -> Path:
    """Where the ledger of the population `name` is. Raises PrivacyError unless the name is fit for a file."""
    if not LEDGER_NAME.fullmatch(name):
        raise PrivacyError(f"'{name}' {NAME_RULE}")
    return home / FOLDER / f"{name}.ledger"


def ledgers(home: Path) -> list[str]:
    """The populations of which the home has a ledger, or a countersigned head that asks for one."""
    return sorted({path.stem for kind in ("*.ledger", "*.head") for path in (home / FOLDER).glob(kind)})


def require_alone(home: Path, name: str) -> None:
    """Raises PrivacyError if the home has a ledger of another name, which would be a second budget of one person."""
    existing = [ledger for ledger in ledgers(home) if ledger != name]
    if existing:
        raise PrivacyError(
            f"{home / FOLDER} has the ledger '{existing[0]}', and policy.yaml names the population '{name}': the "
            "persons in it must not get a second budget; "
            f"`sovfed client ledger adopt {existing[0]}` makes it part of '{name}'"
        )


def read_ledger(home: Path, name: str) -> tuple[list[Line], Countersigned | None]:
    """All entries, checked in full, without locking out the trainer. Raises PrivacyError on any damage."""
    path, key = ledger_path(home, name), _key(home)
    signed = _load_head(path, key)  # first, since the trainer may be writing: the ledger is never behind it
    file = _open(path, os.O_RDONLY)
    try:
        lines, _ = read_lines(file, path, key)
    finally:
        os.close(file)
    _check_name(path, lines, (name,))
    _check_head(path, signed, [line.head for line in lines])
    return lines, signed


def token_of(home: Path, text: str) -> str:
    """What stands for `text` in the entries of the home's ledger. Raises PrivacyError if its key is not there."""
    return _token(_key(home), text)


def _token(key: bytes, text: str) -> str:
    return hmac.new(key, b"records\n" + text.encode(), hashlib.sha256).hexdigest()[:32]


def read_mark(home: Path, name: str) -> RolledBack | None:
    """What the ledger must have again before it pays, if anything. Raises PrivacyError."""
    path = ledger_path(home, name)
    return _sealed(RolledBack, path.with_suffix(MARK), path, _key(home) if path.with_suffix(MARK).exists() else b"")


def rolled_back(home: Path) -> list[str]:
    """A line of each ledger of the home that pays nothing, for it lacks what was signed of it, or nobody can tell."""
    found = list[str]()
    for name in ledgers(home):
        try:
            mark = read_mark(home, name)
        except SovfedError as error:
            found.append(str(error))
        else:
            found += [mark.told] if mark else []
    return found


class LedgerFile:
    """The ledger `name`, locked against a second trainer of the same home; `lines` is what was in it at first.

    Of several names, as it may have while it is renamed, the first is the file's.
    """

    def __init__(self, home: Path, name: str, *names: str) -> None:
        self._names, self._path, self._key = (name, *names), ledger_path(home, name), _key(home)
        self._file = _open(self._path, os.O_RDWR | os.O_APPEND)
        try:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise ServiceError(f"{self._path}: in use by another trainer") from error
            self.lines, length = read_lines(self._file, self._path, self._key)
            _check_name(self._path, self.lines, self._names)
            self._heads = [line.head for line in self.lines]
            self._last_at = self.lines[-1].at
            self.countersigned = _load_head(self._path, self._key)
            self.mark = _sealed(RolledBack, self._path.with_suffix(MARK), self._path, self._key)
            _check_head(self._path, self.countersigned, self._heads)
            self._mend(length)
            self._size = length
        except BaseException:
            os.close(self._file)
            raise
        self._sound = True

    @property
    def head(self) -> str:
        return self._heads[-1]

    @property
    def seq(self) -> int:
        """The number of the last entry."""
        return len(self._heads) - 1

    def token(self, text: str) -> str:
        """What stands for `text` in entries: 32 hexadecimal digits that only this home can tell it by."""
        return _token(self._key, text)

    def digest(self, content: bytes) -> str:
        """What `content` is told by in entries: 64 hexadecimal digits by which only this home can try guesses."""
        return hmac.new(self._key, b"release\n" + content, hashlib.sha256).hexdigest()

    def has(self, seq: int, head: str) -> bool:
        return 0 <= seq < len(self._heads) and self._heads[seq] == head

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

    def countersign(self, run: str, seq: int, head: str, signature: bytes) -> None:
        """Keep what the coordinator signed of a head that this ledger `has`, if it is newer than what is kept."""
        if self.countersigned is None or seq > self.countersigned.seq:
            body = {"dataset": self._names[0], "seq": seq, "head": head, "signature": signature.hex(), "run": run}
            countersigned = bind(Countersigned, body, "head", PrivacyError)
            write_private(self._path.with_suffix(".head"), seal(body, self._key))
            self.countersigned = countersigned

    def save_head(self, name: str) -> None:
        """Put the countersigned head, if there is one, where the ledger `name` has it."""
        if self.countersigned is not None:
            body = dataclasses.asdict(dataclasses.replace(self.countersigned, dataset=name))
            write_private(self._path.with_name(f"{name}.head"), seal(body, self._key))

    def set_mark(self, seq: int, head: str) -> RolledBack:
        """Remember over restarts that the ledger lacks entry `seq` with `head`; on disk when this returns."""
        if self.mark is None or seq > self.mark.seq:
            body = {"dataset": self._names[0], "seq": seq, "head": head}
            self.mark = bind(RolledBack, body, "mark", PrivacyError)
            write_private(self._path.with_suffix(MARK), seal(body, self._key))
        return self.mark

    def clear_mark(self) -> RolledBack | None:
        """Forget that the ledger was rolled back, now that it is whole. Raises PrivacyError if it is not."""
        if self.mark is not None:
            if not self.has(self.mark.seq, self.mark.head):
                raise PrivacyError(f"{self._path}: {self.mark}")
            self._path.with_suffix(MARK).unlink()
            sync_folder(self._path.parent)
        mark, self.mark = self.mark, None
        return mark

    def reread(self) -> list[Line]:
        """All entries as they stand on disk, checked in full. Raises PrivacyError if they are not what was written."""
        lines, _ = read_lines(self._file, self._path, self._key)
        heads = [line.head for line in lines]
        _check_head(self._path, _load_head(self._path, self._key), heads)
        if heads != self._heads:
            raise PrivacyError(f"{self._path}: ends at line {len(heads)}, {len(self._heads)} were written")
        return lines

    def close(self) -> None:
        os.close(self._file)

    def _check_place(self) -> None:
        """Raises PrivacyError if somebody put another file in this one's place, or wrote to it, since it was opened."""
        opened, on_disk = os.fstat(self._file), self._path.lstat() if self._path.exists() else None
        if on_disk is None or not os.path.samestat(opened, on_disk) or opened.st_size != self._size:
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


def _load_head(ledger: Path, key: bytes) -> Countersigned | None:
    return _sealed(Countersigned, ledger.with_suffix(".head"), ledger, key)


def _sealed(kind: type[Kept], path: Path, ledger: Path, key: bytes) -> Kept | None:
    """What a sealed file beside `ledger` says, if it is there. Raises PrivacyError."""
    if not path.exists():
        return None
    try:
        content = bind(kind, unseal(read_private(path), key), path.suffix[1:], PrivacyError)
    except PrivacyError as error:
        raise PrivacyError(f"{path}: {error}") from error
    if content.dataset != ledger.stem:
        raise PrivacyError(f"{path}: is of the population '{content.dataset}'")
    return content


def _check_name(path: Path, lines: list[Line], names: tuple[str, ...]) -> None:
    """Raises PrivacyError unless the ledger is of the population that its file is named after."""
    if name_of(lines) not in names:
        raise PrivacyError(
            f"{path}: is the ledger of the population '{name_of(lines)}'; a renaming that was cut short is finished by "
            f"`sovfed client ledger adopt {path.stem}`"
        )


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
    status = os.fstat(file)
    if not stat.S_ISREG(status.st_mode) or status.st_mode & 0o177 or status.st_uid != os.geteuid():
        os.close(file)
        raise PrivacyError(f"{path}: mode {status.st_mode & 0o7777:04o}, expected 0600 and owned by this user")
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
    sync_folder(path.parent)
