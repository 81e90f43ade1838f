"""docs/security.md names a test for every attack that it says is held, and each of them is there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TABLE = ROOT / "docs" / "security.md"


def rows() -> list[list[str]]:
    held = TABLE.read_text(encoding="utf-8").split("\n## Limits\n")[0]
    cells = [re.split(r"(?<!\\)\|", line.strip("|\n")) for line in held.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in row] for row in cells if row[0].strip() != "attack"]


def test_every_attack_that_is_held_names_a_test_that_is_there() -> None:
    found = rows()
    assert len(found) >= 40
    missing = []
    for attack, *_, tests in found:
        path, names = "", re.findall(r"([\w/.]*)::(\w+)", tests)
        if not names:
            missing.append(f"no test of: {attack}")
        for place, name in names:
            path = place or path  # a test without a path is in the file named before it
            source = ROOT / path
            if not source.is_file() or f"def {name}(" not in source.read_text(encoding="utf-8"):
                missing.append(f"{attack[:60]}: {path}::{name}")
    assert not missing, "\n".join(missing)
