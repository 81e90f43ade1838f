"""Who may import whom: the layers of the architecture, where Flower may be touched, and what a help text may load."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from pathlib import Path

import pytest

from sovfed.cli import COMMANDS

ROOT = Path(__file__).parent.parent
LAYERS = {  # folder → the folders that its modules may import
    "conf": set(),
    "federation": {"federation"},
    "server": {"federation", "server"},
    "clients": {"federation", "clients"},
    "simulations": {"federation", "server", "clients", "simulations"},
}
FLOWER_FACING = {
    "clients/node/app.py",
    "clients/node/executor.py",
    "clients/node/lane.py",
    "clients/node/whole_messages.py",
    "federation/wire/flower.py",
    "federation/wire/grids.py",
    "federation/wire/lane_codec.py",
    "server/rounds/aggregation.py",
    "server/runs/app.py",
    "server/network/fleet_calls.py",
    "server/network/grid.py",
    "server/network/lane_links.py",
    "server/network/object_store.py",
    "server/network/ringing.py",
    "server/strategies/robust.py",
    "server/strategies/stock.py",
    "simulations/grid.py",
    "simulations/ray_engine.py",
    "simulations/workers.py",
}
HEAVY = {"torch", "flwr", "mlflow", "hydra", "omegaconf", "pandas", "sklearn", "opacus", "ray", "matplotlib", "grpc"}
MODULES = {str(path.relative_to(ROOT)): path for folder in LAYERS for path in sorted((ROOT / folder).rglob("*.py"))}


def module_name(file: str) -> str:
    return "sovfed." + file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def root(name: str) -> str:
    return name.partition(".")[0]


def imports(tree: ast.AST, *, top_only: bool = False) -> Iterator[str]:
    """The dotted names that `tree` imports; `top_only` leaves out functions and `if TYPE_CHECKING` blocks."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif not (top_only and _runs_later(node)):
            yield from imports(node, top_only=top_only)


def _runs_later(node: ast.AST) -> bool:
    checked_only = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    return checked_only or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))


def parsed(file: str) -> ast.Module:
    return ast.parse(MODULES[file].read_text(encoding="utf-8"), file)


def test_folders_import_downwards_only() -> None:
    wrong = []
    for file in MODULES:
        allowed = LAYERS[file.partition("/")[0]]
        for name in imports(parsed(file)):
            package, _, rest = name.partition(".")
            layer = rest.partition(".")[0]
            if package in LAYERS or (package == "sovfed" and layer in LAYERS and layer not in allowed):
                wrong.append(f"{file} imports {name}")
    assert not wrong


def test_no_module_is_named_in_a_string_to_get_around_the_layers() -> None:
    wrong = []
    for file in MODULES:
        allowed = LAYERS[file.partition("/")[0]]
        for node in ast.walk(parsed(file)):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
                for argument in (ast.unparse(argument).strip("'") for argument in node.args):
                    layer = argument.removeprefix("sovfed.").partition(".")[0]
                    if layer in LAYERS and layer not in allowed:
                        wrong.append(f"{file} imports {argument}")
    assert not wrong


def test_exactly_the_flower_facing_files_import_flower_at_the_top() -> None:
    tops = {file: {root(name) for name in imports(parsed(file), top_only=True)} for file in MODULES}
    ours = {file for file in tops if not file.startswith("simulations/benchmarks/")}  # those measure Flower itself
    assert {file for file in ours if "flwr" in tops[file]} == FLOWER_FACING


def edges(file: str) -> set[str]:
    """The files of ours that `file` imports anywhere: at the top, in a function, or for its types alone."""
    by_name = {module_name(other): other for other in MODULES}
    named = set[str]()
    for node in ast.walk(parsed(file)):
        if isinstance(node, ast.Import):
            named |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            whole = {f"{module}.{alias.name}" for alias in node.names}
            named |= {name if name in by_name else module for name in whole}
    return {by_name[name] for name in named if name in by_name} - {file}


def circles(graph: Mapping[str, AbstractSet[str]]) -> set[frozenset[str]]:
    """The largest sets of nodes each of which leads to all others of its set (strongly connected, two or more)."""
    reached = {start: _reachable(start, graph) for start in graph}
    together = (frozenset(end for end in reached[start] if start in reached[end]) for start in graph)
    return {circle for circle in together if len(circle) > 1}


def _reachable(start: str, graph: Mapping[str, AbstractSet[str]]) -> set[str]:
    seen, waiting = set[str](), [start]
    while waiting:
        for end in graph[waiting.pop()] - seen:
            seen.add(end)
            waiting.append(end)
    return seen


def test_circles_are_seen_however_long() -> None:
    graph = {"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": {"e"}, "e": {"d"}, "f": {"a"}, "g": set[str]()}
    assert circles(graph) == {frozenset("abc"), frozenset("de")}
    assert circles({"a": {"b"}, "b": set[str]()}) == set()


def test_no_files_import_each_other_in_a_circle() -> None:
    assert circles({file: edges(file) for file in MODULES}) == set()


