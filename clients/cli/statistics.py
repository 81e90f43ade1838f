"""`sovfed client statistics`: tables that the federation counted, and this institution's own figures beside them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sovfed.clients.cli.home import HOME
from sovfed.federation.text import visible

if TYPE_CHECKING:
    from sovfed.clients.statistics.compared import Standing


@click.command()
@click.argument("run", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON for machines.")
@HOME
def statistics(run: str | None, as_json: bool, home: Path) -> None:
    """Show this institution's own figures beside the table of RUN, or list the tables that were received.

    The own figures are computed here, from the records, and told to nobody: nothing leaves, no ledger is charged.

    \b
    Examples:
      sovfed client statistics
      sovfed client statistics heart-counts
    """
    from sovfed.clients.statistics.compared import lines, to_dict
    from sovfed.clients.statistics.received import tables_in

    if run is None:
        tables = tables_in(home / "received")
        rows = [{"run": table.run, "task": table.task, "question": table.question, "epsilon": table.epsilon}
                for table in tables]  # fmt: skip
        if as_json:
            click.echo(json.dumps(rows, indent=2))
        for row in rows if not as_json else ():
            click.echo(visible(f"{row['run']}  {row['task']}  {row['question']}  ε {row['epsilon']:.3g}"))
        if not rows and not as_json:
            click.echo("Nothing yet: tables come with the runs that this institution takes part in.")
        return
    standings = _standings(home, run)
    if as_json:
        click.echo(json.dumps([to_dict(standing) for standing in standings], indent=2))
        return
    for line in lines(standings):
        click.echo(visible(line))


def _standings(home: Path, run: str) -> list[Standing]:
    from sovfed.clients.data import load_records
    from sovfed.clients.home.folder import load_config
    from sovfed.clients.home.looked import allowed_tasks
    from sovfed.clients.home.policy import load_policy
    from sovfed.clients.statistics.compared import compare
    from sovfed.clients.statistics.received import find_table
    from sovfed.federation.errors import WrongTaskError
    from sovfed.federation.statistics.question import read_question
    from sovfed.federation.tasks.registry import versions

    table, config = find_table(home / "received", run), load_config(home)
    allowed_tasks(config, load_policy(home))  # makes them known
    task = next((task for task in versions(table.task) if task.digest == table.digest), None)
    if task is None:
        raise WrongTaskError(f"the table of run '{run}' is of another version of task '{table.task}' than is here")
    records = load_records(task, config.data_of(task))
    return compare(table, records, task.schema, read_question(table.question, task.schema))
