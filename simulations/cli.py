"""`sovfed simulate`, `sovfed demo`, `sovfed bench`: one process, one machine, and against peers."""

from __future__ import annotations

import json
import logging
import shlex
import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from sovfed.federation.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from sovfed.federation.config import Config
    from sovfed.server.rounds.coordinator import Outcome
    from sovfed.simulations.baselines import Comparison
    from sovfed.simulations.population import Institution

JSON: Final = click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON and nothing else.")
LISTED: Final = 40  # institutions told one by one
FILE: Final = click.Path(dir_okay=False, path_type=Path)
FOLDER: Final = click.Path(file_okay=False, resolve_path=True, path_type=Path)


@click.command()
@click.argument("overrides", nargs=-1)
@click.option(
    "--folder",
    type=FOLDER,
    default=None,
    help="Where to build it; must be empty. Default: a new folder here.",
)
@click.option("--keep", is_flag=True, help="Leave the federation up, to be played with, until Ctrl-C.")
@JSON
def demo(overrides: tuple[str, ...], folder: Path | None, keep: bool, as_json: bool) -> None:
    """Build a whole federation on this machine and train one model with it.

    An authority, the agency's server and four institutions: real processes, keys and TLS on free loopback ports.
    Trains, compares with pooled and lone training, and stops everything. The folder keeps the model, summary.json,
    curves.png and MLflow's runs, beside the homes and keys of all parties: delete it when you are done.

    \b
    Examples:
      sovfed demo
      sovfed demo task=digits rounds=20
      sovfed demo task=heart data.path=/data/heart_disease
      sovfed demo --keep
      sovfed demo --json > summary.json
    """
    from sovfed.simulations.demo import run_demo

    config = _compose(overrides, "server.min_cohort=3", "privacy.colluders=0")
    summary = run_demo(config, folder or _fresh("sovfed-demo-"), _console(as_json), keep=keep)
    if as_json:
        click.echo(json.dumps(summary, indent=2))


@click.command()
@click.argument("overrides", nargs=-1)
@click.option("--folder", type=FOLDER, default=None, help="The run's folder. Default: a new one here.")
@click.option("--resume", is_flag=True, help="Go on from the checkpoint in --folder.")
@click.option("-m", "--multirun", is_flag=True, help="A sweep: a run for every combination of the values given.")
@click.option(
    "--baselines", is_flag=True, help="Then train pooled and each alone: what federating gains, as `demo` tells."
)
@click.option(
    "--track/--no-track", default=True, help="Log the run to MLflow (in --folder unless tracking.uri is set)."
)
@JSON
@click.pass_context
def simulate(
    context: click.Context,
    overrides: tuple[str, ...],
    folder: Path | None,
    resume: bool,
    multirun: bool,
    baselines: bool,
    track: bool,
    as_json: bool,
) -> None:
    """Run the federation in one process: the deployed coordinator, ClientApp and trainers, without the network.

    With -m, values may be lists (a,b), range(1,4) or glob(fed*): a run for every combination, each in a folder of its
    own, a child run in MLflow, and a table and figure of all of them at the end. --resume goes on with an interrupted
    one; runs that ended are not done again.

    --baselines adds a table: the held-out headline metric of one model on all records pooled, of each institution's
    own and of the federated one. Only a simulation can know it, for it reads all records.

    \b
    Examples:
      sovfed simulate
      sovfed simulate task=heart data.path=/data/heart_disease strategy=fedadam rounds=50
      sovfed simulate task=digits --baselines
      sovfed simulate task=digits simulation.institutions=20 partition=dirichlet partition.alpha=0.3
      sovfed simulate task=digits partition=iid simulation.institutions=10000 simulation.cohort=100 secagg=none
      sovfed simulate -m task=digits strategy=fedavg,fedprox seed=1,2,3 --folder sweep
      sovfed simulate -m --resume --folder sweep
    """
    from sovfed.server.runs.ending import ending
    from sovfed.simulations.run_folder import require_usable
    from sovfed.simulations.sweep import swept

    logging.getLogger("flwr").setLevel(logging.WARNING)  # its strategies tell of every aggregation
    if resume and folder is None:
        raise ConfigError("--resume needs --folder, the folder of the run to go on with")
    if multirun and baselines:
        raise ConfigError("--baselines is for one run: leave out -m")
    if multirun:
        from sovfed.simulations.cli_sweep import sweep

        at = folder or Path(tempfile.mkdtemp(prefix="sovfed-sweep-", dir=Path.cwd()))
        code = sweep(overrides, at, resume=resume, track=track, as_json=as_json, console=_console(as_json))
        context.exit(code)
    if several := swept(overrides):
        raise ConfigError(f"{several[0]} has several values: add -m for a run for each of them")
    require_usable(folder, resume=resume)
    console = _console(as_json)
    config, population, outcome, folder = _train(
        overrides, console, folder, resume=resume, baselines=baselines, track=track
    )
    comparison = _beside(console, config, population, outcome, folder) if baselines else None
    if as_json:
        click.echo(json.dumps(outcome.summary, indent=2))
        return
    by_institution = outcome.summary["metrics_by_institution"]
    for name, metrics in by_institution.items() if len(by_institution) <= LISTED else ():
        console.print(f"  institution {name}: " + "  ".join(f"{key} {value:.3f}" for key, value in metrics.items()))
    if simulated := outcome.summary.get("simulated_metrics"):
        figures = "  ".join(f"{key} {value:.3f}" for key, value in simulated.items())
        console.print(f"[bold]the final model, as only a simulation can know it[/]: {figures}")
    if why := outcome.summary.get("engine_reason"):
        console.print(f"engine: {outcome.summary['engine']}, since {why}")
    if comparison is not None:
        from sovfed.federation.tasks.registry import configured_task
        from sovfed.simulations.comparison_view import how_sure, table

        console.print(table(configured_task(config.task), comparison, LISTED))
        if sure := how_sure(comparison, LISTED):
            console.print(sure, markup=False, soft_wrap=True, highlight=False)
    for line in ending(outcome.summary, folder, str(folder)):
        console.print(line, markup=False, soft_wrap=True, highlight=False)
    console.print(f"folder: {folder}", markup=False)


