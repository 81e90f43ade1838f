"""Records as a model takes them: decoded, scaled and put on the device, a few batches at a time.

Few and small records are kept there as they are given to the model; of many, nothing is kept but what the connector
has.
"""

from __future__ import annotations

import math
import threading
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sovfed.clients.data import Records
from sovfed.clients.training.progress import PROGRESS
from sovfed.clients.training.staging import Staging, ahead
from sovfed.federation.tasks.trees import Tree, joined, leaves, mapped, rows, split

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sovfed.clients.data import Dataset, Indices
    from sovfed.federation.messages import Sums
    from sovfed.federation.tasks import Task
    from sovfed.federation.tasks.columns import Table

Targets: TypeAlias = "npt.NDArray[Any] | dict[str, npt.NDArray[Any]]"
RESIDENT_BYTES: Final = 32 << 20  # of records as the model takes them, that are kept so in main memory
RESIDENT_SHARE: Final = 0.25  # of free device memory, likewise
GATHERED: Final = 1 << 20  # bytes of an epoch's records that are put in order at once rather than batch by batch
CHUNK: Final = 4_096  # records that are decoded at once where all of them are asked for, and the most bytes of them
CHUNK_BYTES: Final = 64 << 20


class Feed:
    """The records of a `Dataset` under one scale, on a device."""

    def __init__(self, task: Task, records: Dataset, scale: Sums, device: torch.device) -> None:
        """`bytes_each` is what a record takes as the model is given it."""
        self._records, self._device, self._asking = records, device, threading.Lock()
        self._staging = Staging(device) if device.type == "cuda" else None
        self._scale = scale.copy() if scale.flags.writeable else scale
        self._bound = task.transform.bound(scale, device)
        self.bytes_each = sum(leaf[0].nbytes for tree in task.made_up(1) for leaf in leaves(tree))
        self._whole: tuple[Tree, Tree] | None = None
        if isinstance(records, Records) and self.bytes_each * len(records) <= self._room():
            self._whole = self._decoded_all(len(records))

    def has(self, scale: Sums) -> bool:
        """Whether this is the feed under `scale`."""
        if scale is self._scale:
            return True
        equal = np.array_equal(scale, self._scale)
        if equal and not scale.flags.writeable:
            self._scale = scale  # which is likely to come again
        return equal

    def take(self, index: Tensor) -> tuple[Tree, Tree]:
        """Inputs and targets of the records at `index`, of any shape: [*index.shape, …], on the device."""
        PROGRESS.step()
        if self._whole is not None:
            index = index.to(self._device, non_blocking=True)
            return rows(self._whole[0], index), rows(self._whole[1], index)
        inputs, targets = self._decoded(index.reshape(-1).cpu().numpy())
        if index.dim() == 1:
            return inputs, targets
        shape = tuple(index.shape)
        return (
            mapped(lambda leaf: leaf.reshape(*shape, *leaf.shape[1:]), inputs),
            mapped(lambda leaf: leaf.reshape(*shape, *leaf.shape[1:]), targets),
        )

    def batches(self, order: Tensor, batch: int, *, coupled: bool = False) -> Iterator[tuple[Tree, Tree]]:
        """Inputs and targets of the records in `order`, `batch` at a time; few records are gathered all at once.

        A last batch of one goes to the one before it if records are `coupled`: of one there are no statistics.
        """
        count = len(order)
        if count <= batch:
            yield self.take(order)
            return
        last = count - 1 - batch if coupled and count % batch == 1 else count
        together = max(1, GATHERED // max(1, self.bytes_each * batch)) * batch
        if self._whole is not None:
            order = order.to(self._device)  # once, and not for every chunk
        chunks = (self.take(order[start : min(start + together, last)]) for start in range(0, last, together))
        for chunk in chunks if self._staging is None or self._whole is not None else ahead(chunks):
            yield from zip(split(chunk[0], batch), split(chunk[1], batch), strict=True)
        if last < count:
            yield self.take(order[last:])

    def _room(self) -> float:
        if self._device.type != "cuda":
            return RESIDENT_BYTES
        return RESIDENT_SHARE * torch.cuda.mem_get_info(self._device)[0]

    def stored(self, index: Indices) -> Table:
        """The records at `index` as they are stored; a connector is asked by one thread at a time."""
        with self._asking:
            return self._records.take(index)

    def _decoded(self, index: Indices) -> tuple[Tree, Tree]:
        table = {name: self._sent(name, column) for name, column in self.stored(index).items()}
        return self._bound.inputs(table), self._bound.targets(table)

    def _decoded_all(self, count: int) -> tuple[Tree, Tree]:
        chunks = [self._decoded(np.arange(first, min(first + CHUNK, count))) for first in range(0, count, CHUNK)]
        return joined([inputs for inputs, _ in chunks]), joined([targets for _, targets in chunks])

    def _sent(self, name: str, values: npt.NDArray[Any]) -> Tensor:
        """On the device."""
        if self._staging is not None:
            return self._staging.send(name, values)
        return torch.from_numpy(np.ascontiguousarray(values)).to(self._device)


def batches_of(count: int, batch: int, *, coupled: bool) -> int:
    """How many batches `Feed.batches` makes of `count` records."""
    full = -(-count // batch)
    return full - 1 if coupled and full > 1 and count % batch == 1 else full


def profile_of(task: Task, records: Dataset, index: Indices) -> Sums:
    """`Transform.profile` of the records at `index`."""
    total = np.zeros(task.transform.profile_size)
    if not total.size:
        return total
    each = sum(kind.itemsize * math.prod(shape) for kind, shape in task.schema.stored().values())
    count = together(CHUNK, each)
    for start in range(0, len(index), count):
        total += task.transform.profile(records.take(index[start : start + count]))
    return total


def together(most: int, bytes_each: int) -> int:
    """How many records of so many bytes are taken at once: `most`, unless they are large."""
    return max(1, min(most, CHUNK_BYTES // max(1, bytes_each)))


def arrays_of(tree: Tree) -> Targets:
    """A tree of numpy arrays."""
    if isinstance(tree, dict):
        return {name: tensor.cpu().numpy() for name, tensor in tree.items()}
    return tree.cpu().numpy()


def tensors_of(targets: Targets) -> Tree:
    """A tree of tensors, over the same memory."""
    if isinstance(targets, dict):
        return {name: torch.from_numpy(array) for name, array in targets.items()}
    return torch.from_numpy(targets)
