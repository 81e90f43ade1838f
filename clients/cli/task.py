"""`sovfed client task`: the tasks of its own that this institution lets runs train."""

from __future__ import annotations

from pathlib import Path

import click

from sovfed.clients.cli.home import HOME
from sovfed.federation.help import Group
from sovfed.federation.tasks.cli import BASE
from sovfed.federation.text import visible


@click.group(cls=Group)
def task() -> None:
    """Look at, allow and list tasks that are a file (task.yaml, or an archive, .sovtask).

    \b
    Examples:
      sovfed client task add birth.yaml            shows what it asks for, and keeps a copy
      sovfed client task add birth.yaml --allow    and lets runs train it
      sovfed client task add lab-1.sovtask         the same, once signatures and reviews hold
      sovfed client task list
    """


@task.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--allow", is_flag=True, help="Write it into allowed_tasks of policy.yaml.")
@BASE
@HOME
def add(file: Path, allow: bool, home: Path) -> None:
    """Keep a copy of the task FILE, and show its columns, model, digest and what changed since the last version.

    Nothing in a task.yaml is run. An archive must be signed under the federation's root and reviewed as policy.yaml
    asks; its code is tried once, in a process without network and files, and then runs in the trainer alone. The digest
    stands for every byte: the agency's must be the same.

    \b
    Example:
      sovfed client task add birth.yaml --allow
    """
    from sovfed.clients.home.own_tasks import added, allow_task

    for line in added(home, file):
        click.echo(visible(line))
    if allow:
        entry = allow_task(home, file)
        click.echo(f"policy.yaml now allows {entry}; it holds from the next `sovfed client up`")


@task.command(name="list")
@HOME
def list_tasks(home: Path) -> None:
    """The tasks in this home, the oldest first, and whether the policy allows them.

    \b
    Example:
      sovfed client task list
    """
    from sovfed.clients.home.own_tasks import listed

    for line in listed(home):
        click.echo(visible(line))
