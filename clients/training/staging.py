"""What is on its way to a GPU, or back: through pinned memory that is used again, while the device computes."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sovfed.federation.tasks.trees import Tree, mapped

if TYPE_CHECKING:
    from collections.abc import Iterator

T = TypeVar("T")
BUFFERS: Final = 2  # of a column, by turns: one is filled while the other is on its way
_END: Final = object()


class Staging:
    """Sends columns to `device`, each through buffers of its own, which grow to the longest that was sent.

    To pin memory takes longer than the copy, so it is pinned once and not for every batch.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._buffers: dict[str, list[Buffer]] = {}

    def send(self, name: str, values: npt.NDArray[Any]) -> Tensor:
        """A copy of `values` on the device, which may still be on its way."""
        buffers = self._buffers.setdefault(name, [Buffer(self._device) for _ in range(BUFFERS)])
        buffers.append(buffers.pop(0))
        return buffers[-1].send(torch.from_numpy(np.ascontiguousarray(values)))


class Buffer:
    """Memory that the device copies from by itself; elsewhere than on a GPU, memory like any other."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._pinned = device, device.type == "cuda"
        self._memory = torch.empty(0, dtype=torch.uint8)
        self._copied: torch.cuda.Event | None = None

    def send(self, values: Tensor) -> Tensor:
        """A copy of `values` on the device; waits for the copy that was made from here before."""
        if self._copied is not None:
            self._copied.synchronize()
        if self._memory.numel() < values.nbytes:
            self._memory = torch.empty(values.nbytes, dtype=torch.uint8, pin_memory=self._pinned)
        staged = self._memory[: values.nbytes].view(values.dtype).view(values.shape)
        staged.copy_(values)
        sent = torch.empty_like(values, device=self._device).copy_(staged, non_blocking=True)
        if self._pinned:
            self._copied = torch.cuda.current_stream(self._device).record_event()
        return sent


class Coming:
    """Trees on their way from `device` to main memory, behind what it has been given to compute so far."""

    def __init__(self, device: torch.device, *trees: Tree) -> None:
        asynchronous = device.type == "cuda"  # then torch pins the memory that it copies to
        self._trees = list(trees)
        if device.type != "cpu":
            self._trees = [mapped(lambda leaf: leaf.to("cpu", non_blocking=asynchronous), tree) for tree in trees]
        self._copied = torch.cuda.current_stream(device).record_event() if asynchronous else None

    def arrived(self) -> list[Tree]:
        """The trees, once they are there."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._trees


def one_behind(items: Iterator[T]) -> Iterator[T]:
    """The same items in the same order, each once the next is begun: the device has work while this one is read."""
    before: list[T] = []
    for item in items:
        yield from before
        before = [item]
    yield from before


def ahead(items: Iterator[T]) -> Iterator[T]:
    """The same items in the same order, of which the next is made by a thread while one is in use."""
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, items, _END)
        while (item := coming.result()) is not _END:
            coming = pool.submit(next, items, _END)
            yield item  # type: ignore[misc]
