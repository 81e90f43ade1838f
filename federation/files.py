"""Files that must be whole or secret: written in one step, read only while nobody else can read them."""

from __future__ import annotations

import contextlib
import difflib
import errno
import fcntl
import json
import os
import re
import stat
import tempfile
import time
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any, Final

from sovfed.federation.errors import (
    ConfigError,
    EvidenceError,
    IdentityError,
    NotReadNowError,
    ServiceError,
    SovfedError,
)

MAX_FILE_BYTES: Final = 4 * 1024 * 1024  # of a key, certificate or revocation list
LOOKED_AT: Final = 10_000  # names of a folder
LOCKED_S, LOOK_S = 30.0, 0.02  # for which a folder's lock is waited for, and between two looks
PASSING: Final = frozenset({
    errno.EAGAIN, errno.EINTR, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE, errno.ETIMEDOUT,
})  # fmt: skip  # of reading a file: no descriptor, memory or answer of a disk or share to be had


def write_atomic(path: Path, data: bytes, mode: int = 0o644, *, durable: bool = True) -> None:
    """Put `data` at `path` in one step, on disk before this returns: readers see the old or the new, never half.

    What is not `durable` may be lost if the machine stops.
    """
    handle, draft = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(data)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        Path(draft).replace(path)
    except BaseException:
        Path(draft).unlink(missing_ok=True)
        raise
    if durable:
        sync_folder(path.parent)


def not_there(path: Path) -> str:
    """What to say of a file that is not there: where it was looked for, and what lies there under such a name."""
    folder = path.absolute().parent
    if not folder.is_dir():
        return f"{path}: no such file: there is no folder {folder}"
    alike = (child.name for child in folder.iterdir() if child.suffix == path.suffix)
    close = difflib.get_close_matches(path.name, list(islice(alike, LOOKED_AT)), n=1, cutoff=0.5)
    looked = "" if path.is_absolute() else f" in {folder}"
    return f"{path}: no such file{looked}" + (f" (did you mean '{path.with_name(close[0])}'?)" if close else "")


def sync_folder(path: Path) -> None:
    """Have what the folder lists on disk."""
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A draft for safetensors to write that takes the place of `path` as the block ends, on disk before that returns.

    As with `write_private` readers see the old or the new, and only the owner reads it. What cannot be written, as on a
    full disk, is an OSError, as with any file.
    """
    from safetensors import SafetensorError

    try:
        with _replacing(path) as draft:
            yield draft
    except SafetensorError as error:
        raise OSError(errno.EIO, str(error), str(path)) from error


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    draft = Path(name)
    try:
        yield draft
        written = os.open(draft, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fchmod(written, 0o600)
            os.fsync(written)
        finally:
            os.close(written)
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    finally:
        os.close(handle)
    sync_folder(path.parent)


def drafts(folder: Path, of: str = "") -> list[Path]:
    """What processes that died while they were writing a file have left in `folder`: all, or those `of` that file.

    safetensors names its own after no file: they are of any.
    """
    named = re.compile(rf"\.{re.escape(of) or '.+'}\.[a-z0-9_]{{8}}|\.tmp\w{{6}}")
    return sorted(path for path in folder.glob(".*") if named.fullmatch(path.name) and path.is_file())


def check_writable(*paths: Path | None) -> None:
    """Raise ConfigError, before any work is done, if a file could not be written afterwards."""
    for path in paths:
        if path is not None and (not path.absolute().parent.is_dir() or not os.access(path.absolute().parent, os.W_OK)):
            raise ConfigError(f"{path}: its folder does not exist or cannot be written")


def check_new(path: Path) -> None:
    """`check_writable`, and raise ConfigError if there is something already: it would be lost."""
    check_writable(path)
    if path.exists():
        raise ConfigError(f"{path} exists; choose another name")


def not_read(path: Path, error: OSError, otherwise: SovfedError) -> SovfedError:
    """What to raise where `path` could not be read for `error`: NotReadNowError if that passes, `otherwise` if not.

    A process that ends for good over a file must not do so because the machine was short of something.
    """
    if error.errno not in PASSING:
        return otherwise
    return NotReadNowError(f"{path}: cannot be read now: {error.strerror or error}")


def write_private(path: Path, data: bytes) -> None:
    """`write_atomic`, readable by the owner alone from its first byte."""
    write_atomic(path, data, 0o600)


def stamp(path: Path | str) -> tuple[int, int, int] | None:
    """What changes when the file or folder at `path` does, its mode included; None if it cannot be looked at."""
    try:
        status = os.stat(path)  # noqa: PTH116 - a Path takes longer to make
    except OSError:
        return None
    return status.st_ctime_ns, status.st_size, status.st_ino


def read_private(path: Path) -> bytes:
    """The bytes of a secret file; refuses one that another user could read, or that is not a plain file of ours."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise not_read(path, error, IdentityError(f"{path}: secret file missing or not readable")) from error
    with os.fdopen(handle, "rb") as file:
        status = os.fstat(file.fileno())
        if status.st_mode & 0o177077 != 0o100000 or status.st_uid != os.geteuid():
            raise IdentityError(f"{path}: mode {status.st_mode & 0o7777:04o}, expected 0600 and owned by this user")
        return file.read(MAX_FILE_BYTES)


