"""`sovfed demo`: a whole federation on this machine, from certificates to a trained, tracked and compared model."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from sovfed.clients.data import natural_sites
from sovfed.federation.config import Config
from sovfed.federation.errors import ConfigError, ServiceError
from sovfed.federation.files import write_atomic
from sovfed.federation.tasks.registry import configured_task
from sovfed.server.cli.run import planned, tell_of_noise, watch
from sovfed.server.rounds.privacy import vector_size
from sovfed.server.runs import folders
from sovfed.server.runs.ending import ending
from sovfed.server.runs.release import read_model
from sovfed.simulations.baselines import Comparison, compare_sites
from sovfed.simulations.comparison_view import in_summary, table
from sovfed.simulations.deployment import Institution, LocalFederation
from sovfed.simulations.federation import institution_names, sites

RUN: Final = "demo"
KEYS: Final = (
    "task", "institutions", "rounds", "seconds_total", "seconds_per_round_median", "overhead_seconds_per_round_median",
    "metric", "pooled", "alone_mean", "federated", "secure_aggregation", "epsilon", "bytes_up_per_round",
    "mlflow_run_id",
)  # fmt: skip


def run_demo(config: Config, folder: Path, console: Console, keep: bool = False) -> dict[str, Any]:
    """Build the federation in `folder` (which must not exist or be empty), train, compare, stop; the summary.

    `keep` leaves everything up until Ctrl-C. Raises ServiceError with the place of the logs if a step fails.
    """
    if folder.exists() and any(folder.iterdir()):  # before any work
        raise ServiceError(f"{folder} is not empty; choose another --folder or remove it")
    if configured_task(config.task).build is None:
        raise ConfigError(f"task '{config.task.name}' trains no model, so there is no gain to show; try task=digits")
    data = sites(config)
    config = _with_all(config, len(data))
    tell_of_noise(planned(config, vector_size(config, configured_task(config.task))))
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    started = time.monotonic()
    institutions = [Institution(name, source) for name, source in zip(institution_names(data), data, strict=True)]
    federation = LocalFederation(folder, institutions, config)
    try:
        with _step(console, "authority and agency: root certificate, server key, server certificate"):
            federation.build_agency()
        with _step(console, "agency: superlink, registry and executor are up"):
            federation.start_agency()
        with _step(console, f"{len(institutions)} institutions enrolled: keys made on site, signed by the authority"):
            federation.enrol()
        with _step(console, f"{len(institutions)} institutions: trainer, supernode and gateway are up"):
            federation.start_institutions()
        federation.start_run(RUN)
        run = watch(federation.home, RUN, quiet=console.quiet)
        if run["status"] != "finished":
            raise ServiceError(f"the run {run['status']}: {run['reason']}; logs in {federation.home / 'logs'}")
        with _step(console, "baselines: pooled, and each institution alone"):
            summary, comparison = _summarise(federation, institutions, started)
        _print(console, federation, summary, comparison)
        if keep:
            _wait(console, federation)
    finally:
        with _step(console, "everything that was started is stopped"):
            federation.stop()
        _tell(console, f"delete {folder} when you are done with it: it holds the demonstration's homes, keys and logs")
    return summary


def _with_all(config: Config, institutions: int) -> Config:
    """`config` with a first round that waits for all of them, unless it says for how many. Raises ConfigError."""
    if institutions < config.server.min_cohort:
        raise ConfigError(
            f"{institutions} institution{'s' if institutions > 1 else ''}; a sum is over {config.server.min_cohort} or "
            "more: data.path=FOLDER of one table a site, or data.site_column=COLUMN that tells the sites apart"
        )
    start = config.server.start_cohort or institutions
    return dataclasses.replace(config, server=dataclasses.replace(config.server, start_cohort=start))


def _summarise(
    federation: LocalFederation, institutions: list[Institution], started: float
) -> tuple[dict[str, Any], Comparison]:
    run_summary = folders.read_summary(federation.home, RUN)
    if run_summary is None:
        raise ServiceError("the run finished without a summary")
    trained = read_model(folders.run_folder(federation.home, RUN))
    data, names = [member.data for member in institutions], [member.name for member in institutions]
    comparison = compare_sites(federation.config, data, trained.vector, trained.scale, names)
    summary = {
        **run_summary,
        "institutions": len(institutions),
        "institution_names": names,
        "seconds_total": time.monotonic() - started,
        **in_summary(comparison),
    }
    write_atomic(federation.folder / "summary.json", json.dumps(summary, indent=2).encode())
    curves = folders.run_folder(federation.home, RUN) / "curves.png"
    write_atomic(federation.folder / "curves.png", curves.read_bytes())
    return summary, comparison


def _print(console: Console, federation: LocalFederation, summary: dict[str, Any], comparison: Comparison) -> None:
    task = configured_task(federation.config.task)
    if summary["split"] == "simulated" and not natural_sites(federation.config.data):
        console.print(
            f"[yellow]The split is simulated:[/] one data set, cut into {len(federation.institutions)} parts."
        )
    console.print(table(task, comparison))
    console.print(
        f"secure aggregation: {_protection(summary)}   differential privacy: {_privacy(summary)}\n"
        f"transport: {summary['transport']}   {summary['rounds']} rounds in {summary['seconds_training']:.1f} s, "
        f"{summary['seconds_per_round_median'] * 1e3:.0f} ms a round "
        f"({_milliseconds(summary['overhead_seconds_per_round_median'])} overhead); "
        f"{summary['seconds_total']:.0f} s in all"
    )
    run_folder = folders.run_folder(federation.home, RUN)
    for line in ending(summary, run_folder, str(run_folder)):
        _tell(console, line)
    _tell(console, f"summary: {federation.folder / 'summary.json'}")
    _tell(console, f"curves: {federation.folder / 'curves.png'}")
    _tell(console, f"MLflow: python -m sovfed.server.runs.mlflow_page --home {federation.home} --port 5000")
    _tell(console, "        (http://127.0.0.1:5000, user agency, password in its secrets/mlflow.password)")


def _tell(console: Console, line: str) -> None:
    """A line that can be copied whole, whatever is in its paths."""
    console.print(line, markup=False, soft_wrap=True, highlight=False)


def _protection(summary: dict[str, Any]) -> str:
    details = summary.get("secure_aggregation_details")
    return f"[green]{details}[/]" if details else "[yellow]off[/]: the agency saw every institution's own update"


def _privacy(summary: dict[str, Any]) -> str:
    if summary["epsilon"] is None:
        return "[yellow]off[/]"
    return f"[green]{summary['privacy']['mechanism']}, ε = {summary['epsilon']:.2f} at δ = {summary['delta']:g}[/]"


def _milliseconds(seconds: float | None) -> str:
    return "–" if seconds is None else f"{seconds * 1e3:.0f} ms"


def _wait(console: Console, federation: LocalFederation) -> None:
    home = federation.home
    console.print(
        "The federation stays up. Try, in another terminal:\n"
        f"  sovfed server status --home {home}\n"
        f"  sovfed run start rounds=20 --home {home}\n"
        f"  sovfed client status --home {federation.client_home(federation.institutions[0].name)}\n"
        "Ctrl-C stops everything."
    )
    try:
        while True:
            time.sleep(1.0)
    except KeyboardInterrupt:
        console.print()


@contextmanager
def _step(console: Console, text: str) -> Iterator[None]:
    started = time.monotonic()
    with console.status(text):
        yield
    console.print(f"[green]✓[/] {text} [dim]({time.monotonic() - started:.1f} s)[/]")
