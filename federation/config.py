"""Every setting there is: key, type, default, range, unit and meaning. The YAML in `conf/` only chooses values.

One configuration group is one frozen dataclass. `federation/compose.py` reads and overrides the YAML with Hydra and
binds the result here, so an unknown key, a wrong type or a value out of range is refused before anything starts.
"""

from __future__ import annotations

import itertools
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, Protocol

from sovfed.federation.errors import WrongTaskError
from sovfed.federation.messages import MAX_PARAMETERS, NORMALISATIONS, OWN
from sovfed.federation.plan import FEDSGD, MUON_MOMENTUM, SCHEDULES, SGD, conflicts
from sovfed.federation.schema import bounded, choice, named
from sovfed.federation.text import AT, DIGEST, LEAST_DIGEST, NAME, NAME_IN_WORDS, names_task, without_credentials

if TYPE_CHECKING:
    from collections.abc import Callable

PORT_MAX: Final = 65_535
MESSAGE_BYTES_MAX: Final = 2**31 - 1  # of one protobuf message
LANE_BITS: Final = (12, 16, 21, 32)  # of a word of the ring; federation/secagg/ring.py
SECURE_COHORT: Final = 3  # of two, one colluder learns the other's update from the sum
LOCAL: Final = ("scaffold", "fednova", "fedbn", "fedper", "ditto")  # strategies that change local training
BAD_ROWS: Final = ".bad-rows"  # how files that list them end
REST: Final = "data"  # stands for the tasks that none of an institution's studies names
LEAST_SPREAD: Final = 1e-3  # of a feature's declared range, as its standard deviation
INDIVIDUAL: Final = ("fedmedian", "fedtrimmedavg", "krum", "bulyan", "qfedavg")  # strategies that no sum is enough for
STRATEGIES: Final = (
    "fedavg",
    "fedprox",
    "fedadam",
    "fedyogi",
    "fedavgm",
    "fedadagrad",
    FEDSGD,
    *LOCAL,
    *INDIVIDUAL,
)  # of our own


@dataclass(frozen=True)
class TaskConfig:
    """What is learned, and how each institution trains on it between two exchanges."""

    name: str = named("breast_cancer", doc="the task; `sovfed task list` names those that are installed")
    file: str | None = bounded(None, 1, 4096, doc="a task.yaml, or an archive; null: `name` is an installed one")
    local_epochs: int = bounded(1, 1, 10_000, doc="passes over the local training records in a round")
    batch_size: int = bounded(32, 1, 1_000_000, unit="records", doc="records in one local gradient step")
    local_steps: int = bounded(
        0, 0, 1_000_000, doc="gradient steps in a round, over as many epochs as they need; 0: local_epochs epochs"
    )
    accumulation: int = bounded(1, 1, 10_000, unit="batches", doc="whose gradients one step takes the mean of")
    optimizer: str = named(SGD, doc="of local steps: sgd, adamw, muon or an installed one; fresh in every round")
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


