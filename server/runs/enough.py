"""Whether there are institutions enough for a run, before it is started: what is certain to fail waits for nobody."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sovfed.federation.config import SECURE_COHORT
from sovfed.federation.errors import ConfigError
from sovfed.federation.schema import nearest

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sovfed.federation.config import Config
    from sovfed.server.runs.control import NodeRecord


def require_enough(config: Config, nodes: Iterable[NodeRecord]) -> str:
    """What is still waited for, "" if nothing, where `nodes` are all that Flower knows.

    Raises ConfigError, with the settings to change, if too few institutions are admitted, or `order.cohort` names one
    that is not.
    """
    known = {node.name: node.status == "online" for node in nodes if node.status != "unregistered"}
    least, cohort = config.server.min_cohort, config.order.cohort
    for name in cohort:
        if name not in known:
            raise ConfigError(f"order.cohort: no institution '{name}' is admitted{nearest(name, known)}")
    asked = sorted(cohort) or sorted(known)
    if len(asked) < least:
        whose = "named in order.cohort" if cohort else "admitted"
        raise ConfigError(f"{_count(len(asked))} {whose}, server.min_cohort is {least}: {_remedy(config, len(asked))}")
    away = [name for name in asked if not known[name]]
    if len(asked) - len(away) >= least:
        return ""
    return (
        f"{len(asked) - len(away)} of {len(asked)} institutions are connected, server.min_cohort is {least}: waiting "
        f"for at most {config.server.node_wait_s:g} s (server.node_wait_s); not connected: {', '.join(away)}"
    )


def _count(number: int) -> str:
    return "1 institution is" if number == 1 else f"{number} institutions are"


def _remedy(config: Config, number: int) -> str:
    """How a run of `number` institutions comes about."""
    more = "admit more (`sovfed server admit NAME`)"
    if not config.secagg.enabled:
        return f"{more}, or server.min_cohort={max(1, number)}"
    if number < SECURE_COHORT:
        return f"{more}; secure aggregation needs {SECURE_COHORT} at least"
    words = [f"server.min_cohort={number}"]
    if config.privacy.private and number < config.privacy.colluders + SECURE_COHORT:
        words.append(f"privacy.colluders={number - SECURE_COHORT}")
    return (
        f"{more}, or start it with {' '.join(words)}, for which each institution's policy.yaml must have "
        f"secure_aggregation.min_cohort {number} or less (default 5; `sovfed client join --min-cohort {number}` "
        "writes it, an edit holds after `sovfed client down` and `up`)"
    )