@contextlib.contextmanager
def create_private(path: Path) -> Iterator[IO[bytes]]:
    """A new file at `path`, the owner's alone from its first byte; gone again if the block fails.

    Raises ConfigError if something is there already, or it cannot be made.
    """
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; choose a new file") from error
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
    except BaseException:
        path.unlink()
        raise


def private_directory(path: Path) -> Path:
    """`path`, made with mode 0700 if missing; ServiceError if it exists and anyone else may enter it."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = path.stat()
    if status.st_mode & 0o077 or status.st_uid != os.geteuid():
        raise ServiceError(f"{path}: mode {status.st_mode & 0o7777:04o}, expected 0700 and owned by this user")
    return path


def open_plain(path: Path) -> IO[bytes]:
    """The file `path`, to be read, that somebody else has put there. Raises OSError.

    Nothing but a plain file is opened: a link may lead anywhere, and a pipe is waited for without end.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "no plain file", str(path))
    return os.fdopen(handle, "rb")


def read_plain(path: Path) -> bytes:
    """The bytes of the plain file `path`, at most 4 MiB, as `open_plain`; raises IdentityError."""
    try:
        with open_plain(path) as file:
            return file.read(MAX_FILE_BYTES)
    except OSError as error:
        raise not_read(path, error, IdentityError(f"{path}: missing, no plain file or not readable")) from error


def read_whole(path: Path, most: int) -> bytes:
    """The bytes of the file `path`, which somebody else made. Raises EvidenceError if it has more than `most`."""
    try:
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode) or status.st_size > most:
                raise EvidenceError(f"{path}: no file of at most {most} bytes")
            return file.read(status.st_size)
    except OSError as error:
        raise not_read(path, error, EvidenceError(f"{path}: not readable")) from error


def read_object(path: Path, needed: Mapping[str, Any] = MappingProxyType({}), otherwise: str = "") -> dict[str, Any]:
    """The JSON object in `path`, which a process of ours wrote whole; `needed`: keys and the types of their values.

    Raises ConfigError where a disk or a hand has left something else; it says to restore it, or do what `otherwise`
    says.
    """
    try:
        values = json.loads(path.read_bytes())
    except ValueError:
        values = None
    if isinstance(values, dict) and all(isinstance(values.get(key), kind) for key, kind in needed.items()):
        return values
    raise damaged(path, otherwise)


def damaged(path: Path, otherwise: str = "") -> ConfigError:
    """What to raise where the file `path`, which a process of ours wrote whole, is something else."""
    more = f", or {otherwise}" if otherwise else ""
    return ConfigError(
        f"{path} is damaged: what a disk or a hand has left is not what was written; restore it from a backup{more}"
    )


def read_bounded(path: Path) -> bytes:
    """The bytes of the public file `path`, at most 4 MiB; raises IdentityError."""
    try:
        with path.open("rb") as file:
            return file.read(MAX_FILE_BYTES)
    except OSError as error:
        raise not_read(path, error, IdentityError(f"{path}: missing or not readable")) from error


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """While a file in `folder` is read and written anew, no other who asks for the same does; who does now is awaited.

    Else, of two at once, one would be written over unseen. Raises ConfigError if that one takes longer than LOCKED_S:
    whoever may read a folder can lock it.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        end = time.monotonic() + LOCKED_S
        while not _locked(descriptor):
            if time.monotonic() > end:
                raise ConfigError(f"{folder}: somebody has held it locked for {LOCKED_S:g} s (`lslocks` says who)")
            time.sleep(LOOK_S)
        yield
    finally:
        os.close(descriptor)


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
