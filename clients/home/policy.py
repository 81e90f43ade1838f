"""The institution's own policy: what it lets a run ask of it, whoever asks. Read by the trainer, before any record is.

`home/policy.yaml` is written by the institution and never changed by a message. Without it nothing starts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from sovfed.clients.home.settings import read_settings
from sovfed.clients.ledger.entries import LEDGER_NAME, NAME_RULE, Budget
from sovfed.clients.orders.rules import DataPermit, OrderRules
from sovfed.federation.algorithms import LOCAL
from sovfed.federation.codec import last_of
from sovfed.federation.config import LEAST_LOG_DAYS, LEAST_SPREAD, check_log_days
from sovfed.federation.errors import BoundError, NotPrivateError, PolicyError
from sovfed.federation.messages import (
    MAX_PARAMETERS,
    EvaluateRequest,
    LedgerRequest,
    PrivateRequest,
    ReleaseRequest,
    Request,
    RunRequest,
    SecaggRequest,
    TrainRequest,
    Vector,
)
from sovfed.federation.plan import BUILT_IN, SGD, LocalPlan
from sovfed.federation.schema import bind, bounded, choice
from sovfed.federation.secagg.terms import Terms
from sovfed.federation.statistics.settings import least_of
from sovfed.federation.stored import Pieces
from sovfed.federation.text import AT, names_task

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sovfed.federation.archive.manifest import Manifest
    from sovfed.federation.tasks import Task

POLICY: Final = "policy.yaml"
POLICY_HEAD: Final = """\
What this institution lets a run ask of it. Read by the trainer alone, and changed by nobody but you. It is read when
the trainer starts: after a change, `sovfed client down` and `up`.

allow_plain_updates: a run without secure aggregation shows this institution's own update, record count and metrics to
whoever runs the aggregation server, not only the sums over all institutions, and an update can tell things about single
records. While this is false, such a run gets nothing from here. Set it to true only if you trust the agency with that.

secure_aggregation: the terms on which this institution lets its share go into a sum. The agency proposes a run's
parameters; what is outside these bounds is refused. min_cohort is the fewest institutions of any sum: c institutions
that side with the agency learn the sum of the others, so it is at least colluders, the number that you fear, plus 3.
A federation of four needs min_cohort 4 in each policy and at the agency (server.min_cohort); one of three needs 3 and
colluders 0.

secure_aggregation.differencing: two sums over almost the same institutions, subtracted, tell what the few that differ
hold: their record counts, means and updates. "refuse", the default, answers no sum without differential privacy whose
institutions differ from an earlier one's by fewer than min_cohort, in whatever run. So one institution that drops out
for good ends training without privacy, and a later run needs the same institutions. "record" answers, and names
each such sum in the trainer's log and in `sovfed client status`. Private training is answered under either: it is
noised anew and charged. The noise of a table of statistics or of private scores hides persons and not what an
institution holds: for table_days it is judged, and judges, like a sum without privacy; table_days: 0 answers all.
reproducible: true makes such a difference exact; leave it false.

privacy: what all runs together may learn about one person in the records. Each private run is charged to the ledger in
privacy/ before anything leaves, and refused when the budget is spent; `sovfed client ledger show` tells how much is
left. The ledger belongs to the persons that population_name stands for, whatever file they are read from. Runs without
differential privacy are entered as what they are, without any bound.

populations: budgets of people of whom none is in another population, by name, each with its own epsilon,
annual_epsilon, delta, population. A study of client.yaml names its one (population: NAME), and is charged to it only
after `sovfed client ledger assign STUDY`, which the ledger records for good; studies that name none share 'privacy'.

min_reviewers, min_reviewing_organisations, trusted_reviewers: a task's package is code that runs in the trainer, where
the records are, and may put into an update what it likes: reviewers have read it, differential privacy bounds the rest.
It is signed by its publisher; this many others must have signed it as reviewed, each person counted once.

require_privacy: true refuses them. Sums over several institutions hide who contributed what; they do not hide a person
from whoever chooses the models: each request without privacy is an exact question about everybody's records, and enough
of them read one record out (docs/what-leaves.md has figures). Set it to false only for an agency that you trust not to,
or for data that may be known.

allowed_optimizers: who takes the local steps of a run without privacy. sgd moves a parameter in proportion to its
gradient. adamw, and muon for what is no matrix, move each by about the learning rate whatever its gradient: after few
steps the sum of a few institutions' updates takes a few values only, one for each way to choose their signs, and tells
the sign of each institution's own update. Add them for an agency that may know that; strategy=fedsgd trains with the
same optimizers and without it. With mechanism institution, where the sum is noised, any built-in one may be asked for.

