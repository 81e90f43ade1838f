"""Bytes in a file without a name, for vectors that are too long to be in a process more often than they must.

A file in memory (memfd_create(2)) goes from one process to another by its descriptor, uncopied, and sealed first:
nobody can then write into it, or cut it short under a reader's hands. One on disk holds what need not be in memory at
all. `origin` tells where a vector lies that is a view of such a file, so that it can be passed on, or be read piece by
piece, without becoming part of this process.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import stat
import tempfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from sovfed.federation.errors import ProtocolError, ServiceError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PIECE_BYTES: Final = 1 << 20
MOST_SHIFT: Final = 7  # bytes before a message in its file, for what is in it to be aligned
_SEALABLE: Final = hasattr(os, "memfd_create")  # Linux
_FLAGS: Final = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING if _SEALABLE else 0
_NOT_EXECUTED: Final = 8  # MFD_NOEXEC_SEAL
_SIZE_SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW if _SEALABLE else 0
_ALL_SEALS: Final = _SIZE_SEALS | fcntl.F_SEAL_WRITE if _SEALABLE else 0


class Stored:
    """A file of `size` bytes that is gone with this object, unless another process holds it too.

    `descriptor` is owned by it.
    """

    def __init__(self, descriptor: int, size: int, *, on_disk: bool = False) -> None:
        self.descriptor, self.size, self.on_disk = descriptor, size, on_disk

    def __del__(self) -> None:
        os.close(self.descriptor)

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Raises OSError where there is no room for it."""
        view = memoryview(data)
        while view:
            written = os.pwrite(self.descriptor, view, offset)
            view, offset = view[written:], offset + written

    def read(self, offset: int, length: int) -> bytes:
        """Raises ServiceError if the file ends before."""
        pieces = []
        while length:
            piece = os.pread(self.descriptor, length, offset)
            if not piece:
                raise ServiceError(f"a file of {self.size} bytes ends at {offset}")
            pieces.append(piece)
            length, offset = length - len(piece), offset + len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def seal(self) -> None:
        """From now on nobody can write into it; one on disk only this process could, and does not."""
        if _SEALABLE and not self.on_disk:
            fcntl.fcntl(self.descriptor, fcntl.F_ADD_SEALS, _ALL_SEALS | fcntl.F_SEAL_SEAL)

    def view(self) -> memoryview:
        """The file as memory, a page of which is in this process once it was looked at. Not to be written into."""
        return memoryview(_Map.of(self))


class _Map(mmap.mmap):
    """A private, read-only mapping; a shared one could not be made of a sealed file before Linux 6.7."""

    stored: Stored

    @classmethod
    def of(cls, stored: Stored) -> _Map:
        mapping = cls(stored.descriptor, stored.size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ)
        mapping.stored = stored
        return mapping


def in_memory(size: int) -> Stored:
    """A new file in memory, which takes none until it is written into. Raises OSError."""
    if not _SEALABLE:
        return on_disk(None, size)
    try:
        descriptor = os.memfd_create("sovfed", _FLAGS | _NOT_EXECUTED)
    except OSError:  # Linux before 6.3 knows no such flag, and later ones may be told to make none without it
        descriptor = os.memfd_create("sovfed", _FLAGS)
    stored = Stored(descriptor, size)
    os.ftruncate(stored.descriptor, size)
    fcntl.fcntl(stored.descriptor, fcntl.F_ADD_SEALS, _SIZE_SEALS)
    return stored


def on_disk(folder: Path | None, size: int) -> Stored:
    """A new file on the disk of `folder`, which has room for all of it. Raises OSError if there is none."""
    with tempfile.TemporaryFile(dir=folder) as file:
        os.posix_fallocate(file.fileno(), 0, size)
        return Stored(os.dup(file.fileno()), size, on_disk=True)


def spooled(folder: Path | None, size: int) -> Stored:
    """A new file on the disk of `folder` for `size` bytes, which takes what is written into it and no more.

    Raises OSError where there is no room for all of it now.
    """
    with tempfile.TemporaryFile(dir=folder) as file:
        disk = os.fstatvfs(file.fileno())
        if disk.f_bavail * disk.f_frsize < size:
            raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)}: {size} bytes")
        return Stored(os.dup(file.fileno()), size, on_disk=True)


