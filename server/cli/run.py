"""`sovfed run`: start, watch, stop and resume training runs on the agency's server."""

from __future__ import annotations

import json
import os
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from sovfed.federation.errors import ConfigError, PolicyError, ServiceError, SovfedError
from sovfed.federation.help import Group
from sovfed.federation.slow import said_if_slow
from sovfed.federation.text import cell, visible
from sovfed.server.cli.home import HOME, JSON, option
from sovfed.server.cli.orders import approve, explain, propose, purge, unlearn, withdraw
from sovfed.server.cli.rounds_shown import round_table, round_text, rounds_bar
from sovfed.server.cli.table import table

if TYPE_CHECKING:
    from sovfed.federation.config import Config
    from sovfed.server.rounds.privacy import PrivacyPlan
    from sovfed.server.runs.control import ControlClient

ENDED: Final = ("finished", "failed", "stopped", "damaged")
LOOK_S: Final = 5.0  # between two looks at whom a run waits for, where somebody follows it


@click.group(cls=Group, name="run")
def cli() -> None:
    """Start, watch, stop and resume training runs. Run it on the agency's server, as the server's user.

    \b
    Examples:
      sovfed run start task=breast_cancer rounds=20
      sovfed run start task=heart strategy=fedadam --follow
      sovfed run list
      sovfed run show heart-20260301-101500-1f2e
      sovfed run resume heart-20260301-101500-1f2e
    \b
    With the approval of two people, and what a run takes from whom:
      sovfed run propose task=heart run_name=heart-2027 order.purpose="risk of infarction, study 12"
      sovfed run approve ~/.sovfed/server/runs/heart-2027/order.json
      sovfed run start --proposed heart-2027
      sovfed run explain heart-2027
    \b
    Counts instead of a model:
      sovfed run start task=heart statistics="age, sex*target" run_name=heart-counts
      sovfed run table heart-counts
    """
    os.umask(0o077)  # databases and logs that libraries make are the owner's too


for _command in (propose, approve, explain, withdraw, unlearn, purge, table):
    cli.add_command(_command)


@cli.command()
@click.argument("overrides", nargs=-1)
@click.option("--proposed", default="", help="The run that `run propose` has proposed, as it was then.")
@click.option(
    "--follow/--no-follow", default=True, help="Show each round until the run ends (Ctrl-C only stops watching)."
)
@click.option("--anyway", is_flag=True, help="Start also what costs more than institutions' policies begin with.")
@HOME
@JSON
def start(
    overrides: tuple[str, ...], proposed: str, follow: bool, anyway: bool, home: Path, as_json: bool
) -> None:  # fmt: skip
    """Start a run. OVERRIDES choose task, which must be named, strategy and values.

    Institutions are shown its order first; it waits for the officers who have to sign (`order.wait_s`). Fewer
    institutions than `server.min_cohort` (5, unless `server init` or OVERRIDES say otherwise) make no run. Nor is a
    private one started that costs more than the policies which they begin with allow, without --anyway.

    \b
    Examples:
      sovfed run start task=heart rounds=50 task.learning_rate=0.05
      sovfed run start task=birth.yaml server.min_cohort=4 --home agency
      sovfed run start --proposed heart-2027 --no-follow
    """
    from sovfed.federation.tasks.registry import configured_task
    from sovfed.server.orders.apart import refusals_of_config
    from sovfed.server.orders.foreseen import beyond_usual
    from sovfed.server.orders.proposing import configured, proposed_overrides, require_task
    from sovfed.server.orders.unlearning import unlearning_config
    from sovfed.server.rounds.checkpoint import NAME as CHECKPOINT
    from sovfed.server.rounds.privacy import vector_size
    from sovfed.server.runs.enough import require_enough
    from sovfed.server.runs.folders import new_run_name, run_folder, start_run

    if proposed and overrides:
        raise click.UsageError("a proposed run is started as it was proposed: leave out OVERRIDES")
    if not proposed:
        require_task(overrides)
    with said_if_slow("looking at the task, the cost and who is admitted"):
        again = unlearning_config(home, proposed) if proposed else None
        config = again or configured(home, proposed_overrides(home, proposed) if proposed else overrides)
        plan = planned(config, vector_size(config, configured_task(config.task)))
        tell_of_noise(plan)
        name = proposed or new_run_name(config)
        hold_back([] if plan is None else beyond_usual(plan), anyway)
        for line in refusals_of_config(home, name, config):  # which depends on who comes
            click.echo(visible(f"warning: {line}"), err=True)
        control = _control(home)
        if waits := require_enough(config, control.list_nodes()):
            click.echo(visible(waits), err=True)
        folder = run_folder(home, name)
        start_run(control, home, name, config, resume=again is not None and (folder / CHECKPOINT).exists())
    _report(home, name, follow, as_json)


