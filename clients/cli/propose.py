"""`sovfed task new` and `sovfed task check`: a task from an institution's own file, and whether a task works."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sovfed.clients.cli.language import language, tokenizer
from sovfed.federation.archive.cli import UNSEALED, diff, pack, review, signer
from sovfed.federation.errors import ConfigError
from sovfed.federation.tasks.cli import BASE, JSON, named_task, task
from sovfed.federation.text import ARCHIVE, NAME, NAME_IN_WORDS, visible

if TYPE_CHECKING:
    from sovfed.federation.tasks import Task
    from sovfed.federation.tasks.conformance import Check

__all__ = ["task"]
for command in (pack, review, diff, signer, tokenizer, language):
    task.add_command(command)


@task.command()
@click.argument("name")
@click.argument("settings", nargs=-1)
@click.option(
    "--from-csv",
    "paths",
    required=True,
    multiple=True,
    type=click.Path(path_type=Path),
    help="A file of your own records (CSV, Parquet), or a folder of them; several times: bounds and words cover all.",
)
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
    name: str,
    settings: tuple[str, ...],
    paths: tuple[Path, ...],
    targets: tuple[str, ...],
    event: str,
    person: str,
    output: Path | None,
    force: bool,
) -> None:
    """Propose NAME.yaml from records in CSV or Parquet: what to confirm is marked, and no record is printed.

    A column that names PNG, JPEG or DICOM files beside the table is proposed as images.

    SETTINGS of the group data say how the files are written.

    \b
    Examples:
      sovfed task new birth --from-csv clinic.csv --target preterm --person patient_id
      sovfed task new birth --from-csv clinics/ --target preterm
      sovfed task new birth --from-csv clinics/ data.missing_words=[-99]
      sovfed task new relapse --from-csv clinic.csv --target days --event relapsed --person row
      sovfed task new signs --from-csv clinic.csv --target cough --target fever
    """
    from sovfed.clients.data.chosen import as_written
    from sovfed.clients.proposals.proposal import propose

    name = name.removesuffix(".yaml")  # some name the file
    if not NAME.fullmatch(name) or len(name) > 64:
        raise ConfigError(f"a task's name must be {NAME_IN_WORDS}, at most 64 long, got {name[:64]!a}")
    where = Path(f"{name}.yaml") if output is None else output
    if where.exists() and not force:
        raise ConfigError(f"{where} is there already; --force writes over it, --output another")
    proposal = propose(name, paths, targets, event=event, person=person, written=as_written(settings))
    where.write_text(proposal.text, encoding="utf-8")
    for line in proposal.told:
        click.echo(visible(line, keep=""))
    click.echo(
        "every other column is an input: strike out what is not known when predicting (written after the outcome)"
    )
    click.echo(f"wrote {where}: confirm what is marked '# to be confirmed', then `sovfed task check {where}`")
    given = {setting.partition("=")[0].removeprefix("data.") for setting in settings}
    needed = [setting for setting in proposal.settings if setting.partition("=")[0].removeprefix("data.") not in given]
    told = shlex.join([str(where), str(proposal.first), *settings, *needed])
    click.echo(f"and `sovfed client check-data {visible(told, keep='')}`")


@task.command()
@click.argument("name", metavar="TASK")
@UNSEALED
@JSON
@BASE
def check(name: str, unsealed: bool, as_json: bool) -> None:
    """Try TASK, an installed one, a task.yaml or an archive, on made-up records. Exits with 1 if one does not hold.

    An archive's code is tried in a process without network that opens its own files alone.

    \b
    Examples:
      sovfed task check birth.yaml
      sovfed task check heart --json
      sovfed task check lab-1.sovtask
    """
    called, checks, remarks = _archive_checks(Path(name), unsealed) if name.endswith(ARCHIVE) else _checks(name)
    passed = all(outcome.held for outcome in checks)
    if as_json:
        outcomes = [{"what": outcome.what, "held": outcome.held, "detail": outcome.detail} for outcome in checks]
        click.echo(json.dumps({"task": called, "held": passed, "checks": outcomes, "privacy": remarks}, indent=2))
    else:
        _print(checks, remarks, passed)
    if not passed:
        sys.exit(1)


def _checks(name: str) -> tuple[str, list[Check], list[str]]:
    from sovfed.federation.tasks.conformance import conform

    checked_task = named_task(name)
    checks = conform(checked_task)
    return checked_task.name, checks, _private(checked_task) if all(outcome.held for outcome in checks) else []


def _archive_checks(path: Path, unsealed: bool) -> tuple[str, list[Check], list[str]]:
    from sovfed.federation.archive.archive import read_archive
    from sovfed.federation.archive.packing import trial_of
    from sovfed.federation.tasks.conformance import Check

    trial = trial_of(read_archive(path), unsealed=unsealed)
    return trial.name, [Check(tried.what, tried.held, tried.detail) for tried in trial.checks], list(trial.privacy)


def _print(checks: list[Check], remarks: list[str], held: bool) -> None:
    for outcome in checks:
        click.echo(f"{'ok ' if outcome.held else 'NO '} {outcome.what}: {visible(outcome.detail, keep='')}")
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

    return [("" if finding.refused else "remark: ") + str(finding) for finding in examine_task(found)]
