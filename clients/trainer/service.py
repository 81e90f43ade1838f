"""The trainer: the only process that reads records. It answers typed requests, over its Unix socket or in-process.

Whatever goes wrong, the answer is a `Refusal`, a code and nothing else; the error goes to the institution's own log. A
request is *admitted* before a record is touched: what refuses it then is the request itself, the policy, the ledger or
a public constant. From there on the only code is `failed`, and where the reply is masked not even that, but for records
that cannot be read, a full disk or the like: work that fails on the records becomes a contribution of nothing, inside
the sum, and one more in the sum's count of spoilt contributions.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections import OrderedDict
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from sovfed.clients.data import Dataset, check_private_data, load_records, opt_out_stamp
from sovfed.clients.home.whose import whose_of
from sovfed.clients.ledger.entries import Whose
from sovfed.clients.models.received import facts_of_release, keep_released, plan_of
from sovfed.clients.trainer.admission import check_release, check_shapes, resolve, sums_width
from sovfed.clients.trainer.allowance import Allowance
from sovfed.clients.trainer.masking import Masking
from sovfed.clients.trainer.workload import Echo, Workload, nothing
from sovfed.clients.training.personal import PersonalStates
from sovfed.federation.algorithms import LOCAL
from sovfed.federation.codec import last_of, vectors
from sovfed.federation.config import LEAST_SPREAD, REST, ClientConfig
from sovfed.federation.errors import (
    BoundError,
    PolicyError,
    ProtocolError,
    SovfedError,
    TrainingError,
    WrongTaskError,
    wire_code,
)
from sovfed.federation.host.sandbox import Isolation
from sovfed.federation.messages import (
    EvaluateReply,
    EvaluateRequest,
    LedgerReply,
    LedgerRequest,
    PrivateRequest,
    ProfileReply,
    ProfileRequest,
    Refusal,
    ReleaseReply,
    ReleaseRequest,
    Reply,
    Request,
    RunReply,
    RunRequest,
    SecaggRequest,
    SumRequest,
    TrainReply,
    TrainRequest,
    Vector,
)
from sovfed.federation.secagg.mask import hash_vector
from sovfed.federation.secagg.request import whole_run
from sovfed.federation.tasks import Task, sized
from sovfed.federation.tasks.conformance import require_works
from sovfed.federation.tasks.registry import versions
from sovfed.federation.wire.trainer_pb2 import HealthReply

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import torch

    from sovfed.clients.ledger.book import PrivacyLedger
    from sovfed.clients.models.received import ReceivedModels
    from sovfed.clients.orders.gate import OrderGate
    from sovfed.clients.trainer.evidence import Evidence
    from sovfed.clients.training.model import FlatModel
    from sovfed.clients.training.private import PrivateTraining
    from sovfed.federation.messages import Bytes
    from sovfed.federation.secagg.client import Permit

log = logging.getLogger(__name__)
TYPE_NAMES: Final = {ProfileRequest: "profile", TrainRequest: "train", EvaluateRequest: "evaluate"}
NOT_KEPT: Final = (RunRequest, LedgerRequest, ReleaseRequest)  # whose reply may be another, if asked again
MAX_RUNS: Final = 4  # whose last replies are kept
FAILED: Final = wire_code(Exception())  # the one code for whatever has to do with the records
TOLD_LINES: Final = 100
QUIET_S: Final = 3600.0


class TrainerService:
    """Answers the coordinator's requests from one institution's records; warm between rounds.

    A request repeated with equal content gets the same reply again, so transports may retry. One request at a time.
    """

    isolation: Isolation | None = None  # of the process; a simulation's trainer has none

    def __init__(
        self,
        load: Callable[[Task], Dataset],
        *,
        site: str | Callable[[Task], str],
        device: str = "auto",
        precision: str = "float32",
        check: Callable[[Request], None] = lambda _request: None,
        masking: Masking | None = None,
        open_ledger: Callable[[], PrivacyLedger | None] = lambda: None,
        states: PersonalStates | None = None,
        make_model: Callable[[Task, torch.device], FlatModel] | None = None,
        repeats: bool = True,
        reproducible: bool = False,
        check_private_data: Callable[[Task], None] = lambda _task: None,
        allowance: Allowance | None = None,
        tasks: Callable[[str], Sequence[Task]] = versions,
        least_spread: float = LEAST_SPREAD,
        on_error: Callable[[Exception], None] = lambda _error: None,
        received: ReceivedModels | None = None,
        whose: Callable[[Task], Whose] = lambda _task: Whose(study=REST),
        most_epochs: int | None = None,
        check_values: Callable[[Request, int], None] = lambda _request, _trained: None,
        check_run: Callable[[RunRequest], list[BoundError]] = lambda _request: [],
        put_aside: Callable[[Reply], Reply] = lambda reply: reply,
        orders: OrderGate | None = None,
        stamp: Callable[[Task], object] = lambda _task: None,
        evidence: Evidence | None = None,
    ) -> None:
        """`load` reads the records of a task; `check` raises PolicyError if the institution forbids a request.

        `site` is what the institution is called in the records, the same for all or by task.

        `on_error` is told what went wrong: a simulation's researcher may see it, an agency never.
        `tasks` are those of a name that this institution has, the newest last; `least_spread` as in the policy.

        `check_values` is asked too, once it is known how many of the model's first values are parameters.

        `check_run` says what of a whole run the institution would refuse; a simulation's refuses nothing.

        `stamp` changes where a task's records are to be read again before the next run.

        `orders` holds every message to an order that the institution has signed; a simulation has none.

        `most_epochs` bounds the passes over the records in one round, as `LocalTraining` does.

        `whose` says to which population in the ledger the runs of a task are charged.

        `received` is where the models of ended runs are kept; without it, as in a simulation, they are not.

        `put_aside` gives a reply whose vectors are not in this process, for it is kept until the next request.

        `allowance` counts what is answered and what fails, `evidence` logs it; a simulation has neither.

        Without `masking`, every request of secure aggregation is refused; without `states`, every algorithm that keeps
        something. `open_ledger` is called with the first private request; only a simulation has none. Only a simulation
        shares models (`make_model`), or keeps no reply for a request that is repeated (`repeats`). `reproducible`
        trains in the same order when the same is asked in another sum. `check_private_data` raises PrivacyError,
        before a record is read, if the settings let no private run use them.
        """
        self._reproducible, self._on_error, self._received = reproducible, on_error, received
        self._whose, self._most_epochs, self._check_values = whose, most_epochs, check_values
        self._check_run, self._orders, self._stamp, self._put_aside = check_run, orders, stamp, put_aside
        self._evidence = evidence
        self._stamps: dict[str, object] = {}  # of the records in memory, by the task's digest
        self._states, self._make_model, self._repeats = states, make_model, repeats
        self._load, self._device, self._precision, self._check = load, device, precision, check
        self._site: Callable[[Task], str] = site if callable(site) else lambda _task: site
        self._masking, self._open_ledger, self._allowance = masking, open_ledger, allowance
        self._check_private_data, self._tasks, self._least_spread = check_private_data, tasks, least_spread
        self._private: dict[str, PrivateTraining] = {}  # by the task's digest, as the workloads
        self._workloads: dict[str, Workload] = {}
        self._replies: OrderedDict[str, dict[type[Request], _Kept]] = OrderedDict()
        self._lock = threading.Lock()
        self._answered, self._reason = 0, ""
        self._quiet = Quiet()

    def answer(self, request: Request) -> Reply:
        """The reply to `request`, or a Refusal; never raises."""
        with self._lock, self._forgetting():
            self._answered += 1
            try:  # the boundary of the institution: only a code may pass
                work = self._admit(request)
            except Exception as error:
                self._on_error(error)
                self._quiet.tell("refused a %s of run %r: %r", type(request).__name__, request.run, error)
                code = wire_code(error)
                self._log_refusal(request, code)
                if code == FAILED and not isinstance(
                    request, SecaggRequest | LedgerRequest | ReleaseRequest | RunRequest
                ):
                    self._failed(request, error)  # the header of a table cannot be read, say, or the disk is full
                return Refusal(reason=code)
            try:
                reply = self._put_aside(work())
            except Exception as error:
                self._on_error(error)
                log.exception("a %s of run %r failed", type(request).__name__, request.run)
                self._failed(request, error)
                return Refusal(reason=FAILED)
            self._keep(request, reply)
            return reply

    @property
    def answering(self) -> int:
        """The number of the request that is being answered; 0 if there is none."""
        return self._answered if self._lock.locked() else 0

    def prepare(self, task: str) -> None:
        """Load model and records of `task` and warm up, rather than with the first request. Raises SovfedError."""
        with self._lock:
            try:
                newest = self._newest(task)
                require_works(newest)
                self._workload(newest).warm_up()
            except SovfedError as error:
                self._reason = error.code
                raise

    def _newest(self, name: str) -> Task:
        """The newest version of the task that a study is of; the newest of all where none is."""
        versions = self._tasks(name)
        for task in reversed(versions):
            with suppress(WrongTaskError):
                self._site(task)
                return task
        return versions[-1]

    def health(self) -> HealthReply:
        """Whether the records could be read, and on which device training runs."""
        devices = {workload.device_name for workload in self._workloads.values()}
        return HealthReply(
            ready=not self._reason, device=",".join(sorted(devices)) or self._device, precision=self._precision,
            reason=self._reason, answered=self._answered,
            isolation=self.isolation.sentence() if self.isolation else "",
        )  # fmt: skip

    def _failed(self, request: Request, error: Exception) -> None:
        """Count a failure that depends on records, memory or disk."""
        if self._allowance is None:
            return
        try:
            self._allowance.failed(request.run, error.code if isinstance(error, SovfedError) else type(error).__name__)
        except Exception:
            log.exception("the failure could not be counted")

    def _countersign(self, request: LedgerRequest) -> LedgerReply:
        """Where the ledger stands, after it was held to the head that the coordinator knows."""
        masking, ledger = self._require_masking(), self._open_ledger()
        if ledger is None:
            raise PolicyError("a simulation has no privacy ledger")
        if request.head.size:
            masking.check_countersignature(request)
            signature = request.signature.tobytes()
            ledger.countersign(
                whole_run(request.run), request.seq, request.head.tobytes().hex(), signature, ours=masking.told(request)
            )
        return masking.tell(*ledger.position())

    def _enter_unbounded(self, request: SumRequest, task: Task) -> None:
        """Nothing without privacy is computed before the ledger says that it was asked for."""
        ledger = None if isinstance(request, PrivateRequest) else self._open_ledger()
        if ledger is not None:
            ledger.enter_unbounded(request.run, TYPE_NAMES[type(request)], request.task, self._whose(task))

    def _admit(self, request: Request) -> Callable[[], Reply]:
        """The work that `request` asks for, once everything that can be refused without a record was not.

        Raises SovfedError; nothing that it depends on comes from records.
        """
        self._require_whole(request)
        self._allow(request)
        if isinstance(request, NOT_KEPT):
            return self._admit_anew(request)
        earlier = self._replies.get(request.run, {}).get(type(request))
        if earlier is not None and earlier.answers(request):
            again = earlier.reply
            return lambda: again
        if isinstance(request, SecaggRequest):
            reply = self._require_masking().answer(request)
            if self.isolation is not None and request.step == "offer":
                reply = dataclasses.replace(reply, seal=self.isolation.network or "none")
            return lambda: reply
        if self._allowance is not None:
            self._allowance.require_open(request.run)
        task = resolve(request, self._tasks)
        check_shapes(request, task)
        self._check_values(request, _trained(task))
        require_works(task)
        self._site(task)  # raises WrongTaskError where no study is of this version
        self._check_scale(request, task)
        self._require_room(request)
        if isinstance(request, PrivateRequest):
            self._check_private_data(task)
        permit = None
        if request.begin.size:
            permit = self._require_masking().permit(request, sums_width(request, task))
        self._let_go(request)
        if isinstance(request, PrivateRequest):
            if permit is None:
                raise PolicyError("a private run needs secure aggregation")
            return self._logged(request, self._admit_private(request, task, permit))
        if self._allowance is not None:
            self._allowance.take(request)
        self._enter_unbounded(request, task)
        if self._states is not None and isinstance(request, TrainRequest | EvaluateRequest):
            self._states.claim(request)
        return self._logged(request, lambda: self._work(request, task, permit))

    def _require_whole(self, request: Request) -> None:
        """Raises PolicyError where the agency's log was seen in two forms; a model that comes back asks for nothing."""
        if self._evidence is not None and not isinstance(request, ReleaseRequest):
            self._evidence.require_whole()

    def _logged(self, request: SumRequest, work: Callable[[], Reply]) -> Callable[[], Reply]:
        """`work`, whose reply leaves once the request is in the institution's log."""
        if self._evidence is None:
            return work
        on_disk = self._evidence.admitted(request)

        def logged() -> Reply:
            reply = work()
            on_disk()
            return reply

        return logged

    def _log_refusal(self, request: Request, code: str) -> None:
        """Count a refusal in the log; where that cannot be written, the refusal stands all the same."""
        if self._evidence is None:
            return
        try:
            self._evidence.refused(request, code)
        except Exception:
            log.exception("a refusal could not be logged")

    def _allow(self, request: Request) -> None:
        """Raise PolicyError unless the policy, and an order that was signed here, allow `request`."""
        self._check(request)
        if self._orders is not None and not isinstance(request, RunRequest):  # which shows the order
            self._orders.require(request)

    def _admit_run(self, request: RunRequest) -> Callable[[], Reply]:
        """What the policy, the study and the ledger say of a whole run; no record, mask or charge comes of it."""
        last = last_of(request)
        task = resolve(last, self._tasks)
        self._site(task)
        self._read_again_if_changed(task)
        bounds = self._check_run(request)
        if isinstance(last, PrivateRequest) and (ledger := self._open_ledger()) is not None:
            from sovfed.clients.training.private import plan_of

            if reason := ledger.would_refuse(last.grant, plan_of(last), whose=self._whose(task)):
                bounds.append(BoundError(reason, "privacy"))
        state, answer = self._ordered(request, bounds)
        for error in bounds:
            self._quiet.tell("run %r would not be answered to its end: %s", request.run, error)
        beyond = ",".join(dict.fromkeys(error.limit for error in bounds))
        return lambda: RunReply(beyond=beyond, order=state, answer=answer)

    def _read_again_if_changed(self, task: Task) -> None:
        """Drop the records of `task` from memory if they are to be others by now: the next request reads them."""
        if task.digest in self._stamps and self._stamps[task.digest] != self._stamp(task):
            del self._stamps[task.digest]
            self._workloads.pop(task.digest, None)
            self._private.pop(task.digest, None)

    def _read(self, task: Task) -> Dataset:
        """The records of `task`, and of which moment they are."""
        self._stamps.setdefault(task.digest, self._stamp(task))
        return self._load(task)

    def _ordered(self, request: RunRequest, bounds: list[BoundError]) -> tuple[str, Bytes]:
        """What became of the run's order, and the institution's word on it; adds to `bounds` what a rule forbids."""
        nothing_said = np.zeros(0, np.uint8)
        if self._orders is None or bounds:
            return "", nothing_said
        try:
            state, answer = self._orders.consider(request)
        except BoundError as error:
            bounds.append(error)
            return "", nothing_said
        return state, nothing_said if answer is None else np.frombuffer(answer.to_bytes(), np.uint8)

    def _admit_anew(self, request: RunRequest | LedgerRequest | ReleaseRequest) -> Callable[[], Reply]:
        """The work for a request whose reply is never kept."""
        if isinstance(request, RunRequest):
            return self._admit_run(request)
        if isinstance(request, ReleaseRequest):
            return self._admit_release(request)
        reply = self._countersign(request)
        return lambda: reply

    def _admit_release(self, request: ReleaseRequest) -> Callable[[], Reply]:
        """The work of keeping a run's model: it touches no record, ledger, allowance or mask."""
        task = sized(resolve(request, self._tasks), request.model.size)
        check_release(request, task)
        self._check_scale(request, task)
        self._check_values(request, _trained(task))
        facts = facts_of_release(request, task)

        def keep() -> Reply:
            if self._received is not None:
                kept = self._replies.get(request.run, {}).get(TrainRequest)
                trained = None if kept is None else kept.request
                plan = plan_of(trained if isinstance(trained, TrainRequest) else None)
                keep_released(self._received, task, request, facts, plan)
            if self._evidence is not None:
                self._evidence.received(request)
            return ReleaseReply()

        return keep

    def _check_scale(self, request: SumRequest | ReleaseRequest, task: Task) -> None:
        """Raises PolicyError unless the scale is one that a federation's own columns could have."""
        if not isinstance(request, TrainRequest | EvaluateRequest | ReleaseRequest) or task.build is None:
            return
        if reason := task.transform.admits(request.scale, self._least_spread):
            raise PolicyError(reason)

    def _require_room(self, request: SumRequest) -> None:
        """Raises SovfedError if what the request's algorithm keeps would have no name or place."""
        if isinstance(request, ProfileRequest | PrivateRequest) or not LOCAL[request.algorithm].keeps:
            return
        if self._states is None or not request.keep:
            raise ProtocolError("an algorithm that keeps something, without a name, or a place, to keep it")
        self._states.check_room(request)

    def _admit_private(self, request: PrivateRequest, task: Task, permit: Permit) -> Callable[[], Reply]:
        from sovfed.clients.training.private import admit

        masking = self._require_masking()
        room, number = masking.room(request, permit), (permit.begin.roster, permit.begin.round)
        if self._allowance is not None:
            self._allowance.take(request)
        training = self._private.get(task.digest)
        paid = training is not None and training.keeps(request, number)
        admit(request, task, room, self._open_ledger(), paid=paid, whose=self._whose(task))
        return lambda: masking.mask(
            request.run, permit, self._private_training(task).update(request, room, number), lambda: 0.0
        )

    def _work(
        self, request: ProfileRequest | TrainRequest | EvaluateRequest, task: Task, permit: Permit | None
    ) -> Reply:
        """The reply: in the clear without a permit, else masked whatever comes of the work."""
        start = time.monotonic()
        workload = self._workload(task)
        if permit is None:
            reply, failed, _ = self._compute(request, workload, start)
            if failed:
                raise TrainingError(failed)
            return reply
        try:
            reply, failed, cut = self._compute(request, workload, start)
        except Exception as error:  # may be one record's doing
            self._on_error(error)
            reply, failed, cut = nothing(request, workload, task), repr(error), True
        if failed:
            self._quiet.tell("run %r: nothing of this institution goes into a sum: %s", request.run, failed)
        spoilt = bool(failed) or cut
        return self._require_masking().mask(request.run, permit, reply, lambda: time.monotonic() - start, spoilt)

    def _private_training(self, task: Task) -> PrivateTraining:
        """The private workload of `task`; the ledger is opened before any record is read."""
        training = self._private.get(task.digest)
        if training is None:
            from sovfed.clients.training.private import PrivateTraining

            ledger = self._open_ledger()
            training = PrivateTraining(
                task, self._read(task), site=self._site(task), device=self._device, ledger=ledger,
                whose=self._whose(task), most_epochs=self._most_epochs,
            )  # fmt: skip
            self._private = {task.digest: training}  # one task at a time holds the ledger
        return training

    @contextmanager
    def _forgetting(self) -> Iterator[None]:
        """In the end there are no masks left of a sum that came to nothing: they are for no other."""
        try:
            yield
        finally:
            if self._masking is not None:
                self._masking.forget()

    def _require_masking(self) -> Masking:
        if self._masking is None:
            raise PolicyError("this trainer was given no identity, so it takes no part in secure aggregation")
        return self._masking

    def _compute(
        self, request: ProfileRequest | TrainRequest | EvaluateRequest, workload: Workload, start: float
    ) -> tuple[ProfileReply | TrainReply | EvaluateReply, str, bool]:
        """The reply, why there is no update in it ("" if there is), and whether an output of the model was cut."""
        if isinstance(request, ProfileRequest):
            return ProfileReply(sums=workload.profile()), "", False
        if isinstance(request, EvaluateRequest):
            evaluation, cut = workload.measure(self._in_use(request, workload), request.scale)
            seconds = time.monotonic() - start
            return EvaluateReply(round=request.round, seconds=seconds, evaluation=evaluation), "", cut
        learned = workload.learn(request, self._state(request, request.round - 1))
        if learned.state is not None and self._states is not None:
            self._states.save(request, learned.state)
        seconds = time.monotonic() - start
        log.info("run %s, round %d: %d records, %.3f s", request.run, request.round, workload.count, seconds)
        reply = TrainReply(
            round=request.round, count=workload.count, seconds=seconds, train_loss=learned.loss, update=learned.update,
            evaluation=learned.evaluation, steps=learned.steps,
        )  # fmt: skip
        return reply, learned.failed, learned.cut

    def _in_use(self, request: EvaluateRequest, workload: Workload) -> Vector:
        """The model to evaluate; a personal one is then kept as it is, for `sovfed client personal`."""
        state = self._state(request, request.round)
        model = workload.model_in_use(request, state)
        if model is not request.model and self._states is not None:
            self._states.save(request, model)
        return model

    def _state(self, request: TrainRequest | EvaluateRequest, last: int) -> Vector | None:
        """What was kept after a round up to `last`."""
        if self._states is None or not LOCAL[request.algorithm].keeps:
            return None
        return self._states.load(request, last)

    def _workload(self, task: Task) -> Workload:
        workload = self._workloads.get(task.digest)
        if workload is None:
            workload = self._workloads[task.digest] = self._build(task)
            self._reason = ""
        return workload

    def _build(self, task: Task) -> Workload:
        if task.build is None:
            return Echo(task)
        from sovfed.clients.training.algorithms import Learner
        from sovfed.clients.training.model import FlatModel

        records = self._read(task)
        learner = Learner(
            task, records, site=self._site(task), device=self._device, precision=self._precision,
            make_model=self._make_model or FlatModel, reproducible=self._reproducible, most_epochs=self._most_epochs,
        )  # fmt: skip
        log.info("task %s: %r on %s, %s", task.name, records, learner.device_name, self._precision)
        return learner

    def _keep(self, request: Request, reply: Reply) -> None:
        """Keep `reply` for a request that is repeated, but for the ledger, which goes on, and for a run's model."""
        kept = self._replies.get(request.run, {}).get(type(request))
        if not self._repeats or isinstance(request, NOT_KEPT) or (kept is not None and kept.reply is reply):
            return
        self._replies.setdefault(request.run, {})[type(request)] = _Kept.of(request, reply)
        self._replies.move_to_end(request.run)
        while len(self._replies) > MAX_RUNS:
            self._replies.popitem(last=False)

    def _let_go(self, request: Request) -> None:
        """Free the memory of the last reply to a request of this kind, now that another is worked on."""
        self._replies.get(request.run, {}).pop(type(request), None)


