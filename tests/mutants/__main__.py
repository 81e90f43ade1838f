"""Run the mutants of `tests/mutants/*.toml`: each breaks one place of a copy of the tree, and its tests must fail.

A file holds tables [[mutant]] with `name` (what the broken code would let through), `file`, `old` (found there exactly
once), `new`, and `tests` (what pytest is given). They are chosen by hand: a tool that mutates every operator (mutmut,
cosmic-ray) cannot tell a security decision from a log line, and would run the suite thousands of times.

    python -m tests.mutants [--area NAME] [--sample N] [--jobs 2]
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import Queue

ROOT = Path(__file__).resolve().parents[2]
FAILED = 1  # pytest's exit code when tests ran and some failed
LIMIT_S = 600.0


@dataclass(frozen=True)
class Mutant:
    area: str
    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


def read_mutants(folder: Path = ROOT / "tests" / "mutants") -> list[Mutant]:
    """All mutants, checked: `old` stands exactly once in `file`, and each test's file exists. Raises ValueError."""
    found = []
    for path in sorted(folder.glob("*.toml")):
        for table in tomllib.loads(path.read_text(encoding="utf-8"))["mutant"]:
            one = Mutant(path.stem, table["name"], table["file"], table["old"], table["new"], tuple(table["tests"]))
            count = (ROOT / one.file).read_text(encoding="utf-8").count(one.old)
            if count != 1 or one.old == one.new:
                raise ValueError(f"{path.name}, '{one.name}': its old text stands {count} times in {one.file}")
            if missing := [test for test in one.tests if not (ROOT / test.partition("::")[0]).exists()]:
                raise ValueError(f"{path.name}, '{one.name}': no such test {missing}")
            found.append(one)
    return found


def copy_tree(to: Path) -> None:
    """The tracked and new files of this tree, links kept."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    for name in listed.stdout.splitlines():
        source, target = ROOT / name, to / name
        if source.is_symlink() or source.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target, follow_symlinks=False)


def outcome(mutant: Mutant, tree: Path) -> str:
    """ "killed", "SURVIVED", or "ERROR" with pytest's last line where the tests could not run at all."""
    place = tree / mutant.file
    whole = place.read_text(encoding="utf-8")
    place.write_text(whole.replace(mutant.old, mutant.new), encoding="utf-8")
    environment = {
        **os.environ,
        "PYTHONPATH": str(tree / ".src"),
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-m", "not deploy", *mutant.tests]
    try:
        done = subprocess.run(
            command, cwd=tree, env=environment, capture_output=True, text=True, timeout=LIMIT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return "killed"  # a broken check that lets the tests hang is noticed
    finally:
        place.write_text(whole, encoding="utf-8")
    if done.returncode == FAILED:
        return "killed"
    if done.returncode == 0:
        return "SURVIVED"
    return f"ERROR {done.returncode}: {(done.stdout + done.stderr).strip().splitlines()[-1:]}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--area", help="only the mutants of this file, without .toml")
    parser.add_argument("--sample", type=int, help="only so many, drawn with --seed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    mutants = [one for one in read_mutants() if options.area in (None, one.area)]
    if options.sample is not None:
        mutants = random.Random(options.seed).sample(mutants, min(options.sample, len(mutants)))
    start, bad = time.monotonic(), 0
    with tempfile.TemporaryDirectory() as folder:
        trees: Queue[Path] = Queue()
        for number in range(options.jobs):
            copy_tree(Path(folder) / str(number))
            trees.put(Path(folder) / str(number))

        def play(mutant: Mutant) -> tuple[Mutant, str]:
            tree = trees.get()
            try:
                return mutant, outcome(mutant, tree)
            finally:
                trees.put(tree)

        with ThreadPoolExecutor(options.jobs) as pool:
            for mutant, found in pool.map(play, mutants):
                bad += found != "killed"
                print(f"{found:9} {mutant.area}: {mutant.name}", flush=True)  # noqa: T201
    print(f"{len(mutants) - bad} of {len(mutants)} killed in {time.monotonic() - start:.0f} s")  # noqa: T201
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
