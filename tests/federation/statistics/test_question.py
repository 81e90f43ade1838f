"""What a question may ask, what each value of its vector is, and that one person moves it by no more than is said."""

from __future__ import annotations

import dataclasses
import math

import pytest

from sovfed.federation.compose import compose
from sovfed.federation.errors import ConfigError, ProtocolError
from sovfed.federation.messages import PrivateRequest
from sovfed.federation.statistics.question import question_of, read_question
from sovfed.federation.statistics.settings import least_of
from sovfed.federation.tasks.columns import Column, Schema, number, target
from sovfed.federation.tasks.registry import get_task
from sovfed.server.rounds.privacy import PrivacyPlan, vector_size

SCHEMA = Schema(
    (
        number("age", 0, 100, unit="years"),
        number("dose", -5, 5, missing="mean"),
        Column("ward", "category", categories=("a", "b", "c"), missing="category"),
        Column("smokes", "boolean"),
        Column("scan", "image", shape=(1, 4, 4)),
        target("ill", "no", "yes"),
    )
)


def test_a_question_reads_columns_cross_tables_and_settings() -> None:
    question = read_question("age, ward*ill , bins=4, least=20", SCHEMA)
    assert [column.name for column in question.columns] == ["age"]
    assert [(a.name, b.name) for a, b in question.crosses] == [("ward", "ill")]
    assert (question.bins, question.least) == (4, 20)
    assert question.cells(question.columns[0]) == ("0 to 25", "25 to 50", "50 to 75", "75 to 100")
    assert question.cells(question.crosses[0][0]) == ("a", "b", "c", "missing")
    assert question.size == 1 + 4 + 2 + 4 * 2  # persons, bins, Σv and Σv², pairs
    assert question.clip == pytest.approx(math.sqrt(1 + 1 + 5 / 16 + 1), rel=2e-3)


def test_all_is_every_column_that_can_be_counted() -> None:
    assert [column.name for column in read_question("all", SCHEMA).columns] == ["age", "dose", "ward", "smokes", "ill"]
    assert read_question("all", SCHEMA).size == 1 + (10 + 2) + (11 + 2) + 4 + 2 + 2


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("income", "no column 'income'"),
        ("age*income", "no column 'income'"),
        ("scan", "cannot be counted"),
        ("age*age", "no cross table of two columns"),
        ("age*ill, ill*age", "there twice"),
        ("bins=3", "names no column"),
        ("age, bins=0", "expected 1 to 1000"),
        ("age, bins=x", "expected 1 to 1000"),
        ("age*dose, bins=1000", "at most 65536"),
        ("__import__('os')", "no column"),
    ],
)
def test_what_is_no_question_about_the_columns_of_the_task_is_refused(text: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why.replace("(", r"\(")):
        read_question(text, SCHEMA)


def test_the_smallest_shown_count_is_told_without_the_columns() -> None:
    assert [least_of(text) for text in ("all", "all, least=3", "all, least=30, least = 4")] == [10, 3, 4]


def asked(**changes: object) -> PrivateRequest:
    """A statistics request as the plan makes it, with `changes`."""
    config = compose(["task=breast_cancer", "statistics=all, bins=3", "server.min_cohort=4"]).config
    task = get_task("breast_cancer")
    plan = PrivacyPlan.make(config, "counts", vector_size(config, task))
    import numpy as np

    request = plan.request("1", 1, np.zeros(plan.parameters, np.float32))
    return dataclasses.replace(request, **changes)  # type: ignore[arg-type]


def test_the_plan_asks_with_the_clip_that_the_question_needs() -> None:
    request = asked()
    question = question_of(request, get_task("breast_cancer").schema)
    assert (request.clip, request.model.size) == (question.clip, question.size)


@pytest.mark.parametrize(
    "change",
    [
        {"clip": 1.0}, {"sampling_rate": 0.1}, {"mechanism": "institution"}, {"mechanism": "silo"}, {"rounds": 2},
        {"statistics": "all, bins=4, mean radius*mean texture"}, {"statistics": "nothing"},
    ],
)  # fmt: skip
def test_a_request_whose_noise_is_for_less_than_a_person_adds_is_none(change: dict[str, object]) -> None:
    """Less noise (a smaller clip), a charge for a sample while all are counted, or more columns than were paid for."""
    with pytest.raises(ProtocolError):
        question_of(asked(**change), get_task("breast_cancer").schema)


@pytest.mark.parametrize(
    "override", ["rounds=2", "privacy.sampling_rate=0.5", "privacy=silo", "privacy=none", "strategy=fedadam"]
)
def test_a_configuration_that_is_no_count_of_everybody_is_refused(override: str) -> None:
    with pytest.raises(ConfigError, match="statistics counts everybody once"):
        compose(["task=breast_cancer", "statistics=all", override])
