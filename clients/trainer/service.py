"""The trainer: the only process that reads records. It answers typed requests, over its Unix socket or in-process.

Whatever goes wrong, the answer is a `Refusal`, a code and nothing else; the error goes to the institution's own log. A
request is *admitted* before a record is touched: what refuses it then is the request itself, the policy, the ledger or
a public constant. From there on the only code is `failed`, and where the reply is masked not even that, but for records
that cannot be read, a full disk or the like: work that fails on the records becomes a contribution of nothing, inside
the sum, and one more in the sum's count of spoilt contributions.
"""

from __future__ import annotations

import dataclasses
import threading
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Final

from sovfed.clients.data import check_private_data, load_records, opt_out_stamp, source_stamp
from sovfed.clients.home.whose import whose_of
from sovfed.clients.statistics.scores import keep_score
from sovfed.clients.trainer.admission import (
    check_release,
    check_scale,
    check_shapes,
    require_room,
    resolve,
    sums_width,
    trained,
)
from sovfed.clients.trainer.books import NO_BOOKS, Books
from sovfed.clients.trainer.computing import Computing
from sovfed.clients.trainer.held import HeldModels
from sovfed.clients.trainer.loaded import Loaded, RecordSource, Runtime
from sovfed.clients.trainer.masking import Masking
from sovfed.clients.trainer.replies import NOT_KEPT, Replies
from sovfed.clients.trainer.rules import NO_RULES, Rules
from sovfed.clients.trainer.telling import Telling
from sovfed.clients.trainer.whole_runs import WholeRuns, countersign, keeping, keeping_table
from sovfed.clients.training.halfway import FILE as HALFWAY
from sovfed.clients.training.halfway import Halfway
from sovfed.clients.training.personal import PersonalStates
from sovfed.federation.codec import last_of
from sovfed.federation.config import ClientConfig
from sovfed.federation.errors import PolicyError, SovfedError, WrongTaskError, wire_code
from sovfed.federation.host.sandbox import Isolation
from sovfed.federation.messages import (
    EvaluateRequest,
    LedgerRequest,
    PrivateRequest,
    ProfileRequest,
    Refusal,
    ReleaseRequest,
    Reply,
    Request,
    RunRequest,
    SecaggRequest,
    SumRequest,
    TrainRequest,
)
from sovfed.federation.tasks import Task, sized
from sovfed.federation.tasks.conformance import require_works
from sovfed.federation.tasks.registry import versions
from sovfed.federation.wire.trainer_pb2 import HealthReply

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from sovfed.clients.training.devices import Devices
    from sovfed.federation.secagg.client import Permit

TYPE_NAMES: Final = {ProfileRequest: "profile", TrainRequest: "train", EvaluateRequest: "evaluate"}
PATIENCE: Final = 0.8  # of `client.stall_s`, with one of several devices
FAILED: Final = wire_code(Exception())  # the one code for whatever has to do with the records