def hold_back(refusals: list[str], anyway: bool) -> None:
    """Warn of `refusals`, which every usual policy means, if the run is started `anyway`. Raises PolicyError if not."""
    if refusals and not anyway:
        raise PolicyError(
            f"not started: {'; '.join(refusals)}. Where their policies do say otherwise: `run start … --anyway`"
        )
    for line in refusals:
        click.echo(visible(f"warning: {line}"), err=True)


def planned(config: Config, parameters: int) -> PrivacyPlan | None:
    """What a private run of `config` will cost; None of one without privacy. Raises PrivacyError."""
    from sovfed.server.rounds.privacy import PrivacyPlan

    return PrivacyPlan.make(config, "", parameters) if config.privacy.private else None


def tell_of_noise(plan: PrivacyPlan | None) -> None:
    """Say what to expect of a private run, before the institutions' budgets are spent on it."""
    if plan is None or plan.config.task.tells_table:
        return
    click.echo(plan.expectation, err=True)
    if plan.timid:
        click.echo(plan.timid, err=True)
    if plan.drowned:
        click.echo(f"warning: {plan.drowned}", err=True)


@cli.command()
@click.argument("name")
@click.option("--follow/--no-follow", default=True, help="Show each round until the run ends.")
@HOME
@JSON
def resume(name: str, follow: bool, home: Path, as_json: bool) -> None:
    """Go on with a run that failed or was stopped, from its last checkpoint.

    A run that was interrupted (a process or the machine came down) goes on by itself while `sovfed server up` runs.
    One that has finished is trained further by a new run: `sovfed run start … start=NAME`.

    \b
    Example:
      sovfed run resume heart-2027
    """
    from sovfed.server.runs.recovery import resume_run

    with said_if_slow("looking at the run and its checkpoint"):
        resume_run(_control(home), home, name)
    _report(home, name, follow, as_json)


@cli.command(name="list")
@HOME
@JSON
def list_(home: Path, as_json: bool) -> None:
    """List the runs, the newest first; also those that are proposed and have not begun, and who has withdrawn.

    \b
    Examples:
      sovfed run list
      sovfed run list --json --home agency
    """
    from sovfed.server.runs.listed import listed

    runs = listed(home, _control(home, required=False), time.time())
    if as_json:
        click.echo(json.dumps(runs, indent=2))
        return
    from sovfed.federation.tables import print_rows

    rows = [
        (
            run["name"], run["task"], run["status"], f"{run['rounds_done']}/{run['rounds']}", str(run["institutions"]),
            time.strftime("%F", time.localtime(run["started"])),
        )
        for run in runs
    ]  # fmt: skip
    print_rows(("run", "task", "status", "rounds", "sites", "started"), rows)
    for run in runs:
        gone = f"{', '.join(run['withdrawn'])} has withdrawn" if run["withdrawn"] else ""
        for line in filter(None, (run["reason"], gone)):
            click.echo(f"{visible(run['name'])}: {visible(line)}")


