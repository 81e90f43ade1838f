from __future__ import annotations

import os
import threading
from dataclasses import replace

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from sovfed.federation.errors import ServiceError
from sovfed.federation.secagg import mask
from sovfed.federation.secagg.mask import (
    HEADER_SEGMENT,
    SEGMENT_WORDS,
    Backend,
    MaskSum,
    Scratch,
    Stream,
    Words,
    apply,
    apply_all,
    apply_header,
    fastest,
    hash_vector,
)


def by_definition(key: bytes, size: int) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    """G(key) with counter mode, segment by segment."""
    parts = []
    for segment in range(-(-size // SEGMENT_WORDS)):
        block = segment.to_bytes(12, "big") + (2).to_bytes(4, "big")
        cipher = Cipher(algorithms.AES256(key), modes.CTR(block)).encryptor()
        parts.append(np.frombuffer(cipher.update(bytes(8 * SEGMENT_WORDS)), np.uint64))
    return np.concatenate(parts)[:size]


@pytest.mark.parametrize("size", [1, 7, SEGMENT_WORDS, 2 * SEGMENT_WORDS + 12_345])
def test_kernel_equals_the_definition(size: int) -> None:
    words = np.arange(size, dtype=np.uint64)
    plus, minus = os.urandom(32), os.urandom(32)
    apply_all(words, [Stream(plus), Stream(minus, add=False)])
    expected = np.arange(size, dtype=np.uint64) + by_definition(plus, size) - by_definition(minus, size)
    assert np.array_equal(words, expected)


@pytest.mark.parametrize("backend", ["gcm", "ctr"])
@pytest.mark.parametrize("size", [1, 8, 4_097, SEGMENT_WORDS])
def test_both_backends_make_the_defined_keystream(backend: Backend, size: int) -> None:
    key, scratch = os.urandom(32), Scratch(backend=backend)
    for segment in (3, 0, HEADER_SEGMENT, 3):  # a cipher is used for many segments, in any order
        words: Words = np.zeros(size, np.uint64)
        apply(words, segment, [Stream(key)], scratch)
        block = segment.to_bytes(12, "big") + (2).to_bytes(4, "big")
        plain = Cipher(algorithms.AES256(key), modes.CTR(block)).encryptor().update(bytes(8 * size))
        assert words.tobytes() == plain


def test_backends_that_disagree_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a build of OpenSSL whose wide counter mode was wrong: the last block of a segment differs."""
    honest = Scratch._ctr

    def wrong(scratch: Scratch, key: bytes) -> object:
        fill = honest(scratch, key)

        def filled(segment: int, zeros: memoryview) -> None:
            fill(segment, zeros)
            scratch.words[len(zeros) // 8 - 1] ^= np.uint64(1)

        return filled

    monkeypatch.setattr(Scratch, "_ctr", wrong)
    with pytest.raises(ServiceError, match="different keystreams"):
        fastest.__wrapped__()


@pytest.mark.parametrize("slow", ["gcm", "ctr"])
def test_the_faster_backend_is_chosen(slow: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = Scratch.keystream

    def keystream(scratch: Scratch, key: bytes, segment: int, size: int) -> Words:
        if scratch._make.__name__ == f"_{slow}":
            for _ in range(20):
                honest(scratch, key, segment, size)
        return honest(scratch, key, segment, size)

    monkeypatch.setattr(Scratch, "keystream", keystream)
    assert fastest.__wrapped__() == {"gcm": "ctr", "ctr": "gcm"}[slow]


def test_a_mask_sum_is_the_masks_and_stands_still_once_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mask, "_WORTH_AHEAD", 0)
    streams, size = [Stream(os.urandom(32), index % 2 == 0) for index in range(5)], 40 * SEGMENT_WORDS + 5
    expected = np.zeros(size, np.uint64)
    apply_all(expected, streams)
    sums = MaskSum(size, streams)
    sums.start()
    done = sums.stop()
    ready, rest = sums.words[: done * SEGMENT_WORDS], sums.words[done * SEGMENT_WORDS :].copy()
    assert np.array_equal(ready, expected[: done * SEGMENT_WORDS])
    assert sums._thread is not None and not sums._thread.is_alive()
    sums.run()  # stopped for good
    assert sums.stop() == done and np.array_equal(rest, sums.words[done * SEGMENT_WORDS :])
    whole = MaskSum(size, streams)
    whole.run()
    assert whole.stop() == 41 and np.array_equal(whole.words, expected)


def test_without_a_thread_nothing_is_made_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(mask, "_WORTH_AHEAD", 0)
    monkeypatch.setattr(threading.Thread, "start", refused)
    sums = MaskSum(SEGMENT_WORDS, [Stream(os.urandom(32))])
    sums.start()
    assert sums.stop() == 0


def test_inverse_streams_cancel() -> None:
    streams = [Stream(os.urandom(32), index % 2 == 0) for index in range(5)]
    words = np.arange(3 * SEGMENT_WORDS + 1, dtype=np.uint64)
    apply_all(words, streams)
    assert not np.array_equal(words, np.arange(words.size, dtype=np.uint64))
    apply_all(words, [replace(stream, add=not stream.add) for stream in streams])
    assert np.array_equal(words, np.arange(words.size, dtype=np.uint64))


def test_threads_do_not_change_the_result() -> None:
    streams = [Stream(os.urandom(32)) for _ in range(3)]
    results = []
    for threads in (1, 2, 3):
        words = np.zeros(5 * SEGMENT_WORDS + 5, np.uint64)
        apply_all(words, streams, threads)
        results.append(words)
    assert np.array_equal(results[0], results[1]) and np.array_equal(results[0], results[2])


def test_header_masks_are_of_their_own_segment() -> None:
    key = os.urandom(32)
    header, words = np.zeros(8, np.uint64), np.zeros(8, np.uint64)
    apply_header(header, [Stream(key)])
    apply_all(words, [Stream(key)])
    assert not np.any(header == words)


def test_vector_digest_tells_length_type_and_content() -> None:
    model = np.zeros(300_000, np.float32)
    other = model.copy()
    other[-1] = -0.0
    digests = {hash_vector(v) for v in (model, other, model[:-1], model.astype(np.float64), model.view(np.int32))}
    assert len(digests) == 5
    assert hash_vector(model[:0]) != hash_vector(model[:1])
    assert hash_vector(np.repeat(model, 2)[::2]) == hash_vector(model)
