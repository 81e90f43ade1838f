"""The keystream kernel: adds G(key) to, or takes it from, a vector of 64-bit words, in place.

G(key) is the AES-256-CTR keystream whose segment s (256 KiB) starts at counter block be96(s) ‖ be32(2), read as
little-endian words. That is also what AES-256-GCM with nonce be96(s) makes of zeros. Which of the two is faster depends
on the processor, by a factor of two either way: with AVX-512 OpenSSL has wide AES for GCM and not yet for counter
mode, without it GCM is the slow one. Both are tried once; the last nonce is reserved for headers.

A segment and its buffers stay in the L2 cache while all keystreams pass over it; the cipher and numpy release the
GIL, so two threads use two cores on vectors of 8 MiB and more. No temporary is as long as the vector.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Final, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from blake3 import blake3
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from sovfed.federation.errors import ServiceError
from sovfed.federation.secagg.keys import digest
from sovfed.federation.stored import Draft, Pieces

Words: TypeAlias = npt.NDArray[np.uint64]
Backend: TypeAlias = Literal["gcm", "ctr"]
MakeDraft: TypeAlias = Callable[[int, npt.DTypeLike], Draft]
SEGMENT_WORDS: Final = 1 << 15  # 256 KiB
HEADER_SEGMENT: Final = 2**96 - 1
THREADS: Final = 2
_WORTH_THREADS: Final = 32  # segments; below, handing the interpreter's lock to and fro costs more than it gains
_WORTH_AHEAD: Final = 1 << 21  # words of keystream, about 3 ms; a thread for less is not worth its start
_TAG: Final = 16
_ZEROS: Final = memoryview(bytes(8 * SEGMENT_WORDS))
_FIRST_BLOCK: Final = (2).to_bytes(4, "big")  # GCM keeps block 1 for its tag
_BACKENDS: Final[tuple[Backend, ...]] = ("gcm", "ctr")


@dataclass(frozen=True)
class Stream:
    """A keystream and whether it is added or taken away."""

    key: bytes = field(repr=False)
    add: bool = True


class Scratch:
    """One thread's ciphers, and its buffer for the keystream of a segment."""

    def __init__(self, words: int = SEGMENT_WORDS, backend: Backend | None = None) -> None:
        self.words: Words = np.empty(words + _TAG // 8, np.uint64)
        self._view = self.words.data.cast("B")
        self._make = {"gcm": self._gcm, "ctr": self._ctr}[backend or fastest()]
        self._fills: dict[bytes, Callable[[int, memoryview], object]] = {}

    def keystream(self, key: bytes, segment: int, size: int) -> Words:
        """The first `size` words of the segment of G(`key`), in this buffer."""
        fill = self._fills.get(key)
        if fill is None:
            fill = self._fills[key] = self._make(key)
        fill(segment, _ZEROS[: 8 * size])
        return self.words[:size]

    def _gcm(self, key: bytes) -> Callable[[int, memoryview], object]:
        cipher, view = AESGCM(key), self._view
        return lambda segment, zeros: cipher.encrypt_into(
            segment.to_bytes(12, "big"), zeros, None, view[: len(zeros) + _TAG]
        )

    def _ctr(self, key: bytes) -> Callable[[int, memoryview], object]:
        cipher, view = Cipher(algorithms.AES256(key), modes.CTR(bytes(16))).encryptor(), self._view

        def fill(segment: int, zeros: memoryview) -> None:
            cipher.reset_nonce(segment.to_bytes(12, "big") + _FIRST_BLOCK)
            cipher.update_into(zeros, view[: len(zeros)])

        return fill


@cache
def fastest() -> Backend:
    """The backend that this processor runs faster, by a trial of a millisecond; GCM unless CTR gains a tenth.

    Raises ServiceError if the two make different bytes: one of them is broken, and which one nobody can tell.
    """
    key, seconds, keystreams = os.urandom(32), dict.fromkeys(_BACKENDS, 1.0), dict.fromkeys(_BACKENDS, b"")
    scratches = {backend: Scratch(backend=backend) for backend in _BACKENDS}
    for segment in range(3):
        for backend, scratch in scratches.items():
            started = time.thread_time()
            words = scratch.keystream(key, segment, SEGMENT_WORDS - segment)
            seconds[backend] = min(seconds[backend], time.thread_time() - started)
            keystreams[backend] = words.tobytes()
        if keystreams["gcm"] != keystreams["ctr"]:
            raise ServiceError("AES-256: this installation's GCM and counter mode give different keystreams")
    return "ctr" if seconds["ctr"] < 0.9 * seconds["gcm"] else "gcm"


def apply(words: Words, segment: int, streams: Sequence[Stream], scratch: Scratch) -> None:
    """Pass all `streams` over one segment (at most 2^15 words), modulo 2^64."""
    for stream in streams:
        mask = scratch.keystream(stream.key, segment, words.size)
        (np.add if stream.add else np.subtract)(words, mask, words)


def for_segments(
    size: int, work: Callable[[int, slice, Any], None], scratch: Callable[[], Any] = Scratch, threads: int = THREADS
) -> None:
    """Call `work(segment, its slice of the words, this thread's scratch)` for every segment of `size` words."""
    count = -(-size // SEGMENT_WORDS)

    def run(first: int, step: int) -> None:
        own = scratch()
        for segment in range(first, count, step):
            work(segment, slice(segment * SEGMENT_WORDS, min(size, (segment + 1) * SEGMENT_WORDS)), own)

    if count < _WORTH_THREADS or threads < 2:
        run(0, 1)
        return
    with ThreadPoolExecutor(threads) as pool:
        for future in [pool.submit(run, thread, threads) for thread in range(threads)]:
            future.result()


def apply_all(words: Words, streams: Sequence[Stream], threads: int = THREADS) -> None:
    """Pass all `streams` over the whole vector."""

    def work(segment: int, where: slice, scratch: Scratch) -> None:
        apply(words[where], segment, streams, scratch)

    for_segments(words.size, work, Scratch, threads)


def apply_header(words: Words, streams: Sequence[Stream], scratch: Scratch | None = None) -> None:
    """Pass all `streams` over the header, from the reserved segment."""
    apply(words, HEADER_SEGMENT, streams, scratch or Scratch(words.size))


class MaskSum:
    """±`streams` summed into `words` (shape [size]) ahead of the update that they will hide, segment by segment.

    `run` does it here and `start` in a thread, until `stop`. One thread, since the update is being trained meanwhile.
    """

    def __init__(
        self, size: int, streams: Sequence[Stream], scratch: Scratch | None = None, draft: MakeDraft = Draft
    ) -> None:
        """`draft` makes room for the words, which the update is added to later."""
        self._draft = draft(size, np.uint64)
        self.words: Words = self._draft.values
        self.streams, self.scratch = tuple(streams), scratch or Scratch()
        self._done, self._stopped = 0, threading.Event()
        self._thread: threading.Thread | None = None

    def run(self) -> None:
        for first in range(0, self.words.size, SEGMENT_WORDS):
            if self._stopped.is_set():
                return
            block = self.words[first : first + SEGMENT_WORDS]
            block[:] = 0
            apply(block, first // SEGMENT_WORDS, self.streams, self.scratch)
            self._done += 1

    def start(self) -> None:
        """`run` in a thread, if there is enough to do for one and the process may have it."""
        if self.words.size * len(self.streams) < _WORTH_AHEAD:
            return
        thread = threading.Thread(target=self.run, name="masks")
        with suppress(RuntimeError):  # the system's limit of threads
            thread.start()
            self._thread = thread

    def stop(self) -> int:
        """How many segments, from the first, hold their sum; the others hold anything. Nothing is written any more."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join()
        return self._done

    def finish(self) -> Words:
        """The words, once the update is in them. There are none here from now on."""
        self.words = np.empty(0, np.uint64)
        return self._draft.finish()


def tag(cipher: AESGCM, segment: int, words: Words) -> bytes:
    """GMAC of one segment, 16 bytes: integrity at 25 GB/s where SHA-256 gives 1.6."""
    return cipher.encrypt(segment.to_bytes(12, "big"), b"", words.data.cast("B"))


def hash_vector(vector: npt.NDArray[Any]) -> bytes:
    """A digest of a flat vector, its dtype and its length, by BLAKE3: four times as fast as SHA-256 on one core."""
    content = blake3()
    for piece in Pieces(np.ascontiguousarray(vector).reshape(-1)):
        content.update(piece.view(np.uint8).data)
    return digest("vector", vector.dtype.str.encode(), vector.size.to_bytes(8, "big"), content.digest())