OWN_OR_PEERS = {"sovfed", "_typeshed", "pfl", "nvflare"}  # peers have an environment of their own where measured
NAMES = {
    "google": "protobuf", "grpc": "grpcio", "hydra": "hydra-core", "sklearn": "scikit-learn", "yaml": "pyyaml",
    "dp_accounting": "dp-accounting", "PIL": "pillow", "prometheus_client": "prometheus-client",
    "cyclonedx": "cyclonedx-python-lib",
}  # fmt: skip
NOT_EVERYWHERE = {  # libraries of an extra that files of every installation import when they are asked to
    ("clients/cli/ledger_shown.py", "matplotlib"),
    ("clients/data/frames.py", "pandas"),
    ("clients/data/pictures.py", "pydicom"),
    ("clients/data/uci_heart.py", "scikit-learn"),
    ("federation/compose.py", "hydra-core"),
    ("federation/compose.py", "omegaconf"),
    ("federation/models/export.py", "onnx"),
    ("federation/models/export.py", "onnxscript"),
    ("federation/models/pyfunc.py", "mlflow"),
    ("federation/models/pyfunc.py", "pandas"),
    ("federation/tasks/causal_lm.py", "transformers"),
    ("federation/tasks/tokenizer.py", "tokenizers"),
}


def declared(file: Path, *names: str) -> set[str]:
    """The distributions that the pyproject.toml `file` asks for, without an extra and for the extras `names`."""
    project = tomllib.loads(file.read_text())["project"]
    asked = sum((project["optional-dependencies"][name] for name in names), project["dependencies"])
    return {re.split(r"[^A-Za-z0-9-]", requirement)[0].lower() for requirement in asked}


def test_every_library_that_is_imported_is_declared_for_those_who_install_its_folder() -> None:
    ours, bench = ROOT / "pyproject.toml", ROOT / ".bench" / "pyproject.toml"
    offered = {
        "conf": declared(ours),
        "federation": declared(ours),
        "clients": declared(ours),
        "server": declared(ours, "server"),
        "simulations": declared(ours, "server", "simulate"),
        "simulations/audit": declared(bench) | declared(ours, "server", "simulate"),
        "simulations/benchmarks": declared(bench) | declared(ours, "server", "simulate"),
    }
    missing = set()
    for file in MODULES:
        folder = max((name for name in offered if file.startswith(f"{name}/")), key=len)
        imported = {root(name) for name in imports(parsed(file))} - sys.stdlib_module_names - OWN_OR_PEERS
        used = {NAMES.get(name, name) for name in imported}
        missing |= {(file, name) for name in used - offered[folder]}
    assert missing == NOT_EVERYWHERE


def test_what_every_installation_has_imports_no_benchmark_and_no_attack_at_the_top() -> None:
    apart = ("sovfed.simulations.audit", "sovfed.simulations.benchmarks")
    for file in MODULES:
        if not module_name(file).startswith(apart):
            for name in imports(parsed(file), top_only=True):
                assert not name.startswith(apart), f"{file} imports {name}"


def test_command_modules_load_nothing_heavy_at_the_top() -> None:
    """Follows top-level imports from every command module through our own modules."""
    by_name = {module_name(file): file for file in MODULES}
    waiting, seen = [lazy.module for lazy in COMMANDS.values()], set[str]()
    while waiting:
        name = waiting.pop()
        if name in seen or name not in by_name:
            continue
        seen.add(name)
        for imported in imports(parsed(by_name[name]), top_only=True):
            assert root(imported) not in HEAVY, f"{name} imports {imported} at the top"
            waiting.append(imported)


def test_no_help_text_loads_a_heavy_library() -> None:
    script = f"""
import json, sys
from click.testing import CliRunner
from sovfed.cli import COMMANDS, cli

def loaded(names):
    return sorted(name for name in sys.modules if name.startswith(names))

def show(*args):
    return CliRunner().invoke(cli, [*args, "--help"]).exit_code

codes = [show()]
root = loaded(("sovfed.server", "sovfed.clients", "sovfed.simulations")) + sorted({HEAVY!r} & set(sys.modules))
codes += [show(name) for name in COMMANDS]
print(json.dumps([root, sorted({HEAVY!r} & set(sys.modules)), codes]))
"""
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT / ".src")
    after_root, after_groups, codes = json.loads(done.stdout)
    assert (after_root, after_groups) == ([], [])
    assert set(codes) == {0}


@pytest.mark.parametrize("module", ["sovfed.task", "sovfed.clients.node.sandbox"])
def test_what_forks_or_is_sealed_has_started_no_thread(module: str) -> None:
    """The size of a package's model is asked of a fork, which a process with threads cannot make; and a thread that is
    there before a process is sealed keeps what the process loses.
    """
    threads = {"OMP_NUM_THREADS": "1"} if module == "sovfed.task" else {}
    command = [sys.executable, "-c", f"import os, {module}; print(len(os.listdir('/proc/self/task')))"]
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")} | threads
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment, cwd=ROOT / ".src")
    assert done.stdout.strip() == "1"
