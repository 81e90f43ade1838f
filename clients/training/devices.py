"""One batch on several devices: this process computes on the first, and a process of its own on each other one.

A child is told the model and its records of a batch, and adds up their gradients; when a step is due, its sum is added
to this process's. Optimizer, schedule, clip and order of records are in this process alone, so that the model is the
same everywhere, and a step's gradient is that of its whole batch, to rounding. A child opens no record.

torch.distributed is of no use here: gloo and NCCL connect by TCP between processes of one machine too, and a trainer
has no network. A child inherits one end of a pair of Unix sockets; vectors pass through memory without a name, which is
no file. It ends with the trainer.
"""

from __future__ import annotations

import json
import mmap
import os
import socket
import struct
import subprocess
import sys
import weakref
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from safetensors.numpy import save

from sovfed.clients.training.device import SMALL, choose_device
from sovfed.federation.errors import ConfigError, DeviceLostError
from sovfed.federation.host.quiet import python_command, quiet_environment
from sovfed.federation.tasks import bases

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    import numpy.typing as npt
    from torch import Tensor

    from sovfed.clients.data import Indices
    from sovfed.federation.messages import Sums, Vector
    from sovfed.federation.tasks import Task

MODULE: Final = "sovfed.clients.training.device_process"
TASK, SCALE, BATCH, SUM, DONE, FAILED = b"t", b"s", b"b", b"g", b"d", b"f"
HEAD: Final = struct.Struct("<cQ")  # what a message is, and the bytes that follow
SHARE: Final = struct.Struct("<QQ?")  # before a table: a seed, the most records at once, whether the model is another
END_S: Final = 5.0


