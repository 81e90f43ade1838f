"""An institution's sums against pandas, and that no person moves them by more than the question's clip."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from PIL import Image
from tests.clients.data.cases import task_of
from tests.records import Unreadable

from sovfed.clients.data import Records, load_records
from sovfed.clients.training.statistics import totals
from sovfed.federation.config import DataConfig
from sovfed.federation.statistics.question import Question, read_question
from sovfed.federation.tasks.columns import CODES, NUMBERS, Column, Schema, number, target

SCHEMA = Schema(
    (
        number("age", 0, 100),
        number("dose", -5, 5, missing="mean"),
        Column("ward", "category", categories=("a", "b", "c"), missing="category"),
        target("ill", "no", "yes"),
    )
)
QUESTION = read_question("all, ward*ill, age*dose, bins=4", SCHEMA)


def records(rows: int, persons: int, seed: int = 1) -> Records:
    generator = np.random.default_rng(seed)
    numbers = np.stack([generator.uniform(0, 100, rows), generator.uniform(-5, 5, rows)], 1).astype(np.float32)
    numbers[0], numbers[1] = (0, -5), (100, 5)  # at the bounds
    numbers[generator.random(rows) < 0.2, 1] = np.nan
    table: dict[str, npt.NDArray[Any]] = {
        NUMBERS: numbers, CODES: generator.integers(-1, 3, (rows, 1)).astype(np.int16),
        "ill": generator.integers(0, 2, rows).astype(SCHEMA.targets[0].dtype),
    }  # fmt: skip
    whose = generator.integers(0, persons, rows) if persons < rows else np.arange(rows)
    held_out = generator.random(rows) < 0.3
    return Records(table, whose, np.flatnonzero(~held_out), np.flatnonzero(held_out))


def test_sums_are_what_pandas_counts_of_all_records() -> None:
    data = records(5_000, 5_000)
    frame = pd.DataFrame(
        {"age": data.columns[NUMBERS][:, 0].astype(float), "dose": data.columns[NUMBERS][:, 1].astype(float),
         "ward": data.columns[CODES][:, 0], "ill": data.columns["ill"]}
    )  # fmt: skip
    total, _ = totals(data, SCHEMA, QUESTION)
    assert total[0] == 5_000
    age, dose, ward, _ill, cross, both = QUESTION.blocks
    bins = pd.cut(frame["age"], [0, 25, 50, 75, 100], right=False, include_lowest=True).cat.codes
    bins[frame["age"] == 100] = 3
    assert total[age.start : age.end].tolist() == bins.value_counts().sort_index().tolist()
    assert total[dose.end - 1] == frame["dose"].isna().sum()
    assert total[ward.start : ward.end].tolist() == [(frame["ward"] == code).sum() for code in (0, 1, 2, -1)]
    v = frame["age"] / 100 - 0.5
    assert total[age.end : age.end + 2] == pytest.approx([v.sum(), (v**2).sum()], abs=1e-5)
    expected = [((frame["ward"] == code) & (frame["ill"] == yes)).sum() for code in (0, 1, 2, -1) for yes in (0, 1)]
    assert total[cross.start : cross.end].tolist() == expected
    assert total[both.start : both.end].sum() == 5_000


def test_a_person_with_many_rows_counts_as_one() -> None:
    data = records(4_000, 300)
    total, _ = totals(data, SCHEMA, QUESTION)
    present = len(np.unique(data.persons))
    assert total[0] == pytest.approx(present, abs=1e-5)
    for block in QUESTION.blocks:
        assert total[block.start : block.end].sum() == pytest.approx(present, abs=1e-5)


@pytest.mark.parametrize("question", [QUESTION, read_question("all, bins=4, sites=1", SCHEMA)], ids=["", "sites"])
@pytest.mark.parametrize("seed", range(4))
def test_adding_a_person_moves_the_sums_by_at_most_the_clip(seed: int, question: Question) -> None:
    """Whatever the rows: at the bounds, missing, one or hundreds of them."""
    data = records(400, 20, seed)
    whole, _ = totals(data, SCHEMA, question)
    for person in np.unique(data.persons):
        train, test = (rows[data.persons[rows] != person] for rows in (data.train, data.test))
        without, _ = totals(Records(data.columns, data.persons, train, test), SCHEMA, question)
        assert np.linalg.norm(whole - without) <= question.clip
        assert (np.abs(whole - without)[question.between :] <= 1).all()


def test_what_tells_of_sites_moves_by_at_most_one_where_a_person_matters_most() -> None:
    """Of a person alone, one among many who are alike, and one who is unlike all others: by hand, Σk²/2n."""
    question = read_question("ill, sites=1", SCHEMA)

    def spread(no: int, yes: int) -> float:
        table: dict[str, npt.NDArray[Any]] = {
            NUMBERS: np.zeros((no + yes, 2), np.float32), CODES: np.zeros((no + yes, 1), np.int16),
            "ill": np.repeat([0, 1], [no, yes]).astype(SCHEMA.targets[0].dtype),
        }  # fmt: skip
        everybody = np.arange(no + yes)
        return float(totals(Records(table, everybody, everybody, everybody[:0]), SCHEMA, question)[0][question.between])

    assert [spread(0, 0), spread(1, 0), spread(500, 0), spread(500, 1)] == pytest.approx([0, 0.5, 250, 250_001 / 1002])
    assert spread(501, 0) - spread(500, 0) <= 1 and spread(500, 0) - spread(500, 1) <= 1


def test_the_clip_is_reached_by_a_person_at_the_bounds() -> None:
    """So it is no larger than it must be: a row with every number at an end."""
    question = read_question("age, ill", SCHEMA)
    table: dict[str, npt.NDArray[Any]] = {
        NUMBERS: np.array([[100.0, 0.0]], np.float32), CODES: np.zeros((1, 1), np.int16),
        "ill": np.ones(1, SCHEMA.targets[0].dtype),
    }  # fmt: skip
    one = Records(table, np.zeros(1, np.int64), np.zeros(1, np.int64), np.zeros(0, np.int64))
    assert np.linalg.norm(totals(one, SCHEMA, question)[0]) == pytest.approx(question.clip, rel=2e-3)


def test_sums_do_not_depend_on_the_order_of_the_rows() -> None:
    data = records(3_000, 100)
    order = np.random.default_rng(2).permutation(3_000)
    shuffled = Records(
        {name: values[order] for name, values in data.columns.items()}, data.persons[order],
        np.arange(1_500), np.arange(1_500, 3_000),
    )  # fmt: skip
    np.testing.assert_array_equal(totals(data, SCHEMA, QUESTION)[0], totals(shuffled, SCHEMA, QUESTION)[0])


def test_an_image_that_cannot_be_decoded_takes_nobody_out_of_the_sum(tmp_path: Path) -> None:
    """Else one person's file would decide about all of the institution's: no noise is made for that."""
    schema = Schema((Column("scan", "image", shape=(1, 8, 8)), number("age", 0, 100), target("ill", "no", "yes")))
    pixels = np.random.default_rng(0).integers(0, 256, (12, 8, 8), np.uint8)
    for place, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / f"{place}.png")
    (tmp_path / "table.csv").write_text("\n".join(["scan,age,ill", *(f"{place}.png,50,no" for place in range(12))]))
    data = load_records(task_of(*schema.columns), DataConfig(source="images", path=str(tmp_path), person="row"))
    broken = tmp_path / "3.png"
    broken.write_bytes(broken.read_bytes()[:60])
    total, failed = totals(data, schema, read_question("all, age*ill", schema))
    assert (total[0], failed) == (12, 0)


def test_a_record_that_cannot_be_read_takes_nobody_else_out_of_the_sum() -> None:
    """Else its person would move the table by everybody's part, which the noise is not for."""
    data = records(400, 400)
    total, failed = totals(Unreadable(data, (3, 77)), SCHEMA, QUESTION)
    train, test = (np.setdiff1d(rows, [3, 77]) for rows in (data.train, data.test))
    expected, none = totals(Records(data.columns, data.persons, train, test), SCHEMA, QUESTION)
    assert (failed, none) == (2, 0)
    np.testing.assert_array_equal(total, expected)
