"""Worker processes that answer for the institutions: which of them does is fixed, and so is the order of the replies.

Processes, not threads: torch's generator, which dropout draws from, is one a process.
"""

from __future__ import annotations

import logging
import os
import signal
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Final

from flwr.app import Message as FlowerMessage
from flwr.clientapp import ClientApp

from sovfed.clients.socket import from_frame, to_frame
from sovfed.federation.errors import ServiceError
from sovfed.federation.flower import from_records, new_message, size_bytes, to_records
from sovfed.simulations.grid import InMemoryGrid, call

log = logging.getLogger(__name__)
STOP_S: Final = 5.0
_ASKED: Final = struct.Struct("<QI")  # node, and which of the batch's contents it is asked


@dataclass
class Worker:
    """A process, our end of its pipe, and how many replies it still owes."""

    process: BaseProcess
    pipe: Connection
    owes: int = 0


class WorkersGrid(InMemoryGrid):
    """`InMemoryGrid` whose ClientApps are called in `workers` processes, each node's always in the same one.

    The processes are forked by the constructor: call it before torch has started threads. Replies come in the order of
    the messages, so that sums do not depend on the number of workers. Use as a context, which ends the processes.
    """

    def __init__(self, apps: Mapping[int, ClientApp], names: Mapping[int, str], workers: int) -> None:
        super().__init__(apps, names)
        self._workers: list[Worker] = []
        context = get_context("fork")
        for number in range(workers):
            ours, theirs = context.Pipe()
            held = [worker.pipe for worker in self._workers] + [ours]
            process = context.Process(
                target=_work, args=(apps, theirs, held), name=f"worker-{number + 1}", daemon=True
            )  # fmt: skip
            process.start()
            theirs.close()
            self._workers.append(Worker(process, ours))

    def replies(self, messages: Iterable[FlowerMessage], timeout_s: float) -> Iterator[FlowerMessage]:
        """As `StreamingGrid.replies`; all are waited for. Raises ServiceError if a worker has died."""
        batch = list(messages)
        for worker in self._workers:
            while worker.owes:  # of a batch whose replies were not all taken
                self._receive(worker)
        for message in batch:
            self._number(message)
            self.bytes_down += size_bytes(message)
        for place, worker in enumerate(self._workers):
            self._send(worker, [one for one in batch if self._place(one) == place])
        for message in batch:
            frame = self._receive(self._workers[self._place(message)])
            reply = FlowerMessage(to_records(from_frame(frame)), reply_to=message)
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

    def _place(self, message: FlowerMessage) -> int:
        return message.metadata.dst_node_id % len(self._workers)

    def _send(self, worker: Worker, batch: Sequence[FlowerMessage]) -> None:
        """Each content once, then who is asked which. A worker reads all of it before it answers."""
        if not batch:
            return
        contents = {id(message.content): message.content for message in batch}
        order = {key: place for place, key in enumerate(contents)}
        kinds = {message.metadata.message_type for message in batch}
        if len(kinds) != 1:
            raise ServiceError(f"one batch asks for {sorted(kinds)}")
        asked = b"".join(_ASKED.pack(one.metadata.dst_node_id, order[id(one.content)]) for one in batch)
        try:
            worker.pipe.send_bytes(struct.pack("<I", len(contents)) + kinds.pop().encode())
            for content in contents.values():
                worker.pipe.send_bytes(to_frame(from_records(content)))
            worker.pipe.send_bytes(asked)
            worker.owes = len(batch)
        except OSError as error:
            raise self._died(worker) from error

    def _receive(self, worker: Worker) -> bytes:
        try:
            worker.owes -= 1
            return worker.pipe.recv_bytes()
        except (EOFError, OSError) as error:
            raise self._died(worker) from error

    def _died(self, worker: Worker) -> ServiceError:
        worker.process.join(STOP_S)
        return ServiceError(
            f"{worker.process.name} of {len(self._workers)} ended with exit code {worker.process.exitcode}; was memory "
            "short? the run can be resumed, with fewer workers"
        )


def _work(apps: Mapping[int, ClientApp], pipe: Connection, held: Sequence[Connection]) -> None:
    """Answer batches until the pipe is closed."""
    for other in held:
        other.close()  # else a worker would keep the others' pipes open
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the parent, and so us
    import torch

    torch.set_num_threads(1)
    with suppress(EOFError, OSError):
        while True:
            head = pipe.recv_bytes()
            kind = head[4:].decode()
            contents = [to_records(from_frame(pipe.recv_bytes())) for _ in range(*struct.unpack_from("<I", head))]
            for node, which in _ASKED.iter_unpack(pipe.recv_bytes()):
                message = new_message(contents[which], run_id=1, node_id=node, kind=kind, group="")
                pipe.send_bytes(to_frame(from_records(call(apps, message).content)))
    os._exit(0)
