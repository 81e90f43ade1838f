"""Flower's own SecAgg+, unchanged, in this process: `secaggplus_mod` at clients, `SecAggPlusWorkflow` at the server.

The grid hands every message straight to the mod and takes the time. Not charged to Flower: local training
(`call_next`), and the averaging that its legacy strategies do again after the sum.
"""

from __future__ import annotations

import logging
import random
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from flwr.app import Context, Message, RecordDict
from flwr.app.message_type import MessageType
from flwr.client.mod import secaggplus_mod
from flwr.common import Code, ConfigRecord, FitIns, FitRes, Status, ndarrays_to_parameters, parameters_to_ndarrays
from flwr.common.secure_aggregation.secaggplus_constants import RECORD_KEY_CONFIGS, Key, Stage
from flwr.compat.common import recorddict_compat
from flwr.proto.node_pb2 import NodeInfo
from flwr.server import ServerConfig, SimpleClientManager
from flwr.server.compat.grid_client_proxy import GridClientProxy
from flwr.server.compat.legacy_context import LegacyContext
from flwr.server.strategy import FedAvg
from flwr.server.workflow import SecAggPlusWorkflow
from flwr.server.workflow.constant import MAIN_CONFIGS_RECORD, MAIN_PARAMS_RECORD
from flwr.server.workflow.constant import Key as WorkflowKey
from flwr.serverapp.grid import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from sovfed.federation.messages import Vector
from sovfed.federation.wire.flower import SERVER_NODE_ID, new_message


class _Mean(FedAvg):
    """A strategy that takes the sum as it comes."""

    def __init__(self, proxies: list[GridClientProxy]) -> None:
        super().__init__()
        self._proxies = proxies

    def configure_fit(self, server_round: int, parameters: Any, client_manager: Any) -> Any:
        return [(proxy, FitIns(parameters, {})) for proxy in self._proxies]

    def aggregate_fit(self, server_round: int, results: Any, failures: Any) -> Any:
        return results[0][1].parameters, {}