def handed_over(descriptor: int, most_bytes: int) -> Stored:
    """The sealed file that another process has handed over, which may be at most `most_bytes` long.

    Raises ProtocolError on anything else, and ServiceError if it is longer; it is closed then.
    """
    status = os.fstat(descriptor)
    stored = Stored(descriptor, status.st_size)
    if not stat.S_ISREG(status.st_mode) or not status.st_size:
        raise ProtocolError("a descriptor that is no file, or of an empty one")
    if status.st_size > most_bytes:
        raise ServiceError(f"a file of {status.st_size} bytes, limit is {most_bytes}")
    try:
        seals = fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) if _SEALABLE else 0
    except OSError as error:
        raise ProtocolError("a file that cannot be sealed") from error
    if seals & _ALL_SEALS != _ALL_SEALS:
        raise ProtocolError("a file that somebody may still write into")
    return stored


@dataclass(frozen=True)
class Stretch:
    """`length` bytes of a file, from `offset` on."""

    stored: Stored
    offset: int
    length: int

    def read(self, start: int, length: int) -> bytes:
        """At most `length` bytes from `start` on."""
        return self.stored.read(self.offset + start, min(length, self.length - start))


def origin(data: memoryview | npt.NDArray[Any]) -> Stretch | None:
    """Where contiguous `data` lies, if that is a file; None for what is in memory alone."""
    base: Any = data
    while True:
        if isinstance(base, np.ndarray):
            base = base.base
        elif isinstance(base, memoryview):
            base = base.obj
        else:
            break
    if not isinstance(base, _Map):
        return None
    return Stretch(base.stored, _address(data) - _address(memoryview(base)), data.nbytes)


def _address(data: memoryview | npt.NDArray[Any]) -> int:
    array = data if isinstance(data, np.ndarray) else np.frombuffer(data, np.uint8)
    return int(array.__array_interface__["data"][0])


class Draft:
    """Room in this process for a vector of `size` values, which are undefined until they are written."""

    def __init__(self, size: int, dtype: npt.DTypeLike) -> None:
        self.values: npt.NDArray[Any] = np.empty(size, dtype)

    def finish(self) -> npt.NDArray[Any]:
        """The vector, once it is written and nobody holds `values` any more."""
        return self.values


class FileDraft(Draft):
    """The same in a file of memory: the vector goes to another process as it is, sealed where it was written."""

    def __init__(self, size: int, dtype: npt.DTypeLike) -> None:
        """Raises OSError where there is no room for it."""
        self._stored = in_memory(size * np.dtype(dtype).itemsize)
        self._mapping = mmap.mmap(self._stored.descriptor, self._stored.size)
        self.values = np.frombuffer(self._mapping, dtype)

    def finish(self) -> npt.NDArray[Any]:
        """The vector. Raises BufferError where somebody could still write into it."""
        dtype, self.values = self.values.dtype, np.empty(0, np.uint8)
        self._mapping.close()
        self._stored.seal()
        return np.frombuffer(self._stored.view(), dtype)


def draft(size: int, dtype: npt.DTypeLike) -> Draft:
    """Room for a vector that leaves this process: in a file, if it is long."""
    return (FileDraft if size * np.dtype(dtype).itemsize > PIECE_BYTES else Draft)(size, dtype)


class Pieces:
    """`vector` by slices; one that lies in a file is read from there, and does not become part of this process."""

    def __init__(self, vector: npt.NDArray[Any]) -> None:
        self._vector = vector
        self._stretch = origin(vector) if vector.nbytes > PIECE_BYTES else None

    def __getitem__(self, where: slice) -> npt.NDArray[Any]:
        view = self._vector[where]
        if self._stretch is None:
            return view
        start = where.indices(self._vector.size)[0] * view.itemsize
        return np.frombuffer(self._stretch.read(start, view.nbytes), view.dtype)

    def __iter__(self) -> Iterator[npt.NDArray[Any]]:
        """All of it, a MiB at a time if it lies in a file."""
        if self._stretch is None:
            return iter((self._vector,) if self._vector.size else ())
        step = max(1, PIECE_BYTES // self._vector.itemsize)
        return (self[start : start + step] for start in range(0, self._vector.size, step))


class Plot:
    """Room for a message of `size` bytes that comes in order; kept in `stored`, or in this process without."""

    def __init__(self, size: int, stored: Stored | None = None, shift: int = 0) -> None:
        """The message begins at `shift`, for what is in it to be aligned; a file must be longer by so much."""
        self._stored, self._shift = stored, shift
        self.owner = np.empty(0 if stored else size + shift, np.uint8)  # of the memory, without a file
        self._memory = self.owner.data

    def write(self, offset: int, data: memoryview) -> None:
        """Raises OSError where there is no room for it."""
        start = self._shift + offset
        if self._stored is None:
            self._memory[start : start + len(data)] = data
        else:
            self._stored.write(start, data)

    def whole(self) -> memoryview:
        """The message, once it is here; nothing may be written any more."""
        if self._stored is None:
            return self._memory[self._shift :].toreadonly()
        self._stored.seal()
        return self._stored.view()[self._shift :]
