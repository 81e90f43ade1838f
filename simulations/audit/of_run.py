"""Audits at a run's own parameters, whose result is entered into the agency's log, bound to the run's model.

The attacked training is the installed code on public records: nobody has the run's own. So a result says whether the
mechanism keeps what the run claims, not what a record of this run has left in the model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sovfed.federation.errors import ConfigError
from sovfed.federation.evidence.store import record
from sovfed.federation.tasks.registry import configured_task
from sovfed.server.rounds.privacy import PrivacyPlan
from sovfed.server.runs.folders import read_summary, stored_config
from sovfed.server.runs.release import DIGEST

if TYPE_CHECKING:
    from pathlib import Path

    from sovfed.federation.config import Config


@dataclass(frozen=True)
class Result:
    """What an audit found: the less `figure`, the better; `power` is what it could have seen."""

    passed: bool
    figure: float
    power: str


def audit_run(home: Path, run: str, name: str, *, quick: bool) -> Result:
    """The audit `name` (canary, imprint, membership) of `run`, entered into the log. Raises ConfigError."""
    config, summary = stored_config(home, run), read_summary(home, run)
    if summary is None:
        raise ConfigError(f"run '{run}' has not finished, so it has no model to audit")
    result = {"canary": _canary, "imprint": _imprint, "membership": _membership}[name](config, quick)
    record(
        home, "audit", name=run, audit=name, model=summary[DIGEST], passed=result.passed,
        figure=round(result.figure, 6), power=result.power, quick=quick,
    )  # fmt: skip
    return result


def _canary(config: Config, quick: bool) -> Result:
    from sovfed.simulations.audit.canary import audit_canaries

    if not config.privacy.private:
        raise ConfigError("the run has no differential privacy: there is no noise for canaries to test")
    plan = PrivacyPlan.make(config, "audit", configured_task(config.task).parameters)
    found = audit_canaries(5_000 if quick else 20_000, plan.event.noise_multiplier)
    power = (
        f"figure: lower bound on ε of a step, claimed {found.claimed:.3g}; {found.detectable:.2f} of the noise "
        "would be found with 99 %"
    )
    return Result(not found.contradicted, found.lower, power)


def _imprint(config: Config, quick: bool) -> Result:
    from sovfed.simulations.audit.imprint import audit_imprint

    found, control = audit_imprint("distributed" if config.privacy.private else "none"), audit_imprint("none")
    power = f"figure: images read out of a sum of {found.records}; {control.recovered} are without privacy"
    return Result(found.recovered == 0, float(found.recovered), power)


def _membership(config: Config, quick: bool) -> Result:
    from sovfed.simulations.audit.membership import audit_membership

    epsilon = config.privacy.epsilon if config.privacy.private else None
    found = audit_membership(epsilon, models=32 if quick else 128)
    share = max(attack.share for result in found for attack in (result.lira, result.threshold))
    power = (
        f"figure: share of members found at 5 % false alarms; {found[0].models} models, {found[0].bound:.2f} allowed"
    )
    return Result(not any(result.contradicted for result in found), share, power)