class Channel:
    """Messages over a connected socket, which is the only way between a trainer and a child."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end

    def send(self, kind: bytes, *body: bytes) -> None:
        """Raises OSError: nobody is there, or takes nothing for as long as the socket waits."""
        self._end.sendall(b"".join((HEAD.pack(kind, sum(map(len, body))), *body)))

    def receive(self) -> tuple[bytes, bytes]:
        """The next message. Raises OSError likewise."""
        kind, size = HEAD.unpack(self._read(HEAD.size))
        return kind, self._read(size)

    def close(self) -> None:
        """Let the other side know that nothing will come."""
        self._end.close()

    def _read(self, size: int) -> bytes:
        data = bytearray(size)
        left = memoryview(data)
        while left:
            count = self._end.recv_into(left)
            if not count:
                raise ConnectionResetError("the other side is gone")
            left = left[count:]
        return bytes(data)


def shared_vector(descriptor: int, size: int) -> Vector:
    """A float32 vector [size] in memory that processes share, which is made as long."""
    if os.fstat(descriptor).st_size < 4 * size:
        os.ftruncate(descriptor, 4 * size)
    return np.frombuffer(mmap.mmap(descriptor, 4 * size), np.float32)


def why_first_device_alone(task: Task) -> str:
    """Why a batch of `task` cannot be divided; "" where it can."""
    if task.layout.coupled or task.layout.trained != task.layout.size:
        return "its running statistics are of whole batches"
    return ""


class Child:
    """The process of one device, our end of its socket, and its sum of gradients."""

    def __init__(self, device: str, model: int, timeout_s: float) -> None:
        """`model` is the descriptor of the memory with the model."""
        self.device, self.busy = device, False
        self.memory = os.memfd_create("gradient")
        self.gradient: Vector = np.zeros(0, np.float32)
        ours, theirs = socket.socketpair()
        ours.settimeout(timeout_s)
        self.channel = Channel(ours)
        passed = (theirs.fileno(), model, self.memory)
        with theirs:
            try:
                self.process = subprocess.Popen(
                    python_command(MODULE, *map(str, passed)), stdin=subprocess.DEVNULL, pass_fds=passed,
                    env=quiet_environment(),
                )  # fmt: skip
            except BaseException:
                ours.close()
                os.close(self.memory)
                raise

    def end(self) -> None:
        """Returns when the process is gone, which closing its socket makes it."""
        self.channel.close()
        try:
            self.process.wait(END_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        with suppress(OSError):
            os.close(self.memory)


class Devices:
    """The devices beside the first. Their processes start with the first round, and anew after one was lost.

    One task's model at a time is in them, and one thread may use them.
    """

    def __init__(
        self, names: Sequence[str], precision: str, *, timeout_s: float = 1_800.0, home: Path | None = None
    ) -> None:
        """`names` are all devices, the first too; `home` is where tasks are that are archives. `threads` of the CPU are
        for each device that is one.

        A child that says nothing for `timeout_s` is taken for dead. Raises ConfigError if a device is not there.
        """
        if sys.platform != "linux":
            raise ConfigError("client.device: several devices need Linux")
        self.names = [str(choose_device(name)) for name in names]
        self.threads = max(1, torch.get_num_threads() // max(1, self.names.count("cpu")))
        self._precision, self._timeout_s, self._home = precision, timeout_s, home
        self._children: list[Child] = []
        self._memory, self._model = os.memfd_create("model"), np.zeros(0, np.float32)
        self._task, self._count, self._stale = "", 0, True
        self._losses: list[npt.NDArray[np.float32]] = []
        weakref.finalize(self, _end, self._children, self._memory)

    @property
    def processes(self) -> list[int]:
        """The ids of the processes that there are now."""
        return [child.process.pid for child in self._children]

    def begin(self, task: Task, scale: Sums) -> None:
        """Have every child hold the model of `task`, and forget gradients of another round.

        Raises DeviceLostError, here and below: none of them is left then.
        """
        if not self._children:
            self._task = ""
            self._start()
        if self._task != task.digest:
            self._load(task)
        for child in self._children:
            child.busy = False
            with self._heard(child):
                child.channel.send(SCALE, np.ascontiguousarray(scale, np.float64).tobytes())
        self._count, self._stale, self._losses = 0, True, []

    def own(self, order: Tensor, batch: int) -> tuple[Tensor, int]:
        """Of the records in `order`, `batch` at a time, those of this process, and how many of a batch these are."""
        shares = [rows[: -(-len(rows) // len(self.names))] for rows in torch.split(order, batch)]
        return torch.cat(shares), -(-batch // len(self.names))

    def hand_out(
        self, take: Callable[[Indices], Mapping[str, npt.NDArray[Any]]], order: Tensor, batch: int, flat: Tensor,
        most: Callable[[], int | None],
    ) -> Iterator[int]:  # fmt: skip
        """Give the children their records of one batch after the other; how many records all of it are.

        `take` gives the stored columns of records, `flat` is the model as it is then, `most` how many are computed at
        once.
        """
        for rows in torch.split(order, batch):
            if self._stale:
                torch.from_numpy(self._model).copy_(flat)
            seed = int(torch.randint(1 << 62, ()))  # of a generator that a round's kept state has too
            shares = torch.tensor_split(rows, len(self.names))[1:]
            for number, (child, share) in enumerate(zip(self._children, shares, strict=True)):
                if len(share):
                    table = {name: np.ascontiguousarray(column) for name, column in take(share.numpy()).items()}
                    head = SHARE.pack(seed + number, most() or len(share), not child.busy)
                    with self._heard(child):
                        child.channel.send(BATCH, head, save(table))
                    child.busy = True
            self._stale = False
            self._count += len(rows)
            yield len(rows)

    def mean(self, device: torch.device) -> Tensor | None:
        """The children's part of the mean gradient, shape [trained], since this was last asked; None if it is nothing.

        Raises torch.OutOfMemoryError if a device had too little memory for so many records at once.
        """
        busy = [child for child in self._children if child.busy]
        for child in busy:
            with self._heard(child):
                child.channel.send(SUM)
        short = [child.device for child in busy if not self._take(child)]
        if short:
            raise torch.OutOfMemoryError(f"on {', '.join(short)}")
        count, self._count, self._stale = self._count, 0, True
        total: Tensor | None = None
        for child in busy:
            theirs = torch.from_numpy(child.gradient).to(device, copy=True)
            total = theirs if total is None else total.add_(theirs)
        return None if total is None else total.div_(count)

    def losses(self) -> list[Tensor]:
        """The losses of the children's records, since this was last asked."""
        told, self._losses = [torch.from_numpy(losses) for losses in self._losses], []
        return told

    def close(self) -> None:
        """End the children."""
        while self._children:
            self._children.pop().end()

    def _start(self) -> None:
        for name in self.names[1:]:
            try:
                self._children.append(Child(name, self._memory, self._timeout_s))
            except OSError as error:
                self.close()
                raise DeviceLostError(f"device {name}: its process could not be started: {error.strerror}") from error

    def _load(self, task: Task) -> None:
        """The children build the model while others do."""
        size = task.layout.size
        self._model = shared_vector(self._memory, size)
        told = {
            "name": task.name, "digest": task.digest, "text": task.text, "precision": self._precision, "size": size,
            "bases": bases.offered(), "home": None if self._home is None else str(self._home),
            "threads": self.threads if size >= SMALL else 1,
            "deterministic": torch.are_deterministic_algorithms_enabled(),
        }  # fmt: skip
        for child in self._children:
            child.gradient = shared_vector(child.memory, size)
            with self._heard(child):
                child.channel.send(TASK, json.dumps(told | {"device": child.device}).encode())
        for child in list(self._children):
            if not self._take(child):
                raise self._lost(child, "too little memory for the model")
        self._task = task.digest

    def _take(self, child: Child) -> bool:
        """Whether the child has done what it was asked for; else memory ran out. Raises DeviceLostError."""
        with self._heard(child):
            kind, body = child.channel.receive()
        child.busy = False
        if kind == DONE:
            self._losses.append(np.frombuffer(bytearray(body), np.float32))
        elif body:
            raise self._lost(child, body.decode(errors="replace"))
        return kind == DONE

    @contextmanager
    def _heard(self, child: Child) -> Iterator[None]:
        try:
            yield
        except TimeoutError as error:
            raise self._lost(child, f"its process did not answer for {self._timeout_s:g} s") from error
        except OSError as error:
            with suppress(subprocess.TimeoutExpired):
                child.process.wait(END_S)
            raise self._lost(child, f"its process ended with {child.process.returncode}") from error

    def _lost(self, child: Child, why: str) -> DeviceLostError:
        """The error for it, once all children are ended: who knows what the others are at."""
        child.process.kill()
        self.close()
        return DeviceLostError(f"device {child.device}: {why}")


def _end(children: list[Child], memory: int) -> None:
    while children:
        children.pop().end()
    os.close(memory)
