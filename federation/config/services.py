"""The processes of the agency and of an institution, and MLflow."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from sovfed.federation.addresses import host_port
from sovfed.federation.config.data import REST, DataConfig, StudyConfig, Versioned
from sovfed.federation.content import ContentConfig
from sovfed.federation.errors import WrongTaskError
from sovfed.federation.schema import bounded, choice
from sovfed.federation.text import AT, LEAST_DIGEST, NAME, NAME_IN_WORDS, names_task

if TYPE_CHECKING:
    from collections.abc import Callable

PORT_MAX: Final = 65_535
LOG_FORMATS: Final = ("text", "json")
DEVICE: Final = re.compile(r"auto|cpu|mps|cuda(:\d{1,2})?|(cpu|cuda:\d{1,2})(,(cpu|cuda:\d{1,2})){1,15}")
MESSAGE_BYTES_MAX: Final = 2**33  # a model of 10⁹ parameters, and as long a control variate
LEAST_LOG_DAYS: Final = 366  # of the audit log: a year (docs/evidence.md)


def check_log_days(days: int) -> None:
    """Raise ValueError unless the audit log may be kept for so many days; 0 is for ever."""
    if 0 < days < LEAST_LOG_DAYS:
        raise ValueError(f"log_retention_days is {days}, expected 0 (for ever) or at least {LEAST_LOG_DAYS}")


@dataclass(frozen=True)
class ServerConfig:
    """The agency's processes: what they listen on, whom they wait for and how long."""

    home: str = bounded("agency", 1, 4096, doc="folder of keys, state, runs and logs, created with mode 0700")
    host: str = bounded("127.0.0.1", 1, 255, doc="address that the fleet, enrolment and lane ports listen on")
    fleet_port: int = bounded(8443, 0, PORT_MAX, doc="SuperLink's gated Fleet port (mutual TLS); 0 = any free port")
    enrolment_port: int = bounded(8444, 0, PORT_MAX, doc="registry's enrolment port (server TLS, one-time token)")
    lane_port: int = bounded(8445, 0, PORT_MAX, doc="registry's lane port (mutual TLS), where models travel")
    control_port: int = bounded(8446, 0, PORT_MAX, doc="SuperLink's Control and Runtime port, on loopback only")
    watch_port: int = bounded(0, 0, PORT_MAX, doc="port of /metrics and /health, on loopback only; 0 = off")
    log_format: str = choice("text", LOG_FORMATS, doc="of the lines in logs/; json is one object a line")
    console_port: int = bounded(0, 0, PORT_MAX, doc="port of the agency's web page; 0 = only by `server console run`")
    console_host: str = bounded("127.0.0.1", 1, 255, doc="address of that page; any but the loopback has TLS")
    console_certificate: str | None = bounded(
        None, 1, 4096, doc="PEM file (absolute) of the page's certificate chain; null = the server's own"
    )
    console_key: str | None = bounded(None, 1, 4096, doc="PEM file (absolute) of its key, which only you can read")
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
    grace_s: float = bounded(
        60.0,
        0.1,
        604_800,
        unit="s",
        doc="once the minimum cohort has answered, a round ends when nobody else has for so long; who is missing is "
        "left out of the next rounds, and asked again after pauses that grow",
    )
    grace_factor: float = bounded(
        2.0, 0, 1_000, doc="... or for so many times what the slowest answer has taken, if that is longer"
    )
    node_wait_s: float = bounded(120.0, 0.1, 604_800, unit="s", doc="longest wait for the minimum cohort to connect")
    max_message_bytes: int = bounded(
        2**30, 2**16, MESSAGE_BYTES_MAX, unit="bytes", doc="larger messages are refused before allocation"
    )
    hang_s: float = bounded(
        60.0, 2.0, 86_400, unit="s", doc="a process of ours without a sign of life for so long is started again"
    )
    release_audits: tuple[str, ...] = bounded(
        (), 1, 64, doc="audits that must have passed on a model before it is released: canary, imprint, membership, "
        "each also as NAME<=FIGURE; []: none",
    )  # fmt: skip
    release_audit_days: int = bounded(30, 1, 3_660, unit="days", doc="how long such a result counts")
    log_retention_days: int = bounded(
        0, 0, 36_525, unit="days", doc="how long the audit log keeps what its entries say; 0 = for ever, else at least "
        f"{LEAST_LOG_DAYS}"
    )  # fmt: skip
    release_cosigners: int = bounded(
        0, 0, 100_000, unit="institutions", doc="fewest that have cosigned the log with a release; fewer: none is made"
    )
    crl_source: str | None = bounded(None, 1, 4096, doc="file (absolute) where the authority's lists appear")
    min_approvers: int = bounded(
        0, 0, 16, unit="people", doc="who must have approved an order before its run begins; two is usual"
    )
    approvers: tuple[str, ...] = bounded(
        ("agency",), 1, 128, doc="who may be one, as ORGANISATION or PERSON@ORGANISATION of their certificates"
    )
    min_reviewers: int = bounded(1, 0, 64, doc="people who must have reviewed a task's archive, but for its publisher")
    min_reviewing_organisations: int = bounded(1, 0, 64, doc="organisations that these people work for")

    def __post_init__(self) -> None:
        check_log_days(self.log_retention_days)
        if 0 < self.start_cohort < self.min_cohort:
            raise ValueError(f"start_cohort {self.start_cohort} is below min_cohort {self.min_cohort}")
        names = ("fleet_port", "enrolment_port", "lane_port", "control_port", "watch_port", "console_port")
        ports = [port for name in names if (port := getattr(self, name))]
        if len(set(ports)) < len(ports):
            raise ValueError(f"two services share a port: {ports}")
        if (self.console_certificate is None) != (self.console_key is None):
            raise ValueError("console_certificate and console_key go together")
        if self.min_approvers and not self.approvers:
            raise ValueError(f"min_approvers is {self.min_approvers}; name the agency's people in approvers")
        if self.crl_source is not None and not self.crl_source.startswith("/"):
            raise ValueError(f"crl_source is {self.crl_source!r}, expected an absolute path")

    @property
    def certificate_names(self) -> tuple[str, ...]:
        """The names that the server's certificate must carry."""
        return self.names or (self.host,)

    @property
    def announced_lane_address(self) -> str:
        """host:port at which institutions reach the lane."""
        return self.lane_address or host_port(self.certificate_names[0], self.lane_port)