@dataclass(frozen=True)
class DataConfig:
    """Where an institution's records come from; read by its trainer and by nothing else."""

    source: str = named("breast_cancer", doc="the data connector; `sovfed data sources` names those that are installed")
    path: str | None = bounded(None, 1, 4096, doc="the connector's file or folder; null where the data are embedded")
    site: str = bounded("0", 1, 64, doc="the institution whose records to read: '0', '1', … or a name such as 'va'")
    sites: int = bounded(4, 1, 1_000, doc="institutions that a simulated split is made for")
    person: str | None = bounded(
        None,
        1,
        64,
        doc="csv: the column that names a person, or 'row': each row is another person; null: the task's, "
        "else 'person' if it is there. Private runs need to know",
    )
    site_column: str | None = bounded(
        None, 1, 64, doc="tables: the column whose values are the institutions; only the rows of `site` are read"
    )
    table: str | None = bounded(None, 1, 4096, doc="images: the table beside them; null: the folder's only one")
    mapping: str | None = bounded(
        None, 1, 4096, doc="a YAML file: own names of a table's columns, or how FHIR or OMOP become columns"
    )
    url_file: str | None = bounded(None, 1, 4096, doc="sql: a file of mode 0600 that holds the database's URL")
    query: str | None = bounded(None, 1, 65_536, lines=True, doc="sql: the SELECT whose rows are the records")
    query_file: str | None = bounded(None, 1, 4096, doc="sql: a file with that SELECT, in the place of `query`")
    encoding: str | None = bounded(None, 1, 32, doc="csv: as in cp1252; null: by its mark, else UTF-8, else Windows'")
    separator: str = choice("auto", ("auto", ",", ";", "tab", "|"), doc="csv: auto: by the header's names")
    decimal: str = choice("auto", ("auto", ".", ","), doc="csv: mark of decimals; auto: as the first rows have it")
    date_format: str | None = bounded(None, 1, 32, doc="tables: as in %d.%m.%Y; null: year-month-day")
    missing_words: tuple[str, ...] = bounded((), doc="tables: further words for a missing value, as in [k.A., -99]")
    detection_limit: str = choice(
        "refuse", ("refuse", "limit"), doc="tables: of a value such as <0.2 refuse the row, or take the limit"
    )
    bad_rows: str = choice("refuse", ("refuse", "quarantine"), doc="tables: refuse a table with any, or leave them out")
    max_bad_share: float = bounded(0.05, 0.0, 1.0, doc="tables: share of bad rows above which a table is refused")
    bad_rows_file: str | None = bounded(
        None, 1, 4096, doc="where bad rows are listed; null: beside the table, by the trainer: in run/trainer"
    )
    limit: int | None = bounded(
        None,
        1,
        10**9,
        unit="records",
        doc="most to train on, a sample; of those held out a quarter; null = all, as private runs demand",
    )


class Versioned(Protocol):
    """What a task is known by."""

    @property
    def name(self) -> str: ...

    @property
    def digest(self) -> str: ...


@dataclass(frozen=True)
class StudyConfig:
    """One of an institution's studies: the records that a task is trained on here."""

    task: str = bounded("", 1, 256, doc="the task, by name or, one version of it, by NAME@DIGEST")
    data: DataConfig = DataConfig()
    population: str = bounded(
        "", 0, 64, doc="whose records these are, as in policy.yaml; empty: the home's own population"
    )

    def __post_init__(self) -> None:
        name, at, digest = self.task.partition(AT)
        if not NAME.fullmatch(name) or (at and not DIGEST.fullmatch(digest)):
            raise ValueError(
                f"task is {self.task[:80]!a}, expected NAME or NAME@DIGEST of {LEAST_DIGEST} digits or more"
            )


@dataclass(frozen=True)
class StrategyConfig:
    """How the server turns the mean update of a round into the next model."""

    name: str = named(
        "fedavg",
        doc=f"the server optimizer: {', '.join(STRATEGIES)}, or one that a package brings. fedsgd: institutions send "
        "the gradient of one step, and the task's optimizer steps on the server",
    )
    proximal_mu: float = bounded(0.0, 0.0, 1e6, doc="weight of FedProx's pull of local training towards the model")
    server_learning_rate: float = bounded(1.0, 1e-9, 1e3, doc="server step size (eta in Reddi et al. 2021)")
    server_momentum: float = bounded(0.0, 0.0, 0.9999, doc="momentum of FedAvgM")
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

    @property
    def individual(self) -> bool:
        """Whether the strategy needs every institution's own update rather than their sum."""
        return self.name in INDIVIDUAL

    @property
    def algorithm(self) -> str:
        """How institutions train between two exchanges, one of `messages.ALGORITHMS`."""
        return self.name if self.name in LOCAL else "sgd"

    @property
    def stateful(self) -> bool:
        """Whether an institution carries something of its own from round to round."""
        return self.algorithm not in ("sgd", "fednova")

    @property
    def least_cohort(self) -> int:
        """Updates without which the strategy's guarantee is void."""
        needed = {"krum": 2 * self.malicious + 3, "bulyan": 4 * self.malicious + 3}
        return max(needed.get(self.name, 1), self.selected + self.malicious if self.name == "krum" else 1)

    def __post_init__(self) -> None:
        if self.proximal_mu and self.name != "fedprox":
            raise ValueError(f"proximal_mu is {self.proximal_mu:g}, but only strategy=fedprox uses it")


