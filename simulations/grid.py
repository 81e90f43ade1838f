"""The in-memory Grid: the same coordinator and the same ClientApp in one process, with no transport between them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from itertools import count
from typing import Final

from flwr.app import Context, RecordDict
from flwr.app import Message as FlowerMessage
from flwr.clientapp import ClientApp
from flwr.proto.node_pb2 import NodeInfo
from flwr.supercore.run import Run

from sovfed.clients.node import app
from sovfed.clients.trainer import telling
from sovfed.federation.errors import ConfigError, DataError, WrongTaskError
from sovfed.federation.wire.flower import size_bytes
from sovfed.federation.wire.grids import LeftS, StreamingGrid, for_ever

LASTING: Final = {kind.code: kind for kind in (DataError, WrongTaskError, ConfigError)}  # however often it is tried


TELLING: Final = (app.__name__, telling.__name__)  # whose logs tell of failures with a traceback


class Failures:
    """What institutions of a simulation met: whoever simulates may see it, and what lasts ends the simulation."""

    def __init__(self) -> None:
        self.first: Exception | None = None
        self.lasting: DataError | WrongTaskError | ConfigError | None = None

    def note(self, error: Exception) -> None:
        self.first = self.first or error
        if isinstance(error, DataError | WrongTaskError | ConfigError):
            self.lasting = self.lasting or error

    @contextmanager
    def unlogged(self) -> Iterator[None]:
        """The institutions' logs leave out meanwhile what lasts: it is raised, once for all."""
        loggers = [logging.getLogger(name) for name in TELLING]
        for logger in loggers:
            logger.addFilter(_of_another)
        try:
            yield
        finally:
            for logger in loggers:
                logger.removeFilter(_of_another)

    def check(self) -> None:
        """Raise what lasts, if there was any."""
        if self.lasting is not None:
            raise self.lasting


def _of_another(record: logging.LogRecord) -> bool:
    """Whether a line of the log tells of anything but what lasts."""
    error = record.exc_info[1] if record.exc_info else None
    return not isinstance(error, tuple(LASTING.values()))


class Apps(Mapping[int, ClientApp]):
    """The ClientApp of each node from 1 to `nodes`, made when it is called; the `keep` last called are kept."""

    def __init__(self, make: Callable[[int], ClientApp], nodes: int, keep: int) -> None:
        self.nodes, self._get = range(1, nodes + 1), lru_cache(keep)(make)

    def __getitem__(self, node: int) -> ClientApp:
        if node not in self.nodes:
            raise KeyError(node)
        return self._get(node)

    def __iter__(self) -> Iterator[int]:
        return iter(self.nodes)

    def __len__(self) -> int:
        return len(self.nodes)


class InMemoryGrid(StreamingGrid):
    """Answers each message by calling the node's ClientApp; replies come in the order of the messages.

    `apps` is read, never copied: institutions may come and go, or be made when they are called. What lasts of their
    `failures` is raised where the message was sent.
    """

    def __init__(
        self, apps: Mapping[int, ClientApp], names: Mapping[int, str] | None = None, run_id: int = 1,
        failures: Failures | None = None,
    ) -> None:  # fmt: skip
        self._apps, self._names, self._failures = apps, names or {}, failures or Failures()
        self._run = Run.create_empty(run_id)
        self._ids = count(1)
        self._answered: dict[str, FlowerMessage] = {}

    def set_run(self, run: Run) -> None:
        self._run = run

    @property
    def run(self) -> Run:
        return self._run

    def get_node_ids(self) -> Sequence[int]:
        return self._apps.nodes if isinstance(self._apps, Apps) else list(self._apps)

    def get_nodes(self) -> Iterable[NodeInfo]:
        return [NodeInfo(node_id=node, name=self._names.get(node, str(node))) for node in self._apps]

    def push_messages(self, messages: Iterable[FlowerMessage]) -> Iterable[str]:
        pushed = []
        for message in messages:
            self._number(message)
            pushed.append(message.metadata.message_id)
            self._answered[pushed[-1]] = self._call(message)
        return pushed

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[FlowerMessage]:
        return [self._answered.pop(message_id) for message_id in message_ids if message_id in self._answered]

    def replies(
        self, messages: Iterable[FlowerMessage], timeout_s: float, left_s: LeftS = for_ever
    ) -> Iterator[FlowerMessage]:
        batch = list(messages)
        for message in batch:
            self._number(message)
        for message in batch:
            yield self._call(message)

    def _number(self, message: FlowerMessage) -> None:
        message.metadata.__dict__["_message_id"] = f"{self._run.run_id}-{next(self._ids)}"

    def _call(self, message: FlowerMessage) -> FlowerMessage:
        self.bytes_down += size_bytes(message)
        reply = call(self._apps, message)
        self._failures.check()
        self.bytes_up += size_bytes(reply)
        return reply


def call(apps: Mapping[int, ClientApp], message: FlowerMessage) -> FlowerMessage:
    """What the ClientApp of the node that `message` is for replies."""
    node, run_id = message.metadata.dst_node_id, message.metadata.run_id
    context = Context(run_id=run_id, node_id=node, node_config={}, state=RecordDict(), run_config={})
    return apps[node](message, context)
