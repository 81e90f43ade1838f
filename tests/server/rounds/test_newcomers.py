"""A run that somebody joins late, and leaves: what is kept for that day, and that it is asked no more."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from tests.clients.orders.house import House, planned
from tests.clients.orders.test_trainer import trainer

from sovfed.clients.node.app import make_client_app
from sovfed.clients.orders.rules import OrderRules
from sovfed.federation.files import private_directory
from sovfed.server.orders.making import Ordering
from sovfed.server.orders.withdrawn import PROFILED, Withdrawal, add_withdrawal
from sovfed.server.rounds import checkpoint
from sovfed.server.rounds.coordinator import Paperwork, coordinate
from sovfed.simulations.grid import InMemoryGrid

ROUNDS = 6


def test_the_model_from_before_a_newcomer_is_kept_and_who_withdraws_is_asked_no_more(tmp_path: Path) -> None:
    """h4 comes before round 3, and withdraws before round 5."""
    house, folder = House(tmp_path), private_directory(tmp_path / "study")
    config = planned("secagg=none", f"rounds={ROUNDS}", "order.wait_s=0")
    names = {number: f"h{number}" for number in range(1, 5)}
    apps = {number: make_client_app(trainer(house, name, OrderRules())) for number, name in names.items()}
    here = {number: app for number, app in apps.items() if number != 4}
    lines = list[dict[str, Any]]()
    said = list[tuple[str, list[str]]]()

    def on_round(line: dict[str, Any]) -> None:
        lines.append(line)
        if line["round"] == 2:
            here[4] = apps[4]
        if line["round"] == 4:
            add_withdrawal(folder, Withdrawal("h4", 0, "0" * 64, 2, 3))

    order = Ordering(config, "study", folder, house.agency)
    paperwork = Paperwork(order, lambda digest, answers: said.append((digest, sorted(answers))))
    coordinate(
        InMemoryGrid(here, names), config, run="7", folder=folder, transport="stream", paperwork=paperwork,
        on_round=on_round,
    )  # fmt: skip

    took_part = [line["participants"] for line in lines]
    assert took_part == [["h1", "h2", "h3"]] * 2 + [["h1", "h2", "h3", "h4"]] * 2 + [["h1", "h2", "h3"]] * 2
    assert checkpoint.kept_rounds(folder) == [2]
    assert json.loads((folder / PROFILED).read_bytes()) == ["h1", "h2", "h3"]
    assert said[0][1] == ["h1", "h2", "h3"] and said[-1][1] == ["h1", "h2", "h3", "h4"]


def test_few_models_are_kept_however_many_come(tmp_path: Path) -> None:
    for number in range(1, 200):
        made = checkpoint.Checkpoint(number, np.zeros(2, np.float32), np.zeros(0), {}, "")
        checkpoint.keep(tmp_path, made, 199)

    kept = checkpoint.kept_rounds(tmp_path)
    assert len(kept) <= checkpoint.MOST_KEPT and kept[0] == 1 and kept[-1] > 150