@dataclass(frozen=True)
class PrivacyConfig:
    """Differential privacy for persons: the mechanism, its target over all rounds, and public constants.

    Nothing is counted from the records: `population` and what follows from it are declared.
    """

    mechanism: str = choice(
        "none",
        ("none", "distributed", "silo", "institution"),
        doc="distributed: shares of the noise, added up by secure aggregation, one gradient step a round; silo: each "
        "institution adds all the noise itself, several steps a round; institution: whole updates, clipped and noised",
    )
    epsilon: float = bounded(
        1.5, 0.01, 100.0, doc="target over all rounds; by default a policy lets one run take half of its 3 a year"
    )
    delta: float = bounded(1e-6, 1e-12, 1e-2, doc="a power of ten; the institutions' policies must say the same")
    noise_multiplier: float | None = bounded(None, 0.05, 1e6, doc="null: calibrated to epsilon over all planned steps")
    clip: float = bounded(1.0, 1e-6, 1e6, doc="L2 bound on a person's gradient; on the update for 'institution'")
    sampling_rate: float = bounded(0.1, 1e-6, 1.0, doc="probability of each person to be in a step")
    population: int = bounded(
        1_000, 1, 10**10, unit="persons", doc="declared public number of persons in training, all institutions together"
    )
    local_steps: int = bounded(10, 1, 10_000, doc="private steps of each institution in a round; 'silo' only")
    spare_steps: int = bounded(2, 0, 10_000, doc="steps granted beyond the planned, to repeat what a crash has cost")
    colluders: int = bounded(1, 0, 254, doc="institutions that may side with the agency: their noise is not counted on")
    grid_bits: int = bounded(16, 8, 24, unit="bits", doc="resolution of a clipped gradient in the ring")

    @property
    def private(self) -> bool:
        return self.mechanism != "none"


@dataclass(frozen=True)
class SecaggConfig:
    """Secure aggregation: the coordinator sees sums over the cohort, and no institution's own update or metric."""

    enabled: bool = bounded(True, doc="false: the server sees each institution's update; their policies must allow it")
    bits: int = bounded(32, 12, 32, unit="bits", doc="ring lane of a parameter: 12, 16, 21 or 32; fewer are coarser")
    clip: float = bounded(
        8.0, 1e-6, 1e3, doc="bound on each value of an update; one with a value beyond it is shrunk as a whole"
    )
    max_weight: int = bounded(
        10_000, 1, 2**48, unit="records", doc="most records of one institution; one with more counts as so many"
    )

    def __post_init__(self) -> None:
        if self.bits not in LANE_BITS:
            raise ValueError(f"bits is {self.bits}, expected one of {LANE_BITS}")


