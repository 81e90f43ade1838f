"""Short words told by their bytes mean what they mean one by one."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from sovfed.clients.data.tables.cells import Decoder
from sovfed.clients.data.tables.short import LETTERS, ShortWords, fits
from sovfed.clients.data.tables.words import Rules
from sovfed.federation.tasks.columns import Column, number

WORDS = ["", "no", "yes", "ja", "jä", "moderate", "1", "10", "100"]
TEXT = st.one_of(st.sampled_from([*WORDS, "moderates", "no\0", "\0", "YES", "n/a"]), st.text(max_size=10))
GRADE = Column("grade", "category", categories=("no", "yes", "moderate"), missing="category")


@given(st.lists(st.sampled_from(WORDS)), st.integers(0, 3), st.integers(0, 3))
def test_each_cell_is_told_its_word(texts: list[str], first: int, last: int) -> None:
    cells = pa.array([*["before"] * first, *texts, *["after"] * last], pa.string())[first : first + len(texts)]
    codes = ShortWords(WORDS).codes(cells)
    assert codes is None if not texts else codes is not None and [WORDS[code] for code in codes] == texts


@given(st.lists(st.sampled_from(WORDS), min_size=1), TEXT.filter(lambda text: text not in WORDS), st.randoms())
def test_a_text_that_is_not_in_the_list_is_not_taken_for_one(texts: list[str], other: str, random: object) -> None:
    texts.insert(random.randrange(len(texts) + 1), other)  # type: ignore[attr-defined]
    assert ShortWords(WORDS).codes(pa.array(texts, pa.string())) is None


def test_cells_without_a_value_are_left_to_others() -> None:
    assert ShortWords(WORDS).codes(pa.array(["no", None])) is None


def test_words_that_are_long_many_or_padded_do_not_fit() -> None:
    assert fits(WORDS)
    assert not fits(["a" * (LETTERS + 1)])
    assert not fits(["ä" * LETTERS])
    assert not fits(["no", "no\0"])
    assert not fits([str(number) for number in range(100)])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(TEXT, min_size=1, max_size=30), min_size=2, max_size=6))
def test_batches_are_decoded_alike_whatever_came_before(batches: list[list[str]]) -> None:
    for column in (GRADE, Column("ill", "boolean", role="target"), number("age", 0.0, 99.0)):
        decoder = Decoder(column, Rules())
        for texts in batches:
            cells = [pa.array(texts, pa.string())]
            seen, alone = decoder.decode(cells), Decoder(column, Rules()).decode(cells)
            np.testing.assert_array_equal(seen.values, alone.values)
            np.testing.assert_array_equal(seen.absent, alone.absent)
            assert [kind for kind, mask in seen.faults if mask.any()] == [
                kind for kind, mask in alone.faults if mask.any()
            ]
            for kind, mask in alone.faults:
                np.testing.assert_array_equal(dict(seen.faults)[kind], mask)
