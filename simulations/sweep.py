"""Sweeps: one simulation for every combination of several values, in a folder that an interrupted sweep goes on from.

Hydra's own parser reads the values (`seed=1,2,3`, `seed=range(1,4)`, `strategy=glob(fed*)`); the runs are their
cartesian product, in the order of Hydra's basic sweeper. A sweep's folder holds `sweep.json` (what was asked), a
folder for every run, and the table and figure of `simulations/compare.py`.
"""

from __future__ import annotations

import fnmatch
import hashlib
import itertools
import json
import logging
import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sovfed import __version__
from sovfed.federation.compose import ONE_RUN, groups
from sovfed.federation.errors import ConfigError, ServiceError, SovfedError
from sovfed.federation.files import write_private
from sovfed.federation.text import plain_name, without_credentials
from sovfed.simulations.compare import PLAN
from sovfed.simulations.configured import simulated

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from sovfed.federation.config import Config

log = logging.getLogger(__name__)
MAX_RUNS: Final = 10_000
MAX_NAME: Final = 100
_UNSAFE: Final = re.compile(r"[^A-Za-z0-9=.,_+-]+")


@dataclass(frozen=True)
class Combination:
    """One run of a sweep: the folder's name, its overrides, and what they compose to."""

    name: str
    overrides: tuple[str, ...]
    config: Config


@dataclass(frozen=True)
class Sweep:
    """A sweep's folder and its runs, all of them checked."""

    folder: Path
    overrides: tuple[str, ...]
    runs: list[Combination]


def expand(overrides: Sequence[str]) -> list[tuple[str, tuple[str, ...]]]:
    """(name, overrides) of every combination; the name tells the values that vary. Raises ConfigError."""
    axes = [_values(text) for text in overrides]
    if (count := math.prod(len(axis) for axis in axes)) > MAX_RUNS:
        raise ConfigError(f"the sweep has {count} runs, at most {MAX_RUNS} are taken")
    combinations: dict[str, tuple[str, ...]] = {}
    for chosen in itertools.product(*axes):
        varying = [text for text, axis in zip(chosen, axes, strict=True) if len(axis) > 1]
        combinations.setdefault(_name(varying), chosen)
    return list(combinations.items())


def swept(overrides: Sequence[str]) -> list[str]:
    """The overrides that have several values."""
    return [text for text in overrides if len(_values(text)) > 1]


def plan(overrides: Sequence[str], folder: Path) -> Sweep:
    """A new sweep in `folder`, which is made: all combinations are composed and checked first.

    Raises ConfigError if one of them is wrong, or if `folder` holds something already.
    """
    combinations = _checked(expand(overrides))
    if folder.exists() and any(folder.iterdir()):
        more = ": add --resume to go on with it" if (folder / PLAN).exists() else ""
        raise ConfigError(f"{folder} is not empty{more}")
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    listed = [{"name": combination.name, "overrides": combination.overrides} for combination in combinations]
    text = json.dumps({"version": __version__, "overrides": list(overrides), "runs": listed}, indent=2)
    write_private(folder / PLAN, text.encode())
    return Sweep(folder, tuple(overrides), combinations)