@dataclass
class FlowerRound(Grid):
    """One round of SecAgg+ among `updates`; clients in `lost` fall silent after the shares were dealt."""

    updates: dict[int, Vector]
    weights: dict[int, int]
    lost: frozenset[int] = frozenset()
    client_cpu_s: dict[int, float] = field(default_factory=dict)
    bytes_up: dict[int, int] = field(default_factory=dict)
    trips: int = 0
    contexts: dict[int, Context] = field(default_factory=dict)
    seen: list[tuple[int, str, ConfigRecord]] = field(default_factory=list)

    def set_run(self, run: Run) -> None:
        raise NotImplementedError

    @property
    def run(self) -> Run:
        raise NotImplementedError

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        return new_message(content, run_id=1, node_id=dst_node_id, kind=message_type, group=group_id)

    def get_node_ids(self) -> Iterable[int]:
        return list(self.updates)

    def get_nodes(self) -> Iterable[NodeInfo]:
        return [NodeInfo(node_id=node) for node in self.updates]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        raise NotImplementedError

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        raise NotImplementedError

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        self.trips += 1
        replies = []
        for message in messages:
            node = message.metadata.dst_node_id
            stage = str(message.content.config_records[RECORD_KEY_CONFIGS][Key.STAGE])
            if node in self.lost and stage in (Stage.COLLECT_MASKED_VECTORS, Stage.UNMASK):
                continue
            replies.append(self._client(node, stage, message))
        return replies

    def _client(self, node: int, stage: str, message: Message) -> Message:
        # the workflow shares one content among its messages and the mod takes the stage out of it
        shared = message.content.config_records[RECORD_KEY_CONFIGS]
        content = RecordDict({key: record for key, record in message.content.items() if key != RECORD_KEY_CONFIGS})
        content[RECORD_KEY_CONFIGS] = ConfigRecord(dict(shared))
        own = new_message(content, run_id=1, node_id=node, kind=MessageType.TRAIN, group="1")
        context = self.contexts.setdefault(node, Context(1, node, {}, RecordDict(), {}))
        training = 0.0

        def train(_: Message, __: Context) -> Message:
            nonlocal training
            started = time.process_time()
            parameters = ndarrays_to_parameters([self.updates[node]])
            result = FitRes(Status(Code.OK, ""), parameters, self.weights[node], {})
            reply = Message(recorddict_compat.fitres_to_recorddict(result, keep_input=True), reply_to=own)
            training = time.process_time() - started
            return reply

        started = time.process_time()
        reply = secaggplus_mod(own, context, train)
        self.client_cpu_s[node] = self.client_cpu_s.get(node, 0.0) + time.process_time() - started - training
        record = reply.content.config_records[RECORD_KEY_CONFIGS]
        self.bytes_up[node] = self.bytes_up.get(node, 0) + _size(record)
        self.seen.append((node, stage, record))
        return reply

    def aggregate(self, *, max_weight: int, clip: float) -> tuple[Vector, float]:
        """(the mean, CPU seconds of the server)."""
        logging.getLogger("flwr").setLevel(logging.CRITICAL)
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, SERVER_NODE_ID, 1  # as in a ServerApp
        proxies = [GridClientProxy(node, self, 1) for node in self.updates]
        size = next(iter(self.updates.values())).size
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            context = LegacyContext(
                Context(1, 1, {}, RecordDict(), {}), ServerConfig(num_rounds=1), _Mean(proxies), SimpleClientManager()
            )
            start = ndarrays_to_parameters([np.zeros(size, np.float32)])
            context.state.array_records[MAIN_PARAMS_RECORD] = recorddict_compat.parameters_to_arrayrecord(start, True)
            context.state.config_records[MAIN_CONFIGS_RECORD] = ConfigRecord({WorkflowKey.CURRENT_ROUND: 1})
            random.seed(0)
            workflow = SecAggPlusWorkflow(1.0, 0.5, max_weight=max_weight, clipping_range=clip)
            started = time.process_time()
            workflow(self, context)
            total = time.process_time() - started
        array_record = context.state.array_records[MAIN_PARAMS_RECORD]
        mean = recorddict_compat.arrayrecord_to_parameters(array_record, keep_input=True)
        vector = parameters_to_ndarrays(mean)[0].astype(np.float32)
        return vector, total - sum(self.client_cpu_s.values())


def _size(record: ConfigRecord) -> int:
    """Bytes of the values, with nothing for their names."""
    total = 0
    for value in record.values():
        for item in value if isinstance(value, list) else [value]:
            total += len(item) if isinstance(item, bytes) else 8
    return total


def collect_stage(clients: int, size: int, max_weight: int, clip: float) -> Callable[[], Message]:
    """Flower's client stage that quantises and masks, ready to be run once."""
    updates = {node: np.zeros(size if node == 1 else 1, np.float32) for node in range(1, clients + 1)}
    peer = _Prepared(updates, dict.fromkeys(updates, 1))
    try:
        peer.aggregate(max_weight=max_weight, clip=clip)
    except _ReachedError:
        return lambda: peer.answer(peer.pending)
    raise RuntimeError("Flower never asked for the masked vector")


class _ReachedError(Exception):
    """The stage to be measured has been reached."""


class _Prepared(FlowerRound):
    pending: Message

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        first, *rest = list(messages)
        if first.content.config_records[RECORD_KEY_CONFIGS][Key.STAGE] == Stage.COLLECT_MASKED_VECTORS:
            self.pending = next(message for message in (first, *rest) if message.metadata.dst_node_id == 1)
            raise _ReachedError
        return super().send_and_receive([first, *rest], timeout=timeout)

    def answer(self, message: Message) -> Message:
        return self._client(message.metadata.dst_node_id, Stage.COLLECT_MASKED_VECTORS, message)
