"""Worker processes that answer for the institutions: who answers for which changes the time, never the result.

Processes, not threads: torch's generator, which dropout draws from, is one a process. Vectors pass through memory that
parent and worker share; the pipe tells only what lies there.
"""

from __future__ import annotations

import logging
import mmap
import os
import signal
import struct
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Final

from flwr.app import Message as FlowerMessage
from flwr.app import RecordDict
from flwr.clientapp import ClientApp

from sovfed.clients.trainer.frames import frame_parts, from_frame, to_frame
from sovfed.federation.errors import ServiceError
from sovfed.federation.wire.flower import from_records, new_message, size_bytes, to_records
from sovfed.federation.wire.grids import LeftS, for_ever
from sovfed.simulations.grid import LASTING, Failures, InMemoryGrid, call

log = logging.getLogger(__name__)
STOP_S: Final = 5.0
AHEAD: Final = 4  # messages a worker that may be under way beyond the reply that is waited for: bounds what is held
DEPTH: Final = 2  # messages a worker has at once, so that it need not wait for the next
SLOT_BYTES_PARAMETER: Final = 16  # of memory for a reply, of which SCAFFOLD's secure one is the longest
SLOT_BYTES_BESIDE: Final = 2**20
_ASKED: Final = struct.Struct("<?QIQ")  # first of a batch, node, which content, its frame's bytes if it is new there
_DONE: Final = struct.Struct("<Q")  # bytes of the reply's frame
_FAILED: Final = 2**64 - 1  # instead: code and text of what ends the simulation follow


@dataclass
class Worker:
    """A process, our end of its pipe, its memory, the positions in the batch that it owes, and what it was told of."""

    process: BaseProcess
    pipe: Connection
    memory: mmap.mmap
    owes: deque[int] = field(default_factory=deque)
    knows: set[int] = field(default_factory=set)
    answered: int = 0


@dataclass
class Batch:
    """Messages, their distinct contents, which of these each has; positions not handed out; frames that came early.

    `first` is the frame of the first content, which most batches have alone.
    """

    messages: Sequence[FlowerMessage]
    contents: list[RecordDict]
    which: list[int]
    waiting: dict[int, None]
    first: bytes
    early: dict[int, bytes] = field(default_factory=dict)

    @classmethod
    def of(cls, messages: Sequence[FlowerMessage]) -> Batch:
        contents = {id(message.content): message.content for message in messages}
        order = {key: number for number, key in enumerate(contents)}
        which, distinct = [order[id(message.content)] for message in messages], list(contents.values())
        first = to_frame(from_records(distinct[0])) if distinct else b""
        return cls(messages, distinct, which, dict.fromkeys(range(len(messages))), first)

    def frame(self, which: int) -> bytes:
        return to_frame(from_records(self.contents[which])) if which else self.first


