"""Worker processes change nothing but the time, and one that dies is told."""

from __future__ import annotations

import dataclasses
import os
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.clientapp import ClientApp

from sovfed.clients.data import Dataset
from sovfed.clients.node.app import make_client_app
from sovfed.clients.training.device import SMALL
from sovfed.federation.compose import compose
from sovfed.federation.errors import ConfigError, DataError, ServiceError
from sovfed.federation.messages import Reply, Request, TrainReply, TrainRequest
from sovfed.federation.tasks import Task
from sovfed.federation.wire.flower import from_records, new_message, to_records
from sovfed.server.rounds.coordinator import Outcome
from sovfed.simulations import federation, workers
from sovfed.simulations.federation import simulate_population
from sovfed.simulations.population import Institution, make_population
from sovfed.simulations.workers import WorkersGrid

BASE = ("task=digits", "partition=dirichlet", "simulation.engine=inprocess", "rounds=3")
PLAIN = (*BASE, "secagg=none", "simulation.institutions=12", "simulation.cohort=7")


def _run(folder: Path, *overrides: str) -> Outcome:
    config = compose(overrides).config
    return simulate_population(config, make_population(config), folder)


@pytest.mark.parametrize("strategy", ["fedavg", "scaffold"])
def test_the_model_is_bitwise_the_same_for_any_number_of_workers(tmp_path: Path, strategy: str) -> None:
    outcomes = [
        _run(tmp_path / str(n), *PLAIN, f"strategy={strategy}", f"simulation.workers={n}") for n in (0, 1, 2, 3)
    ]
    for other in outcomes[1:]:
        assert np.array_equal(other.model, outcomes[0].model)
        assert other.summary["metrics"] == outcomes[0].summary["metrics"]
        assert other.summary["bytes_up_per_round"] == outcomes[0].summary["bytes_up_per_round"]


def test_a_large_model_too_is_bitwise_the_same(tmp_path: Path) -> None:
    overrides = ("task=synthetic_images", "simulation.engine=inprocess", "simulation.institutions=3", "secagg=none")
    models = [_run(tmp_path / str(n), *overrides, "rounds=1", f"simulation.workers={n}").model for n in (0, 2)]
    assert models[0].size >= SMALL  # where a deployed trainer would use all threads
    assert np.array_equal(models[0], models[1])


def test_workers_take_part_in_secure_aggregation(tmp_path: Path) -> None:
    here, there = (
        _run(tmp_path / str(n), *BASE, "simulation.institutions=5", f"simulation.workers={n}") for n in (0, 2)
    )
    assert there.summary["secure_aggregation"]
    assert there.model == pytest.approx(here.model, abs=1e-3)  # rounding at random flips a ReLU in one run of 70


def _echo(node: int, delay_s: float = 0.0) -> ClientApp:
    """Tells, of every model, its sum and the process that it was sent to, as an update of its own length."""

    class Echo:
        def answer(self, request: Request) -> Reply:
            assert isinstance(request, TrainRequest)
            time.sleep(delay_s)
            update = np.full(request.model.size, np.float32(node + request.model.sum()), np.float32)
            return TrainReply(
                round=request.round, count=os.getpid(), seconds=0.0, train_loss=0.0, update=update,
                evaluation=np.zeros(1), steps=1,
            )  # fmt: skip

    return make_client_app(Echo())


def _ask(grid: WorkersGrid, nodes: Iterable[int], values: Iterable[float], length: int) -> list[TrainReply]:
    """The replies of `nodes`, in order; the i-th is sent a model of the i-th value, equal values the same message."""
    requests = {
        value: to_records(
            TrainRequest(
                run="1", round=1, task="echo", seed=0, local_epochs=1, batch_size=1, learning_rate=1.0,
                proximal_mu=0.0, model=np.full(length, value, np.float32), scale=np.zeros(2),
            )
        )
        for value in values
    }  # fmt: skip
    messages = [
        new_message(requests[value], run_id=1, node_id=node, kind="train", group="")
        for node, value in zip(nodes, values, strict=True)
    ]
    replies = [from_records(reply.content) for reply in grid.replies(messages, 60.0)]
    return [reply for reply in replies if isinstance(reply, TrainReply)]