orders: a run shows its order first: task, purpose, rounds, privacy, cohort, who asks, until when. Nothing of it is
answered before this institution has signed that order, and nothing beyond it. mode "standing" signs orders within
'standing' by itself, visibly as that: as it is written here, all that the rest of this file allows, but for tables of
statistics, for which an officer signs unless standing.statistics is true. "required" waits for one of 'officers'
(`sovfed client orders`). sign_in_console: officers who may sign in a browser, on this institution's page, too; whoever
has the node's own user then has their sealed key, and sees the passphrase that is typed: docs/orders.md has what that
gives up. min_approvers is how many people of the agency must have signed too; --officers has 2.

max_sums_…, max_evaluations_…: how many such questions are answered; private runs are bounded by the ledger instead.
max_failures_…: how often this institution tells that it could not do the work, which says something about its records.
After that it refuses until you have looked: `sovfed client status` says why, `sovfed client failures --clear` goes
on."""


@dataclass(frozen=True)
class Policy:
    """Bounds on every request. The defaults allow nothing that has not been named: no task, no plain update."""

    allowed_tasks: tuple[str, ...] = bounded(
        (), 1, 128, doc="tasks that runs may train and evaluate here, by name or, of a task of your own, by NAME@DIGEST"
    )
    min_reviewers: int = bounded(
        1, 0, 64, doc="people who must have reviewed a task's package, its publisher not among them, before it is used"
    )
    min_reviewing_organisations: int = bounded(1, 0, 64, doc="organisations that these people work for")
    trusted_reviewers: tuple[str, ...] = bounded(
        (),
        1,
        128,
        doc="whose reviews count, as ORGANISATION or PERSON@ORGANISATION; []: all whom the authority certified",
    )
    review_task_files: bool = bounded(
        False, doc="hold a task.yaml to the same: it names columns and sizes and holds no code, so by default it is not"
    )
    allow_plain_updates: bool = bounded(
        False, doc="answer runs without secure aggregation: the server sees this institution's own update"
    )
    allow_open_network: bool = bounded(
        False, doc="let the trainer start where its network cannot be taken away: neither namespace nor seccomp"
    )
    require_privacy: bool = bounded(True, doc="answer runs with differential privacy only")
    secure_aggregation: Terms = field(default_factory=Terms)
    privacy: Budget = field(default_factory=Budget)
    populations: dict[str, Budget] = field(
        default_factory=dict,
        metadata={"doc": "by name, budgets of further populations, of whom nobody is in another; studies name them"},
    )
    orders: OrderRules = field(default_factory=OrderRules)
    permits: dict[str, DataPermit] = field(
        default_factory=dict, metadata={"doc": "by the name that orders give: permits under which records may be used"}
    )
    purge_ended_permits: bool = bounded(
        False,
        doc="at the first `client up` after a permit's last day erase what its runs left here, for good, as `sovfed "
        "client purge` does; false: `client status` reminds you",
    )
    declare_size: bool = bounded(
        False, doc="let a declaration of training content say about how many records there are, in powers of ten"
    )
    on_split: str = choice(
        "refuse",
        ("refuse", "record"),
        doc="what becomes of runs once the agency's log was seen rolled back, or in two forms (docs/evidence.md)",
    )
    log_retention_days: int = bounded(
        0,
        0,
        36_525,
        unit="days",
        doc="how long the audit log keeps what its entries say (docs/evidence.md); 0: for ever, else at least "
        f"{LEAST_LOG_DAYS}",
    )
    reproducible: bool = bounded(
        False, doc="train in the same order when the same is asked again, so that two runs agree to the bit"
    )
    max_rounds: int = bounded(1_000, 1, 1_000_000, doc="highest round of a run that is still answered")
    max_local_epochs: int = bounded(
        20, 1, 10_000, doc="most passes over the records in one round; steps beyond them are not taken"
    )
    min_batch_size: int = bounded(8, 1, 1_000_000, unit="records", doc="a smaller batch tells more of each record")
    allowed_optimizers: tuple[str, ...] = bounded((SGD,), 1, 64, doc="of local steps in runs without privacy")
    max_local_steps: int = bounded(10_000, 1, 1_000_000, doc="most gradient steps in one round")
    max_accumulation: int = bounded(1_000, 1, 10_000, unit="batches", doc="most that one step may take the mean over")
    max_momentum: float = bounded(0.999, 0.0, 0.999999, doc="it multiplies the learning rate by up to 1 / (1 - itself)")
    max_weight_decay: float = bounded(10.0, 0.0, 1e3, doc="strongest pull of the parameters towards 0")
    max_learning_rate: float = bounded(10.0, 1e-9, 1e3, doc="with a huge one every update is as long as the clip")
    max_batch_size: int = bounded(100_000, 1, 1_000_000, unit="records", doc="bounds the memory of one step")
    max_parameters: int = bounded(100_000_000, 1, MAX_PARAMETERS, doc="longest model vector")
    max_model_value: float = bounded(
        1e3, 1e-3, 1e30, doc="largest parameter of a model, in size; of its running statistics, the square root"
    )
    least_spread: float = bounded(
        LEAST_SPREAD, 0.0, 0.5, doc="smallest standard deviation of a feature, as a share of its declared range"
    )
    max_sums_per_run: int = bounded(2_000, 1, 10**9, doc="sums without privacy that one run gets a contribution to")
    max_sums_per_day: int = bounded(10_000, 1, 10**9, doc="the same for all runs of a day (UTC)")
    max_evaluations_per_run: int = bounded(20, 1, 10**9, doc="evaluations without training among them")
    max_evaluations_per_day: int = bounded(200, 1, 10**9, doc="the same for all runs of a day (UTC)")
    min_cell: int = bounded(
        10,
        1,
        10**9,
        unit="persons",
        doc="smallest count that a table of statistics may show; a smaller 'least' is refused",
    )
    max_failures_per_run: int = bounded(3, 1, 10**6, doc="refusals of one run because of records, memory or disk")
    max_failures_per_day: int = bounded(10, 1, 10**6, doc="the same for all runs of a day (UTC)")

    def __post_init__(self) -> None:
        check_log_days(self.log_retention_days)
        if self.min_batch_size > self.max_batch_size:
            raise ValueError(f"min_batch_size {self.min_batch_size} is above max_batch_size {self.max_batch_size}")
        for name, budget in self.populations.items():
            if not LEDGER_NAME.fullmatch(name) or name == self.privacy.population_name:
                raise ValueError(f"populations: '{name[:80]}' {NAME_RULE}, and not the one of 'privacy'")
            if budget.population_name not in (name, Budget().population_name):
                raise ValueError(f"populations.{name}: population_name is '{budget.population_name}'; leave it out")

    @property
    def other_budgets(self) -> dict[str, Budget]:
        """The budget of each further population, which knows its name."""
        return {name: replace(budget, population_name=name) for name, budget in self.populations.items()}

    @property
    def allowed_names(self) -> tuple[str, ...]:
        """The names of the tasks that may be asked for, with or without a digest."""
        return tuple(dict.fromkeys(entry.partition(AT)[0] for entry in self.allowed_tasks))

    def allows_own(self, task: Task | Manifest) -> bool:
        """Whether a task of the institution's own, a task.yaml or an archive, is allowed: by name and digest.

        Never by its name alone. A bare name is an installed package's: a file that took the same name, or that lies
        here unread, is not meant by it.
        """
        return any(AT in entry and names_task(entry, task.name, task.digest) for entry in self.allowed_tasks)

    def check(self, request: Request) -> None:
        """Raises PolicyError unless `request` is within these bounds; the message names the setting.

        The terms of secure aggregation are checked where its messages are read (`clients/trainer/masking.py`).
        """
        if isinstance(request, SecaggRequest | LedgerRequest | RunRequest):
            return
        if not any(names_task(entry, request.task, request.digest) for entry in self.allowed_tasks):
            raise BoundError(
                f"task '{request.task}' with digest {request.digest[:12] or '–'}… is not in allowed_tasks "
                f"{list(self.allowed_tasks)}",
                "allowed_tasks",
            )
        if isinstance(request, ReleaseRequest):  # which gives, and asks for nothing: neither setting below is for it
            self._check_model(request)
            return
        if not request.begin.size and not self.allow_plain_updates:
            raise BoundError(
                "this run aggregates without secure aggregation, and allow_plain_updates is false",
                "allow_plain_updates",
            )
        if self.require_privacy and not isinstance(request, PrivateRequest):
            raise NotPrivateError("this run is without differential privacy, and require_privacy is true")
        if isinstance(request, PrivateRequest) and request.statistics:
            self._check_least(request)
        if isinstance(request, TrainRequest | PrivateRequest | EvaluateRequest):
            self._check_model(request)
        if isinstance(request, TrainRequest):
            steepest = _largest(request.control)
            _at_most("largest value of SCAFFOLD's control", steepest, "max_model_value", self.max_model_value)
        if isinstance(request, TrainRequest | PrivateRequest):
            _at_most("learning_rate", request.learning_rate, "max_learning_rate", self.max_learning_rate)
            _at_most("local_epochs", request.local_epochs, "max_local_epochs", self.max_local_epochs)
            _at_most("batch_size", request.batch_size, "max_batch_size", self.max_batch_size)
            if request.batch_size < self.min_batch_size:
                raise BoundError(
                    f"batch_size {request.batch_size} is below min_batch_size {self.min_batch_size}", "min_batch_size"
                )
            self._check_plan(request.plan, private=isinstance(request, PrivateRequest))
        if isinstance(request, TrainRequest) and (reason := LOCAL[request.algorithm].why_not(request.plan)):
            raise PolicyError(reason)

    def _check_least(self, request: PrivateRequest) -> None:
        """Raises PolicyError if the table that is asked for would show smaller counts than `min_cell`."""
        if least_of(request.statistics) < self.min_cell:
            raise BoundError(
                f"a table with counts from {least_of(request.statistics)} on is below min_cell", "min_cell"
            )

    def check_run(self, request: RunRequest) -> list[BoundError]:
        """What of a whole run is beyond these bounds, one for each setting. Raises other PolicyErrors as `check`."""
        last = last_of(request)
        checks: list[Callable[[], None]] = [
            lambda: self.check(last),
            lambda: _at_most("parameters", request.parameters, "max_parameters", self.max_parameters),
            lambda: _at_most("sums", request.sums, "max_sums_per_run", self.max_sums_per_run),
            lambda: _at_most(
                "evaluations", request.evaluations, "max_evaluations_per_run", self.max_evaluations_per_run
            ),
        ]
        if request.masked:
            checks.append(lambda: self._check_sums(request))
        bounds = []
        for check in checks:
            try:
                check()
            except BoundError as error:
                bounds.append(error)
        return bounds

    def _check_sums(self, request: RunRequest) -> None:
        self.secure_aggregation.check_parameters(
            bits=request.bits, clip=request.clip, max_weight=request.max_weight, min_cohort=request.min_cohort,
            size=request.parameters,
        )  # fmt: skip

    def _check_model(self, request: TrainRequest | PrivateRequest | EvaluateRequest | ReleaseRequest) -> None:
        """Raises PolicyError unless round, length and values of the model are within these bounds."""
        if isinstance(request, ReleaseRequest) and request.statistics:
            return  # a table: counts are no parameters
        _at_most("round", request.round, "max_rounds", self.max_rounds)
        _at_most("parameters", request.model.size, "max_parameters", self.max_parameters)
        self.check_values(request, 0)  # whichever of its values are parameters

    def check_values(self, request: Request, trained: int) -> None:
        """Raises PolicyError unless the model's values are within these bounds; its first `trained` are parameters.

        Running statistics, which come behind them, may be as large as the square of a parameter: one is a variance.
        """
        if not isinstance(request, TrainRequest | PrivateRequest | EvaluateRequest | ReleaseRequest):
            return
        parameters, statistics = request.model[:trained], request.model[trained:]
        _at_most("largest parameter", _largest(parameters), "max_model_value", self.max_model_value)
        root = math.sqrt(_largest(statistics))
        _at_most("root of the largest running statistic", root, "max_model_value", max(1.0, self.max_model_value))

    def _check_plan(self, plan: LocalPlan, *, private: bool) -> None:
        """Raises PolicyError unless the local steps are within these bounds; no package is imported to find out."""
        if plan.optimizer not in self.allowed_optimizers and not (private and plan.optimizer in BUILT_IN):
            raise BoundError(
                f"optimizer '{plan.optimizer}' is not in allowed_optimizers {list(self.allowed_optimizers)}",
                "allowed_optimizers",
            )
        _at_most("learning_rate", plan.final_rate, "max_learning_rate", self.max_learning_rate)
        _at_most("local_steps", plan.local_steps, "max_local_steps", self.max_local_steps)
        _at_most("accumulation", plan.accumulation, "max_accumulation", self.max_accumulation)
        _at_most("momentum", plan.momentum, "max_momentum", self.max_momentum)
        _at_most("weight_decay", plan.weight_decay, "max_weight_decay", self.max_weight_decay)


def _largest(values: Vector) -> float:
    """The largest of `values` in size."""
    return max((max(float(piece.max()), -float(piece.min())) for piece in Pieces(values)), default=0.0)


def _at_most(what: str, value: float, name: str, bound: float) -> None:
    if not value <= bound:
        raise BoundError(f"{what} {value} is above {name} {bound}", name)


def load_policy(home: Path) -> Policy:
    """The policy in `home/policy.yaml`. Raises PolicyError if it is missing, or says anything that is not known."""
    path = home / POLICY
    if not path.exists():
        raise PolicyError(f"{path} is missing, so nothing is allowed; `sovfed client init --home {home}` writes one")
    return bind(Policy, read_settings(path, PolicyError), str(path), PolicyError)
