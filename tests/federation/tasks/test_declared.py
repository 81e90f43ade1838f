"""A task as data: what a task.yaml means, that its digest tells every change, that nothing else comes of it."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.federation.tasks.declared_cases import HEAD, MODELS, TABLE, TARGETS, text_of

from sovfed.federation.errors import ConfigError
from sovfed.federation.metrics import SurvivalMetrics
from sovfed.federation.tasks import Task
from sovfed.federation.tasks.declared import read_task, task_from_text, to_text
from sovfed.federation.tasks.document import flow, parse

REST = (
    "version: 2\nheadline: accuracy\ntraining: {optimizer: adamw, learning_rate: 1e-3, local_epochs: 2}\n"
    "card: {purpose: 'Who falls ill?', licence: CC0-1.0, citation: Us 2026}\n"
)


def test_a_file_means_what_it_says() -> None:
    task = task_from_text(text_of("mlp", rest=REST))
    age, chol, ward, smoker, visit, ill = task.schema.columns
    assert (task.name, task.version, task.headline, task.schema.person) == ("mine", "2", "accuracy", "patient")
    assert (age.low, age.high, age.unit, age.plausible) == (0.0, 120.0, "years", (40.0, 70.0))
    assert (chol.missing, chol.indicator) == ("mean", True)
    assert (ward.categories, ward.missing) == (("a", "b", "no"), "category")
    assert (smoker.missing, smoker.fill) == ("constant", 0.0)
    assert (visit.low, visit.high) == (7305.0, 22279.0)  # days since 1970-01-01
    assert (ill.role, ill.categories, task.schema.classes) == ("target", ("healthy", "ill"), ("healthy", "ill"))
    assert task.training == {"optimizer": "adamw", "learning_rate": 0.001, "local_epochs": 2}
    assert (task.card["purpose"], task.licence, task.citation) == ("Who falls ill?", "CC0-1.0", "Us 2026")
    assert task.transform.width == 4 + 1 + 4  # numbers, one indicator, three wards and none
    assert task.parameters == (9 * 16 + 16) + 32 + (16 * 8 + 8) + 16 + (8 + 1)


def test_one_row_a_person_is_said_in_words() -> None:
    schema = task_from_text(text_of().replace("person: patient", "person: one row a person")).schema
    assert schema.one_row_a_person and schema.person == ""


def test_the_time_of_survival_stays_in_its_unit_and_a_number_is_scaled() -> None:
    task = task_from_text(text_of(target="survival"))
    assert isinstance(task.metrics, SurvivalMetrics)
    assert task.metrics.edges == pytest.approx(np.linspace(0, 365, 7))
    _, targets = task.made_up(100)
    assert isinstance(targets, dict)
    assert 300 < float(targets["days"].max()) <= 365
    task = task_from_text(text_of(target="number"))
    scale = np.array([0.1] * task.transform.size + [0.25] * task.transform.size)
    assert task.transform.unit(scale) == pytest.approx(30 * 0.25)  # half of 0 to 60 days, times the deviation
    assert task_from_text(text_of(target="binary")).transform.unit(scale[:0]) == 1.0


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("model", MODELS)
def test_what_is_written_is_read_again(model: str, target: str) -> None:
    task = task_from_text(text_of(model, target, REST.replace("headline: accuracy\n", "")))
    assert task.file is not None
    again = task_from_text(to_text(task.file, {"columns.age": "to be confirmed"}))
    assert again.file == task.file
    assert again.code == task.code


def test_every_change_of_a_value_changes_the_digest_and_a_comment_does_not() -> None:
    text = text_of("linear", rest=REST)
    changes = {
        "age:": "agE:", "high: 120": "high: 121", "years": "a", "missing: mean": "missing: constant, fill: 5",
        "[a, b": "[b, a", "fill: 0": "fill: 1", "1990-01-01": "1990-01-02", "healthy": "well", "patient": "person",
        "title: Mine": "title: Yours", "version: 2": "version: 3", "family: linear": "family: tabular_resnet",
        "1e-3": "1e-2", "CC0": "CC1", "[40, 70]": "[40, 71]",
    }  # fmt: skip
    texts = [text.replace(old, new.replace(", fill: 5, indicator: true", ", fill: 5")) for old, new in changes.items()]
    digests = {task_from_text(one).digest for one in [text, *texts]}
    assert len(digests) == 1 + len(changes)
    spaced = "# a comment\n" + text.replace("{kind: number, low: 0,", "{low: 0.0,    kind: number,")
    assert task_from_text(spaced).digest in digests


def test_the_meaning_of_a_file_is_pinned() -> None:
    """Change this only together with `FORMAT`: institutions hold a task by its digest."""
    assert task_from_text(text_of()).code == PINNED


PINNED = "3a8c0aa50786db9fb0790b0c6c010d67d25de04bac55fb412646770f11d77ec3"


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("name: mine", "name: ../mine", "'name' must be"),
        ("person: patient\n", "", "missing key 'person'"),
        ("title: Mine", "title: 7", "'title' must be str"),
        ("title: Mine", "titel: Mine", "unknown key 'titel'.*did you mean 'title'"),
        ("columns:", "modle: 1\ncolumns:", "unknown key 'modle'.*did you mean 'model'"),
        ("high: 120", "high: -1", "columns.age: column 'age': low 0 is not below high -1"),
        ("high: 120", "hihg: 120", "unknown key 'columns.age.hihg'.*did you mean 'high'"),
        ("low: 0, high: 120, ", "", "'columns.age' needs 'low' and 'high'"),
        ("high: 120", "high: 1e999", "must be finite"),
        ("high: 120", "high: .inf", "must be float"),
        ("kind: number, low: 0, high: 120", "kind: nubmer", "did you mean 'number'"),
        ("missing: mean", "missing: median", "columns.chol.missing"),
        ("missing: mean", "missing: constant", "columns.chol.fill.*belongs to missing: constant"),
        ("fill: 0", "fill: 3", "expected 0 to 1"),
        ("missing: mean, ", "", "'columns.chol.indicator' belongs to"),
        ("[a, b, \"no\"]", "[a, a]", "2 categories"),
        ("[a, b, \"no\"]", "[a, 1.5]", "put it in quotes"),
        ("[a, b, \"no\"]", "[a, ' b']", "no spaces around"),
        ("1990-01-01", "31.12.1990", "expected a date such as"),
        ("age:", "patient:", "none of them"),
        ("age:", "x:", "none of them"),
        ("age:", "ill:", "unequal"),
        ("age:", '"a\\e[2J":', "control characters"),
        ("[healthy, ill]", "[healthy]", "1 classes, kind 'binary' has two"),
        ("column: ill", "time: ill", "kind 'binary' needs 'column'"),
        ("column: ill", "column: ill, low: 0", "'low' is not for kind 'binary'"),
        ("kind: binary", "kind: bynary", "did you mean 'binary'"),
        ("family: linear", "family: linear, hidden: [3]", "model.*hidden"),
        ("family: linear}", "family: linear}\nheadline: auk", "did you mean 'auc'"),
        ("family: linear}", "family: linear}\ntraining: {learning_rate: 0}", "training.learning_rate"),
        ("family: linear}", "family: linear}\nformat: 2", "'format' 2 is outside"),
    ],
)  # fmt: skip
def test_a_mistake_is_named_with_its_place(old: str, new: str, told: str) -> None:
    text = text_of()
    assert old in text
    with pytest.raises(ConfigError, match=told):
        task_from_text(text.replace(old, new))


@pytest.mark.parametrize(
    ("target", "told"),
    [
        ("{kind: survival, time: d, event: e, high: 10, edges: [0, 5, 4]}", "rising"),
        ("{kind: survival, time: d, event: e, high: 10, edges: [0, 20]}", "none above 'high'"),
        ("{kind: survival, time: d, event: e, high: 10, edges: [0, 5], intervals: 2}", "not both"),
        ("{kind: survival, time: d, event: e, low: 1e9, high: 1.000000001e9}", "rising"),
        ("{kind: survival, time: d, event: d, high: 9}", "unequal"),
        ("{kind: survival, time: d, event: e, high: -9}", "rising"),
        ("{kind: labels, columns: [a]}", "1 labels, expected 2"),
        ("{kind: labels, columns: [a, a]}", "unequal"),
        ("{kind: number, column: d, low: 3}", "needs 'high'"),
        ("{kind: classes, column: d, classes: [a]}", "1 classes"),
        ("{}", "kind 'binary' needs 'column'"),
        ("binary", "must be a group"),
    ],
)
def test_a_target_that_cannot_be_learnt_is_refused(target: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        task_from_text(f"{HEAD}{TABLE}target: {target}\nmodel: {{family: linear}}\n")


def test_a_file_is_read_with_its_name_in_the_error(tmp_path: Path) -> None:
    path = tmp_path / "task.yaml"
    path.write_text(text_of(), encoding="utf-8-sig")
    assert read_task(path).digest == task_from_text(text_of()).digest
    path.write_text("name: 3")
    with pytest.raises(ConfigError, match=re.escape(str(path))):
        read_task(path)
    (tmp_path / "mine.yaml").write_text("")
    with pytest.raises(ConfigError, match=r"did you mean '.*mine.yaml'"):
        read_task(tmp_path / "nine.yaml")
    with pytest.raises(ConfigError, match=f"no such file in {Path.cwd()}"):
        read_task(Path("none-such.yaml"))
    with pytest.raises(ConfigError, match="it is a folder"):
        read_task(tmp_path)


WORDS = [*re.findall(r"[\w.]+|[^\w\s]", text_of("mlp", rest=REST)), "[]", "{}", "-1", "1e30", "true", "''", "é"]
VALUES = st.sampled_from([None, True, 0, -1, 1e30, 10**17, "", "x", [], [0], ["a", "b"], {}, {"kind": "number"}])


@given(st.data())
def test_any_change_of_a_files_text_gives_a_task_or_a_config_error(data: st.DataObject) -> None:
    model, target = data.draw(st.sampled_from(sorted(MODELS))), data.draw(st.sampled_from(sorted(TARGETS)))
    text = text_of(model, target, REST)
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(text)))
        stop = data.draw(st.integers(start, min(len(text), start + 12)))
        text = text[:start] + data.draw(st.sampled_from(WORDS) | st.text(max_size=4)) + text[stop:]
    _take(text)


@given(st.data())
def test_any_value_in_any_place_gives_a_task_or_a_config_error(data: st.DataObject) -> None:
    model, target = data.draw(st.sampled_from(sorted(MODELS))), data.draw(st.sampled_from(sorted(TARGETS)))
    values = parse(text_of(model, target, REST.replace("headline: accuracy\n", "")))
    group = values
    while True:
        name = data.draw(st.sampled_from(sorted(group)))
        if not (isinstance(group[name], dict) and group[name] and data.draw(st.booleans())):
            break
        group = group[name]
    group[name] = data.draw(VALUES)
    _take(flow(values))


@given(st.binary(max_size=300))
def test_any_bytes_give_a_task_or_a_config_error(data: bytes) -> None:
    _take(data)


def _take(text: bytes | str) -> None:
    with contextlib.suppress(ConfigError):
        task = task_from_text(text)
        assert isinstance(task, Task)
        assert task.file is not None
        assert task_from_text(to_text(task.file)).file == task.file
        assert dataclasses.replace(task).code == task.code


def test_the_documents_example_is_a_task() -> None:
    lines = (Path(__file__).parents[3] / "docs" / "own-task.md").read_text(encoding="utf-8").splitlines()
    start = lines.index("    format: 1")
    block = itertools.takewhile(lambda line: line.startswith("    "), lines[start:])
    task = task_from_text("\n".join(line.removeprefix("    ") for line in block))
    assert (task.name, task.schema.classes, task.transform.width) == ("birth", ("no", "yes"), 5 + 4)


@pytest.mark.parametrize(
    "unseen", ["\\u3164", "\\u2800", "\\u034f", "\\ufe0f", "\\ufe00", "\\uffa0", "\\U000e0101", "\\u200b"]
)
@pytest.mark.parametrize("place", ["title: t", '  "age": {kind: number, low: 0, high: 9}', "classes: [no, yes]"])
def test_letters_that_nobody_sees_are_refused(unseen: str, place: str) -> None:
    """A reviewer would read two columns, or two words, of the same name."""
    text = (
        "name: n\ntitle: t\nperson: one row a person\ncolumns:\n"
        '  "age": {kind: number, low: 0, high: 9}\n  b: {kind: number, low: 0, high: 9}\n'
        "target:\n  kind: binary\n  column: ill\n  classes: [no, yes]\nmodel: {family: linear}\n"
    )
    task_from_text(text)
    hidden = {"title: t": f'title: "t{unseen}"', "classes: [no, yes]": f'classes: [no, "yes{unseen}"]'}
    with pytest.raises(ConfigError):
        task_from_text(text.replace(place, hidden.get(place, place.replace('age"', f'age{unseen}"'))))


@pytest.mark.parametrize("place", ["\\e]0;x\\a: {kind: number, low: 0, high: 1}", 'a: {"\\e[2J": 1}'])
def test_no_error_about_a_column_steers_the_terminal(place: str) -> None:
    name, _, rest = place.partition(": ")
    text = f'name: n\ntitle: t\nperson: p\ncolumns:\n  "{name}": {rest}\ntarget: {{}}\nmodel: {{}}\n'
    with pytest.raises(ConfigError) as caught:
        task_from_text(text)
    assert str(caught.value).isprintable() and "x1b" in str(caught.value)
