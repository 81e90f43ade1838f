"""Flower's own Ray simulation as an engine: the same coordinator and ClientApp, on many CPUs, GPUs or machines.

Flower gives its virtual nodes random ids. Here a node is known by its institution's number, as in the other engines,
so that the same institutions are sampled whichever engine runs. An institution may be trained by another process in
every round: what it would have to keep there (keys, journals, a ledger) is lost, so secure aggregation and privacy are
refused.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from flwr.app import ConfigRecord, Context, RecordDict
from flwr.app import Message as FlowerMessage
from flwr.clientapp import ClientApp
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid, ServerApp
from flwr.supercore import telemetry

from sovfed.clients.node.app import make_client_app
from sovfed.clients.trainer.loaded import RecordSource, Runtime
from sovfed.clients.trainer.service import TrainerService
from sovfed.clients.training.device import choose_device
from sovfed.federation.config import Config
from sovfed.federation.errors import ConfigError, ServiceError
from sovfed.federation.host.quiet import be_quiet
from sovfed.federation.schema import bind
from sovfed.federation.wire.flower import new_message
from sovfed.federation.wire.grids import FlowerGrid, LeftS, StreamingGrid, for_ever
from sovfed.server.rounds.coordinator import Outcome
from sovfed.simulations.grid import LASTING, Failures
from sovfed.simulations.population import KEPT, Institution, make_population

FAILURE: Final = "failure"  # in a reply: what lasts, however often it is tried
WHICH: Final = "query.partition"  # a virtual node's first message: which institution it is
NODES_S: Final = 120.0  # for all virtual nodes to be there and to say which they are
Run = Callable[[StreamingGrid], Outcome]


def run_on_ray(config: Config, names: Sequence[str], folder: Path, run: Run) -> Outcome:
    """`run` over a Grid whose nodes Flower's Ray back end answers for, an actor a CPU (or a GPU)."""
    if config.secagg.enabled:
        raise ConfigError("simulation.engine=ray keeps no institution's keys from round to round: add secagg=none")
    if config.strategy.stateful:
        raise ConfigError(
            f"simulation.engine=ray trains an institution on another machine in every round, and strategy "
            f"'{config.strategy.name}' keeps something there: simulation.engine=inprocess"
        )
    be_quiet()  # for the actors
    telemetry.FLWR_TELEMETRY_ENABLED = "0"  # read when flwr is imported, which may have been before
    from flwr.simulation import run_simulation

    outcomes: list[Outcome] = []
    failed: list[Exception] = []
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        try:
            outcomes.append(run(RayGrid(grid, names)))
        except Exception as error:  # Flower would tell of it by a RuntimeError of its own
            failed.append(error)

    os.environ["FLWR_HOME"] = str(folder / "flwr")
    gpus = 1.0 if choose_device(config.client.device).type == "cuda" else 0.0
    backend: dict[str, Any] = {
        "client_resources": {"num_cpus": 1, "num_gpus": gpus},
        "init_args": {"num_cpus": os.cpu_count(), "include_dashboard": False, "logging_level": "warning"},
    }
    try:
        run_simulation(app, RayApp(config), num_supernodes=len(names), backend_config=backend)
    except RuntimeError as error:
        if not failed:  # Ray's own; its agents must be up within 15 s, which no setting changes (ray-project/ray 65983)
            raise ServiceError(
                "Ray did not start or broke off: its logs are in /tmp/ray/session_latest/logs; on a busy machine it "
                "gives up after 15 s: try again when less runs, or with simulation.engine=inprocess"
            ) from error
    if failed:
        raise failed[0]
    if not outcomes:
        raise ServiceError("Flower's simulation ended without a result")
    return outcomes[0]


class RayGrid(FlowerGrid):
    """Flower's Grid, its nodes called 1, 2, … after the institutions they are."""

    def __init__(self, grid: Grid, names: Sequence[str]) -> None:
        super().__init__(grid)
        self._names, deadline = names, time.monotonic() + NODES_S
        while len(nodes := list(grid.get_node_ids())) < len(names):
            if time.monotonic() > deadline:
                raise ServiceError(f"{len(nodes)} of {len(names)} virtual nodes after {NODES_S:g} s")
            time.sleep(0.05)
        questions = [
            new_message(RecordDict(), run_id=self.run.run_id, node_id=node, kind=WHICH, group="") for node in nodes
        ]
        replies = list(super().replies(questions, NODES_S))
        self._nodes = {_place(reply): reply.metadata.src_node_id for reply in replies if reply.has_content()}
        if sorted(self._nodes) != list(range(1, len(names) + 1)):
            raise ServiceError(f"{len(self._nodes)} of {len(names)} virtual nodes said which institution they are")

    def get_node_ids(self) -> Iterable[int]:
        return sorted(self._nodes)

    def get_nodes(self) -> Iterable[NodeInfo]:
        return [NodeInfo(node_id=node, name=self._names[node - 1]) for node in sorted(self._nodes)]

    def replies(
        self, messages: Iterable[FlowerMessage], timeout_s: float, left_s: LeftS = for_ever
    ) -> Iterator[FlowerMessage]:
        """Ask the virtual nodes by copies of `messages`, which get the copies' ids."""
        batch = list(messages)
        copies = [
            new_message(
                message.content,
                run_id=message.metadata.run_id,
                node_id=self._nodes[message.metadata.dst_node_id],
                kind=message.metadata.message_type,
                group=message.metadata.group_id,
            )
            for message in batch
        ]
        for reply in super().replies(copies, timeout_s, left_s):
            _raise_failure(reply)
            for message, copy in zip(batch, copies, strict=True):
                message.metadata.__dict__["_message_id"] = copy.metadata.message_id
            batch, copies = [], []
            yield reply


class RayApp(ClientApp):
    """Answers for whichever institution an actor is asked to be; its trainer is kept in that process."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self._config = json.dumps(asdict(config))  # what Ray sends to its actors

    def __call__(self, message: FlowerMessage, context: Context) -> FlowerMessage:
        index = int(context.node_config["partition-id"])
        if message.metadata.message_type == WHICH:
            return FlowerMessage(RecordDict({"node": ConfigRecord({"place": index})}), reply_to=message)
        app, failures = _app(self._config, index)
        with failures.unlogged():
            reply = app(message, context)
        if (error := failures.lasting) is None:
            return reply
        failure = ConfigRecord({"code": error.code, "text": str(error)})
        return FlowerMessage(RecordDict({FAILURE: failure}), reply_to=message)


@lru_cache(1)
def _population(config: str) -> tuple[Config, Sequence[Institution]]:
    bound = bind(Config, json.loads(config))
    return bound, make_population(bound)


@lru_cache(KEPT)
def _app(text: str, index: int) -> tuple[ClientApp, Failures]:
    """The institution's app, and what it met."""
    config, population = _population(text)
    institution, failures = population[index], Failures()
    trainer = TrainerService(
        RecordSource(institution.load, institution.site),
        Runtime(config.client.device, config.client.precision, config.client.evaluation_records),
        on_error=failures.note,
    )
    return make_client_app(trainer), failures


def _raise_failure(reply: FlowerMessage) -> None:
    """Raise what an institution met, if it lasts: to ask again, which rounds do, would come to the same."""
    failure = reply.content.config_records.get(FAILURE) if reply.has_content() else None
    if failure is not None:
        raise LASTING[str(failure["code"])](str(failure["text"]))


def _place(reply: FlowerMessage) -> int:
    index = reply.content.config_records["node"]["place"]
    if not isinstance(index, int):
        raise ServiceError("a virtual node did not say which institution it is")
    return index + 1
