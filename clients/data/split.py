"""Deterministic splits from hashes alone: the same on every machine and for every version of numpy."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from sovfed.federation.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sovfed.federation.tasks.columns import Table

SHARES_OF_FOUR: Final = (0.45, 0.30, 0.17, 0.08)
HELD_OUT: Final = 0.3
GOLDEN: Final = np.uint64(0x9E3779B97F4A7C15)
CHUNK: Final = 1 << 13  # rows that are mixed at once
MIN_RECORDS: Final = 20  # of one simulated institution
Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]


def uniform(salt: str, names: Iterable[object]) -> Floats:
    """For each name a number in [0, 1) that depends on `salt` and the name only."""
    digests = (hashlib.sha256(f"{salt}/{name}".encode()).digest() for name in names)
    return np.array([int.from_bytes(digest[:6], "big") / 2**48 for digest in digests])


def simulated_site(salt: str, axis: Floats, noise: float, site: str, sites: int) -> Indices:
    """The rows that belong to simulated institution `site` of `sites`: unequal in size and in case mix.

    Records are ordered along `axis` (in [0, 1]) blurred by `noise`, and each institution takes a stretch: with little
    noise institutions see different cases, with much they see alike. Raises DataError.
    """
    if not site.isdecimal() or int(site) >= sites:
        raise DataError(f"data.site is '{site[:64]}', expected a number from 0 to {sites - 1} (data.sites is {sites})")
    shares = np.array(SHARES_OF_FOUR) if sites == len(SHARES_OF_FOUR) else 0.6 ** np.arange(sites)
    along = [*range((sites - 1) // 2 * 2, -1, -2), *range(1, sites, 2)]  # the largest in the middle: 2, 0, 1, 3
    ends = np.rint(np.cumsum(shares[along]) / shares.sum() * len(axis)).astype(np.int64)
    index = along.index(int(site))
    start, end = (int(ends[index - 1]) if index else 0), int(ends[index])
    if end - start < MIN_RECORDS:
        raise DataError(f"site {site} of {sites} would hold {end - start} records, at least {MIN_RECORDS} are needed")
    order = np.argsort(axis + noise * uniform(f"{salt}/mix", range(len(axis))), kind="stable")
    return np.sort(order[start:end])


def stratified(salt: str, labels: Indices) -> tuple[Indices, Indices]:
    """Training and held-out rows, each label split by the same share. For records that are one person each.

    Who is held out depends on the others: only for published files whose checksum is known, to which nobody can be
    added. Where persons may come and go, take `by_person`.
    """
    rank = uniform(f"{salt}/held-out", range(len(labels)))
    held_out = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        held_out[rows[np.argsort(rank[rows], kind="stable")[: round(HELD_OUT * len(rows))]]] = True
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def by_content(salt: str, table: Table) -> npt.NDArray[np.bool_]:
    """Which rows are held out, each told by its content alone: of rows that are alike, the k-th is the k-th of them.

    So removing a row moves no other row, or one that nothing tells from the removed. A row's bytes are mixed into 64
    bits, after splitmix64 (Steele et al. 2014, doi 10.1145/2660193.2660195). Rows that differ may be made to share
    them: such ones are on one side, and none counts as another's like.
    """
    seed = int.from_bytes(hashlib.sha256(f"{salt}/held-out".encode()).digest()[:8], "big")
    count = len(next(iter(table.values()))) if table else 0
    mixed = np.full(count, seed, np.uint64)
    for start in range(0, count, CHUNK):
        rows = slice(start, start + CHUNK)
        for name in sorted(table):
            for word in _words(table[name][rows]).T:
                _stir(mixed[rows], word)
    _count_alike(mixed, table)
    held_out = np.empty(count, bool)
    for start in range(0, count, CHUNK):
        held_out[start : start + CHUNK] = _mix(mixed[start : start + CHUNK]) < np.uint64(int(HELD_OUT * 2**64))
    return held_out


def _words(values: npt.NDArray[Any]) -> npt.NDArray[np.uint64]:
    """Each record's bytes as whole numbers of 64 bits [n, words], filled up with zeros."""
    count = len(values)
    content = np.ascontiguousarray(values).reshape(count, -1).view(np.uint8)
    if lacking := -content.shape[1] % 8:
        filled = np.zeros((count, content.shape[1] + lacking), np.uint8)
        filled[:, :-lacking] = content
        content = filled
    return content.view("<u8")


def _stir(state: npt.NDArray[np.uint64], word: npt.NDArray[np.uint64]) -> None:
    """Put another word of each row into its state: one to one for either, modulo 2^64."""
    state ^= word
    state *= np.uint64(0xBF58476D1CE4E5B9)
    state ^= state >> np.uint64(32)


def _mix(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """splitmix64's finaliser of each value, modulo 2^64."""
    values = values + GOLDEN
    values ^= values >> np.uint64(30)
    values *= np.uint64(0xBF58476D1CE4E5B9)
    values ^= values >> np.uint64(27)
    values *= np.uint64(0x94D049BB133111EB)
    values ^= values >> np.uint64(31)
    return values


def _count_alike(values: npt.NDArray[np.uint64], table: Table) -> None:
    """Move each value on by how many rows of the very same content stand before it, so that all are told apart.

    Who writes rows can make many that differ share a value with another person's: a count over these would move them
    all to other sides as that person comes or goes.
    """
    halves = (values >> np.uint64(32)).astype(np.uint32)  # which sort faster; the few that share one are looked at
    ordered = np.sort(halves)
    several = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    del ordered
    if len(several):
        rows = np.flatnonzero(np.isin(halves, several))
        rows = rows[np.argsort(values[rows], kind="stable")]
        first = np.flatnonzero(np.concatenate([[True], values[rows[1:]] != values[rows[:-1]]]))
        counts = np.diff(np.append(first, len(rows)))
        turns = np.arange(len(rows)) - np.repeat(first, counts)
        unlike = np.add.reduceat(_unlike(table, rows, rows[np.repeat(first, counts)]), first) > 0
        if unlike.any():
            places = np.flatnonzero(np.repeat(unlike, counts))
            turns[places] = _turns(np.hstack([_words(table[name][rows[places]]) for name in sorted(table)]))
        values[rows] += GOLDEN * turns.astype(np.uint64)


def _unlike(table: Table, rows: Indices, others: Indices) -> Indices:
    """1 for each of `rows` whose content is another than that of the row in its place in `others`, else 0."""
    unlike = np.zeros(len(rows), np.int64)
    for start in range(0, len(rows), CHUNK):
        part = slice(start, start + CHUNK)
        for values in table.values():
            unlike[part] |= (_words(values[rows[part]]) != _words(values[others[part]])).any(1)
    return unlike


def _turns(words: npt.NDArray[np.uint64]) -> Indices:
    """How many rows of `words` [n, k] that are the same stand before each."""
    whole = np.ascontiguousarray(words).view(f"V{8 * words.shape[1]}").ravel()
    kinds, counts = np.unique(whole, return_inverse=True, return_counts=True)[1:]
    turns = np.empty(len(words), np.int64)
    turns[np.argsort(kinds, kind="stable")] = np.arange(len(words)) - np.repeat(np.cumsum(counts) - counts, counts)
    return turns


def by_person(salt: str, persons: Iterable[str]) -> tuple[Indices, Indices]:
    """Training and held-out rows; a person stays on the same side whatever else the file holds."""
    held_out = uniform(f"{salt}/held-out", persons) < HELD_OUT
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)