@dataclass(frozen=True)
class ServerConfig:
    """The agency's processes: what they listen on, whom they wait for and how long."""

    home: str = bounded("agency", 1, 4096, doc="folder of keys, state, runs and logs, created with mode 0700")
    host: str = bounded("127.0.0.1", 1, 255, doc="address that the fleet, enrolment and lane ports listen on")
    fleet_port: int = bounded(8443, 0, PORT_MAX, doc="SuperLink's gated Fleet port (mutual TLS); 0 = any free port")
    enrolment_port: int = bounded(8444, 0, PORT_MAX, doc="registry's enrolment port (server TLS, one-time token)")
    lane_port: int = bounded(8445, 0, PORT_MAX, doc="registry's lane port (mutual TLS), where models travel")
    control_port: int = bounded(8446, 0, PORT_MAX, doc="SuperLink's Control and Runtime port, on loopback only")
    names: tuple[str, ...] = bounded((), doc="DNS names and IP addresses in the server's certificate; [] = host")
    lane_address: str | None = bounded(None, 3, 262, doc="host:port that institutions are told; null = the first name")
    lane: str = choice("auto", ("auto", "stream", "flower"), doc="auto falls back from the stream to Flower's Grid")
    lane_timeout_s: float = bounded(20.0, 0.1, 3_600, unit="s", doc="longest wait for institutions to open their lane")
    min_cohort: int = bounded(5, 1, 100_000, unit="institutions", doc="fewer updates than this void a round")
    start_cohort: int = bounded(0, 0, 100_000, unit="institutions", doc="wait for this many at the start; 0 = no wish")
    sample: float = bounded(
        1.0,
        1e-4,
        1.0,
        doc="share of the connected institutions that train in a round, drawn anew for each; at least "
        "min_cohort. Without privacy, policies that refuse differencing hold the run to one sample. "
        "A simulation samples by simulation.cohort",
    )
    round_deadline_s: float = bounded(600.0, 0.1, 604_800, unit="s", doc="longest wait for the updates of one round")
    node_wait_s: float = bounded(120.0, 0.1, 604_800, unit="s", doc="longest wait for the minimum cohort to connect")
    max_message_bytes: int = bounded(
        2**30, 2**16, MESSAGE_BYTES_MAX, unit="bytes", doc="larger messages are refused before allocation"
    )
    crl_source: str | None = bounded(None, 1, 4096, doc="file (absolute) where the authority's lists appear")
    min_reviewers: int = bounded(1, 0, 64, doc="people who must have reviewed a task's archive, but for its publisher")
    min_reviewing_organisations: int = bounded(1, 0, 64, doc="organisations that these people work for")

    def __post_init__(self) -> None:
        if 0 < self.start_cohort < self.min_cohort:
            raise ValueError(f"start_cohort {self.start_cohort} is below min_cohort {self.min_cohort}")
        ports = [port for port in (self.fleet_port, self.enrolment_port, self.lane_port, self.control_port) if port]
        if len(set(ports)) < len(ports):
            raise ValueError(f"two services share a port: {ports}")
        if self.crl_source is not None and not self.crl_source.startswith("/"):
            raise ValueError(f"crl_source is {self.crl_source!r}, expected an absolute path")

    @property
    def certificate_names(self) -> tuple[str, ...]:
        """The names that the server's certificate must carry."""
        return self.names or (self.host,)

    @property
    def announced_lane_address(self) -> str:
        """host:port at which institutions reach the lane."""
        return self.lane_address or f"{self.certificate_names[0]}:{self.lane_port}"


@dataclass(frozen=True)
class ClientConfig:
    """An institution's processes. The addresses are normally what enrolment wrote to identity/institution.json."""

    home: str = bounded("institution", 1, 4096, doc="folder of keys, policy, state and logs, created with mode 0700")
    fleet_address: str | None = bounded(None, 3, 262, doc="host:port of the agency's Fleet port; null = as enrolled")
    lane_address: str | None = bounded(None, 3, 262, doc="host:port of the agency's lane; null = as the run announces")
    runtime_port: int = bounded(0, 0, PORT_MAX, doc="SuperNode's Runtime port, on loopback only; 0 = any free port")
    device: str = choice("auto", ("auto", "cpu", "cuda", "mps"), doc="auto takes the best; cuda is also ROCm's name")
    precision: str = choice("float32", ("float32", "bf16", "fp16"), doc="arithmetic of local training")
    max_message_bytes: int = bounded(
        2**30, 2**16, MESSAGE_BYTES_MAX, unit="bytes", doc="larger messages are refused before allocation"
    )
    crl_refresh_s: float = bounded(60.0, 0.1, 86_400, unit="s", doc="how often the revocation list is fetched")
    data: DataConfig = DataConfig()
    studies: dict[str, StudyConfig] = field(
        default_factory=dict,
        metadata={"doc": "by name, the data of single tasks; `data` above serves those that no study names"},
    )

    def __post_init__(self) -> None:
        for name in self.studies:
            if not NAME.fullmatch(name) or name == REST:
                raise ValueError(f"studies: {name[:80]!a} is no name of a study: expected one {NAME_IN_WORDS}")
        named = sorted((study.task, name) for name, study in self.studies.items())
        for (task, name), (next_task, second) in itertools.pairwise(named):
            if next_task == task or (AT in task and next_task.startswith(task)):
                raise ValueError(f"studies '{name}' and '{second}' both serve task '{task}'; each task has one")

    def study_of(self, task: Versioned) -> str:
        """The study that `task` belongs to, one that names its digest before one that does not; else "data".

        Raises WrongTaskError if studies name other versions of the task only: whose records these are nobody has said.
        """
        by_study = {
            name: study.task for name, study in self.studies.items() if study.task.partition(AT)[0] == task.name
        }
        named = [
            name
            for name in by_study
            if by_study[name] == task.name or names_task(by_study[name], task.name, task.digest)
        ]
        if by_study and not named:
            version = f"{task.name}{AT}{task.digest[:LEAST_DIGEST]}"
            raise WrongTaskError(f"task {version}: studies {sorted(by_study)} are of other versions")
        return max(named, key=lambda name: len(by_study[name]), default=REST)

    def data_of(self, task: Versioned) -> DataConfig:
        """Where the records of `task` are: in its study, or in `data`."""
        name = self.study_of(task)
        return self.data if name == REST else self.studies[name].data

    def population_of(self, study: str) -> str:
        """Whose records those of `study` are; "" for the home's own population."""
        return "" if study == REST else self.studies[study].population

    def each_data(self) -> dict[str, DataConfig]:
        """`data`, under that name, and the data of every study."""
        return {REST: self.data, **{name: study.data for name, study in self.studies.items()}}

    def with_data(self, change: Callable[[str, DataConfig], DataConfig]) -> ClientConfig:
        """These settings with what `change` makes of `data` and of each study's data, given the name."""
        studies = {name: replace(study, data=change(name, study.data)) for name, study in self.studies.items()}
        return replace(self, data=change(REST, self.data), studies=studies)


