"""Whether a run's settings go together, before any institution is asked."""

from __future__ import annotations

from sovfed.federation.changes import MOST_VALUES
from sovfed.federation.config import Config
from sovfed.federation.errors import ConfigError, PrivacyError
from sovfed.federation.optimizers import make
from sovfed.federation.tasks import Task


def require_possible(config: Config, task: Task) -> None:
    """Raise ConfigError if the strategy is not for this cohort or this task, PrivacyError if privacy is not."""
    from sovfed.federation.tasks.conformance import require_works

    require_works(task)
    make(config.task.plan())  # or there is none of that name
    strategy, cohort = config.strategy, config.server.min_cohort
    if cohort < strategy.least_cohort:
        raise ConfigError(
            f"strategy '{strategy.name}' with malicious={strategy.malicious} needs {strategy.least_cohort} "
            f"institutions a round, the minimum cohort is {cohort}"
        )
    if task.build is None and strategy.algorithm.partial:
        raise ConfigError(f"task '{task.name}' trains nothing that could stay at the institutions: take fedavg")
    if task.build is not None and (reason := strategy.algorithm.refusal(task.layout)):
        raise ConfigError(f"task '{task.name}' {reason}")
    if strategy.rounds_models:
        _require_rounding(task)
    if config.privacy.private and task.build is not None and not config.task.tells_table:
        from sovfed.federation.privacy.compatibility import why_not_noised, why_not_private

        per_institution = config.privacy.mechanism == "institution"
        if reason := why_not_noised(task) if per_institution else why_not_private(task):
            raise PrivacyError(f"task '{task.name}' cannot be trained privately: {reason}")


def _require_rounding(task: Task) -> None:
    """Raise ConfigError where a model of `task` cannot be rounded on its way down."""
    if task.parameters > MOST_VALUES:
        raise ConfigError(f"strategy.down_bits: task '{task.name}' has more than {MOST_VALUES} values: leave it")
    if task.build is not None and task.layout.trained < task.parameters:
        raise ConfigError(
            f"strategy.down_bits: task '{task.name}' has running statistics, and a variance that is rounded may end "
            "below zero: take task.normalisation=group, or leave it"
        )
