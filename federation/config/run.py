"""One training run with everything around it, and which settings do not go together."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from sovfed.federation.algorithms import ALGORITHMS, FEDAVG
from sovfed.federation.config.data import DataConfig
from sovfed.federation.config.order import OrderConfig
from sovfed.federation.config.protection import LANE_BITS, SECURE_COHORT, PrivacyConfig, SecaggConfig
from sovfed.federation.config.services import ClientConfig, ServerConfig, TrackingConfig
from sovfed.federation.config.simulation import PartitionConfig, SimulationConfig
from sovfed.federation.config.training import StrategyConfig, TaskConfig
from sovfed.federation.plan import NOT_SENT, REACHING, SGD, LocalPlan
from sovfed.federation.schema import bounded, named
from sovfed.federation.text import without_credentials

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True)
class Config:
    """One training run and everything around it."""

    run_name: str | None = named(None, 1, 64, doc="the run's name; null = task, date and a random part")
    rounds: int = bounded(10, 1, 100_000, doc="exchanges between the coordinator and the cohort")
    seed: int = bounded(0, 0, 2**63 - 1, doc="seed of initialisation, splits and batches; equal seeds, equal models")
    evaluate_every: int = bounded(1, 1, 100_000, unit="rounds", doc="between two evaluations of the model")
    patience: int = bounded(
        0, 0, 100_000, unit="rounds", doc="without a better headline metric, after which the run ends; 0: never"
    )
    min_delta: float = bounded(0.0, 0.0, 1e6, doc="by how much the headline metric must be better to count as better")
    keep_best: bool = bounded(False, doc="end with the model that had the best headline metric rather than the last")
    task: TaskConfig = TaskConfig()
    data: DataConfig = DataConfig()
    strategy: StrategyConfig = StrategyConfig()
    privacy: PrivacyConfig = PrivacyConfig()
    secagg: SecaggConfig = SecaggConfig()
    order: OrderConfig = OrderConfig()
    server: ServerConfig = ServerConfig()
    client: ClientConfig = ClientConfig()
    tracking: TrackingConfig = TrackingConfig()
    simulation: SimulationConfig = SimulationConfig()
    partition: PartitionConfig = PartitionConfig()

    def __post_init__(self) -> None:
        for reason in conflicts(self):
            raise ValueError(reason)
        if self.secagg.enabled and self.server.min_cohort < SECURE_COHORT:
            raise ValueError(
                f"server.min_cohort is {self.server.min_cohort}; secure aggregation needs at least {SECURE_COHORT}, "
                "since a sum over two tells each the other's update"
            )
        if self.strategy.individual and self.secagg.enabled:
            raise ValueError(
                f"strategy '{self.strategy.name}' compares the institutions' own updates, of which secure aggregation "
                "shows the sum only: add secagg=none, which the institutions' policies must allow, or take another"
            )
        if self.privacy.private and not self.strategy.algorithm.private:
            raise ValueError(
                f"strategy '{self.strategy.name}' trains in a way that no privacy mechanism here accounts for: take "
                "fedavg or a server optimizer, or privacy=none"
            )
        if self.privacy.private and not self.secagg.enabled:
            raise ValueError(f"privacy.mechanism '{self.privacy.mechanism}' needs secure aggregation (secagg=full)")
        if self.privacy.private and self.secagg.bits != max(LANE_BITS):
            raise ValueError(f"secagg.bits is {self.secagg.bits}; noise needs {max(LANE_BITS)} (secagg=full)")
        if self.privacy.private and self.server.min_cohort < self.privacy.colluders + SECURE_COHORT:
            raise ValueError(
                f"privacy.colluders is {self.privacy.colluders}, server.min_cohort {self.server.min_cohort}, expected "
                f"at least {self.privacy.colluders + SECURE_COHORT}: too few would be left that do not collude; "
                f"with {SECURE_COHORT} institutions none may be feared to: privacy.colluders=0"
            )

    def local_fields(self) -> dict[str, Any]:
        """What a request says of local training: fields of `TrainRequest` and of `PrivateRequest`.

        Where the gradient is sent, that is one plain step: with a learning rate of 1 the update is its negative.
        """
        task, plan = self.task, self.task.plan()
        if self.strategy.algorithm.gradient:
            size, batches, scale = task.batch_size, task.accumulation, self.strategy.gradient_scale
            plan = LocalPlan(accumulation=batches, local_steps=1, batch_size=size, learning_rate=scale)
        return {name.name: getattr(plan, name.name) for name in fields(plan) if name.name not in NOT_SENT}

    def local_rates(self, number: int) -> tuple[float, float]:
        """The shares of institutions' learning rate as round `number` begins and ends; of a gradient it is 1."""
        if self.strategy.algorithm.gradient:
            return 1.0, 1.0
        return self.task.schedule_over(self.rounds).ends(number)


