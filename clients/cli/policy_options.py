"""The options of `sovfed client init` and `join` that say what a new policy.yaml allows."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import click

from sovfed.federation.tasks.cli import BASE

TASK = (
    "A task that runs may train here: a name, an archive, or a task.yaml, of which a copy is kept. Default: the "
    "source's."
)
MIN_COHORT = (
    "Fewest institutions in any sum that this one goes into (policy: 5). A federation of four needs 4, of three 3, "
    "where whoever sides with the agency learns the sum of the others."
)

APPROVERS = "People of the agency who must have approved an order before it is answered.  [default: 2 with --officers]"


def policy_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """`command` with these options, which it takes as one value, `chosen`."""

    @wraps(command)
    def chosen(
        *, tasks: tuple[str, ...], allow_plain_updates: bool, without_privacy: bool, officers: bool,
        min_cohort: int | None, approvers: int | None, **others: Any,
    ) -> Any:  # fmt: skip
        from sovfed.clients.home.begin import Chosen

        choice = Chosen(tasks, allow_plain_updates, without_privacy, officers, min_cohort or 0, approvers)
        return command(chosen=choice, **others)

    options = (
        click.option("--task", "tasks", multiple=True, help=TASK),
        BASE,
        click.option("--allow-plain-updates", is_flag=True, help="Let the agency see this institution's own update."),
        click.option("--without-privacy", is_flag=True, help="Answer runs without differential privacy too."),
        click.option("--officers", is_flag=True, help="Answer no run before an officer has signed its order."),
        click.option("--approvers", type=click.IntRange(0, 16), metavar="N", help=APPROVERS),
        click.option("--min-cohort", type=click.IntRange(3, 255), metavar="N", help=MIN_COHORT),
    )
    for option in reversed(options):
        chosen = option(chosen)
    return chosen
