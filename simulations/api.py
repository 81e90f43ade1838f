"""`sovfed.simulate`: a federation from a notebook or a script, and what comes of it."""

from __future__ import annotations

import logging
import shutil
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from sovfed.clients.data import Dataset
from sovfed.federation.compose import compose
from sovfed.federation.config import Config
from sovfed.federation.tasks import Task
from sovfed.federation.tasks.conformance import require_works
from sovfed.federation.tasks.registry import add, configured_task
from sovfed.server.strategies import registry
from sovfed.simulations.baselines import Comparison
from sovfed.simulations.configured import simulated
from sovfed.simulations.federation import simulate_population
from sovfed.simulations.partition import Partition
from sovfed.simulations.population import Institution, Partitioned, compare_population, labels, make_population
from sovfed.simulations.run_folder import require_usable, run_folder

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from sovfed.federation.messages import Sums, Vector

Part: TypeAlias = "pd.DataFrame | Dataset | tuple[Any, Any]"  # of one institution
Data: TypeAlias = "str | Path | pd.DataFrame | Mapping[str, Part] | Sequence[Part] | None"
Callback: TypeAlias = Callable[[dict[str, Any]], None]


@dataclass(frozen=True, repr=False, eq=False)
class Result:
    """A simulation's outcome. `folder` is the run's, as a deployment leaves it; one that nobody chose goes with it."""

    config: Config
    task: Task
    vector: Vector  # the flat model, shape [d]
    scale: Sums
    summary: dict[str, Any]
    folder: Path
    population: Sequence[Institution]

    def __repr__(self) -> str:
        figures = "  ".join(f"{name} {value:.3f}" for name, value in self.metrics.items())
        return (
            f"<{self.task.name}: {self.config.rounds} rounds, {len(self.population)} institutions, "
            f"{len(self.vector)} parameters; {figures or 'no metrics'}; folder {self.folder}>"
        )

    @property
    def metrics(self) -> dict[str, float]:
        """The final model's metrics on all held-out records; of a private run, as only a simulation can know them."""
        metrics: dict[str, float] = self.summary["metrics"] or self.summary.get("simulated_metrics", {})
        return metrics

    @cached_property
    def model(self) -> Any:
        """The trained `torch.nn.Module`: takes inputs as the task's transform makes them."""
        from sovfed.clients.training.device import choose_device
        from sovfed.clients.training.model import FlatModel

        flat = FlatModel(self.task, choose_device("cpu"))
        flat.load(self.vector)
        return flat.module.eval()

    @cached_property
    def rounds(self) -> pd.DataFrame:
        """A row a round: loss, metrics (of the model the round began with), seconds, bytes, who took part."""
        import pandas as pd

        from sovfed.server.runs.curves import read_rounds

        lines = [{**line, **line["metrics"]} for line in read_rounds(self.folder)]
        return pd.DataFrame(lines).drop(columns="metrics", errors="ignore").set_index("round")

    def plot(self) -> Figure:
        """The run's curves: loss, metrics and seconds by round."""
        from sovfed.server.runs.curves import draw_curves

        return draw_curves(self.folder)

    @cached_property
    def baselines(self) -> Comparison:
        """The headline metric beside one model on all records pooled, and each institution's own model."""
        return compare_population(self.config, self.population, self.vector, self.scale)


