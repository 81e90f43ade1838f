"""`sovfed simulate --multirun` and `sovfed compare`."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import click

if TYPE_CHECKING:
    from rich.console import Console

    from sovfed.simulations.sweep import Combination, Sweep

FILE = click.Path(dir_okay=False, path_type=Path)


def sweep(
    overrides: tuple[str, ...], folder: Path, *, resume: bool, track: bool, as_json: bool, console: Console
) -> int:
    """Plan or take up the sweep in `folder`, do its runs, show the table; the exit code, 1 if a run failed."""
    from sovfed.simulations.sweep import plan, read, run_sweep, summarise

    sweep_plan = read(folder, overrides) if resume else plan(overrides, folder)
    console.print(f"{len(sweep_plan.runs)} runs in {folder}")
    try:
        with _Bars(console, sweep_plan) as bars:
            failed = run_sweep(sweep_plan, track=track, on_run=bars.run, on_round=bars.round)
    except KeyboardInterrupt:
        summarise(sweep_plan)
        console.print(f"stopped; go on with: sovfed simulate -m --resume --folder {shlex.quote(str(folder))}")
        raise
    _show(sweep_plan, failed, as_json, console)
    return 1 if failed else 0


def _show(sweep_plan: Sweep, failed: dict[str, str], as_json: bool, console: Console) -> None:
    from sovfed.simulations.compare import choose_metric, figures, read_runs, table
    from sovfed.simulations.compare_groups import group_runs

    runs = [run for run in read_runs([sweep_plan.folder]) if run.rounds] if len(failed) < len(sweep_plan.runs) else []
    metric, groups = (choose_metric(runs, None), group_runs(runs)) if runs else ("", [])
    if as_json:
        lines = [figures(group, metric) for group in groups]
        document: dict[str, Any] = {
            "folder": str(sweep_plan.folder),
            "metric": metric,
            "groups": lines,
            "failed": failed,
        }
        click.echo(json.dumps(document, indent=2))
    if groups:
        console.print(table(groups, metric))
    for name, reason in failed.items():
        console.print(f"[red]✗[/] {name}: {reason}")
    if groups:
        console.print(f"figure: {sweep_plan.folder / 'compare.png'}")
        console.print(f"table:  {sweep_plan.folder / 'compare.csv'}")


class _Bars:
    """One bar for the sweep's runs and one for the rounds of the present run."""

    def __init__(self, console: Console, sweep_plan: Sweep) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._progress = Progress(*columns, console=console)
        self._runs = self._progress.add_task("runs", total=len(sweep_plan.runs))
        self._rounds = self._progress.add_task("rounds", total=None)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self._progress.update(self._runs, completed=self._progress.tasks[0].total)
        self._progress.stop()

    def run(self, number: int, run: Combination) -> None:
        self._progress.update(self._runs, completed=number - 1)
        self._progress.reset(self._rounds, total=run.config.rounds, description=run.name)

    def round(self, line: dict[str, Any]) -> None:
        self._progress.update(self._rounds, completed=line["round"])


@click.command()
@click.argument("folders", nargs=-1, required=True, type=click.Path(file_okay=False, path_type=Path))
@click.option("--metric", help="The metric to compare by. Default: the task's own.")
@click.option("--plot", "plot_path", type=FILE, help="Draw the runs into a PNG.")
@click.option("--csv", "csv_path", type=FILE, help="Write a line a run as CSV.")
@click.option("--json", "as_json", is_flag=True, help="Print the groups as JSON and nothing else.")
def compare(
    folders: tuple[Path, ...], metric: str | None, plot_path: Path | None, csv_path: Path | None, as_json: bool
) -> None:
    """Turn any set of runs into one table and one figure.

    FOLDERS are folders of runs, sweeps, demos, or an agency's home. Runs that differ in nothing but the seed share a
    line: mean ± standard deviation. A run that has not ended is shown as it stands.

    \b
    Examples:
      sovfed compare sovfed-sweep-x1y2
      sovfed compare run-a run-b --metric accuracy --plot runs.png
      sovfed compare agency --csv runs.csv
    """
    from rich.console import Console

    from sovfed.simulations.compare import choose_metric, figures, read_runs, table, write_csv
    from sovfed.simulations.compare_groups import group_runs
    from sovfed.simulations.compare_plot import plot

    runs = read_runs(folders)
    chosen, groups = choose_metric(runs, metric), group_runs(runs)
    if csv_path is not None:
        write_csv(runs, csv_path)
    if plot_path is not None:
        plot(runs, plot_path, metric)
    if as_json:
        click.echo(json.dumps({"metric": chosen, "groups": [figures(group, chosen) for group in groups]}, indent=2))
    else:
        Console().print(table(groups, chosen))
