from __future__ import annotations

import os

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from sovfed.federation.secagg.mask import SEGMENT_WORDS, Stream, apply_all, apply_header, hash_vector


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


def test_inverse_streams_cancel() -> None:
    streams = [Stream(os.urandom(32), index % 2 == 0) for index in range(5)]
    words = np.arange(3 * SEGMENT_WORDS + 1, dtype=np.uint64)
    apply_all(words, streams)
    assert not np.array_equal(words, np.arange(words.size, dtype=np.uint64))
    apply_all(words, [stream.inverse() for stream in streams])
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