def simulate(
    task: str | Path | Task,
    data: Data = None,
    *,
    rounds: int | None = None,
    strategy: Any = None,
    privacy: str | None = None,
    institutions: int | None = None,
    seed: int | None = None,
    settings: Mapping[str, Any] | Sequence[str] = (),
    callbacks: Sequence[Callback] = (),
    folder: str | Path | None = None,
) -> Result:
    """Train `task` over simulated institutions, by the deployed coordinator and trainers, in this process.

    `task` is a `Task`, an installed one's name or a task.yaml. `data` is a folder of one table a site, what each site
    has by its name or in a list, one data frame (cut into `institutions` as `partition.*` says), or None for a task
    that brings its own. A site has a data frame, a `Dataset`, (inputs, targets), or two such pairs: what to train on
    and what is held out (`sovfed.task.records`). `strategy` is a name, or an object: a `ServerOptimizer`, or one of
    `flwr.serverapp.strategy`. `settings` are those of `sovfed config options`, as a mapping of dotted keys or as
    "key=value".
    Each of `callbacks` is called with every round's figures. `folder`, new or empty, keeps the run; without, it goes
    with the result. Raises SovfedError.

        result = sovfed.simulate("birth.yaml", "clinics/", rounds=50)
        result.metrics, result.rounds, result.plot(), result.baselines
    """
    if isinstance(data, (list, tuple)):
        data = {f"site-{number}": site_data for number, site_data in enumerate(data)}
    if strategy is not None and not isinstance(strategy, str):
        settings = _with_strategy(strategy, settings)
        strategy = None
    require_usable(None if folder is None else Path(folder))
    config = _config(task, data, rounds, strategy, privacy, institutions, seed, settings)
    resolved = configured_task(config.task)
    require_works(resolved)
    population = _population(config, resolved, data)

    def report(line: dict[str, Any]) -> None:
        for callback in callbacks:
            callback(line)

    logging.getLogger("flwr").setLevel(logging.WARNING)  # its strategies tell of every aggregation
    with run_folder(None if folder is None else Path(folder)) as kept:
        outcome = simulate_population(config, population, kept, on_round=report)
    result = Result(config, resolved, outcome.model, outcome.scale, outcome.summary, kept, population)
    if folder is None:
        weakref.finalize(result, shutil.rmtree, kept, ignore_errors=True)
    return result


def _config(
    task: str | Path | Task, data: Data, rounds: int | None, strategy: str | None, privacy: str | None,
    institutions: int | None, seed: int | None, settings: Mapping[str, Any] | Sequence[str],
) -> Config:  # fmt: skip
    """The run's configuration: the task's own settings, then the arguments, then `settings`."""
    chosen: dict[str, Any] = {"task": add(task).name if isinstance(task, Task) else task}
    if isinstance(data, (str, Path)):
        chosen["data.path"] = data
    if isinstance(data, Mapping):
        chosen["simulation.institutions"] = len(data)
    elif data is not None and not isinstance(data, (str, Path)):
        chosen["partition"] = "iid"
    arguments = {
        "rounds": rounds, "strategy": strategy, "privacy": privacy, "seed": seed, "simulation.workers": 0,
        "simulation.institutions": institutions,
    }  # fmt: skip
    chosen |= {key: value for key, value in arguments.items() if value is not None}
    if isinstance(settings, Mapping):
        overrides = [f"{key}={value}" for key, value in {**chosen, **settings}.items()]
    else:
        overrides = [*(f"{key}={value}" for key, value in chosen.items()), *settings]
    in_files = data is None or isinstance(data, (str, Path))
    return simulated(overrides) if in_files else compose(overrides).config


def _with_strategy(strategy: Any, settings: Mapping[str, Any] | Sequence[str]) -> Mapping[str, Any] | Sequence[str]:
    """`settings` that name `strategy`, an object, which is made known in this process."""
    name = registry.add(f"own.{type(strategy).__name__}", lambda _config, _layout: strategy)
    chosen = {"strategy.name": name}
    if half := registry.institution_of(strategy):
        chosen["strategy.institution"] = half
    if isinstance(settings, Mapping):
        return {**settings, **chosen}
    return [*settings, *(f"{key}={value}" for key, value in chosen.items())]


def _population(config: Config, task: Task, data: Data) -> Sequence[Institution]:
    if data is None or isinstance(data, (str, Path)):
        return make_population(config)
    if isinstance(data, Mapping):
        datasets = {name: _records(task, site_data, config, name) for name, site_data in data.items()}
        return [
            Institution(label, name, lambda _task, dataset=dataset: dataset)  # type: ignore[misc]
            for label, (name, dataset) in zip(labels(map(str, datasets)), datasets.items(), strict=True)
        ]
    records = _records(task, data, config, "the data frame")
    return Partitioned(Partition(task, records, config.partition, config.simulation.institutions, config.seed))


def _records(task: Task, part: Part, config: Config, where: str) -> Dataset:
    """A site's records; those of a data frame by the task's schema and the data's rules."""
    if hasattr(part, "persons"):
        return cast("Dataset", part)
    if isinstance(part, tuple):
        from sovfed.clients.data.arrays import records

        return records(task, *part) if isinstance(part[0], tuple) else records(task, part)
    from sovfed.clients.data.frames import records_of_frame

    return records_of_frame(task, cast("pd.DataFrame", part), config.data, where)


__all__ = ["Result", "simulate"]