@dataclasses.dataclass(frozen=True)
class _Kept:
    """The reply to `request`, of which only the scalars and M1 are kept: `digests` stand for its vectors.

    With M1 they need not be compared: it binds them, and whoever changed them gets what was given already.
    """

    request: Request
    digests: dict[str, bytes]
    reply: Reply

    @classmethod
    def of(cls, request: Request, reply: Reply) -> _Kept:
        bare: Any = {name: np.empty(0, vector.dtype) for name, vector in vectors(request).items() if name != "begin"}
        return cls(dataclasses.replace(request, **bare), _digests(request), reply)

    def answers(self, request: Request) -> bool:
        """Whether `request` is the same again; scalars are compared before vectors."""
        names = vars(request).keys() - vectors(request).keys()
        scalars = ({name: vars(one)[name] for name in names} for one in (request, self.request))
        return next(scalars) == next(scalars) and _digests(request) == self.digests


def _digests(request: Request) -> dict[str, bytes]:
    begin = getattr(request, "begin", None)
    if begin is not None and begin.size:
        return {"begin": begin.tobytes()}
    return {name: hash_vector(vector) for name, vector in vectors(request).items()}


class Quiet:
    """Warnings that the network can cause: the first of an hour each on a line, then at 2, 4, 8, … times as many."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._since, self._count = clock, clock(), 0

    def tell(self, line: str, *values: object) -> None:
        if self._clock() - self._since > QUIET_S:
            self._since, self._count = self._clock(), 0
        self._count += 1
        if self._count <= TOLD_LINES or self._count & (self._count - 1) == 0:
            log.warning("%s (%d such lines in this hour)", line % values, self._count)


def _trained(task: Task) -> int:
    """How many of the model's first values are parameters; all of them, where nothing is trained."""
    return task.parameters if task.build is None else task.layout.trained


