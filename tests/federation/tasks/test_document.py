"""YAML from strangers: what it means, and that nothing but ConfigError comes of any bytes."""

from __future__ import annotations

import contextlib
import time

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from sovfed.federation.errors import ConfigError
from sovfed.federation.tasks.document import MAX_BYTES, block, flow, parse

WORDS = st.text(st.characters(exclude_categories=("Cc", "Cf", "Cs", "Zl", "Zp")), max_size=12)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**17), 10**17) | st.floats(-1e30, 1e30) | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=8,
)


def test_words_stay_words_and_numbers_are_numbers() -> None:
    found = parse("a: [no, yes, on, 007, 1:30, 2026-01-31, 0x1F, 1_000, .5, 1e-3, -2, true, null, '1', +7, 1.]")
    assert found["a"] == [
        "no", "yes", "on", "007", "1:30", "2026-01-31", "0x1F", "1_000", 0.5, 0.001, -2, True, None, "1", 7, 1.0,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a: &x 1\nb: *x", "line 1: anchors"),
        ("a: {b: 1}\nc: !!python/object:os.system {}", "line 2: tags"),
        ("a: !!str 1", "line 1: tags"),
        ("a: 1\nb: 2\na: 3", "line 3: 'a' comes twice"),
        ("? [1]\n: 2", "line 1: a key must be a word"),
        ("a: 1\n---\nb: 2", "line 2: a second document"),
        ("a: " + "[" * 20 + "]" * 20, "nested more than"),
        ("a: [1", "line "),
        ("- 1", "expected 'name: value'"),
        ("", "expected 'name: value'"),
        (b"a: \xff", "not UTF-8 at byte 3"),
        ("a: \0", "not allowed"),
    ],
)
def test_what_is_more_than_plain_values_is_refused_with_its_line(text: bytes | str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        parse(text)


def test_a_billion_laughs_are_not_even_begun() -> None:
    lines = ["a0: &a0 [lol, lol, lol, lol]", *(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}, *a{n - 1}]" for n in range(1, 40))]
    before = time.process_time()
    with pytest.raises(ConfigError, match="line 1: anchors"):
        parse("\n".join(lines))
    with pytest.raises(ConfigError, match=f"more than {MAX_BYTES} bytes"):
        parse(b"a" * (MAX_BYTES + 1))
    with pytest.raises(ConfigError, match="nested"):
        parse("[" * MAX_BYTES)
    assert time.process_time() - before < 1.0


@given(st.binary(max_size=200) | st.text(max_size=100))
def test_any_bytes_give_a_mapping_or_a_config_error(text: bytes | str) -> None:
    with contextlib.suppress(ConfigError):
        assert isinstance(parse(text), dict)


@given(st.dictionaries(WORDS, VALUES, max_size=4))
def test_what_is_written_is_read_again(values: dict[str, object]) -> None:
    assert parse(block(values, dict.fromkeys(values, "note")) or "{}") == values


@given(st.dictionaries(WORDS.filter(str.isprintable), st.booleans() | st.integers(-999, 999) | WORDS, max_size=4))
def test_other_readers_of_yaml_read_the_same(values: dict[str, object]) -> None:
    assert yaml.safe_load(flow(values)) == values
