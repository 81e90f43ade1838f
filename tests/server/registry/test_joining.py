"""`server admit` prints the institution's command with what the agency knows."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from tests.clients.orders.house import CONFIG, whole

from sovfed.federation.compose import compose
from sovfed.federation.files import private_directory
from sovfed.federation.orders.order import Proposal
from sovfed.server import home as agency
from sovfed.server.home import SETTINGS
from sovfed.server.orders.making import FILE, make_order, write_order
from sovfed.server.registry.joining import join_options


@pytest.mark.parametrize(
    ("settings", "tasks", "options"),
    [
        ((), (), ""),
        (("server.min_cohort=4",), (), " --min-cohort 4"),
        ((), ("birth", "breast_cancer"), " --task breast_cancer"),  # the newest
        ((), ("breast_cancer", "birth"), " --task birth.yaml"),
        (("server.min_approvers=2",), (), " --officers"),
        (("server.min_approvers=1",), ("heart",), " --task heart --officers --approvers 1"),
    ],
)
def test_the_command_names_task_cohort_and_officers_as_far_as_they_are_known(
    tmp_path: Path, settings: tuple[str, ...], tasks: tuple[str, ...], options: str
) -> None:
    home = tmp_path / "agency"
    agency.init(home, compose(list(settings)).config)
    assert (home / SETTINGS).exists() and json.loads((home / SETTINGS).read_text())["server"]
    for number, task in enumerate(tasks):
        order = dataclasses.replace(
            make_order(CONFIG, "study", whole(CONFIG), 1e9 + number), task=task, run=f"r{number}"
        )
        write_order(private_directory(home / "runs" / f"r{9 - number}"), Proposal(order))
    (private_directory(home / "runs" / "damaged") / FILE).write_text("{")
    assert join_options(home) == options
