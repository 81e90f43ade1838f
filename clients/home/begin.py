"""A new home from the operator's words: its settings, its policy, and the tasks that it allows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sovfed.clients.data import connector
from sovfed.clients.home.folder import create
from sovfed.clients.home.own_tasks import keep_task, known_task
from sovfed.clients.home.policy import Policy
from sovfed.clients.orders.rules import REQUIRED, STANDING, OrderRules
from sovfed.federation.errors import ConfigError
from sovfed.federation.text import ARCHIVE

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from sovfed.federation.config import ClientConfig


def begin(
    home: Path, config: ClientConfig, tasks: Sequence[str], *, plain_updates: bool = False, private_only: bool = True,
    officers: bool = False,
) -> list[str]:  # fmt: skip
    """Make `home`, in which runs may train `tasks` (default: the one that the records serve); lines for its operator.

    Raises ConfigError if the records serve no one task and none is named, or there is a home already.
    """
    served = connector(config.data.source).task
    allowed = tuple(tasks) or ((served,) if served else ())
    if not allowed:
        raise ConfigError(f"data source '{config.data.source}' serves no one task; name those allowed with --task")
    policy = Policy(
        allowed_tasks=tuple(known_task(name) for name in allowed), allow_plain_updates=plain_updates,
        require_privacy=private_only, orders=OrderRules(REQUIRED if officers else STANDING),
    )  # fmt: skip
    create(home, config, policy)
    lines = ["orders wait for `sovfed client orders officer NAME`"] if officers else []
    for name in allowed:
        keep_task(home, name)
        if name.endswith(ARCHIVE):
            lines.append(f"after `sovfed client enrol`: `sovfed client task add {name} --home {home}`")
    return lines
