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
