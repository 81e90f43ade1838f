"""What of the institution's records is in memory: a workload for each task, made when it is first asked for."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from sovfed.clients.trainer.workload import Echo, Workload

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from sovfed.clients.data import Dataset
    from sovfed.clients.ledger.book import PrivacyLedger
    from sovfed.clients.ledger.entries import Whose
    from sovfed.clients.training.devices import Devices
    from sovfed.clients.training.halfway import Halfway
    from sovfed.clients.training.model import FlatModel
    from sovfed.clients.training.moments import Moments
    from sovfed.clients.training.private import PrivateTraining
    from sovfed.federation.messages import PrivateRequest, Sums
    from sovfed.federation.tasks import Task

log = logging.getLogger(__name__)


class Loaded:
    """Workloads by the task's digest; the arguments are as `TrainerService` has them."""

    def __init__(
        self,
        load: Callable[[Task], Dataset],
        site: Callable[[Task], str],
        stamp: Callable[[Task], object],
        make_model: Callable[[Task, torch.device], FlatModel] | None,
        *,
        device: str,
        precision: str,
        reproducible: bool,
        most_epochs: int | None,
        halfway: Halfway | None,
        devices: Devices | None,
        moments: Moments | None,
    ) -> None:
        self._halfway, self._devices, self._moments = halfway, devices, moments
        self.load, self.reproducible = load, reproducible
        self._site, self._stamp, self._make_model = site, stamp, make_model
        self._device, self._precision, self._most_epochs = device, precision, most_epochs
        self.workloads: dict[str, Workload] = {}
        self.private: dict[str, PrivateTraining] = {}
        self._stamps: dict[str, object] = {}  # of the records in memory
        self.reason = ""  # the code of why a task could not be prepared

    @property
    def devices(self) -> str:
        """On which training runs, or will."""
        return ",".join(sorted({workload.device_name for workload in self.workloads.values()})) or self._device

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
        whose: Whose,
        keep_score: Callable[[PrivateRequest, Task, Sums], None],
        lacking: Callable[[PrivateRequest, str], None],
    ) -> PrivateTraining:
        """The private workload of `task`; the ledger is opened before any record is read."""
        training = self.private.get(task.digest)
        if training is None:
            from sovfed.clients.training.private import PrivateTraining

            ledger = open_ledger()
            training = PrivateTraining(
                task, self.read(task), site=self._site(task), device=self._device, ledger=ledger, whose=whose,
                most_epochs=self._most_epochs, keep_score=keep_score, lacking=lacking,
            )  # fmt: skip
            self.private = {task.digest: training}  # one task at a time holds the ledger
        return training

    def read(self, task: Task) -> Dataset:
        """The records of `task`; it is noted of which moment they are."""
        self._stamps.setdefault(task.digest, self._stamp(task))
        return self.load(task)

    def drop_if_changed(self, task: Task) -> None:
        """Drop the records of `task` from memory if they are to be others by now: the next request reads them."""
        if task.digest in self._stamps and self._stamps[task.digest] != self._stamp(task):
            del self._stamps[task.digest]
            self.workloads.pop(task.digest, None)
            self.private.pop(task.digest, None)

    def _build(self, task: Task) -> Workload:
        if task.build is None:
            return Echo(task)
        from sovfed.clients.training.algorithms import Learner
        from sovfed.clients.training.model import FlatModel

        source = None if self._halfway is None else self._halfway.source(task)
        records = self.read(task)
        learner = Learner(
            task, records, site=self._site(task), device=self._device, precision=self._precision,
            make_model=self._make_model or FlatModel, reproducible=self.reproducible, most_epochs=self._most_epochs,
            halfway=self._halfway, source=source, devices=self._devices, moments=self._moments,
        )  # fmt: skip
        log.info("task %s: %r on %s, %s", task.name, records, learner.device_name, self._precision)
        return learner
