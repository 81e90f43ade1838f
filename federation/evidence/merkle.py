"""The Merkle tree of a log, and proofs that one log is the beginning of another.

Source: RFC 6962, section 2.1 (hashes and proofs); RFC 9162, sections 2.1.3.2 and 2.1.4.2 (their verification).
A `Nodes` gives the hash of the complete subtree `position` of height `level`: the leaves are level 0.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import TypeAlias

Nodes: TypeAlias = Callable[[int, int], bytes]


def leaf_hash(entry: bytes) -> bytes:
    """The hash of a leaf."""
    return hashlib.sha256(b"\0" + entry).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """The hash of an inner node."""
    return hashlib.sha256(b"\1" + left + right).digest()


def root_hash(size: int, nodes: Nodes) -> bytes:
    """The root of the first `size` leaves."""
    return _range_hash(0, size, nodes) if size else hashlib.sha256(b"").digest()


def completed(position: int, leaf: bytes, nodes: Nodes) -> list[tuple[int, int, bytes]]:
    """The nodes (level, position, hash) that the leaf at `position`, the last, completes; itself first."""
    level, made = 0, [(0, position, leaf)]
    while position & 1:
        leaf = node_hash(nodes(level, position - 1), leaf)
        level, position = level + 1, position >> 1
        made.append((level, position, leaf))
    return made


def prove_inclusion(position: int, size: int, nodes: Nodes) -> list[bytes]:
    """The path from the leaf at `position` to the root of the first `size` leaves."""
    return _path(position, 0, size, nodes)


def prove_consistency(old: int, size: int, nodes: Nodes) -> list[bytes]:
    """The proof that the first `old` leaves are the beginning of the first `size`; empty where nothing is to prove."""
    return _subproof(old, 0, size, nodes, whole=True) if 0 < old < size else []


def includes(leaf: bytes, position: int, size: int, proof: Sequence[bytes], root: bytes) -> bool:
    """Whether `proof` shows that `leaf` stands at `position` under `root`."""
    if not 0 <= position < size:
        return False
    place, last, value = position, size - 1, leaf
    for sibling in proof:
        if last == 0:
            return False
        if place & 1 or place == last:
            value = node_hash(sibling, value)
            while not place & 1 and place:
                place, last = place >> 1, last >> 1
        else:
            value = node_hash(value, sibling)
        place, last = place >> 1, last >> 1
    return last == 0 and value == root


def consistent(old: int, old_root: bytes, size: int, root: bytes, proof: Sequence[bytes]) -> bool:
    """Whether `proof` shows that the log of `old` leaves is the beginning of that of `size`."""
    if old > size or old < 0:
        return False
    if old == size or old == 0:
        return not proof and (old_root == root if old == size else True)
    path = [old_root, *proof] if old & (old - 1) == 0 else list(proof)
    if not path:
        return False
    place, last = old - 1, size - 1
    while place & 1:
        place, last = place >> 1, last >> 1
    first = second = path[0]
    for sibling in path[1:]:
        if last == 0:
            return False
        if place & 1 or place == last:
            first, second = node_hash(sibling, first), node_hash(sibling, second)
            while not place & 1 and place:
                place, last = place >> 1, last >> 1
        else:
            second = node_hash(second, sibling)
        place, last = place >> 1, last >> 1
    return last == 0 and first == old_root and second == root


def _range_hash(start: int, end: int, nodes: Nodes) -> bytes:
    """The root of the leaves from `start` to before `end`, where `start` is a multiple of the power of two above it."""
    count = end - start
    if count & (count - 1) == 0:
        level = count.bit_length() - 1
        return nodes(level, start >> level)
    middle = start + _split(count)
    return node_hash(_range_hash(start, middle, nodes), _range_hash(middle, end, nodes))


def _path(position: int, start: int, end: int, nodes: Nodes) -> list[bytes]:
    if end - start == 1:
        return []
    middle = start + _split(end - start)
    if position < middle:
        return [*_path(position, start, middle, nodes), _range_hash(middle, end, nodes)]
    return [*_path(position, middle, end, nodes), _range_hash(start, middle, nodes)]


def _subproof(old: int, start: int, end: int, nodes: Nodes, *, whole: bool) -> list[bytes]:
    if old == end:
        return [] if whole else [_range_hash(start, end, nodes)]
    middle = start + _split(end - start)
    if old <= middle:
        return [*_subproof(old, start, middle, nodes, whole=whole), _range_hash(middle, end, nodes)]
    return [*_subproof(old, middle, end, nodes, whole=False), _range_hash(start, middle, nodes)]


def _split(count: int) -> int:
    """The largest power of two below `count`."""
    return 1 << ((count - 1).bit_length() - 1)
