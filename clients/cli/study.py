"""`sovfed client study`: the studies that this institution takes part in on one node, and their records."""

from __future__ import annotations

from pathlib import Path

import click

from sovfed.clients.cli.home import HOME
from sovfed.federation.help import Group
from sovfed.federation.tasks.cli import BASE
from sovfed.federation.text import visible


@click.group(cls=Group)
def study() -> None:
    """List, add, remove and check studies: each has a task and its own records.

    \b
    Examples:
      sovfed client study add births --task birth.yaml data.path=/srv/births.csv
      sovfed client study list
      sovfed client study remove births
      sovfed client study check        read the records of every study, and say what to mend
    """


@study.command(name="list")
@HOME
def list_studies(home: Path) -> None:
    """The studies of client.yaml: name, task, whether the policy allows it, and where the records are.

    \b
    Example:
      sovfed client study list
    """
    from sovfed.clients.home.folder import load_config
    from sovfed.clients.home.policy import load_policy
    from sovfed.clients.home.studies import listed

    for line in listed(load_config(home), load_policy(home)):
        click.echo(visible(line))


@study.command()
@click.argument("name")
@click.argument("overrides", nargs=-1)
@click.option(
    "--task", "task", required=True, help="A task.yaml, of which a copy is kept, or an installed task's name."
)
@click.option("--allow", is_flag=True, help="Write the task into allowed_tasks of policy.yaml.")
@click.option("--population", default="", help="Whose records they are, if of people who are in no other study.")
@BASE
@HOME
def add(name: str, overrides: tuple[str, ...], task: str, allow: bool, population: str, home: Path) -> None:
    """Write study NAME into client.yaml, with its task and records, and look at these. OVERRIDES set `data…`.

    A task.yaml is named with its digest: a later version of it is another study, until you say that it is not.
    A file births.yaml beside births.csv says how that table is written, as for `check-data`.

    \b
    Examples:
      sovfed client study add births --task birth.yaml --allow data=csv data.path=/srv/births.csv
      sovfed client study add hearts --task heart data=heart data.path=/srv/heart data.site=cleveland
    """
    from sovfed.clients.cli.data import schema_of, tell_beside
    from sovfed.clients.home.folder import whole
    from sovfed.clients.home.looked import data_findings, population_findings
    from sovfed.clients.home.overrides import client_config
    from sovfed.clients.home.own_tasks import allow_entry, keep_task, known_task
    from sovfed.clients.home.policy import load_policy
    from sovfed.clients.home.studies import add_study

    entry = known_task(task)
    if wrong := [text for text in overrides if not text.startswith(("data=", "data."))]:
        raise click.UsageError(
            f"{visible(wrong[0])[:64]!r} is no setting of a study's data, as in data.path=births.csv"
        )
    if not any(text.startswith("data=") for text in overrides):
        overrides = ("data=own", *overrides)  # or it would be those of the task that a run has by default
    data = whole(client_config(overrides, schema=schema_of([task])).data, Path.cwd())
    tell_beside(overrides)
    config = add_study(home, name, entry, data, population)
    keep_task(home, task)
    click.echo(f"client.yaml now has study {name}, of {entry}; it holds from the next `sovfed client up`")
    if allow:
        allow_entry(home, entry)
        click.echo(f"policy.yaml now allows {entry}")
    policy = load_policy(home)
    if entry not in policy.allowed_tasks:
        click.echo(f"to let runs train it, policy.yaml needs in allowed_tasks: {entry}")
    for line in (*population_findings(config, policy), *data_findings(config, policy, name)):
        click.echo(visible(line), err=True)


@study.command()
@click.argument("name")
@HOME
def remove(name: str, home: Path) -> None:
    """Take study NAME out of client.yaml; its records, ledger and logs stay as they are.

    \b
    Example:
      sovfed client study remove births
    """
    from sovfed.clients.home.policy import load_policy
    from sovfed.clients.home.studies import remove_study

    was = remove_study(home, name)
    click.echo(f"client.yaml has no study {name} any more; it holds from the next `sovfed client up`")
    if was.task in load_policy(home).allowed_tasks:
        click.echo(f"policy.yaml still allows {was.task}: strike it out of allowed_tasks, or runs of it read `data`")


@study.command()
@click.option("--seconds", default=600.0, show_default=True, help="Most that one table is given.")
@HOME
@click.pass_context
def check(ctx: click.Context, seconds: float, home: Path) -> None:
    """Read the records of every study and allowed task, and say what to mend. Exits with 1 if there is anything.

    Shows columns, counts and lines, and no value of a record. Tables of more than 2 GB are not read.

    \b
    Examples:
      sovfed client study check
      sovfed client study check --seconds 3600
    """
    from sovfed.clients.home.folder import load_config
    from sovfed.clients.home.looked import data_findings, population_findings
    from sovfed.clients.home.policy import load_policy

    config, policy = load_config(home), load_policy(home)
    lines = [*population_findings(config, policy), *data_findings(config, policy, seconds=seconds)]
    for line in lines:
        click.echo(visible(line))
    if not lines:
        click.echo("the records of every allowed task can be used")
    ctx.exit(1 if lines else 0)
