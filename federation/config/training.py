"""What is learnt, how institutions train on it, and how the server turns what they send into the next model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from sovfed.federation.algorithms import ALGORITHMS, AT_INSTITUTIONS, FEDAVG, Algorithm
from sovfed.federation.messages import MAX_PARAMETERS, NORMALISATIONS, OWN
from sovfed.federation.plan import MUON_MOMENTUM, SCHEDULES, SGD, LocalPlan, Schedule
from sovfed.federation.schema import bounded, choice, named

STRATEGIES: Final = tuple(ALGORITHMS)  # of our own
DOWN_BITS: Final = (16, 32)  # of a value of the model on its way down


@dataclass(frozen=True)
class TaskConfig:
    """What is learned, and how each institution trains on it between two exchanges."""

    name: str = named("breast_cancer", doc="the task; `sovfed task list` names those that are installed")
    file: str | None = bounded(None, 1, 4096, doc="a task.yaml, or an archive; null: `name` is an installed one")
    base: str | None = bounded(
        None, 1, 4096, doc="the folder of the Hugging Face model that the task builds on, if it does; as it lies here"
    )
    local_epochs: int = bounded(1, 1, 10_000, doc="passes over the local training records in a round")
    batch_size: int = bounded(32, 1, 1_000_000, unit="records", doc="records in one local gradient step")
    local_steps: int = bounded(
        0, 0, 1_000_000, doc="gradient steps in a round, over as many epochs as they need; 0: local_epochs epochs"
    )
    accumulation: int = bounded(1, 1, 10_000, unit="batches", doc="whose gradients one step takes the mean of")
    optimizer: str = named(SGD, doc="of local steps: sgd, adamw, muon or an installed one")
    keep_state: bool = bounded(
        False,
        doc="institutions keep the optimizer's state from round to round, at home; false: it is fresh in every round",
    )
    learning_rate: float = bounded(0.1, 1e-9, 1e3, doc="step size, of which the schedule takes a share")
    momentum: float | None = bounded(
        None, 0.0, 0.999999, doc="of sgd and of muon; null: 0 for sgd, 0.95 for muon, as published"
    )
    nesterov: bool | None = bounded(None, doc="Nesterov's momentum, of sgd and muon; null: for muon only, as published")
    beta_1: float = bounded(0.9, 0.0, 0.999999, doc="first-moment decay of adamw, and of muon for what is no matrix")
    beta_2: float = bounded(0.999, 0.0, 0.999999, doc="second-moment decay of the same")
    epsilon: float = bounded(1e-8, 1e-12, 1.0, doc="added to the root of the second moment of the same")
    weight_decay: float = bounded(
        0.0, 0.0, 1e3, doc="pull of each step towards 0: decoupled for adamw and muon, added to the gradient for sgd"
    )
    gradient_clip: float = bounded(0.0, 0.0, 1e6, doc="L2 bound on the gradient of a step; 0: none. Protects no person")
    schedule: str = choice(
        "constant",
        SCHEDULES,
        doc="of the learning rate over all rounds: constant; linear or cosine down to the floor; wsd: warm-up, stable, "
        "and a straight line to the floor over the last cooldown",
    )
    warmup: float = bounded(0.0, 0.0, 0.9, doc="share of all rounds in which the learning rate rises from 0")
    floor: float = bounded(0.0, 0.0, 1.0, doc="share of the learning rate that linear, cosine and wsd end at")
    cooldown: float = bounded(0.2, 0.01, 1.0, doc="share of all rounds in which 'wsd' falls to the floor")
    parameters: int = bounded(2_500, 1, MAX_PARAMETERS, doc="length of the model vector; read by the task 'echo' only")
    normalisation: str = choice(
        OWN, NORMALISATIONS, doc="own: the task's layers; group: GroupNorm for BatchNorm, which no private run may have"
    )

    start: str | None = bounded(
        None, 1, 4096, doc="a model's file or folder, or one of the agency's runs, to train further; "
        "null: a fresh model; start=… says the same",
    )  # fmt: skip
    candidates: tuple[str, ...] = bounded(
        (), 1, 4096, doc="files or folders of models to score rather than to train, one a round; `sovfed evaluate`"
    )
    statistics: str = bounded(
        "",
        0,
        4096,
        doc="columns and cross tables to count rather than to train, as in all, or age, sex*smoker, bins=20",
    )

    def __post_init__(self) -> None:
        if self.name == "echo" and self.normalisation != OWN:
            raise ValueError("task 'echo' has no model whose normalisation could be another")
        if self.optimizer == SGD and self.nesterov and not self.momentum:
            raise ValueError("nesterov is true, but momentum is 0: Nesterov's step looks ahead along the momentum")
        if (self.momentum or self.nesterov) and self.optimizer == "adamw":
            raise ValueError("momentum and nesterov are of sgd and muon; adamw's momentum is beta_1")
        if self.schedule == "wsd" and self.warmup + self.cooldown > 1:
            raise ValueError(f"warmup {self.warmup:g} and cooldown {self.cooldown:g} are more than all rounds")
        if self.schedule == "constant" and self.floor:
            raise ValueError(f"floor is {self.floor:g}, but schedule 'constant' never falls to it")

    @property
    def tells_table(self) -> bool:
        """Whether records are counted, or models scored, and none is trained."""
        return bool(self.statistics or self.candidates)

    @property
    def momentum_in_use(self) -> float:
        """The momentum, or the optimizer's own."""
        return self.momentum if self.momentum is not None else MUON_MOMENTUM if self.optimizer == "muon" else 0.0

    @property
    def nesterov_in_use(self) -> bool:
        """Whether the momentum is Nesterov's, or the optimizer's own choice."""
        return self.nesterov if self.nesterov is not None else self.optimizer == "muon"

    @property
    def scheduled(self) -> bool:
        """Whether the learning rate varies over the rounds."""
        return self.schedule != "constant" or self.warmup > 0

    def plan(self, start: float = 1.0, end: float = 1.0, *, proximal_mu: float = 0.0) -> LocalPlan:
        """The plan of this training, with `start` and `end` of the learning rate."""
        return LocalPlan(
            optimizer=self.optimizer,
            momentum=self.momentum_in_use,
            nesterov=self.nesterov_in_use,
            beta_1=self.beta_1,
            beta_2=self.beta_2,
            epsilon=self.epsilon,
            weight_decay=self.weight_decay,
            gradient_clip=self.gradient_clip,
            accumulation=self.accumulation,
            local_epochs=self.local_epochs,
            local_steps=self.local_steps,
            batch_size=self.batch_size,
            learning_rate=start * self.learning_rate,
            final_rate=end * self.learning_rate,
            proximal_mu=proximal_mu,
        )

    def schedule_over(self, rounds: int) -> Schedule:
        """The schedule of the learning rate over `rounds`."""
        return Schedule(self.schedule, self.warmup, self.floor, self.cooldown, rounds)


