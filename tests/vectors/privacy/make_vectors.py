"""Makes the known-answer vectors beside it, straight from the description: nothing of the package is imported.

    python tests/vectors/privacy/make_vectors.py

Probabilities come from mpmath, AES from single blocks, and every sample is decided alone with Python's integers.
"""

import bisect
import hashlib
import json
import math
import struct
from fractions import Fraction
from pathlib import Path

import mpmath  # type: ignore[import-untyped]
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

HERE = Path(__file__).parent
mpmath.mp.dps = 70


class Stream:
    """Counter mode, written out."""

    def __init__(self, key: bytes) -> None:
        self.block = Cipher(algorithms.AES256(key), modes.ECB()).encryptor()  # noqa: S305 - single blocks
        self.counter, self.rest = 0, b""

    def take(self, size: int) -> bytes:
        while len(self.rest) < size:
            blocks = b"".join((self.counter + i).to_bytes(16, "big") for i in range(4096))
            self.counter += 4096
            self.rest += self.block.update(blocks)
        taken, self.rest = self.rest[:size], self.rest[size:]
        return taken


def thresholds(variance: Fraction) -> tuple[int, list[int]]:
    reach = math.ceil(math.sqrt(2 * 121 * math.log(2) * variance))
    v = mpmath.mpf(variance.numerator) / variance.denominator
    weights = [mpmath.exp(-mpmath.mpf(x * x) / (2 * v)) for x in range(-reach, reach + 1)]
    total, sums = mpmath.fsum(weights), []
    running = mpmath.mpf(0)
    for weight in weights[:-1]:
        running += weight
        sums.append(int(mpmath.floor(running / total * 2**128)))
    return reach, sums


def draw(stream: Stream, table: tuple[int, list[int]], size: int) -> list[int]:
    reach, sums = table
    cells = struct.unpack(f"<{size}H", stream.take(2 * size))
    values = []
    for cell in cells:
        low = bisect.bisect_right(sums, cell << 112)
        high = bisect.bisect_right(sums, (cell + 1 << 112) - 1)
        values.append(low if low == high else None)
    for i, value in enumerate(values):
        if value is None:
            first, second = struct.unpack("<QQ", stream.take(16))
            values[i] = bisect.bisect_right(sums, cells[i] << 112 | (first & 2**48 - 1) << 64 | second)
    return [value - reach for value in values if value is not None]


def discrete_gaussian(key: bytes, variance: int, size: int) -> list[int]:
    fine, coarse, levels = Fraction(6 * 64**2), Fraction(variance), 0
    while coarse > 2**17:
        coarse, levels = (coarse - fine) / 64**2, levels + 1
    stream, result = Stream(key), []
    top, bottom = thresholds(coarse), thresholds(fine)
    for start in range(0, size, 1 << 15):
        count = min(1 << 15, size - start)
        part = draw(stream, top, count)
        digits = draw(stream, bottom, levels * count) if levels else []
        for level in range(levels):
            part = [64 * x + y for x, y in zip(part, digits[level * count : (level + 1) * count], strict=True)]
        result += part
    return result


cases = []
for name, variance, size in (
    ("one table", 16, 40_000),
    ("one table, wide", 100_003, 3_000),
    ("two tables", 1_000_003, 3_000),
    ("three tables, two chunks", 2**32 + 12_345, 33_000),
    ("four tables", 2**50 + 1, 1_000),
    ("six tables", 2**70 + 7, 500),
):
    key = hashlib.sha256(name.encode()).digest()
    values = discrete_gaussian(key, variance, size)
    cases.append({
        "name": name, "key": key.hex(), "variance": str(variance), "size": size, "first": values[:20],
        "sha256": hashlib.sha256(struct.pack(f"<{size}q", *values)).hexdigest(),
    })  # fmt: skip
(HERE / "discrete_gaussian.json").write_text(json.dumps(cases, indent=1) + "\n")

cases = []
for name, persons, rate in (("few", 50, 0.25), ("two chunks", 40_000, 0.001), ("rate that 64 bits cut", 2_000, 0.1)):
    key = hashlib.sha256(name.encode()).digest()
    stream, threshold = Stream(key), math.floor(Fraction(rate) * 2**64)
    taken = [i for i in range(persons) if struct.unpack("<Q", stream.take(8))[0] < threshold]
    cases.append({"name": name, "key": key.hex(), "persons": persons, "rate": rate, "taken": taken})
(HERE / "persons.json").write_text(json.dumps(cases, indent=1) + "\n")