class TrainerService:
    """Answers the coordinator's requests from one institution's records; warm between rounds.

    A request repeated with equal content gets the same reply again, so transports may retry. One request at a time.
    """

    isolation: Isolation | None = None  # of the process; a simulation's trainer has none

    def __init__(
        self,
        source: RecordSource,
        runtime: Runtime,
        rules: Rules = NO_RULES,
        books: Books = NO_BOOKS,
        masking: Masking | None = None,
        states: PersonalStates | None = None,
        *,
        repeats: bool = True,
        held: HeldModels | None = None,
        put_aside: Callable[[Reply], Reply] = lambda reply: reply,
        on_error: Callable[[Exception], None] = lambda _error: None,
    ) -> None:
        """Without `masking`, every request of secure aggregation is refused; without `states`, every algorithm that
        keeps something.

        `put_aside` gives a reply whose vectors are not in this process, for it is kept until the next request.

        Only a simulation keeps no reply for a request that is repeated (`repeats`), or has trainers that share the
        models that are `held` for their changes. `on_error` is told what went wrong: a simulation's researcher may see
        it, an agency never.
        """
        self._source, self._rules, self._books, self._masking, self._states = source, rules, books, masking, states
        self._repeats, self._put_aside, self._precision = repeats, put_aside, runtime.precision
        self._telling = Telling(on_error, books)
        self._loaded = Loaded(source, runtime, rules, None if states is None else states.moments)
        self._keep_score = partial(keep_score, books.received)
        self._computing = Computing(self._loaded, states, self._telling, self._keep_score)
        self._whole_runs = WholeRuns(rules.check_run, books, source.whose, self._telling)
        self._replies, self._held = Replies(), held or HeldModels()
        self._lock = threading.Lock()
        self._answered = 0

    def answer(self, request: Request) -> Reply:
        """The reply to `request`, or a Refusal; never raises."""
        with self._lock, self._forgetting():
            self._answered += 1
            try:  # the boundary of the institution: only a code may pass
                request = self._held.whole(request)
                work = self._admit(request)
                self._held.hold(request)
            except Exception as error:
                self._telling.refused(request, error)
                code = wire_code(error)
                if code == FAILED and not isinstance(request, (SecaggRequest, *NOT_KEPT)):
                    self._telling.count(request, error)  # the header of a table cannot be read, say
                return Refusal(reason=code)
            try:
                reply = self._put_aside(work())
            except Exception as error:
                self._telling.failed(request, error)
                return Refusal(reason=FAILED)
            if self._repeats:
                self._replies.keep(request, reply)
            return reply

    def settle(self) -> None:
        """Write down exactly what was answered, and let go of models of runs that are over.

        For whoever calls this now and then; while a request is in work, nothing is done.

        Raises OSError or SovfedError where that cannot be written; more stands there then than was answered.
        """
        if not self._lock.acquire(blocking=False):
            return
        try:
            self._held.let_go()
            if self._books.allowance is not None:
                self._books.allowance.settle()
            if self._books.orders is not None:
                self._books.orders.settle()
        finally:
            self._lock.release()

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
                self._loaded.workload(newest).warm_up()
            except SovfedError as error:
                self._loaded.reason = error.code
                raise

    def _newest(self, name: str) -> Task:
        """The newest version of the task that a study is of; the newest of all where none is."""
        of_name = versions(name)
        for task in reversed(of_name):
            with suppress(WrongTaskError):
                self._source.site_of(task)
                return task
        return of_name[-1]

    def health(self) -> HealthReply:
        """Whether the records could be read, and on which device training runs."""
        return HealthReply(
            ready=not self._loaded.reason, device=self._loaded.devices, precision=self._precision,
            reason=self._loaded.reason, answered=self._answered,
            isolation=self.isolation.sentence() if self.isolation else "",
        )  # fmt: skip

    def _enter_unbounded(self, request: SumRequest, task: Task) -> None:
        """Nothing without privacy is computed before the ledger says that it was asked for."""
        ledger = None if isinstance(request, PrivateRequest) else self._books.open_ledger()
        if ledger is not None:
            ledger.enter_unbounded(request.run, TYPE_NAMES[type(request)], request.task, self._source.whose(task))

    def _admit(self, request: Request) -> Callable[[], Reply]:
        """The work that `request` asks for, once everything that can be refused without a record was not.

        Raises SovfedError; nothing that it depends on comes from records.
        """
        self._require_whole(request)
        self._allow(request)
        if isinstance(request, NOT_KEPT):
            return self._admit_anew(request)
        earlier = self._replies.again(request)
        if earlier is not None:
            return lambda: earlier
        if isinstance(request, SecaggRequest):
            return self._admit_step(request)
        return self._admit_sum(request)

    def _admit_step(self, request: SecaggRequest) -> Callable[[], Reply]:
        """A step of a setup, or of unmasking: answered while it is admitted."""
        reply = self._require_masking().answer(request)
        if self.isolation is not None and request.step == "offer":
            reply = dataclasses.replace(reply, seal=self.isolation.network or "none")
        return lambda: reply

    def _admit_sum(self, request: SumRequest) -> Callable[[], Reply]:
        """The work for a request whose replies are added up over institutions."""
        if self._books.allowance is not None:
            self._books.allowance.require_open(request.run)
        task = self._admissible(request)
        permit = None
        if request.begin.size:
            permit = self._require_masking().permit(request, sums_width(request, task))
        self._replies.let_go(request)
        if isinstance(request, PrivateRequest):
            if permit is None:
                raise PolicyError("a private run needs secure aggregation")
            return self._logged(request, self._admit_private(request, task, permit))
        if self._books.allowance is not None:
            self._books.allowance.take(request)
        self._enter_unbounded(request, task)
        if self._states is not None and isinstance(request, TrainRequest | EvaluateRequest):
            self._states.claim(request)
        if permit is None:
            return self._logged(request, lambda: self._computing.in_the_clear(request, task))
        masking = self._require_masking()
        return self._logged(request, lambda: self._computing.masked(request, task, masking, permit))

    def _admissible(self, request: SumRequest) -> Task:
        """The task of `request`, if it fits that. Raises SovfedError."""
        task = resolve(request, versions)
        check_shapes(request, task)
        self._rules.check_values(request, trained(task))
        require_works(task)
        self._source.site_of(task)  # raises WrongTaskError where no study is of this version
        check_scale(request, task, self._rules.least_spread)
        require_room(request, self._states)
        if isinstance(request, PrivateRequest):
            self._source.check_private(task)
        return task

    def _require_whole(self, request: Request) -> None:
        """Raises PolicyError where the agency's log was seen in two forms; a model that comes back asks for nothing."""
        if self._books.evidence is not None and not isinstance(request, ReleaseRequest):
            self._books.evidence.require_whole()

    def _logged(self, request: SumRequest, work: Callable[[], Reply]) -> Callable[[], Reply]:
        """`work`, whose reply leaves once the request is in the institution's log."""
        if self._books.evidence is None:
            return work
        on_disk = self._books.evidence.admitted(request)

        def logged() -> Reply:
            reply = work()
            on_disk()
            return reply

        return logged

    def _allow(self, request: Request) -> None:
        """Raise PolicyError unless the policy, and an order that was signed here, allow `request`."""
        self._rules.check(request)
        if self._books.orders is not None and not isinstance(request, RunRequest):  # which shows the order
            self._books.orders.require(request)

    def _admit_anew(self, request: RunRequest | LedgerRequest | ReleaseRequest) -> Callable[[], Reply]:
        """The work for a request whose reply is never kept."""
        if isinstance(request, RunRequest):
            return self._admit_run(request)
        if isinstance(request, ReleaseRequest):
            return self._admit_release(request)
        reply = countersign(request, self._require_masking(), self._books.open_ledger())
        return lambda: reply

    def _admit_run(self, request: RunRequest) -> Callable[[], Reply]:
        """What is said of a whole run; no charge comes of it."""
        last = last_of(request)
        task = resolve(last, versions)
        self._source.site_of(task)
        self._loaded.drop_if_changed(task)
        reply = self._whole_runs.consider(request, last, task)
        return lambda: reply

    def _admit_release(self, request: ReleaseRequest) -> Callable[[], Reply]:
        """The work of keeping a run's model: it touches no record, ledger, allowance or mask."""
        task = sized(resolve(request, versions), request.model.size)
        check_release(request, task)
        if request.statistics or request.of_scores:
            order = None if self._books.orders is None else self._books.orders.order_of(request.run)
            return keeping_table(request, task, self._books, order)
        check_scale(request, task, self._rules.least_spread)
        self._rules.check_values(request, trained(task))
        if self._states is not None:
            self._states.moments.end(request.run)
        return keeping(request, task, self._books, self._replies.last_trained)

    def _admit_private(self, request: PrivateRequest, task: Task, permit: Permit) -> Callable[[], Reply]:
        from sovfed.clients.training.private import admit

        masking = self._require_masking()
        room, number = masking.room(request, permit), (permit.begin.roster, permit.begin.round)
        if self._books.allowance is not None:
            self._books.allowance.take(request)
        whose, training = self._source.whose(task), self._loaded.private.get(task.digest)
        paid = training is not None and training.keeps(request, number)
        admit(request, task, room, self._books.open_ledger(), paid=paid, whose=whose)

        def work() -> Reply:
            training = self._loaded.private_training(
                task, self._books.open_ledger, self._keep_score, self._telling.lacking
            )
            return masking.mask(request.run, permit, training.update(request, room, number), lambda: 0.0)

        return work

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