@dataclass(frozen=True)
class StrategyConfig:
    """How the server turns the mean update of a round into the next model."""

    name: str = named(
        "fedavg",
        doc=f"the server optimizer: {', '.join(STRATEGIES)}, or one that a package brings. fedsgd: institutions send "
        "the gradient of one step, and the task's optimizer steps on the server",
    )
    institution: str | None = choice(
        None,
        [algorithm.name for algorithm in AT_INSTITUTIONS],
        doc="what institutions do under a strategy that a package brings, null: as under fedavg; others settle it",
    )
    proximal_mu: float = bounded(0.0, 0.0, 1e6, doc="weight of FedProx's pull of local training towards the model")
    server_learning_rate: float = bounded(1.0, 1e-9, 1e3, doc="server step size (eta in Reddi et al. 2021)")
    server_momentum: float = bounded(0.0, 0.0, 0.9999, doc="momentum of FedAvgM")
    server_nesterov: bool = bounded(False, doc="Nesterov's momentum for 'fedavgm', as DiLoCo's outer step has it")
    beta_1: float = bounded(0.9, 0.0, 0.999999, doc="first-moment decay of FedAdam and FedYogi")
    beta_2: float = bounded(0.99, 0.0, 0.999999, doc="second-moment decay of FedAdam and FedYogi")
    tau: float = bounded(1e-3, 1e-12, 1e3, doc="degree of adaptivity of FedAdam, FedYogi and FedAdagrad")

    personal_lambda: float = bounded(
        0.1, 0.0, 1e6, doc="pull of an institution's personal model towards the federation's; 'ditto' only"
    )
    trimmed: float = bounded(0.2, 0.0, 0.499, doc="share of values left out at either end; 'fedtrimmedavg' only")
    malicious: int = bounded(
        1, 0, 10_000, unit="institutions", doc="that may send anything, as 'krum' and 'bulyan' are to withstand"
    )
    selected: int = bounded(
        1, 1, 10_000, unit="institutions", doc="whose updates 'krum' averages; more than one is Multi-Krum"
    )
    fairness: float = bounded(0.1, 0.0, 100.0, doc="q of 'qfedavg': how much more a large loss weighs; 0 is FedAvg")
    gradient_scale: float = bounded(
        1.0, 1.0, 1e3, doc="of 'fedsgd': institutions send so many times the gradient, whose small values then fill "
        "a ring of few bits; their policies' max_learning_rate bounds it",
    )  # fmt: skip
    ema: float = bounded(
        0.0, 0.0, 0.999999, doc="decay of a running average over the rounds' models, which is evaluated and published "
        "in the end; 0: the last model is",
    )  # fmt: skip
    rate_units: bool = bounded(
        False, doc="with task.optimizer=adamw or muon and task.local_steps: institutions send each value divided by "
        "what the learning rates let it move, which fills a ring of few bits; the server multiplies it again",
    )  # fmt: skip

    down_bits: int = bounded(
        32, 16, 32, unit="bits", doc="of a value on its way down, 16 or 32; 16: an institution that holds the last "
        "model is sent what has changed of it, and the run goes on from the model so rounded",
    )  # fmt: skip

    @property
    def rounds_models(self) -> bool:
        """Whether models are rounded for their way down."""
        return self.down_bits < DOWN_BITS[-1]

    @property
    def individual(self) -> bool:
        """Whether the strategy needs every institution's own update rather than their sum."""
        return not self.algorithm.masked

    @property
    def algorithm(self) -> Algorithm:
        """What is agreed on; of a strategy that a package brings, what its institutions do."""
        return ALGORITHMS[self.name] if self.name in ALGORITHMS else ALGORITHMS[self.institution or FEDAVG.name]

    @property
    def stateful(self) -> bool:
        """Whether an institution carries something of its own from round to round."""
        return bool(self.algorithm.keeps)

    @property
    def least_cohort(self) -> int:
        """Updates without which the strategy's guarantee is void."""
        return self.algorithm.least_cohort(self)

    @property
    def sent(self) -> dict[str, Any]:
        """The settings that institutions are told with every request, fields of `TrainRequest`."""
        units = {"proximal_mu": 0.0, "rate_units": self.rate_units, "hold": self.rounds_models}
        return units | {name: getattr(self, name) for name in self.algorithm.settings}

    def __post_init__(self) -> None:
        if self.institution is not None and self.name in ALGORITHMS:
            raise ValueError(f"institution is '{self.institution}', which strategy={self.name} settles itself")
        if self.down_bits not in DOWN_BITS:
            raise ValueError(f"down_bits is {self.down_bits}, expected one of {DOWN_BITS}")
        if self.server_nesterov and self.name != "fedavgm":
            raise ValueError(f"server_nesterov is of strategy=fedavgm; '{self.name}' has no use for it")
        if self.gradient_scale != 1.0 and not self.algorithm.gradient:
            raise ValueError(f"gradient_scale is {self.gradient_scale:g}, but only strategy=fedsgd sends gradients")
        if self.proximal_mu and "proximal_mu" not in self.algorithm.settings:
            users = " and ".join(name for name, algorithm in ALGORITHMS.items() if "proximal_mu" in algorithm.settings)
            raise ValueError(f"proximal_mu is {self.proximal_mu:g}, but only strategy={users} uses it")