class WorkersGrid(InMemoryGrid):
    """`InMemoryGrid` whose ClientApps are called in `workers` processes.

    The processes are forked by the constructor: call it before torch has started threads. Replies come in the order of
    the messages, so that sums do not depend on the number of workers. `close` ends the processes.
    """

    def __init__(
        self, apps: Mapping[int, ClientApp], names: Mapping[int, str], workers: int, parameters: int, *, keeping: bool,
        failures: Failures | None = None,
    ) -> None:  # fmt: skip
        """`parameters` of the model make the shared memory. Institutions that are `keeping` something stay where they
        are; others are answered for by whoever is free, rather by whoever did before and has their records.
        """
        super().__init__(apps, names, failures=failures)
        self._workers: list[Worker] = []
        self._homes: dict[int, int] = {}
        self._keeping = keeping
        self._slot = SLOT_BYTES_PARAMETER * parameters + SLOT_BYTES_BESIDE
        self._shared = mmap.mmap(-1, self._slot)  # for the first content of a batch
        context = get_context("fork")
        for number in range(workers):
            parent_end, child_end = context.Pipe()
            memory = mmap.mmap(-1, DEPTH * self._slot)
            inherited = [worker.pipe for worker in self._workers] + [parent_end]
            process = context.Process(
                target=_work, args=(apps, child_end, inherited, self._shared, memory, self._failures),
                name=f"worker-{number + 1}", daemon=True,
            )  # fmt: skip
            process.start()
            child_end.close()
            self._workers.append(Worker(process, parent_end, memory))

    def replies(
        self, messages: Iterable[FlowerMessage], timeout_s: float, left_s: LeftS = for_ever
    ) -> Iterator[FlowerMessage]:
        """As `StreamingGrid.replies`; all are waited for. Raises ServiceError if a worker has died."""
        batch = Batch.of(list(messages))
        for worker in self._workers:
            worker.knows.clear()
            while worker.owes:  # of a batch whose replies were not all taken
                self._take(worker)
        for message in batch.messages:
            self._number(message)
            self.bytes_down += size_bytes(message)
        if len(batch.first) <= self._slot:
            self._shared[: len(batch.first)] = batch.first
        for position, message in enumerate(batch.messages):
            self._hand_out(batch, position)
            while self._collect(batch, patient=position not in batch.early):
                self._hand_out(batch, position)
            reply = FlowerMessage(to_records(from_frame(batch.early.pop(position))), reply_to=message)
            self.bytes_up += size_bytes(reply)
            yield reply

    def push_messages(self, messages: Iterable[FlowerMessage]) -> Iterable[str]:
        """As `Grid.push_messages`; returns when all are answered."""
        batch = list(messages)
        self._answered.update(
            {reply.metadata.reply_to_message_id: reply for reply in self.replies(batch, float("inf"))}
        )
        return [message.metadata.message_id for message in batch]

    def close(self) -> None:
        """End the processes."""
        for worker in self._workers:
            worker.pipe.close()  # which a worker takes as the end
        for worker in self._workers:
            worker.process.join(STOP_S)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()

    def _hand_out(self, batch: Batch, wanted: int) -> None:
        """Give every worker up to `DEPTH` of the messages that come next, a first one to all before a second."""
        limit = wanted + AHEAD * len(self._workers)
        for depth in range(1, DEPTH + 1):
            for number, worker in enumerate(self._workers):
                if len(worker.owes) < depth and (position := self._choose(batch, number, limit)) is not None:
                    self._ask(worker, batch, position)

    def _choose(self, batch: Batch, number: int, limit: int) -> int | None:
        """The position below `limit` that worker `number` had better answer next."""
        fallback = None
        for position in batch.waiting:
            if position >= limit:
                break
            home = self._homes.setdefault(batch.messages[position].metadata.dst_node_id, self._new_home(number))
            if home == number:
                return position
            if fallback is None:
                fallback = position
        return None if self._keeping else fallback

    def _new_home(self, number: int) -> int:
        return len(self._homes) % len(self._workers) if self._keeping else number

    def _ask(self, worker: Worker, batch: Batch, position: int) -> None:
        """Send message `position`, its content if that is new there; not if it would have to wait for the pipe."""
        which, metadata = batch.which[position], batch.messages[position].metadata
        frame = b""
        if which not in worker.knows:
            frame = batch.frame(which)
            shared = which == 0 and len(frame) <= self._slot
            if worker.owes and not shared:
                return  # it may be writing into the pipe itself, and would not read
        header = _ASKED.pack(not worker.knows, metadata.dst_node_id, which, len(frame))
        try:
            worker.pipe.send_bytes(header + metadata.message_type.encode())
            if frame and not shared:
                worker.pipe.send_bytes(frame)
        except OSError as error:
            raise self._died(worker) from error
        worker.knows.add(which)
        worker.owes.append(position)
        del batch.waiting[position]

    def _collect(self, batch: Batch, *, patient: bool) -> bool:
        """Take the replies that are there, waiting for one if `patient`; whether there was any."""
        pipes = {worker.pipe: worker for worker in self._workers if worker.owes}
        ready = wait(list(pipes), None if patient else 0.0)
        for pipe in ready:
            worker = pipes[pipe]  # type: ignore[index]  # what was given
            position = worker.owes[0]
            batch.early[position] = self._take(worker)
        return bool(ready)

    def _take(self, worker: Worker) -> bytes:
        """The frame of the oldest reply that `worker` owes."""
        start = self._slot * (worker.answered % DEPTH)
        worker.owes.popleft()
        worker.answered += 1
        try:
            (size,) = _DONE.unpack(worker.pipe.recv_bytes())
            if size == _FAILED:
                code, _, text = worker.pipe.recv_bytes().decode().partition(" ")
                raise LASTING[code](text)
            return worker.memory[start : start + size] if size <= self._slot else worker.pipe.recv_bytes()
        except (EOFError, OSError) as error:
            raise self._died(worker) from error

    def _died(self, worker: Worker) -> ServiceError:
        worker.process.join(STOP_S)
        return ServiceError(
            f"{worker.process.name} of {len(self._workers)} ended with exit code {worker.process.exitcode}; was memory "
            "short? the run can be resumed, with fewer workers"
        )


def _work(
    apps: Mapping[int, ClientApp],
    pipe: Connection,
    inherited: Sequence[Connection],
    shared: mmap.mmap,
    memory: mmap.mmap,
    failures: Failures,
) -> None:
    """Answer what is asked until the pipe is closed."""
    for connection in inherited:
        connection.close()  # else a worker would keep the others' pipes open
    sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__  # a progress bar's may be locked, for ever
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the parent, and so us
    import torch

    torch.set_num_threads(1)
    slot, answered = len(shared), 0
    contents: dict[int, RecordDict] = {}
    with suppress(EOFError, OSError):
        while True:
            order = pipe.recv_bytes()
            first, node, which, size = _ASKED.unpack_from(order)
            if first:
                contents.clear()
            if size:
                frame = shared[:size] if which == 0 and size <= slot else pipe.recv_bytes()
                contents[which] = to_records(from_frame(frame))
            kind = order[_ASKED.size :].decode()
            message = new_message(contents[which], run_id=1, node_id=node, kind=kind, group="")
            reply = call(apps, message)
            if failures.lasting is not None:
                pipe.send_bytes(_DONE.pack(_FAILED))
                pipe.send_bytes(f"{failures.lasting.code} {failures.lasting}".encode())
                continue
            chunks = frame_parts(from_records(reply.content))
            offset = slot * (answered % DEPTH)
            answered += 1
            if (length := sum(len(chunk) for chunk in chunks)) > slot:
                pipe.send_bytes(_DONE.pack(length))
                pipe.send_bytes(b"".join(chunks))
                continue
            for chunk in chunks:
                memory[offset : offset + len(chunk)] = chunk
                offset += len(chunk)
            pipe.send_bytes(_DONE.pack(length))
    os._exit(0)