def make_trainer(
    config: ClientConfig,
    check: Callable[[Request], None] = lambda _request: None,
    masking: Masking | None = None,
    open_ledger: Callable[[], PrivacyLedger | None] = lambda: None,
    states: PersonalStates | None = None,
    allowance: Allowance | None = None,
    *,
    reproducible: bool = False,
    least_spread: float = LEAST_SPREAD,
    received: ReceivedModels | None = None,
    most_epochs: int | None = None,
    check_values: Callable[[Request, int], None] = lambda _request, _trained: None,
    check_run: Callable[[RunRequest], list[BoundError]] = lambda _request: [],
    put_aside: Callable[[Reply], Reply] = lambda reply: reply,
    orders: OrderGate | None = None,
    evidence: Evidence | None = None,
) -> TrainerService:
    """The trainer of the institution that `config` describes: what the process serves and a simulation calls."""
    return TrainerService(
        lambda task: load_records(task, config.data_of(task)), site=lambda task: config.data_of(task).site,
        device=config.device,
        precision=config.precision, check=check, masking=masking, open_ledger=open_ledger, states=states,
        reproducible=reproducible, check_private_data=lambda task: check_private_data(task, config.data_of(task)),
        allowance=allowance, least_spread=least_spread, received=received, whose=lambda task: whose_of(config, task),
        most_epochs=most_epochs, check_values=check_values, check_run=check_run, put_aside=put_aside,
        orders=orders, stamp=lambda task: opt_out_stamp(config.data_of(task)), evidence=evidence,
    )  # fmt: skip
