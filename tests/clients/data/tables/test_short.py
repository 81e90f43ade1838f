"""Short words told by their bytes mean what they mean one by one."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sovfed.clients.data.tables import short
from sovfed.clients.data.tables.cells import Decoder
from sovfed.clients.data.tables.short import LETTERS, ShortWords, fits, shared
from sovfed.clients.data.tables.words import Rules
from sovfed.federation.tasks.columns import Column, number

WORDS = ["", "no", "yes", "ja", "jä", "moderate", "1", "10", "100"]
TEXT = st.one_of(st.sampled_from([*WORDS, "moderates", "no\0", "\0", "YES", "n/a"]), st.text(max_size=10))
GRADE = Column("grade", "category", categories=("no", "yes", "moderate"), missing="category")


@given(st.lists(st.sampled_from(WORDS)), st.integers(0, 3), st.integers(0, 3))
def test_each_cell_is_told_its_word(texts: list[str], first: int, last: int) -> None:
    cells = pa.array([*["before"] * first, *texts, *["after"] * last], pa.string())[first : first + len(texts)]
    places = ShortWords(WORDS).places(cells)
    assert places is None if not texts else places is not None and [WORDS[place] for place in places] == texts


@given(st.lists(TEXT, min_size=1))
def test_a_text_that_is_not_in_the_list_is_not_taken_for_one(texts: list[str]) -> None:
    places = ShortWords(WORDS).places(pa.array(texts, pa.string()))
    if places is None:
        assert any("\0" in text for text in texts)
    else:
        assert [WORDS.index(text) if text in WORDS else len(WORDS) for text in texts] == places.tolist()


def test_cells_without_a_value_are_left_to_others() -> None:
    assert ShortWords(WORDS).places(pa.array(["no", None])) is None


@settings(max_examples=60)
@given(st.lists(st.tuples(TEXT, TEXT, TEXT), min_size=1, max_size=40), st.integers(1, 9), st.integers(1, 9))
def test_columns_told_together_are_told_as_each_is_alone(
    rows: list[tuple[str, str, str]], at_once: int, chunk: int
) -> None:
    columns = (GRADE, Column("ill", "boolean", role="target"), Column("who", "category", categories=("ja", "10")))
    texts = {column.name: [row[place] for row in rows] for place, column in enumerate(columns)}
    decoders = {column.name: Decoder(column, Rules()) for column in columns}
    for name, decoder in decoders.items():
        decoder.learn(texts[name][:chunk])
    cells = {
        name: pa.chunked_array([column[start : start + chunk] for start in range(0, len(column), chunk)], pa.string())
        for name, column in texts.items()
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(short, "AT_ONCE", at_once)
        groups = shared({name: decoder.few for name, decoder in decoders.items() if decoder.few is not None})
        sound = {name: values for group in groups for name, values in group.sound(cells).items()}
    for name, decoder in decoders.items():
        known = decoder.few.words if decoder.few is not None else ()
        alone = Decoder(decoder.column, Rules()).decode([pa.array(texts[name], pa.string())])
        if name in sound:
            np.testing.assert_array_equal(sound[name], alone.values)
            assert not alone.absent.any() and not any(mask.any() for _, mask in alone.faults)
        elif set(texts[name]) <= set(known) and not any("\0" in text for row in rows for text in row):
            assert alone.absent.any() or any(mask.any() for _, mask in alone.faults)


def test_words_that_are_long_many_or_padded_do_not_fit() -> None:
    assert fits(WORDS)
    assert not fits(["a" * (LETTERS + 1)])
    assert not fits(["ä" * LETTERS])
    assert not fits(["no", "no\0"])
    assert not fits([str(number) for number in range(100)])


@settings(max_examples=60)
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
