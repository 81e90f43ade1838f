"""Whom a run waits for, since when and why: seen by its coordinator, told to whoever asks."""

from __future__ import annotations

import dataclasses
import json
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.server.agency import wait_until

from sovfed.clients.node.app import make_client_app
from sovfed.federation.messages import ProfileReply, ProfileRequest, Refusal, Reply, Request
from sovfed.federation.tasks.registry import get_task
from sovfed.federation.wire.grids import StreamingGrid
from sovfed.server.rounds.aggregation import ask
from sovfed.server.runs.awaiting import FILE, Attentive, Awaiting, read_awaiting, why_waiting
from sovfed.server.runs.control import NodeRecord
from sovfed.simulations.grid import InMemoryGrid

TASK = get_task("breast_cancer")
REQUEST = ProfileRequest(run="1", task=TASK.name, normalisation="own", digest=TASK.digest)
NODES = [NodeRecord(n, f"hospital-{n + 1}", "online" if n < 2 else "offline", b"", 0.0) for n in range(3)]
RUN = {"name": "r", "status": "running", "reason": "", "rounds_done": 0, "started": 0.0, "min_cohort": 3}


def grid(behaviours: list[Callable[[Request], Reply]], folder: Path, least: int = 2) -> Attentive:
    apps = {node: make_client_app(SimpleNamespace(answer=behaviour)) for node, behaviour in enumerate(behaviours, 1)}
    return Attentive(InMemoryGrid(apps, {1: "hospital-1", 2: "hospital-2"}), folder, least)


def sums(_: Request) -> Reply:
    return ProfileReply(sums=TASK.transform.public_scale[:0])


def test_an_exchange_that_lasts_names_who_is_missing_and_who_refused(tmp_path: Path) -> None:
    gate = threading.Event()

    def slow(request: Request) -> Reply:
        gate.wait(30)
        return sums(request)

    attentive = grid([lambda _: Refusal("bound"), slow], tmp_path)
    asking = threading.Thread(target=lambda: list(ask(attentive, {1: REQUEST, 2: REQUEST}, ProfileReply, 60.0)))
    asking.start()
    try:
        wait_until((tmp_path / FILE).exists, what="the file that tells whom it waits for")
        awaiting = read_awaiting(tmp_path)
        assert awaiting is not None
        assert (awaiting.stage, awaiting.asked) == ("the columns' profile", 2)
        assert (awaiting.missing, awaiting.refused) == (("hospital-2",), {"hospital-1": "bound"})
    finally:
        gate.set()
        asking.join()
    wait_until(lambda: not (tmp_path / FILE).exists(), what="the end of what it told")
    attentive.close()


def test_a_round_of_milliseconds_writes_nothing(tmp_path: Path) -> None:
    attentive = grid([sums, sums], tmp_path)
    list(ask(attentive, {1: REQUEST, 2: REQUEST}, ProfileReply, 60.0))
    assert not (tmp_path / FILE).exists()
    attentive.close()


def test_the_sentence_says_whom_since_when_until_when_and_why(tmp_path: Path) -> None:
    write(tmp_path, Awaiting("training of round 3", 100.0, 3, ("hospital-3",), {"hospital-1": "bound"}, 700.0))
    first, second = why_waiting(RUN, tmp_path, NODES, now=220.0)
    assert first == (
        "awaiting 1 of 3 for training of round 3, since 2 min, for at most 8 min more: hospital-3 (not connected)"
    )
    assert second.startswith("1 of 3 refuse: bound (")


def test_too_few_connected_institutions_are_named(tmp_path: Path) -> None:
    assert why_waiting(RUN, tmp_path, NODES) == [
        "waiting for institutions: 2 of the 3 that a round needs are connected; not connected: hospital-3"
    ]
    assert why_waiting({**RUN, "min_cohort": 2}, tmp_path, NODES) == []
    (said,) = why_waiting({**RUN, "min_cohort": 2, "cohort": ["hospital-1", "hospital-3"]}, tmp_path, NODES)
    assert said.startswith("waiting for institutions: 1 of the 2 that a round needs")  # hospital-2 is not asked
    assert why_waiting({**RUN, "status": "finished"}, tmp_path, NODES) == []
    assert "taken up again now" in why_waiting({**RUN, "status": "interrupted"}, tmp_path, None)[0]


def test_a_start_is_a_matter_of_concern_only_once_it_takes_longer_than_usual(tmp_path: Path) -> None:
    """Seen: "waiting for the executor, since 0 s; the log may say why", at each start of a run."""
    starting = {**RUN, "status": "starting", "started": 100.0}
    assert why_waiting(starting, tmp_path, NODES, now=101.0) == ["the executor starts its coordinator"]
    (late,) = why_waiting(starting, tmp_path, NODES, now=130.0)
    assert "since 30 s" in late and "logs executor" in late


@pytest.mark.parametrize("content", ["", "[]", '{"stage": 1}', "\0" * 100])
def test_a_damaged_file_tells_nothing(tmp_path: Path, content: str) -> None:
    (tmp_path / FILE).write_text(content)
    assert read_awaiting(tmp_path) is None


def test_it_hands_on_every_verb_of_a_grid() -> None:
    """One that it lacked would be answered by the base class's default, and nobody would notice."""
    verbs = {name for kind in StreamingGrid.__mro__[:-1] for name in vars(kind) if not name.startswith("_")}
    own = {"send_and_receive", "create_message"}  # made of the others
    assert verbs - own <= set(vars(Attentive))


def write(folder: Path, awaiting: Awaiting) -> Any:
    (folder / FILE).write_text(json.dumps(dataclasses.asdict(awaiting)))
