"""Which tasks are known, and when two of one name are the same."""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from functools import partial
from importlib.metadata import EntryPoint
from typing import TYPE_CHECKING, Any

import pytest
from torch import nn

from sovfed.federation import plugins
from sovfed.federation.compose import compose
from sovfed.federation.errors import ConfigError
from sovfed.federation.metrics import BinaryMetrics, ClassMetrics
from sovfed.federation.tasks import Task, registry
from sovfed.federation.tasks.columns import Schema, number, target
from sovfed.federation.tasks.losses import binary_cross_entropy, squared_error
from sovfed.federation.tasks.registry import add, configured_task, get_task, names, versions

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

HEART = get_task("heart")


@pytest.fixture(autouse=True)
def _own_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test adds is gone after it."""
    monkeypatch.setattr(registry, "_ADDED", {})


@pytest.mark.parametrize(("name", "near"), [("hart", "heart"), ("digit", "digits"), ("hart" * 100, "hart")])
def test_an_unknown_task_is_refused_with_the_nearest_name(name: str, near: str) -> None:
    with pytest.raises(ConfigError, match=near) as caught:
        get_task(name)
    assert f"'{name[:64]}'" in str(caught.value) and len(str(caught.value)) < 400


def test_an_added_task_is_known_and_the_newest_of_its_name() -> None:
    mine = replace(HEART, version="2")
    assert versions("heart") == [HEART]
    assert add(mine) is mine
    assert (get_task("heart"), versions("heart")) == (mine, [HEART, mine])
    add(replace(HEART, version="2"))  # the very same, read again
    assert [task.version for task in versions("heart")] == ["1", "2"]
    new = add(replace(HEART, name="own"))
    assert "own" in names() and versions("own") == [new]


def renamed(**changes: object) -> Task:
    """The task with its first column changed."""
    first, *rest = HEART.schema.columns
    column = dataclasses.replace(first, **changes)  # type: ignore[arg-type]
    return replace(HEART, schema=replace(HEART.schema, columns=(column, *rest)))


def wider() -> nn.Module:
    return nn.Sequential(nn.Linear(13, 2), nn.ReLU(), nn.Linear(2, 1))


def frozen() -> nn.Module:
    module = nn.Linear(13, 1)
    module.bias.requires_grad_(False)
    return module


@dataclasses.dataclass(frozen=True)
class Edges(BinaryMetrics):
    edge: float = 0.0


def relabelled(*classes: str) -> Task:
    columns = (*HEART.schema.columns[:-1], target("disease", *classes))
    return replace(HEART, schema=replace(HEART.schema, columns=columns))


def of_width(width: int) -> nn.Module:
    del width  # as a dropout's rate, which no tensor's shape tells
    return nn.Linear(13, 1)


def weighted(weight: float) -> Callable[[Any, Any], Any]:
    return lambda outputs, targets: weight * binary_cross_entropy(outputs, targets)


def called(module: nn.Module, inputs: Any) -> object:
    return module(-inputs)


OTHERS: dict[str, Callable[[], Task]] = {
    "a bound": lambda: renamed(high=121.0),
    "a unit": lambda: renamed(unit="years"),
    "a column's name": lambda: renamed(name="years"),
    "what stands for a missing value": lambda: renamed(missing="mean"),
    "a scaling": lambda: renamed(scaling="bounds"),
    "a word of a class": lambda: relabelled("absent", "there"),
    "the order of classes": lambda: relabelled("present", "absent"),
    "a class": lambda: relabelled("absent", "present", "unknown"),
    "the order of columns": lambda: replace(
        HEART, schema=replace(HEART.schema, columns=(*HEART.schema.columns[1::-1], *HEART.schema.columns[2:]))
    ),
    "who is a person": lambda: replace(HEART, schema=replace(HEART.schema, person="patient")),
    "a layer's size": lambda: replace(HEART, build=wider, code=HEART.digest),
    "what is trained": lambda: replace(HEART, build=frozen, code=HEART.digest),
    "the metrics": lambda: replace(HEART, metrics=ClassMetrics(2)),
    "the metrics' settings": lambda: replace(HEART, metrics=Edges(edge=1.0)),
    "others of the metrics' settings": lambda: replace(HEART, metrics=Edges(edge=2.0)),
    "the loss": lambda: replace(HEART, loss=squared_error),
    "a setting of the loss": lambda: replace(HEART, loss=weighted(1.0)),
    "another setting of the loss": lambda: replace(HEART, loss=weighted(2.0)),
    "a setting of the model": lambda: replace(HEART, build=partial(of_width, 1)),
    "another setting of the model": lambda: replace(HEART, build=partial(of_width, 2)),
    "how the model is called": lambda: replace(HEART, predict=called),
    "the headline": lambda: replace(HEART, headline="accuracy"),
    "the version": lambda: replace(HEART, version="2"),
    "the code": lambda: replace(HEART, code="0" * 64),
    "the name": lambda: replace(HEART, name="hearts"),
}


@pytest.mark.parametrize("what", list(OTHERS))
def test_a_task_that_differs_in_anything_has_another_digest(what: str) -> None:
    assert OTHERS[what]().digest != HEART.digest


def test_all_of_these_have_digests_of_their_own() -> None:
    digests = {make().digest for make in OTHERS.values()} | {HEART.digest}
    assert len(digests) == len(OTHERS) + 1


def test_what_only_a_page_shows_is_not_in_the_digest() -> None:
    assert replace(HEART, title="Herz", citation="", licence="", evaluation_batch=7).digest == HEART.digest
    assert len(HEART.digest) == 64 and int(HEART.digest, 16) >= 0


def test_the_length_that_a_run_chooses_for_the_echo_is_not_in_its_digest() -> None:
    """Else no institution would answer a run of another length than the usual."""
    assert get_task("echo", 7).digest == get_task("echo").digest
    assert get_task("echo", 7).parameters == 7


def test_code_beside_the_model_s_is_in_the_digest_of_a_task_written_here() -> None:
    """The bytes of the module that has `build`: another file with the same layers is another model."""
    here = Task(
        name="heart", title="t", schema=HEART.schema, metrics=BinaryMetrics(), headline="auc",
        build=lambda: nn.Linear(13, 1), loss=binary_cross_entropy,
    )  # fmt: skip
    assert here.layout.size == HEART.layout.size == 14
    assert here.digest != HEART.digest


NO_TASK = Schema((number("a", 0, 1),))


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("tests.federation.tasks.test_registry:NO_TASK", "is no Task called 'mine'"),
        ("tests.federation.tasks.test_registry:HEART", "is no Task called 'mine'"),  # it is called heart
        ("tests.federation.tasks.test_registry:NOWHERE", "cannot be loaded: AttributeError"),
        ("no_such_package.tasks:TASK", "cannot be loaded: ModuleNotFoundError"),
    ],
)
def test_a_package_that_does_not_bring_what_it_says_is_told(
    value: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    point = EntryPoint("mine", value, registry.GROUP)
    monkeypatch.setattr(plugins, "installed", lambda _group: {"mine": point})
    registry._load.cache_clear()
    try:
        with pytest.raises(ConfigError, match=said):
            get_task("mine")
    finally:
        registry._load.cache_clear()


def test_a_broken_package_takes_no_other_task_away(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = {"aaa": EntryPoint("aaa", "no_such_package:TASK", registry.GROUP), **plugins.installed(registry.GROUP)}
    monkeypatch.setattr(plugins, "installed", lambda _group: broken)
    assert "aaa" in names() and get_task("heart") is HEART


def test_a_task_file_is_read_as_it_is_when_a_run_is_composed(tmp_path: Path) -> None:
    """Of one process, a notebook: a file that was edited, and two files that declare one name."""
    text = """
name: mine
title: Mine
person: none
columns: {age: {kind: number, low: 0, high: %d}}
target: {kind: binary, column: ill, classes: [healthy, ill]}
model: {family: linear}
"""
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_text(text % 100)
    second.write_text(text % 110)

    def high(file: Path) -> float:
        return configured_task(compose([f"task={file}"]).config.task).schema.columns[0].high

    assert [high(first), high(second), high(first)] == [100, 110, 100]
    first.write_text(text % 120)
    assert high(first) == 120