@pytest.mark.parametrize("beside", [2**20, -(16 * 200_000) + 64])  # the second: nothing fits, all goes by the pipe
@pytest.mark.parametrize("keeping", [False, True])
def test_replies_come_in_order_whatever_is_sent_by_memory_or_pipe(
    keeping: bool, beside: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "SLOT_BYTES_BESIDE", beside)
    nodes = list(range(1, 41))
    apps = {node: _echo(node, 0.002 * (node % 3)) for node in nodes}
    length = 200_000  # more than a pipe holds
    with closing(WorkersGrid(apps, {}, 3, length, keeping=keeping)) as grid:
        for values in ([0.5] * 40, [float(node % 2) for node in nodes], [float(node) for node in nodes]):
            replies = _ask(grid, nodes, values, length)
            told = [float(reply.update[0]) for reply in replies]
            assert told == [node + value * length for node, value in zip(nodes, values, strict=True)]
            assert all(len(set(reply.update.tolist())) == 1 for reply in replies)


def test_institutions_that_keep_something_stay_where_they_are_and_others_go_to_whoever_is_free() -> None:
    apps = {node: _echo(node, 0.6 if node == 1 else 0.0) for node in range(1, 13)}
    with closing(WorkersGrid(apps, {}, 2, 4, keeping=True)) as grid:
        places = [{node: reply.count for node, reply in zip(order, _ask(grid, order, [0.0] * 12, 4), strict=True)}
                  for order in (range(1, 13), range(12, 0, -1))]  # fmt: skip
        assert places[0] == places[1]
        assert sorted(Counter(places[0].values()).values()) == [6, 6]
    with closing(WorkersGrid(apps, {}, 2, 4, keeping=False)) as grid:
        served = Counter(reply.count for reply in _ask(grid, range(1, 13), [0.0] * 12, 4))
        assert min(served.values()) < 6  # whoever has the slow one does fewer


def test_replies_that_nobody_took_do_no_harm() -> None:
    apps = {node: _echo(node) for node in range(1, 9)}
    with closing(WorkersGrid(apps, {}, 2, 1000, keeping=False)) as grid:
        request = TrainRequest(
            run="1", round=1, task="echo", seed=0, local_epochs=1, batch_size=1, learning_rate=1.0, proximal_mu=0.0,
            model=np.zeros(1000, np.float32), scale=np.zeros(2),
        )  # fmt: skip
        content = to_records(request)
        messages = [new_message(content, run_id=1, node_id=node, kind="train", group="") for node in apps]
        next(iter(grid.replies(messages, 60.0)))
        assert [float(reply.update[0]) for reply in _ask(grid, apps, [1.0] * 8, 1000)] == [1000 + n for n in apps]


def test_workers_are_made_where_training_takes_long_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []

    class Noted(WorkersGrid):
        def __init__(self, apps: Any, names: Any, workers: int, parameters: int, **rest: Any) -> None:
            made.append(workers)
            super().__init__(apps, names, workers, parameters, **rest)

    monkeypatch.setattr(workers, "WorkersGrid", Noted)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2})
    monkeypatch.setattr(federation, "WORTH_S", float("inf"))
    small = _run(tmp_path / "small", *PLAIN)
    assert not made
    monkeypatch.setattr(federation, "WORTH_S", 0.0)
    large = _run(tmp_path / "large", *PLAIN)
    assert made == [3]
    assert np.array_equal(small.model, large.model)


def test_a_worker_that_dies_is_told(tmp_path: Path) -> None:
    config = compose((*PLAIN, "simulation.workers=2")).config
    whole = make_population(config)
    here = os.getpid()

    def end(number: int) -> Institution:
        institution = whole[number]
        return Institution(
            institution.name,
            institution.site,
            lambda task: institution.load(task) if os.getpid() == here else os._exit(7),
        )

    with pytest.raises(ServiceError, match=r"worker-[12] of 2 ended with exit code 7"):
        simulate_population(config, [end(number) for number in range(len(whole))], tmp_path)


def test_other_engines_take_no_workers(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not for 'vectorised'"):
        _run(tmp_path, *PLAIN, "simulation.engine=vectorised", "simulation.workers=2")


@pytest.mark.parametrize(
    "settings", [("secagg=none", "simulation.workers=0"), ("simulation.workers=2",), ("simulation.workers=0",)]
)
def test_records_that_are_wrong_end_the_simulation_at_once(tmp_path: Path, settings: tuple[str, ...]) -> None:
    config = compose([*BASE, "simulation.institutions=4", *settings]).config
    population = list(make_population(config))
    reads = []

    def wrong(task: Task) -> Dataset:
        reads.append(1)
        raise DataError("site.csv: the header lacks 1 columns: 'age'")

    population[-1] = dataclasses.replace(population[-1], load=wrong)
    with pytest.raises(DataError, match="the header lacks 1 columns: 'age'"):
        simulate_population(config, population, tmp_path)
    assert len(reads) <= 2  # for the run, and to tell of all that are wrong: never for another attempt
