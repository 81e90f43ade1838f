"""`sovfed task new` and `sovfed task check`: a task from an institution's own file, and whether a task works."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sovfed.federation.errors import ConfigError
from sovfed.federation.tasks.cli import JSON, named_task, task
from sovfed.federation.text import NAME, NAME_IN_WORDS, visible

if TYPE_CHECKING:
    from sovfed.federation.tasks import Task
    from sovfed.federation.tasks.conformance import Check

__all__ = ["task"]


@task.command()
@click.argument("name")
@click.option("--from-csv", "path", required=True, type=click.Path(path_type=Path), help="A file of your own records.")
@click.option(
    "--target", "targets", multiple=True, help="What is to be learnt; several times: labels. With --event: a time."
)
@click.option("--event", default="", help="Survival: the column that says whether the event came at the target's time.")
@click.option(
    "--person", default="", help="The column that says whose record it is, or 'row': each row is another person."
)
@click.option("--output", type=click.Path(path_type=Path), help="Where to write it; NAME.yaml unless given.")
@click.option("--force", is_flag=True, help="Write over a file that is there.")
def new(
    name: str, path: Path, targets: tuple[str, ...], event: str, person: str, output: Path | None, force: bool
) -> None:
    """Propose NAME.yaml from the records in a CSV file: what to confirm is marked, and no record is printed.

    \b
    Examples:
      sovfed task new birth --from-csv clinic.csv --target preterm --person patient_id
      sovfed task new relapse --from-csv clinic.csv --target days --event relapsed --person row
      sovfed task new signs --from-csv clinic.csv --target cough --target fever
    """
    from sovfed.clients.proposals import propose

    if not NAME.fullmatch(name) or len(name) > 64:
        raise ConfigError(f"a task's name must be {NAME_IN_WORDS}, at most 64 long, got {name[:64]!a}")
    where = Path(f"{name}.yaml") if output is None else output
    if where.exists() and not force:
        raise ConfigError(f"{where} is there already; --force writes over it, --output another")
    proposal = propose(name, path, targets, event=event, person=person)
    where.write_text(proposal.text, encoding="utf-8")
    for line in proposal.told:
        click.echo(visible(line, keep=""))
    click.echo(f"wrote {where}: confirm what is marked '# to be confirmed', then `sovfed task check {where}`")


@task.command()
@click.argument("name", metavar="TASK")
@JSON
def check(name: str, as_json: bool) -> None:
    """Try TASK, an installed one or a task.yaml, on made-up records. Exits with 1 if something does not hold.

    \b
    Examples:
      sovfed task check birth.yaml
      sovfed task check heart --json
    """
    from sovfed.federation.tasks.conformance import conform

    found = named_task(name)
    checks = conform(found)
    remarks = _private(found) if all(one.held for one in checks) else []
    held = all(one.held for one in checks)
    if as_json:
        said = [{"what": one.what, "held": one.held, "detail": one.detail} for one in checks]
        click.echo(json.dumps({"task": found.name, "held": held, "checks": said, "privacy": remarks}, indent=2))
    else:
        _print(checks, remarks, held)
    if not held:
        sys.exit(1)


def _print(checks: list[Check], remarks: list[str], held: bool) -> None:
    for one in checks:
        click.echo(f"{'ok ' if one.held else 'NO '} {one.what}: {visible(one.detail, keep='')}")
    if held:
        for remark in remarks:
            click.echo(f"    privacy: {visible(remark, keep='')}")
        if not remarks:
            click.echo("ok  privacy: a person's gradient can be clipped: private runs are possible")


def _private(found: Task) -> list[str]:
    """What stands against private runs, or is worth knowing; [] if nothing."""
    if found.build is None:
        return ["nothing is trained"]
    from sovfed.clients.dpsgd.examination import examine_task

    return [("" if one.refused else "remark: ") + str(one) for one in examine_task(found)]