@dataclass(frozen=True)
class TrackingConfig:
    """MLflow."""

    uri: str | None = bounded(None, 1, 4096, doc="MLflow tracking URI; null = an SQLite file in the agency's home")
    experiment: str = bounded("sovfed", 1, 256, doc="MLflow experiment that runs are filed under")
    serve: bool = bounded(False, doc="start MLflow's web interface beside the agency's processes, on loopback")
    serve_port: int = bounded(5000, 1, PORT_MAX, doc="port of that web interface")


@dataclass(frozen=True)
class PartitionConfig:
    """How a simulation cuts a task's records into institutions; sources in simulations/partition.py."""

    name: str = named(
        "natural",
        doc="natural: as the data connector has it; iid; dirichlet: label skew; quantity: size skew; feature: feature "
        "shift; shards: few labels each; or one that a package brings",
    )
    alpha: float = bounded(0.5, 1e-3, 1e6, doc="concentration of 'dirichlet' and 'quantity'; small is uneven")
    shards: int = bounded(2, 1, 1_000, doc="label shards of each institution; 'shards' only")
    noise: float = bounded(
        1.0, 0.0, 100.0, unit="standard deviations of a feature", doc="of the noisiest institution; 'feature' only"
    )
    fade: float = bounded(
        0.0,
        0.0,
        0.99,
        doc="contrast that the most faded institution has lost to the features' upper bound; 'feature' only",
    )


@dataclass(frozen=True)
class SimulationConfig:
    """The federation in one process."""

    institutions: int = bounded(4, 1, 1_000_000, doc="simulated institutions: the population")
    cohort: int = bounded(0, 0, 100_000, unit="institutions", doc="institutions sampled for a round; 0 = all of them")
    engine: str = choice(
        "auto",
        ("auto", "inprocess", "vectorised", "ray"),
        doc="inprocess: the deployed code, one institution after the other; vectorised: many stacked into one "
        "computation, summed in the clear; auto tries both in round 1 and takes the faster; ray: Flower's own "
        "simulation, for many machines and GPUs",
    )
    workers: int | None = bounded(
        None,
        0,
        256,
        unit="processes",
        doc="that train for 'inprocess', one CPU thread each; 0 = none but this "
        "process; null = one a CPU, where an institution's training takes long enough to be worth it",
    )


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
        if self.privacy.private and self.strategy.name in LOCAL:
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
                f"at least {self.privacy.colluders + SECURE_COHORT}: too few would be left that do not collude"
            )


def told(config: Config) -> Config:
    """`config` as it may be stored, shown or tracked: `tracking.uri` without user, password and query."""
    uri = config.tracking.uri
    return config if uri is None else replace(config, tracking=replace(config.tracking, uri=without_credentials(uri)))


def stored(config: Config) -> dict[str, Any]:
    """What a file or a page may hold of `config`; the one way to turn a whole configuration into plain values."""
    return asdict(told(config))
