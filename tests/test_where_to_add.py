"""README's "Where to add", followed: each row in a copy of the tree, by edits of the files that it names alone."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from sovfed.federation.compose import GROUP, PARTITIONS, STRATEGIES
from tests.mutants.__main__ import copy_tree

ROOT = Path(__file__).parent.parent
SECTION = (ROOT / "README.md").read_text().partition("## Where to add")[2].partition("\n## ")[0]
ROWS = dict(re.findall(r"^\| (?!to add|---)([^|]+?) \| (.+?) \|$", SECTION, re.MULTILINE))
ATTACK = """\
from dataclasses import dataclass


@dataclass(frozen=True)
class Broken:
    times: int


def run(quick: bool) -> Broken:
    return Broken(0)
"""
HALVED = """\
import numpy as np

from sovfed.federation.algorithms.algorithm import MODEL, Algorithm, Learning
from sovfed.federation.algorithms.server_half import Averaging


class Halved(Algorithm):
    def learn(self, local, state):
        update, loss = local.train()
        return Learning(update / np.float32(2), loss, local.model + update)

    def server(self, settings, trained):
        return Doubling()


class Doubling(Averaging):
    def step(self, round, model, mean_update):
        return super().step(round, model, 2 * mean_update)


HALVED = Halved("halved", local="halved", keeps=MODEL, private=False, stacked=False)
"""
SIMULATION = ("simulate", "task=breast_cancer", "rounds=2", "simulation.workers=0", "--no-track")


def named(row: str) -> list[str]:
    """The files and folders that a row names."""
    return [word for word in re.findall(r"`([^`]+)`", ROWS[row]) if "/" in word]


class Tree:
    """A copy of the tree. `edit` refuses what the row does not name."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.row = folder, ""
        copy_tree(folder)

    def path(self, name: str) -> Path:
        patterns = [word.replace("NAME", "*") for word in named(self.row)]
        assert any(Path(name).match(pattern) or name.startswith(pattern) for pattern in patterns), (self.row, name)
        return self.folder / name

    def edit(self, name: str, old: str, new: str) -> None:
        text = self.path(name).read_text()
        assert text.count(old) >= 1, f"{name}: {old!r}"
        self.path(name).write_text(text.replace(old, new, 1))

    def append(self, name: str, text: str) -> None:
        path = self.path(name)
        path.write_text((path.read_text() if path.exists() else "") + text)

    def sovfed(self, *arguments: str, code: int = 0) -> str:
        """Standard output, and the errors of a command that is to end with `code` other than 0."""
        environment = {**os.environ, "PYTHONPATH": str(self.folder / ".src"), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
        command = [sys.executable, "-m", "sovfed", *arguments]
        done = subprocess.run(
            command, cwd=self.folder, env=environment, capture_output=True, text=True, timeout=100, check=False
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr if code else done.stdout


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Tree:
    return Tree(tmp_path_factory.mktemp("where") / "tree")


def test_every_file_and_folder_that_is_named_is_there() -> None:
    assert len(ROWS) == 8
    for row in ROWS:
        for name in named(row):
            if not name.startswith("docs/") and "NAME" not in name:
                assert list(ROOT.glob(name)), (row, name)


def test_the_entry_points_are_those_that_are_looked_for() -> None:
    from sovfed.clients import data
    from sovfed.federation import optimizers
    from sovfed.federation.tasks import registry

    told = set(re.findall(r"`(sovfed\.\w+)`", " ".join(ROWS.values())))
    assert told == {GROUP, PARTITIONS, STRATEGIES, data.GROUP, optimizers.GROUP, registry.GROUP}


def test_a_setting(tree: Tree) -> None:
    tree.row = "a setting"
    tree.edit(
        "federation/config/run.py", "    patience: int = bounded(",
        '    spare: int = bounded(3, 0, 9, doc="as a test adds it")\n    patience: int = bounded(',
    )  # fmt: skip
    assert "spare" in tree.sovfed("config", "show", "spare=4")


def test_a_message(tree: Tree) -> None:
    tree.row = "a message"
    tree.edit(
        "federation/messages.py", '    algorithm: str = choice(FEDAVG.local, LOCAL)\n',
        '    algorithm: str = choice(FEDAVG.local, LOCAL)\n    spare: int = bounded(3, 0, 9)\n',
    )  # fmt: skip
    tree.sovfed(*SIMULATION, "--folder", str(tree.folder / "message"))


def test_an_algorithm_with_a_half_at_the_institution(tree: Tree) -> None:
    tree.row = "an algorithm with a half at the institution"
    tree.append("federation/algorithms/halved.py", HALVED)
    tree.edit("federation/algorithms/__init__.py", "FEDPER, DITTO)", "FEDPER, DITTO, HALVED)")
    tree.edit(
        "federation/algorithms/__init__.py", "from sovfed.federation.algorithms.own_layers",
        "from sovfed.federation.algorithms.halved import HALVED\nfrom sovfed.federation.algorithms.own_layers",
    )  # fmt: skip
    tree.append("conf/strategy/halved.yaml", "name: halved\n")
    folder = tree.folder / "halved"
    tree.sovfed(*SIMULATION, "strategy=halved", "--folder", str(folder))
    assert "institutions" in {path.name for path in folder.iterdir()}  # which keep what it says that they keep
    refused = tree.sovfed(*SIMULATION, "strategy=halved", "privacy=distributed", code=2)
    assert "no privacy mechanism" in refused


def test_a_command(tree: Tree) -> None:
    tree.row = "a command"
    for name, group in (("server/cli/server.py", "server"), ("clients/cli/institution.py", "client")):
        tree.append(name, "\n\n@cli.command()\ndef added() -> None:\n    click.echo('it is there')\n")
        assert tree.sovfed(group, "added") == "it is there\n"


def test_a_benchmark_against_a_peer(tree: Tree) -> None:
    tree.row = "a benchmark against a peer"
    tree.append("simulations/benchmarks/added.py", "def run() -> float:\n    return 1.0\n")
    tree.append(
        "simulations/cli_bench.py",
        "\n\n@bench.command()\ndef added() -> None:\n    from sovfed.simulations.benchmarks.added import run\n\n"
        '    click.echo(f"ratio {run():g}")\n',
    )  # fmt: skip
    assert tree.sovfed("bench", "added") == "ratio 1\n"


def test_an_attack(tree: Tree) -> None:
    tree.row = "an attack"
    tree.append("simulations/audit/added.py", ATTACK)
    tree.append(
        "simulations/audit/report.py",
        "\n\ndef _added(quick: bool) -> Findings:\n    from sovfed.simulations.audit.added import run\n\n"
        "    return Findings([(run(quick), 'it was not broken', True)])\n\n\nAUDITS['added'] = _added\n",
    )  # fmt: skip
    tree.append(
        "simulations/cli_audit.py",
        "\n\n@audit.command()\n@QUICK\n@JSON\n@click.pass_context\ndef added(ctx, quick, json_path):\n"
        "    _run(ctx, 'added', quick, json_path)\n",
    )  # fmt: skip
    assert "it was not broken" in tree.sovfed("audit", "added", "--quick")
