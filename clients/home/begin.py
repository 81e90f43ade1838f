"""A new home from the operator's words: its settings, its policy, and the tasks that it allows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sovfed.clients.data import connector
from sovfed.clients.home.folder import create
from sovfed.clients.home.own_tasks import keep_task, known_task
from sovfed.clients.home.policy import POLICY, Policy
from sovfed.clients.orders.rules import REQUIRED, STANDING, OrderRules
from sovfed.federation.errors import ConfigError
from sovfed.federation.orders.approving import PEOPLE, USUAL
from sovfed.federation.secagg.terms import LEAST_COHORT, Terms
from sovfed.federation.text import ARCHIVE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sovfed.federation.config import ClientConfig


@dataclass(frozen=True)
class Chosen:
    """What a command line says of a policy; without a word its defaults hold, `min_cohort` 0 among them."""

    tasks: tuple[str, ...] = ()
    plain_updates: bool = False
    without_privacy: bool = False
    officers: bool = False
    min_cohort: int = 0
    approvers: int | None = None

    @property
    def terms(self) -> Terms:
        """Those of secure aggregation, with as many colluders feared as so small a cohort bears. Raises ConfigError."""
        if not self.min_cohort:
            return Terms()
        try:
            return Terms(
                min_cohort=self.min_cohort, colluders=max(0, min(Terms.colluders, self.min_cohort - LEAST_COHORT))
            )
        except ValueError as error:
            raise ConfigError(f"--min-cohort: {error}") from error

    @property
    def min_approvers(self) -> int:
        """How many people of the agency must have approved an order: as said, else two where an officer signs it."""
        if self.approvers is not None:
            return self.approvers
        return USUAL if self.officers else 0

    @property
    def rules(self) -> OrderRules:
        """Whose word an order needs."""
        mode = REQUIRED if self.officers else STANDING
        return OrderRules(mode, min_approvers=self.min_approvers, approvers=PEOPLE if self.min_approvers else ())

    def awaited(self) -> Iterator[str]:
        """Whose words an order waits for, for whoever chose it."""
        if self.officers:
            yield "orders wait for `sovfed client orders officer NAME`"
        if self.min_approvers:
            yield (
                f"{POLICY}: an order must be approved by {self.min_approvers} of {', '.join(PEOPLE)} "
                "(orders.min_approvers, orders.approvers: the organisation in their certificates); --approvers 0 asks "
                "for nobody"
            )
        elif self.officers:
            yield f"{POLICY}: the agency's server alone can propose an order (orders.min_approvers 0)"

    def meaning(self) -> Iterator[str]:
        """What a smaller cohort than the default's gives up, for whoever chose it."""
        if not self.min_cohort or self.min_cohort >= Terms.min_cohort:
            return
        feared = self.terms.colluders
        usual = Terms.min_cohort
        yield f"{POLICY}: secure_aggregation.min_cohort {self.min_cohort}, colluders {feared}; the default is {usual}"
        yield f"  the agency sees sums over {self.min_cohort} institutions or more, of which this one is a larger share"
        yield f"  with one that sides with it, it learns the sum of the other {self.min_cohort - 1}"

    def unlike(self, policy: Policy) -> Iterator[str]:
        """The lines of `policy` that say otherwise than what was chosen here."""
        kept = policy.secure_aggregation.min_cohort
        for name in self.tasks:
            if (entry := known_task(name)) not in policy.allowed_tasks:
                yield f"allowed_tasks lacks {entry} (--task)"
        if self.plain_updates and not policy.allow_plain_updates:
            yield "allow_plain_updates is false (--allow-plain-updates)"
        if self.without_privacy and policy.require_privacy:
            yield "require_privacy is true (--without-privacy)"
        if self.officers and policy.orders.mode != REQUIRED:
            yield f"orders.mode is {policy.orders.mode} (--officers)"
        least, asked = policy.orders.min_approvers, self.min_approvers
        if least < asked or self.approvers not in (None, least):
            option = "--officers" if self.approvers is None else "--approvers"
            yield f"orders.min_approvers is {least}, not {asked} ({option})"
        if self.min_cohort and self.min_cohort != kept:
            yield f"secure_aggregation.min_cohort is {kept} (--min-cohort)"


def unanswered(policy: Policy, least: int) -> str:
    """Which runs of an agency that asks `least` institutions or more `policy` refuses, and how not; "" if none."""
    own = policy.secure_aggregation.min_cohort
    if not LEAST_COHORT <= least < own:
        return ""
    terms = Chosen(min_cohort=least).terms
    return (
        f"the agency's runs have {least} institutions or more, {POLICY} answers those of {own} or more: a smaller one "
        f"gets no answer from here. To answer it, write secure_aggregation: {{min_cohort: {least}, colluders: "
        f"{terms.colluders}}} there: each institution is then a larger share of what the agency sees"
    )


def begin(home: Path, config: ClientConfig, chosen: Chosen) -> list[str]:
    """Make `home` with the policy that was `chosen`, its tasks by default what the records serve; lines to tell.

    Raises ConfigError if the records serve no one task and none is named, or there is a home already.
    """
    served = connector(config.data.source).task
    allowed = chosen.tasks or ((served,) if served else ())
    if not allowed:
        raise ConfigError(f"data source '{config.data.source}' serves no one task; name those allowed with --task")
    policy = Policy(
        allowed_tasks=tuple(known_task(name) for name in allowed), allow_plain_updates=chosen.plain_updates,
        require_privacy=not chosen.without_privacy, secure_aggregation=chosen.terms,
        orders=chosen.rules,
    )  # fmt: skip
    create(home, config, policy)
    lines = [*chosen.awaited(), *chosen.meaning()]
    for name in allowed:
        keep_task(home, name)
        if name.endswith(ARCHIVE):
            lines.append(f"after `sovfed client enrol`: `sovfed client task add {name} --home {home}`")
    return lines
