"""`sovfed client failures`: what kept this institution from its work, and the operator's word that it was looked at."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sovfed.clients.cli.home import HOME
from sovfed.federation.text import day

if TYPE_CHECKING:
    from sovfed.clients.home.policy import Policy
    from sovfed.clients.trainer.allowance import State


@click.command()
@click.option("--clear", is_flag=True, help="Let runs go on: you have read the trainer's log and mended the cause.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON for machines.")
@HOME
def failures(clear: bool, as_json: bool, home: Path) -> None:
    """Show how often this institution told a run that it could not do the work, and what runs asked today.

    After max_failures_per_run or max_failures_per_day of policy.yaml it refuses, since such a failure may depend on the
    records. Only --clear lets it go on.

    \b
    Examples:
      sovfed client failures
      sovfed client failures --clear
    """
    from sovfed.clients.home.policy import load_policy
    from sovfed.clients.trainer.allowance import clear_failures, read_state

    summary = describe(read_state(home), load_policy(home))
    click.echo(json.dumps(summary, indent=2) if as_json else told(summary))
    if clear:
        clear_failures(home)
        if not as_json:
            click.echo("cleared; runs are answered again")


def describe(state: State, policy: Policy) -> dict[str, Any]:
    """What the operator is told, for machines."""
    full = {run: tally.failures for run, tally in state.runs.items() if tally.failures}
    refused = sorted(run for run, count in full.items() if count >= policy.max_failures_per_run)
    return {
        "failures": state.failures,
        "by_run": full,
        "refused_runs": refused,
        "refuses_all": state.stopped,
        "last_reason": state.reason,
        "last_at": state.at,
        "lacking": state.lacking,
        "sums_today": state.today.sums,
        "evaluations_today": state.today.evaluations,
    }


def told(found: dict[str, Any]) -> str:
    """The same in a line or two; names of runs are the agency's words, and so shown as literals."""
    lines = [
        f"sums without privacy answered today: {found['sums_today']}, of them evaluations {found['evaluations_today']} "
        "(`sovfed client orders show RUN`: those of one run)"
    ]
    lines += [
        f"{count} sums of run {run!r} lack records of this institution, or all: the trainer's log says why, and nobody "
        "else was told"
        for run, count in found["lacking"].items()
    ]
    if not found["failures"]:
        return "\n".join(["failures: none", *lines])
    when = day(found["last_at"], "%F %T UTC")
    lines.insert(0, f"failures: {found['failures']}, the last at {when}: {found['last_reason']}")
    if found["refuses_all"]:
        lines.append("everything is refused until `sovfed client failures --clear`")
    elif found["refused_runs"]:
        names = ", ".join(repr(run) for run in found["refused_runs"])
        lines.append(f"refused until `sovfed client failures --clear`: {names}")
    return "\n".join(lines)