def conflicts(config: Config) -> Iterator[str]:
    """Why the configured training, stopping or choice of a model does not go with the strategy or with privacy."""
    yield from _of_statistics(config)
    yield from _of_candidates(config)
    yield from _of_training(config)
    yield from _of_the_way_down(config)
    yield from _of_kept_state(config)
    yield from _of_validation(config)


def _of_statistics(config: Config) -> Iterator[str]:
    """Why what is asked for is no table of statistics; nothing where a model is trained."""
    if not config.task.statistics:
        return
    asked = (config.privacy.mechanism, config.privacy.sampling_rate, config.rounds, config.strategy.name)
    if asked != ("distributed", 1.0, 1, "fedavg"):
        yield (
            "task.statistics counts everybody once, with noise: choose it as statistics=…, which asks for "
            f"privacy=distributed privacy.sampling_rate=1 rounds=1 strategy=fedavg, and not for {asked}"
        )
    if config.simulation.engine in ("ray", "vectorised"):
        yield f"simulation.engine '{config.simulation.engine}' trains models: statistics are counted by inprocess"


def _of_candidates(config: Config) -> Iterator[str]:
    """Why the models that are asked for cannot be scored; nothing where one is trained."""
    if not config.task.candidates:
        return
    privacy, models = config.privacy, len(config.task.candidates)
    asked = (config.rounds, config.strategy.name, privacy.mechanism)
    if asked not in ((models, "fedavg", "none"), (models, "fedavg", "distributed")):
        yield (
            "task.candidates are scored, one a round: choose them by `sovfed evaluate`, which asks for strategy=fedavg "
            f"rounds={models} and privacy=none or distributed, and not for {asked}"
        )
    elif privacy.private and privacy.sampling_rate != 1.0:
        yield f"task.candidates are scored on all held-out persons: privacy.sampling_rate is {privacy.sampling_rate:g}"
    if privacy.private and config.simulation.engine in ("ray", "vectorised"):
        yield f"simulation.engine '{config.simulation.engine}' trains models: they are scored privately by inprocess"
    if config.patience or config.keep_best or config.task.statistics:
        yield "task.candidates are scored and nothing else: leave patience, keep_best and task.statistics"


def _of_training(config: Config) -> Iterator[str]:
    """Why the task's local training does not go with the strategy or with privacy."""
    if config.task.start and config.task.tells_table:
        yield "task.start is the model that a run trains further; this one trains none: leave it"
    task, strategy, mechanism = config.task, config.strategy, config.privacy.mechanism
    gradient = strategy.algorithm.gradient
    end = 0.0 if task.scheduled else 1.0  # some other rate than at the start
    if reason := strategy.algorithm.why_not(task.plan(1.0, end)):
        yield f"strategy {reason}"
    if strategy.rate_units and (not task.plan().bounded or gradient or strategy.algorithm.local != FEDAVG.local):
        yield (
            "strategy.rate_units divides by what a known number of steps may move a value: take task.optimizer="
            f"{' or '.join(REACHING)}, task.local_steps, and a strategy whose institutions train as under fedavg"
        )
    ours = strategy.algorithm.local == FEDAVG.local and strategy.name in ALGORITHMS and not strategy.individual
    if strategy.ema and (config.keep_best or not ours):
        yield (
            "strategy.ema publishes an average of models: take a strategy of ours whose institutions train as under "
            "fedavg and whose server sees their mean, without keep_best, which publishes one round's model"
        )
    if strategy.rate_units and config.privacy.private:
        yield "strategy.rate_units is for updates; private runs send clipped and noised sums: leave it"
    if gradient and task.local_steps > 1:
        yield f"task.local_steps is {task.local_steps}; '{strategy.name}' takes one step a round: leave it at 0"
    if gradient and mechanism in ("silo", "institution"):
        yield (
            f"strategy '{strategy.name}' steps on the mean gradient, privacy.mechanism '{mechanism}' releases updates: "
            "take privacy=distributed, whose noised sum is of gradients"
        )
    if mechanism in ("distributed", "silo") and not gradient and not task.plan().plain:
        yield (
            f"privacy.mechanism '{mechanism}' adds up clipped gradients, on which institutions take no step of their "
            f"own but plain SGD: add {' '.join(_plain(task.plan()))}; the server may step as it likes on what is "
            "private already, as strategy=fedadam does, or with privacy=distributed strategy=fedsgd with this optimizer"
        )
    if mechanism in ("distributed", "silo") and (task.local_steps or task.accumulation > 1):
        yield (
            f"privacy.mechanism '{mechanism}' samples persons rather than batches: leave task.local_steps and "
            "task.accumulation; privacy.local_steps is how many steps 'silo' takes"
        )
    if mechanism == "institution" and config.privacy.person_records:
        yield (
            "privacy.person_records: under privacy.mechanism 'institution' an update of ordinary training is released, "
            "not gradients of persons: leave it at 0"
        )
    if mechanism in ("silo", "institution") and task.scheduled:
        yield (
            f"task.schedule: under privacy.mechanism '{mechanism}' the learning rate is a constant of the run's plan, "
            "which each institution's ledger is charged for: take task.schedule=constant without warmup"
        )