@dataclass(frozen=True)
class ClusterConfig:
    """Where the trainer runs, if not beside the gateway: as jobs of a cluster's scheduler, by files in the home."""

    scheduler: str = choice(
        "none", ("none", "slurm"), doc="slurm: the trainer is a job; all machines must mount the home and the records"
    )
    time_limit_min: int = bounded(
        60, 1, 10_080, unit="min", doc="a job's time limit, longer than one round's training; the next job goes on"
    )
    idle_s: float = bounded(300.0, 1.0, 86_400, unit="s", doc="a job that is asked nothing for so long ends")
    patience_s: float = bounded(
        7_200.0, 1.0, 604_800, unit="s", doc="longest wait for one answer, with that in the scheduler's queue"
    )
    options: tuple[str, ...] = bounded((), doc="sbatch's own, as [--partition=gpu, --gres=gpu:1, --mem=16G]")

    def __post_init__(self) -> None:
        for option in self.options:
            if not re.fullmatch(r"--[a-z][a-z-]*(=[^\s]+)?", option):
                raise ValueError(f"options: {option[:80]!a} is no option of sbatch: expected --name=value")


@dataclass(frozen=True)
class ClientConfig:
    """An institution's processes. The addresses are normally what enrolment wrote to identity/institution.json."""

    home: str = bounded("institution", 1, 4096, doc="folder of keys, policy, state and logs, created with mode 0700")
    fleet_address: str | None = bounded(None, 3, 262, doc="host:port of the agency's Fleet port; null = as enrolled")
    lane_address: str | None = bounded(None, 3, 262, doc="host:port of the agency's lane; null = as enrolled")
    proxy: str | None = bounded(
        None, 1, 512, doc="http://HOST:PORT of the proxy towards the agency, https:// where it wants TLS itself; "
        "null = HTTPS_PROXY and NO_PROXY of the environment; direct = none. User and password, if any, in "
        "secrets/proxy: user:password",
    )  # fmt: skip
    runtime_port: int = bounded(0, 0, PORT_MAX, doc="SuperNode's Runtime port, on loopback only; 0 = any free port")
    watch_port: int = bounded(0, 0, PORT_MAX, doc="port of /metrics and /health, on loopback only; 0 = off")
    log_format: str = choice("text", LOG_FORMATS, doc="of the lines in logs/; json is one object a line")
    device: str = bounded(
        "auto", 3, 127, doc="cpu, cuda (also ROCm's name), cuda:1 and so on, mps; auto takes the best that is there. "
        "Several divide a batch of a run without privacy: cuda:0,cuda:1",
    )  # fmt: skip
    precision: str = choice("float32", ("float32", "tf32", "bf16", "fp16"), doc="arithmetic of local training")
    deterministic: bool = bounded(
        False, doc="the same bits for the same request on the same GPU too, or failure; slower. A CPU repeats itself"
    )
    max_message_bytes: int = bounded(
        2**30, 2**16, MESSAGE_BYTES_MAX, unit="bytes", doc="larger messages are refused before allocation"
    )
    crl_refresh_s: float = bounded(60.0, 0.1, 86_400, unit="s", doc="how often the revocation list is fetched")
    heads_every_s: float = bounded(
        5.0, 0.1, 86_400, unit="s", doc="least time between two exchanges of the logs' heads, however many rounds end"
    )
    hang_s: float = bounded(
        60.0, 2.0, 86_400, unit="s", doc="a process of ours without a sign of life for so long is started again"
    )
    stall_s: float = bounded(
        1_800.0, 2.0, 604_800, unit="s", doc="longest step of local training; a trainer that takes longer is hung"
    )
    halfway_s: float = bounded(
        300.0, 0.01, 604_800, unit="s", doc="how often the state of a round is put on disk, from which a trainer that "
        "died goes on",
    )  # fmt: skip
    evaluation_records: int = bounded(
        0, 0, 10**9, unit="records", doc="of those held out, how many a round's evaluation is of, the same in each; "
        "the last evaluation is of all. 0: all",
    )  # fmt: skip
    cluster: ClusterConfig = ClusterConfig()
    data: DataConfig = DataConfig()
    content: ContentConfig = ContentConfig()
    studies: dict[str, StudyConfig] = field(
        default_factory=dict,
        metadata={"doc": "by name, the data of single tasks; `data` above serves those that no study names"},
    )

    def __post_init__(self) -> None:
        if not DEVICE.fullmatch(self.device):
            raise ValueError(
                f"device: {self.device!a}, expected auto, cpu, cuda, cuda:NUMBER or mps, or up to 16 as cuda:0,cuda:1"
            )
        cards = [name for name in self.device.split(",") if name != "cpu"]
        if len(set(cards)) < len(cards):
            raise ValueError(f"device: {self.device!a} names a card twice")
        if "," in self.device and self.precision == "fp16":
            raise ValueError("precision: fp16 trains on one device; several take float32, tf32 or bf16")
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