def read(folder: Path, overrides: Sequence[str] = ()) -> Sweep:
    """The sweep that `folder` was made for. Raises ConfigError if there is none, or if `overrides` are others."""
    try:
        document = json.loads((folder / PLAN).read_text(encoding="utf-8"))
        planned = tuple(document["overrides"])
        runs = [(entry["name"], tuple(entry["overrides"])) for entry in document["runs"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{folder} holds no sweep that could be gone on with: {error}") from error
    if overrides and set(overrides) != set(planned):
        changed = sorted(set(overrides) ^ set(planned))
        raise ConfigError(f"{folder} was made for other overrides; these differ: {' '.join(changed)}")
    return Sweep(folder, planned, _checked(runs))


def run_sweep(
    sweep: Sweep,
    *,
    track: bool = True,
    on_run: Callable[[int, Combination], None] = lambda number, run: None,
    on_round: Callable[[dict[str, Any]], None] = lambda line: None,
) -> dict[str, str]:
    """Do every run that has not ended, in order, each from its checkpoint if it has one; why runs failed, by name.

    Raises ServiceError if another process works on the same folder.
    """
    from sovfed.server.runs.release import SUMMARY
    from sovfed.server.runs.tracking import Tracker
    from sovfed.simulations.federation import simulate_population
    from sovfed.simulations.population import make_population

    failed: dict[str, str] = {}
    with _alone(sweep.folder):
        parent = _Parent(sweep) if track else None
        for number, run in enumerate(sweep.runs, start=1):
            on_run(number, run)
            folder = sweep.folder / run.name
            if (folder / SUMMARY).exists():
                continue
            folder.mkdir(exist_ok=True, mode=0o700)
            try:
                population = make_population(run.config)
                tracker = Tracker(run.config, sweep.folder, folder, run.name, parent=parent.run_id) if parent else None
                simulate_population(run.config, population, folder, tracker=tracker, resume=True, on_round=on_round)
            except SovfedError as error:
                log.warning("run %s failed: %s", run.name, error)
                failed[run.name] = str(error)
        artefacts = summarise(sweep)
        if parent:
            parent.finish("FAILED" if failed else "FINISHED", artefacts)
    return failed


def summarise(sweep: Sweep) -> list[Path]:
    """Write the table and the figure of the runs that have a round to show, as far as there are any."""
    from sovfed.simulations.compare import read_runs, write_csv
    from sovfed.simulations.compare_plot import plot

    runs = [run for run in read_runs([sweep.folder]) if run.rounds]
    if not runs:
        return []
    table, figure = sweep.folder / "compare.csv", sweep.folder / "compare.png"
    write_csv(runs, table)
    plot(runs, figure)
    return [table, figure]


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    from filelock import FileLock, Timeout

    try:
        with FileLock(folder / ".lock", timeout=0):
            yield
    except Timeout:
        raise ServiceError(f"another process works on the sweep in {folder}") from None


class _Parent:
    """The MLflow run whose children are the sweep's runs; without it, tracking of the runs goes on unnested."""

    def __init__(self, sweep: Sweep) -> None:
        self.run_id = ""
        self._client: MlflowClient | None = None
        try:
            self._open(sweep)
        except Exception as error:  # tracking must never end a sweep
            log.warning("MLflow: the sweep's parent run could not be made: %s", without_credentials(repr(error)))

    def _open(self, sweep: Sweep) -> None:
        from mlflow import MlflowClient

        from sovfed.server.runs.tracking import experiment_id, tracking_uri

        logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)  # tells of tables at its first start
        config, marker = sweep.runs[0].config, sweep.folder / "mlflow_run_id"
        client = MlflowClient(tracking_uri(config, sweep.folder))
        if marker.exists():  # a sweep that goes on
            self.run_id = marker.read_text(encoding="ascii").strip()
            client.update_run(self.run_id, status="RUNNING")
        else:
            parent_run = client.create_run(experiment_id(client, config, sweep.folder), run_name=sweep.folder.name)
            self.run_id = parent_run.info.run_id
            client.set_tag(self.run_id, "sovfed.sweep", without_credentials(" ".join(sweep.overrides))[:5000])
            write_private(marker, self.run_id.encode())
        self._client = client

    def finish(self, status: str, artefacts: Sequence[Path]) -> None:
        if self._client is None:
            return
        try:
            for path in artefacts:
                self._client.log_artifact(self.run_id, str(path))
            self._client.set_terminated(self.run_id, status)
        except Exception as error:  # as above
            log.warning("MLflow: the sweep's parent run could not be ended: %s", without_credentials(repr(error)))


def _checked(runs: Sequence[tuple[str, tuple[str, ...]]]) -> list[Combination]:
    combinations = []
    for name, overrides in runs:
        if not name or _UNSAFE.search(name) or name.startswith("."):
            raise ConfigError(f"a run of a sweep cannot be called {name[:MAX_NAME]!r}")
        try:
            config = simulated(overrides)
        except ConfigError as error:
            raise ConfigError(f"{name}: {error}" if len(runs) > 1 else str(error)) from error
        combinations.append(
            Combination(name, overrides, replace(config, run_name=config.run_name or plain_name(name)[:64]))
        )
    return combinations


def _values(text: str) -> list[str]:
    """The overrides that `text` stands for: itself, or one for each of its values. Raises ConfigError."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import Glob
    from hydra.errors import HydraException

    if text.partition("=")[0] in ONE_RUN:
        return [text]
    try:
        parsed = OverridesParser.create().parse_override(text)
    except HydraException:
        return [text]  # a value that only the composition can read, or refuse
    key = parsed.key_or_group
    value: Any = parsed.value()
    if isinstance(value, Glob):
        options = groups().get(key, [])
        chosen = [
            name
            for name in options
            if any(fnmatch.fnmatchcase(name, pattern) for pattern in value.include)
            and not any(fnmatch.fnmatchcase(name, pattern) for pattern in value.exclude)
        ]
        if not chosen:
            raise ConfigError(f"{text}: no option of group '{key}' fits (known: {', '.join(options) or 'none'})")
        return [f"{key}={name}" for name in chosen]
    if not parsed.is_sweep_override():
        return [text]
    if not parsed.is_discrete_sweep():
        raise ConfigError(f"{text}: a sweep needs single values, such as {key}=1,2,3 or {key}=range(1,4)")
    values = list(dict.fromkeys(f"{key}={choice}" for choice in parsed.sweep_string_iterator()))
    if not values:
        raise ConfigError(f"{text}: no value")
    return values


def _name(varying: Sequence[str]) -> str:
    """A folder's name that tells the values; long or unusual ones end in a digest, so that no two are the same."""
    plain = ",".join(varying) or "run"
    safe = _UNSAFE.sub("_", plain).lstrip(".")
    if safe == plain and len(safe) <= MAX_NAME:
        return safe
    return f"{safe[:MAX_NAME]}+{hashlib.sha256(plain.encode()).hexdigest()[:8]}"
