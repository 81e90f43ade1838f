"""The tree's hashes are those of certificate transparency, and its proofs prove that and nothing else."""

from __future__ import annotations

import pytest

from sovfed.federation.evidence import merkle

# The leaves and roots of the reference tree of certificate transparency's own tests.
LEAVES = [
    bytes.fromhex(text)
    for text in ("", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f")
]
ROOTS = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]


def _tree(leaves: list[bytes]) -> tuple[merkle.Nodes, list[bytes]]:
    made = dict[tuple[int, int], bytes]()
    roots = []
    for position, leaf in enumerate(leaves):
        nodes = merkle.completed(position, merkle.leaf_hash(leaf), lambda level, at: made[level, at])
        made.update({(level, at): value for level, at, value in nodes})
        roots.append(merkle.root_hash(position + 1, lambda level, at: made[level, at]))
    return (lambda level, at: made[level, at]), roots


def test_roots_are_those_of_certificate_transparency() -> None:
    _, roots = _tree(LEAVES)

    assert [root.hex() for root in roots] == ROOTS
    assert merkle.root_hash(0, _tree([])[0]).hex().startswith("e3b0c44298fc1c149afbf4c8996fb924")


def test_every_entry_of_every_size_is_proven_to_be_at_its_place_and_at_no_other() -> None:
    leaves = [bytes([number]) for number in range(40)]
    nodes, roots = _tree(leaves)

    for size in range(1, 41):
        for position in range(size):
            proof = merkle.prove_inclusion(position, size, nodes)
            leaf = merkle.leaf_hash(leaves[position])
            assert merkle.includes(leaf, position, size, proof, roots[size - 1])
            assert not merkle.includes(leaf, position ^ 1, size, proof, roots[size - 1])
            assert not merkle.includes(leaf, position, size, [*proof, leaf], roots[size - 1])
            assert not merkle.includes(merkle.leaf_hash(b"other"), position, size, proof, roots[size - 1])


def test_every_size_is_proven_to_begin_every_larger_one() -> None:
    nodes, roots = _tree([bytes([number]) for number in range(40)])
    _, others = _tree([bytes([number, 1]) for number in range(40)])

    for size in range(1, 41):
        for old in range(1, size + 1):
            proof = merkle.prove_consistency(old, size, nodes)
            assert merkle.consistent(old, roots[old - 1], size, roots[size - 1], proof)
            assert not merkle.consistent(old, others[old - 1], size, roots[size - 1], proof)
            assert not merkle.consistent(old, roots[old - 1], size, others[size - 1], proof)
            assert not merkle.consistent(size + 1, roots[size - 1], size, roots[size - 1], proof)
            if proof:
                assert not merkle.consistent(old, roots[old - 1], size, roots[size - 1], proof[:-1])


@pytest.mark.parametrize("proof", [[], [b"\0" * 32], [b"\0" * 32] * 70])
def test_made_up_proofs_prove_nothing(proof: list[bytes]) -> None:
    _, roots = _tree([bytes([number]) for number in range(40)])

    assert not merkle.consistent(3, roots[2], 40, roots[39], proof)
    assert not merkle.includes(merkle.leaf_hash(b"\0"), 0, 40, proof, roots[39])