@cli.command()
@click.argument("name")
@HOME
@JSON
def show(name: str, home: Path, as_json: bool) -> None:
    """Show one run: its state, last rounds, who was missing in which, and, once finished, its summary.

    \b
    Example:
      sovfed run show heart-2027
    """
    from sovfed.server.orders.further import after_lines, trained_further
    from sovfed.server.orders.withdrawn import read_withdrawn
    from sovfed.server.runs.attendance import absences, attendance
    from sovfed.server.runs.curves import read_rounds
    from sovfed.server.runs.ending import intervals_told
    from sovfed.server.runs.folders import read_run, read_summary, run_folder

    run = read_run(home, name, _control(home, required=False))
    lines, summary = read_rounds(run_folder(home, name)), read_summary(home, name)
    if as_json:
        more = {"last_rounds": lines[-10:], "attendance": attendance(lines), "summary": summary}
        click.echo(json.dumps({**run, **more, "trained_further": trained_further(home, name)}, indent=2))
        return
    from rich.console import Console

    console, waiting = Console(), list(_waiting(home, run))
    reason = "" if any(run["reason"] in line for line in waiting) else cell(run["reason"])
    console.print(f"[bold]{cell(name)}[/bold]  {run['status']}  {reason}".rstrip(), soft_wrap=True)
    if run["presence"]:
        console.print(cell(run["presence"]["sentence"]), soft_wrap=True)
    for line in waiting:
        console.print(cell(line), soft_wrap=True)
    console.print(round_table(lines[-10:]))
    for sentence in absences(attendance(lines), len(lines)):
        console.print(cell(sentence), soft_wrap=True)
    if summary:
        metrics = summary["metrics"] or "not told by a private run; privacy.html in its folder says what is promised"
        told = "  ".join(f"{k} {v:.3f}" for k, v in metrics.items()) if isinstance(metrics, dict) else metrics
        console.print(f"held-out metrics of all institutions: {told}", markup=False)
        if within := intervals_told(summary):
            console.print(within, markup=False, soft_wrap=True)
        if sealed := summary.get("isolation"):
            isolation = ", ".join(f"{institution}: {seal}" for institution, seal in sorted(sealed.items()))
            console.print(
                cell(f"what keeps each trainer from the network, by its own word: {isolation}"), soft_wrap=True
            )
    for withdrawal in read_withdrawn(run_folder(home, name)):
        for line in withdrawal.told():
            console.print(cell(line), soft_wrap=True)
    for line in after_lines(home, name):
        console.print(cell(line), soft_wrap=True)
    console.print(cell(f"folder: {run_folder(home, name)}"), soft_wrap=True)


@cli.command()
@click.argument("name")
@HOME
def stop(name: str, home: Path) -> None:
    """Stop a run. Its checkpoint stays, so `sovfed run resume` can go on with it.

    \b
    Example:
      sovfed run stop heart-2027
    """
    from sovfed.server.runs.folders import read_run, stop_run

    before = read_run(home, name)
    if before["status"] in ENDED:
        click.echo(f"run '{name}' had ended already: {before['status']}")
        return
    stop_run(_control(home), home, name)
    click.echo(f"run '{name}' is stopped; `sovfed run resume {name}{option(home)}` goes on from its last round")


@cli.command()
@click.argument("name")
@click.option("--follow", "-f", is_flag=True, help="Go on printing as the run writes.")
@HOME
def logs(name: str, follow: bool, home: Path) -> None:
    """Print the coordinator's log of a run.

    \b
    Example:
      sovfed run logs heart-2027 -f
    """
    from sovfed.server.runs.folders import follow_log

    for line in follow_log(home, name, follow):
        click.echo(visible(line, keep="\t\n"), nl=False)


@cli.command()
@click.argument("name")
@HOME
def check(name: str, home: Path) -> None:
    """Check that a finished run's model, MLflow's copy of it and its registered version are what the run made.

    NAME may be a folder, as of a simulation: of that the model alone is checked. Of a run that counted, its table is.

    \b
    Examples:
      sovfed run check heart-20260301-101500-1f2e
      sovfed run check birth-sim
    """
    from sovfed.server.runs.release import SUMMARY, made_by

    if (Path(name) / SUMMARY).exists():
        made, sha256 = made_by(Path(name))
        click.echo(visible(f"{Path(name) / made}: SHA-256 {sha256}, as the run made it"))
        return
    from mlflow import MlflowClient

    from sovfed.server.runs.folders import read_summary, run_folder, stored_config
    from sovfed.server.runs.release import check_copies
    from sovfed.server.runs.tracking import tracking_uri

    if read_summary(home, name) is None:
        raise ConfigError(f"run '{name}' has not finished")
    client = MlflowClient(tracking_uri(stored_config(home, name), home))
    for line in check_copies(run_folder(home, name), client):
        click.echo(visible(line))


@cli.command()
@click.option("--days", default=90, show_default=True, type=click.IntRange(1), help="Only what is older.")
@HOME
def prune(days: int, home: Path) -> None:
    """Delete checkpoints of runs that have finished, and coordinators' logs. Models, statements and rounds stay.

    \b
    Example (once a month, by cron or a systemd timer):
      sovfed run prune --days 90
    """
    from sovfed.server.runs.pruning import prune as prune_runs

    click.echo(f"freed {prune_runs(home, time.time() - days * 86_400) / 1e6:.1f} MB")


