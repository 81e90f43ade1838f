"""Names tell what they hold: the share of assignments to words that tell nothing, over the whole code."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parent.parent
FOLDERS = ("clients", "conf", "federation", "server", "simulations")
TELLING_NOTHING = {
    "found", "one", "part", "place", "here", "mine", "theirs", "ours", "there", "thing", "things", "stuff", "tmp",
    "foo", "bar", "this", "that",
}  # fmt: skip
CEILING = 0.01  # as in the codebases that this one is measured against; only ever lowered


def assigned(tree: ast.AST) -> Counter[str]:
    """How often each name is assigned to: by =, for, with, :=, in a comprehension."""
    return Counter(node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store))


def share(counts: Counter[str]) -> float:
    return sum(counts[name] for name in TELLING_NOTHING) / max(1, counts.total())


def measured() -> Counter[str]:
    """The assignments of all our files but those that a compiler wrote."""
    files = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py") if not path.stem.endswith("_pb2")]
    return sum((assigned(ast.parse(path.read_text(encoding="utf-8"))) for path in files), Counter[str]())


def test_every_kind_of_assignment_counts() -> None:
    tree = ast.parse(
        "found = a\nfor one, b in c: pass\nwith d as here: pass\ne = [f for f in g if (part := f)]\nx.one = y"
    )
    assert assigned(tree) == Counter({"found": 1, "one": 1, "b": 1, "here": 1, "e": 1, "f": 1, "part": 1})
    assert share(assigned(tree)) == 4 / 7


def test_few_names_tell_nothing() -> None:
    counts = measured()
    most = {name: counts[name] for name in sorted(TELLING_NOTHING, key=counts.__getitem__)[:-6:-1]}
    assert share(counts) <= CEILING, f"{share(counts):.2%} of {counts.total()} assignments, most of them {most}"
