"""What the agency's machine holds of a run: with secure aggregation, no institution's update, in any form."""

from __future__ import annotations

import dataclasses
import json
import threading
from pathlib import Path
from typing import Self

import numpy as np
import pytest
from tests.deploy.conftest import finished, make_config, summary

from sovfed.clients.trainer.service import make_trainer
from sovfed.federation.messages import TrainReply, TrainRequest
from sovfed.federation.tasks import initial_vector
from sovfed.federation.tasks.registry import get_task
from sovfed.server.runs import folders
from sovfed.simulations.deployment import LocalFederation
from sovfed.simulations.federation import simulate

pytestmark = pytest.mark.deploy
WINDOW = 64  # bytes of an update that would give it away: 16 parameters


def updates_of_round_1(federation: LocalFederation, seed: int, folder: Path) -> list[np.ndarray]:
    """What each institution computes in the first round, made here with the same seed."""
    config = make_config("rounds=1", f"seed={seed}", "secagg=none")
    data = [member.data for member in federation.institutions]
    task, scale = get_task("breast_cancer"), simulate(config, data, folder).scale
    request = TrainRequest(
        "r", 1, task.name, seed, config.task.local_epochs, config.task.batch_size, config.task.learning_rate, 0.0,
        initial_vector(task, seed), scale, digest=task.digest,
    )  # fmt: skip
    replies = [make_trainer(dataclasses.replace(config.client, data=source)).answer(request) for source in data]
    return [reply.update for reply in replies if isinstance(reply, TrainReply)]


class Capture:
    """Reads everything below a folder over and over, and counts the updates of which it ever saw a part."""

    def __init__(self, folder: Path, updates: list[np.ndarray]) -> None:
        self.folder, self.bytes_read = folder, 0
        self.wanted = {index: update.tobytes()[:WINDOW] for index, update in enumerate(updates)}
        self.seen: set[int] = set()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.02):
            for path in self.folder.rglob("*"):
                try:
                    content = path.read_bytes()
                except OSError:
                    continue
                self.bytes_read += len(content)
                self.seen |= {index for index, snippet in self.wanted.items() if snippet in content}


@pytest.mark.parametrize(("secagg", "expected"), [("none", 4), ("full", 0)])
def test_what_the_superlink_stores_contains_no_update(
    federation: LocalFederation, tmp_path: Path, secagg: str, expected: int
) -> None:
    """Over Flower's Grid all messages lie in the database; without secure aggregation all four are found."""
    seed = {"none": 11, "full": 12}[secagg]  # one run's freed pages are no finding for the other
    updates = updates_of_round_1(federation, seed, tmp_path)
    assert len(updates) == 4
    config = make_config("rounds=2", f"seed={seed}", "server.lane=flower", f"secagg={secagg}")
    name = f"stored-{secagg}"
    settings = dataclasses.replace(federation.config.server, lane="flower")
    with Capture(federation.home / "superlink", updates) as capture:
        folders.start_run(
            federation.control, federation.home, name, dataclasses.replace(config, server=settings), resume=False
        )
        finished(federation, name)
    assert capture.bytes_read > 1_000_000
    assert len(capture.seen) == expected
    figures = summary(federation, name)
    assert figures["secure_aggregation"] is bool(expected == 0)
    if secagg == "full":
        assert figures["secure_aggregation_details"] == "on, cohort 4 of 4, threshold 3"
        assert figures["metrics_by_institution"] == {}
        homes = {member.name: federation.client_home(member.name) for member in federation.institutions}
        sealed = {name: json.loads((home / "run/trainer/isolation.json").read_text()) for name, home in homes.items()}
        assert figures["isolation"] == {name: isolation["network"] for name, isolation in sealed.items()}
