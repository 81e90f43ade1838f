"""What a table tells of a vector, with and without noise: expected values by hand."""

from __future__ import annotations

import numpy as np
import pytest

from sovfed.federation.statistics.question import read_question
from sovfed.federation.statistics.shown import lines_of
from sovfed.federation.statistics.table import table_of
from sovfed.federation.tasks.columns import Column, Schema, number, target

SCHEMA = Schema(
    (number("age", 0, 100, unit="years", missing="mean"), Column("smokes", "boolean"), target("ill", "no", "yes"))
)
QUESTION = read_question("age, smokes*ill, bins=2, least=10", SCHEMA)
# 100 persons: 40 of age 25, 50 of age 75, 10 unknown; v = age/100 − ½, so Σv = −10 + 12.5, Σv² = 90/16
VECTOR = np.array([100, 40, 50, 10, 2.5, 90 / 16, 60, 4, 20, 16], np.float64)


def test_counts_missing_mean_deviation_and_quantiles() -> None:
    table = table_of(QUESTION, VECTOR, 0.0)
    (age,) = table["columns"]
    assert table["persons"] == 100
    assert age["cells"] == {"0 to 50": 40, "50 to 100": 50, "missing": 10}
    assert age["mean"] == pytest.approx((40 * 25 + 50 * 75) / 90)
    assert age["deviation"] == pytest.approx(np.std([25] * 40 + [75] * 50))
    assert age["quantiles"]["0.25"] == pytest.approx(22.5 / 40 * 50)  # spread evenly within a bin
    assert age["quantiles"]["0.5"] == pytest.approx(50 + 5 / 50 * 50)


def test_small_counts_are_not_shown_and_neither_are_those_that_noise_makes() -> None:
    (cross,) = table_of(QUESTION, VECTOR, 0.0)["crosses"]
    assert cross["cells"] == {"no": {"no": 60, "yes": None}, "yes": {"no": 20, "yes": 16}}
    noisy = table_of(QUESTION, VECTOR, 9.0)  # ± 17.6
    assert noisy["least"] == 18
    assert noisy["crosses"][0]["cells"]["yes"] == {"no": 20, "yes": None}


def test_nothing_rests_on_too_few_persons() -> None:
    few = np.array([9, 4, 5, 0, 0.25, 0.5625, 6, 0, 2, 1.0])
    (age,) = table_of(QUESTION, few, 0.0)["columns"]
    assert age["mean"] is None and age["deviation"] is None
    assert set(age["quantiles"].values()) == {None}


def test_noise_that_leaves_no_variance_leaves_no_deviation() -> None:
    vector = VECTOR.copy()
    vector[5] = -3.0
    assert table_of(QUESTION, vector, 1.0)["columns"][0]["deviation"] is None


def test_people_read_the_interval_and_what_is_hidden() -> None:
    text = "\n".join(lines_of(table_of(QUESTION, VECTOR, 2.0)))
    assert "100 persons; each count is ± 4 (95 %); below 10 none is shown" in text
    assert "mean 52.78 ± 4.4 years" in text
    assert text.endswith("smokes × ill\n       no  yes\n  no   60    –\n  yes  20   16")


def test_no_bin_or_category_hides_behind_another_of_its_name() -> None:
    """Edges that agree in six digits, bins within one day, and a category that is called as the missing are."""
    schema = Schema(
        (
            number("charge", 1e6, 1e6 + 10),
            Column("day", "date", low=18_000, high=18_005),
            Column("ward", "category", categories=("missing", "missing (2)", "a"), missing="category"),
            target("ill", "no", "yes"),
        )
    )
    question = read_question("all, day*ward, bins=20", schema)
    table = table_of(question, np.arange(question.size) + 1000.0, 1.0)
    assert [len(column["cells"]) for column in table["columns"]] == [20, 20, 4, 2]
    assert [question.count(column) for column in question.columns] == [20, 20, 4, 2]
    (cross,) = table["crosses"]
    assert len(cross["cells"]) == 20 and {len(line) for line in cross["cells"].values()} == {4}
    assert list(table["columns"][0]["cells"])[:2] == ["1000000 to 1000000.5", "1000000.5 to 1000001"]


def test_how_far_sites_are_apart_is_the_mean_square_of_their_shares_from_those_of_all() -> None:
    """Two sites of 60 and 40 persons, by hand: all of the first below 50, a half of the second."""
    question = read_question("age, smokes, bins=2, sites=1", SCHEMA)
    assert (question.size, question.between) == (10, 8)
    first, second = (60, 60, 0, 0, 0, 0, 30, 30, 60**2 / 120, 2 * 30**2 / 120), (40, 20, 20, 0, 0, 0, 20, 20, 10, 10)
    age, smokes = table_of(question, np.add(first, second), 0.0)["columns"]
    assert age["apart"] == pytest.approx((60 * 2 * 0.2**2 + 40 * 2 * 0.3**2) / 100) and age["apart_within"] == 0
    assert smokes["apart"] == pytest.approx(0.0)
    text = "\n".join(lines_of(table_of(question, np.add(first, second), 0.0)))
    assert "between sites 0.120 ± 0.000 (0: all alike): sites differ" in text
    noisy = "\n".join(lines_of(table_of(question, np.add(first, second), 8.0)))
    assert "no difference between sites can be told" in noisy
    few = table_of(question, np.add(first, second) / 20, 0.0)["columns"][0]
    assert few["apart"] is None and "between" not in "\n".join(lines_of(table_of(question, np.zeros(10), 1.0)))


@pytest.mark.parametrize("noise", [2.0, 12.0])
def test_the_interval_of_how_far_sites_are_apart_holds_the_truth_in_95_of_100(noise: float) -> None:
    question, draw = read_question("age, smokes, bins=2, sites=1", SCHEMA), np.random.default_rng(3)
    exact = np.array([1000, 550, 450, 0, 0, 0, 500, 500, 300, 252.0])
    truth = [column["apart"] for column in table_of(question, exact, 0.0)["columns"]]
    held = [
        [abs(column["apart"] - true) <= column["apart_within"] for column, true in zip(told, truth, strict=True)]
        for told in (table_of(question, exact + draw.normal(0, noise, 10), noise)["columns"] for _ in range(2_000))
    ]
    assert (np.abs(np.mean(held, 0) - 0.95) < 0.02).all()
