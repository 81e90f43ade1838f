"""What of the institution's records is in memory: a workload for each task, made when it is first asked for."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sovfed.clients.ledger.entries import Whose
from sovfed.clients.trainer.workload import Echo, Workload
from sovfed.federation.config import REST

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from sovfed.clients.data import Dataset
    from sovfed.clients.ledger.book import PrivacyLedger
    from sovfed.clients.trainer.rules import Rules
    from sovfed.clients.training.devices import Devices
    from sovfed.clients.training.halfway import Halfway
    from sovfed.clients.training.model import FlatModel
    from sovfed.clients.training.moments import Moments
    from sovfed.clients.training.private import PrivateTraining
    from sovfed.federation.messages import PrivateRequest, Sums
    from sovfed.federation.tasks import Task

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RecordSource:
    """Where the records of each task come from; the defaults are a simulation's."""

    load: Callable[[Task], Dataset]
    site: str | Callable[[Task], str]  # what the institution is called in the records, the same for all or by task
    stamp: Callable[[Task], object] = lambda _task: None  # changes where they are to be read again before the next run
    whose: Callable[[Task], Whose] = lambda _task: Whose(study=REST)  # to which population in the ledger runs go
    check_private: Callable[[Task], None] = lambda _task: None  # PrivacyError, before a record, where none may use them

    def site_of(self, task: Task) -> str:
        """Raises WrongTaskError where no study is of this version of the task."""
        return self.site if isinstance(self.site, str) else self.site(task)


@dataclass(frozen=True)
class Runtime:
    """What training runs on: `devices` are those that `device` lists, where it lists several.

    `halfway` keeps the state of a long round on disk; without it, one that is cut off begins anew. Only a simulation
    shares models (`make_model`).
    """

    device: str = "auto"
    precision: str = "float32"
    evaluation_records: int = 0  # of those held out, that a round's evaluation is of; 0: all
    devices: Devices | None = None
    halfway: Halfway | None = None
    make_model: Callable[[Task, torch.device], FlatModel] | None = None


class Loaded:
    """Workloads by the task's digest."""

    def __init__(self, source: RecordSource, runtime: Runtime, rules: Rules, moments: Moments | None) -> None:
        """`moments` keeps what an optimizer carries to the next round."""
        self._source, self._runtime, self._moments = source, runtime, moments
        self._most_epochs, self.reproducible = rules.most_epochs, rules.reproducible
        self.workloads: dict[str, Workload] = {}
        self.private: dict[str, PrivateTraining] = {}
        self._stamps: dict[str, object] = {}  # of the records in memory
        self.reason = ""  # the code of why a task could not be prepared

    @property
    def devices(self) -> str:
        """On which training runs, or will."""
        return ",".join(sorted({workload.device_name for workload in self.workloads.values()})) or self._runtime.device

    def workload(self, task: Task) -> Workload:
        """Raises SovfedError, or whatever a reader of records raises."""
        workload = self.workloads.get(task.digest)
        if workload is None:
            workload = self.workloads[task.digest] = self._build(task)
            self.reason = ""
        return workload

    def private_training(
        self,
        task: Task,
        open_ledger: Callable[[], PrivacyLedger | None],
        keep_score: Callable[[PrivateRequest, Task, Sums], None],
        lacking: Callable[[PrivateRequest, str], None],
    ) -> PrivateTraining:
        """The private workload of `task`; the ledger is opened before any record is read."""
        training = self.private.get(task.digest)
        if training is None:
            from sovfed.clients.training.private import PrivateTraining

            ledger = open_ledger()
            training = PrivateTraining(
                task, self.read(task), site=self._source.site_of(task), device=self._runtime.device, ledger=ledger,
                whose=self._source.whose(task), most_epochs=self._most_epochs, keep_score=keep_score, lacking=lacking,
            )  # fmt: skip
            self.private = {task.digest: training}  # one task at a time holds the ledger
        return training

    def read(self, task: Task) -> Dataset:
        """The records of `task`; it is noted of which moment they are."""
        self._stamps.setdefault(task.digest, self._source.stamp(task))
        return self._source.load(task)

    def drop_if_changed(self, task: Task) -> None:
        """Drop the records of `task` from memory if they are to be others by now: the next request reads them."""
        if task.digest in self._stamps and self._stamps[task.digest] != self._source.stamp(task):
            del self._stamps[task.digest]
            self.workloads.pop(task.digest, None)
            self.private.pop(task.digest, None)

    def _build(self, task: Task) -> Workload:
        if task.build is None:
            return Echo(task)
        from sovfed.clients.training.algorithms import Learner
        from sovfed.clients.training.model import FlatModel

        runtime = self._runtime
        source = None if runtime.halfway is None else runtime.halfway.source(task)
        records = self.read(task)
        learner = Learner(
            task, records, site=self._source.site_of(task), device=runtime.device, precision=runtime.precision,
            make_model=runtime.make_model or FlatModel, reproducible=self.reproducible, most_epochs=self._most_epochs,
            halfway=runtime.halfway, source=source, devices=runtime.devices, moments=self._moments,
            evaluation_records=runtime.evaluation_records,
        )  # fmt: skip
        log.info("task %s: %r on %s, %s", task.name, records, learner.device_name, runtime.precision)
        return learner