@cli.command()
@click.argument("name")
@HOME
def track(name: str, home: Path) -> None:
    """Send MLflow what it lacks of an ended run, because it was away. `sovfed server up` does so by itself, in time.

    \b
    Example:
      sovfed run track heart-2027
    """
    from sovfed.server.runs.folders import ACTIVE, UNSENT, read_run, run_folder, stored_config
    from sovfed.server.runs.tracking import send

    if read_run(home, name)["status"] in ACTIVE:
        raise ConfigError(f"run '{name}' has not ended: it sends by itself what MLflow lacks")
    if not (run_folder(home, name) / UNSENT).exists():
        click.echo(f"MLflow has all of run '{name}'")
    elif not send(stored_config(home, name), home, run_folder(home, name)):
        raise ServiceError(f"MLflow has still not got all of run '{name}'")
    else:
        click.echo(f"sent; MLflow has all of run '{name}'")


def _control(home: Path, required: bool = True) -> ControlClient:
    from sovfed.server.home import load_settings
    from sovfed.server.runs.control import ControlClient

    control = ControlClient(home, load_settings(home).server.control_port)
    if required and not control.alive():
        raise ServiceError(f"the agency's server is not running; start it with `sovfed server up --home {home}`")
    return control


def _report(home: Path, name: str, follow: bool, as_json: bool) -> None:
    from sovfed.server.runs.attendance import absences, attendance
    from sovfed.server.runs.curves import read_rounds
    from sovfed.server.runs.ending import ending
    from sovfed.server.runs.folders import read_run, read_summary, run_folder

    if not follow:
        click.echo(
            json.dumps({"run": name})
            if as_json
            else f"started run '{name}'; `sovfed run show {name}{option(home)}` tells how it goes"
        )
        return
    run = watch(home, name, quiet=as_json)
    if as_json:
        click.echo(json.dumps({**read_run(home, name, _control(home)), "summary": read_summary(home, name)}, indent=2))
    if run["status"] != "finished":
        then = (
            f"once that is mended, `sovfed run resume {name}{option(home)}` goes on"
            if run["resumable"]
            else "to go on with it would end in the same way: start another run, with other settings"
        )
        raise SovfedError(f"run '{name}' {run['status']}: {run['reason']}; {then}")  # the work failed, exit code 1
    if as_json:
        return
    click.echo(f"finished; `sovfed run show {name}{option(home)}` tells more")
    lines = read_rounds(run_folder(home, name))
    for sentence in absences(attendance(lines), len(lines)):
        click.echo(visible(sentence))
    for line in ending(read_summary(home, name) or {"metrics": {}}, run_folder(home, name), name, option(home)):
        click.echo(visible(line))


def watch(home: Path, name: str, quiet: bool = False) -> dict[str, Any]:
    """Show the run's progress until it ends; its final state."""
    from rich.console import Console

    from sovfed.server.home import load_settings
    from sovfed.server.runs.control import ControlClient
    from sovfed.server.runs.curves import read_rounds
    from sovfed.server.runs.folders import read_run, run_folder

    control = ControlClient(home, load_settings(home).server.control_port)
    console = Console(quiet=quiet)
    told, looked, printed = list[str](), 0.0, ""
    try:
        with rounds_bar(console) as progress:
            shown = progress.add_task("waiting for institutions", total=None)
            while True:
                run, lines = read_run(home, name, control), read_rounds(run_folder(home, name))
                if time.monotonic() - looked > LOOK_S and run["status"] not in ENDED:
                    told, looked = _waiting(home, run, control), time.monotonic()
                    words = re.sub(r"\d+", "", " ".join(told))  # which seconds alone have changed is no news to a pipe
                    if not console.is_terminal and words not in ("", printed):
                        console.print("\n".join(map(cell, told)), soft_wrap=True)
                        printed = words
                text = round_text(lines[-1]) if lines else "no round is done yet"
                present = [run["presence"]["sentence"]] if run["presence"] else []
                description = "\n".join(map(cell, [text, *present, *told]))
                progress.update(shown, total=run["rounds"], completed=len(lines), description=description)
                if run["status"] in ENDED:
                    return run
                time.sleep(0.3)
    except KeyboardInterrupt:
        at = option(home)
        raise KeyboardInterrupt(
            f"no longer watching; run '{name}' goes on at the agency. `sovfed run show {name}{at}` tells how it goes, "
            f"`sovfed run logs {name} -f{at}` follows it, `sovfed run stop {name}{at}` ends it"
        ) from None


def _waiting(home: Path, run: dict[str, Any], control: ControlClient | None = None) -> list[str]:
    """What an active run waits for, since when and why."""
    from sovfed.server.runs.awaiting import nodes_of, why_waiting
    from sovfed.server.runs.folders import ACTIVE, run_folder

    if run["status"] not in ACTIVE:
        return []
    return why_waiting(run, run_folder(home, run["name"]), nodes_of(control or _control(home, required=False)))
