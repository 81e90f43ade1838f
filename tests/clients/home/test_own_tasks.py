"""An institution's own tasks: what lies in its home is asked for only by name and digest."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from sovfed.clients.home.own_tasks import entry_of
from sovfed.clients.home.policy import Policy
from sovfed.federation.tasks import registry
from sovfed.federation.tasks.shelf import Shelf

if TYPE_CHECKING:
    from pathlib import Path

TASK = """
name: breast_cancer
title: Another task than the package's
person: one row a person
columns:
  age: {kind: number, low: 0, high: 120}
target: {kind: binary, column: ill, classes: ["no", "yes"]}
model: {family: linear}
"""


@pytest.fixture(autouse=True)
def _own_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_ADDED", {})


def test_a_file_that_takes_a_package_s_name_is_not_allowed_by_that_name(tmp_path: Path) -> None:
    """`client task add` without --allow: the file lies in the home, and the trainer knows nothing of it."""
    (tmp_path / "task.yaml").write_text(TASK)
    task, _ = Shelf(tmp_path).put(tmp_path / "task.yaml")
    registry._ADDED.clear()  # as in another process
    assert Shelf(tmp_path).make_known(Policy(allowed_tasks=("breast_cancer",)).allows_own) == []
    assert task.digest not in [other.digest for other in registry.versions("breast_cancer")]
    allowed = Policy(allowed_tasks=("breast_cancer", entry_of(task)))
    assert [other.digest for other in Shelf(tmp_path).make_known(allowed.allows_own)] == [task.digest]


def test_an_entry_has_more_digits_than_two_tasks_can_be_made_to_share(tmp_path: Path) -> None:
    (tmp_path / "task.yaml").write_text(TASK)
    task, kept = Shelf(tmp_path).put(tmp_path / "task.yaml")
    assert entry_of(task) == f"breast_cancer@{task.digest[:32]}"
    assert kept.parent.name == f"breast_cancer-{task.digest[:32]}"