def _train(
    overrides: tuple[str, ...], console: Console, chosen: Path | None, *, resume: bool, baselines: bool, track: bool
) -> tuple[Config, Sequence[Institution], Outcome, Path]:
    """The one run that `overrides` choose, in the folder `chosen` or a new one; Ctrl-C says how it is taken up."""
    from sovfed.server.runs.tracking import Tracker
    from sovfed.simulations.federation import simulate_population
    from sovfed.simulations.population import make_population
    from sovfed.simulations.run_folder import run_folder, to_resume

    config = _compose(overrides)
    if baselines:
        _require_model(config)
    population = make_population(config)
    on_start = partial(click.echo, err=True)
    folder = chosen
    try:
        with run_folder(chosen, Path.cwd(), resume=resume) as folder:
            tracker = Tracker(config, folder, folder, config.run_name or folder.name) if track else None
            with _RoundsBar(console, config.rounds) as on_round:
                outcome = simulate_population(
                    config, population, folder, tracker=tracker, resume=resume, on_round=on_round, on_start=on_start
                )
    except KeyboardInterrupt:
        rounds = "" if folder is None else to_resume(folder)
        if not rounds:
            raise KeyboardInterrupt("interrupted before a round was done: there is nothing to go on with") from None
        options = [*(["--baselines"] if baselines else []), *([] if track else ["--no-track"])]
        again = shlex.join(["sovfed", "simulate", *overrides, *options, "--resume", "--folder", str(folder)])
        raise KeyboardInterrupt(f"interrupted {rounds}; go on with: {again}") from None
    return config, population, outcome, folder


def _require_model(config: Config) -> None:
    """Raises ConfigError where there is no training to compare with."""
    from sovfed.federation.tasks.registry import configured_task

    if configured_task(config.task).build is None or config.task.statistics or config.task.candidates:
        raise ConfigError("--baselines: this run trains no model that others could be compared with")


def _beside(
    console: Console, config: Config, population: Sequence[Institution], outcome: Outcome, folder: Path
) -> Comparison:
    """The baselines, which the run's summary tells too."""
    from sovfed.federation.files import write_private
    from sovfed.server.runs.release import SUMMARY
    from sovfed.simulations.comparison_view import in_summary
    from sovfed.simulations.population import compare_population

    try:
        with console.status("baselines: pooled, and each institution alone"):
            comparison = compare_population(config, population, outcome.model, outcome.scale)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"interrupted; the run is done, in {folder}, its baselines are not") from None
    outcome.summary.update(in_summary(comparison))
    write_private(folder / SUMMARY, json.dumps(outcome.summary, indent=2).encode())
    return comparison


@click.command()
@click.argument("overrides", nargs=-1)
@click.option("--plot", "plot_path", type=FILE, help="Draw it into a PNG: a bar an institution, a colour a class.")
@JSON
def partition(overrides: tuple[str, ...], plot_path: Path | None, as_json: bool) -> None:
    """Show how a simulation cuts a task's records into institutions.

    \b
    Examples:
      sovfed partition task=digits partition=dirichlet partition.alpha=0.3 simulation.institutions=12
      sovfed partition task=digits partition=shards --plot shards.png
      sovfed partition task=heart data.path=/data/heart_disease --json
    """
    from sovfed.simulations.partition_view import SHOWN, holdings, picture, table

    config = _compose(overrides)
    all_holdings = holdings(config)
    if plot_path is not None:
        picture(config, all_holdings, plot_path)
    if as_json:
        click.echo(json.dumps([holding.to_dict() for holding in all_holdings], indent=2))
        return
    console = _console(False)
    console.print(table(config, all_holdings))
    if config.simulation.institutions > len(all_holdings) == SHOWN:
        console.print(f"the first {SHOWN} of {config.simulation.institutions} institutions")


def _compose(overrides: tuple[str, ...], *defaults: str) -> Config:
    from sovfed.simulations.configured import simulated

    return simulated([*defaults, *overrides])


def _fresh(prefix: str) -> Path:
    return Path(tempfile.mkdtemp(prefix=prefix, dir=Path.cwd()))


def _console(quiet: bool) -> Console:
    from rich.console import Console

    return Console(quiet=quiet)


class _RoundsBar:
    """A progress bar that each round advances."""

    def __init__(self, console: Console, total: int) -> None:
        from sovfed.server.cli.rounds_shown import rounds_bar

        self._progress = rounds_bar(console)
        self._total = total

    def __enter__(self) -> Any:
        from sovfed.server.cli.rounds_shown import round_text

        self._progress.start()
        bar = self._progress.add_task("starting", total=self._total)

        def on_round(line: dict[str, Any]) -> None:
            self._progress.update(bar, completed=line["round"], description=round_text(line))

        return on_round

    def __exit__(self, *_: object) -> None:
        self._progress.stop()