def make_trainer(
    config: ClientConfig,
    rules: Rules = NO_RULES,
    books: Books = NO_BOOKS,
    masking: Masking | None = None,
    states: PersonalStates | None = None,
    *,
    home: Path | None = None,
    put_aside: Callable[[Reply], Reply] = lambda reply: reply,
) -> TrainerService:
    """The trainer of the institution that `config` describes: what the process serves and a simulation calls.

    In `home` are the institution's archives of tasks, and the state of a long round. Raises ConfigError if one of
    several devices is not there.
    """
    if config.deterministic:
        from sovfed.clients.training.device import make_deterministic

        make_deterministic()
    source = RecordSource(
        lambda task: load_records(task, config.data_of(task)),
        site=lambda task: config.data_of(task).site,
        stamp=lambda task: opt_out_stamp(config.data_of(task)),
        whose=lambda task: whose_of(config, task),
        check_private=lambda task: check_private_data(task, config.data_of(task)),
    )
    halfway = None
    if home is not None:
        halfway = Halfway(home / HALFWAY, config.halfway_s, lambda task: source_stamp(config.data_of(task)))
    runtime = Runtime(config.device, config.precision, config.evaluation_records, _devices_of(config, home), halfway)
    return TrainerService(source, runtime, rules, books, masking, states, put_aside=put_aside)


def _devices_of(config: ClientConfig, home: Path | None) -> Devices | None:
    """Where `config` lists several; whoever hangs on one is noticed before all of the trainer is taken for hung."""
    if "," not in config.device:
        return None
    from sovfed.clients.training.devices import Devices

    return Devices(config.device.split(","), config.precision, timeout_s=PATIENCE * config.stall_s, home=home)
