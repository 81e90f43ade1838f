"""Each case trained by its own loop on all data, and by a federation of three that have a third each.

python examples/conversions/run.py [CASE …] [--json FILE]
"""

from __future__ import annotations

import argparse
import ast
import importlib
import json
import sys
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
sys.path.insert(0, str(FOLDER.parent))
CASES = tuple(sorted(path.parent.name for path in FOLDER.glob("*/task.py")))


def lines_of_ours(case: str) -> int:
    """The lines of a case's task.py, those of sovfed's import among them, without the import of the user's own file."""
    source = (FOLDER / case / "task.py").read_text()
    imported = [
        number
        for node in ast.parse(source).body
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("conversions.")
        for number in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    ]
    lines = enumerate(source.splitlines(), 1)
    return sum(bool(line.strip()) and number not in imported for number, line in lines)


def run(case: str) -> dict[str, Any]:
    """The case's held-out accuracy by its own loop, and of the federation's model."""
    original = importlib.import_module(f"conversions.{case}.original")
    task = importlib.import_module(f"conversions.{case}.task")
    federated = task.federated().metrics["accuracy"]
    return {"case": case, "lines": lines_of_ours(case), "original": original.main(), "federated": federated}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="*", default=CASES)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    results = []
    print("| case | lines of ours | original loop, all data | federated, 3 sites |\n| --- | --- | --- | --- |")
    for case in options.cases:
        result = run(case)
        print("| {case} | {lines} | {original:.3f} | {federated:.3f} |".format(**result), flush=True)
        results.append(result)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
