"""The mutants fit the code as it is; `make mutants` runs them all, and here two are, one of which must survive."""

from __future__ import annotations

from pathlib import Path

from tests.mutants.__main__ import Mutant, copy_tree, outcome, read_mutants


def test_there_are_enough_and_each_still_fits_its_code() -> None:
    found = read_mutants()  # raises where an old text is not there, or a test is gone
    assert len(found) >= 60
    assert len({(one.file, one.old, one.new) for one in found}) == len(found)


def test_a_killed_and_a_surviving_mutant_are_told_apart(tmp_path: Path) -> None:
    copy_tree(tmp_path)
    tests = ("tests/federation/secagg/test_terms.py",)
    rule = "    return 2 * members // 3 + 1"
    killed = Mutant(
        "here", "a threshold of a third", "federation/secagg/terms.py", rule, "    return members // 3 + 1", tests
    )
    same = Mutant(
        "here", "the same threshold", "federation/secagg/terms.py", rule, "    return 1 + 2 * members // 3", tests
    )
    assert (outcome(killed, tmp_path), outcome(same, tmp_path)) == ("killed", "SURVIVED")