def _of_the_way_down(config: Config) -> Iterator[str]:
    """Why models cannot be rounded on their way down; nothing where they go down whole."""
    strategy = config.strategy
    if not strategy.rounds_models:
        return
    plain = strategy.algorithm.local == FEDAVG.local or strategy.algorithm.partial
    if config.privacy.private or strategy.name not in ALGORITHMS or not plain:
        yield (
            "strategy.down_bits rounds the model that institutions train from: take 32, or a strategy of ours whose "
            "institutions train as under fedavg, fedbn or fedper, without privacy"
        )
    if config.task.tells_table:
        yield "strategy.down_bits is for models that are trained: leave it"


def _of_kept_state(config: Config) -> Iterator[str]:
    """Why institutions cannot keep the optimizer's state; nothing where it is fresh in every round."""
    task, strategy = config.task, config.strategy
    if not task.keep_state:
        return
    if task.plan().plain:
        yield "task.keep_state: plain SGD has no state: take task.optimizer=adamw or muon, or momentum"
    if strategy.algorithm.gradient or strategy.algorithm.local != FEDAVG.local:
        yield (
            f"task.keep_state: under strategy '{strategy.name}' institutions take no steps of an optimizer of their "
            "own: take one whose institutions train as under fedavg"
        )
    if config.privacy.private:
        yield (
            "task.keep_state: moments are of gradients without noise, and an update of theirs depends on records of "
            "every round before, which no privacy mechanism here accounts for: leave it"
        )
    if config.simulation.engine in ("ray", "vectorised"):
        yield f"task.keep_state: simulation.engine '{config.simulation.engine}' keeps nothing at an institution"


def _plain(plan: LocalPlan) -> Iterator[str]:
    """The overrides that make steps plain."""
    if plan.optimizer != SGD:
        yield f"task.optimizer={SGD}"
    yield from (f"task.{name}=0" for name in ("momentum", "weight_decay", "gradient_clip") if getattr(plan, name))


def _of_validation(config: Config) -> Iterator[str]:
    """Why early stopping or the choice of the best model is not possible."""
    chosen = [name for name in ("patience", "keep_best") if getattr(config, name)]
    if chosen and config.privacy.private:
        yield f"{chosen[0]} needs the metrics of held-out records, which tell of persons: a private run has none"
    if config.keep_best and config.strategy.stateful:
        yield (
            f"keep_best: under strategy '{config.strategy.name}' institutions keep their own part of the last two "
            "rounds, so an earlier model is no longer whole"
        )
    if config.privacy.mechanism == "distributed" and config.server.sample < 1:
        yield (
            f"server.sample is {config.server.sample:g}; privacy.mechanism 'distributed' divides by the persons "
            "expected of all institutions: leave it at 1, persons are sampled by privacy.sampling_rate"
        )
    if 0 < config.patience < config.evaluate_every:
        yield f"patience {config.patience} is below evaluate_every {config.evaluate_every}: nothing is known by then"


def told(config: Config) -> Config:
    """`config` as it may be stored, shown or tracked: `tracking.uri` without user, password and query."""
    uri = config.tracking.uri
    return config if uri is None else replace(config, tracking=replace(config.tracking, uri=without_credentials(uri)))


def stored(config: Config) -> dict[str, Any]:
    """What a file or a page may hold of `config`; the one way to turn a whole configuration into plain values."""
    return asdict(told(config))
