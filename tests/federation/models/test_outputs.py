"""Predictions are what the outputs mean, by hand and by an independent formula."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.special import expit, softmax
from tests.federation.models.made_tasks import RUN, TASKS, model_of

from sovfed.federation.models.outputs import CLASSES, LABELS, NUMBERS, RAW, SURVIVAL, kind_of
from sovfed.federation.models.saved import LoadedModel, load_model, save_model
from sovfed.federation.tasks import registry
from sovfed.federation.tasks.columns import NUMBERS as SCALARS
from sovfed.federation.tasks.declared import task_from_text
from sovfed.federation.tasks.registry import get_task

ROWS: dict[str, list[object]] = {
    "age": [50, 100.0], "dose": [None, 2.0], "flat": ["", "7"], "smoker": ["oui", "no"],
    "seen": ["1970-01-02", "2000-01-01"], "ward": [None, "B"], "sex": ["m", "f"], "unused": ["x", "y"],
}  # fmt: skip


def packed(scale: np.ndarray) -> np.ndarray:
    """What the model is given of `ROWS`, by hand: (u − mean) / deviation, the mean for what is missing."""
    (age, dose, smoker, seen), (a, d, s, e) = np.split(scale, 2)
    return np.array(
        [
            [(0 - age) / a, 0, 4, (1 - smoker) / s, (1 / 20_000 - 1 - seen) / e, 1, 0, 0, 0, 1, 0, 1],
            [(1 - age) / a, (1 - dose) / d, 7, (-1 - smoker) / s, (10957 / 20_000 - 1 - seen) / e, 0, 0, 1, 0, 0, 1, 0],
        ]
    )


def made(folder: Path, name: str) -> tuple[LoadedModel, np.ndarray]:
    """The model, and its outputs for `ROWS` by numpy."""
    vector, scale = model_of(TASKS[name])
    save_model(folder, TASKS[name], vector, scale, RUN)
    inputs = packed(scale if len(scale) == 8 else np.delete(scale, [4, 9]))
    weight, bias = np.split(vector, [-(len(vector) // 13)])
    return load_model(folder), inputs @ weight.reshape(-1, 12).T + bias


def test_a_logit_is_the_chance_of_the_second_class(tmp_path: Path) -> None:
    model, outputs = made(tmp_path, "binary")
    found = model.predict_rows(ROWS)
    np.testing.assert_allclose(found["probability_ill"], expit(outputs[:, 0]), rtol=1e-4)
    np.testing.assert_allclose(found["probability_well"], 1 - expit(outputs[:, 0]), rtol=1e-3)
    assert found["outcome"].tolist() == ["ill" if output > 0 else "well" for output in outputs[:, 0]]


def test_several_classes_are_a_softmax(tmp_path: Path) -> None:
    model, outputs = made(tmp_path, "several")
    found = model.predict_rows(ROWS)
    chances = np.stack([found[f"probability_{word}"] for word in "123"], 1)
    np.testing.assert_allclose(chances, softmax(outputs, 1), rtol=1e-4)
    assert found["grade"].tolist() == [str(place + 1) for place in outputs.argmax(1)]


def test_a_number_comes_back_in_its_unit(tmp_path: Path) -> None:
    model, outputs = made(tmp_path, "number")
    mean, deviation = model.scale[4], model.scale[9]  # of the target, which stands behind the four inputs
    assert model.predict_rows(ROWS)["size"].tolist() == pytest.approx(
        25 + 25 * (mean + deviation * outputs[:, 0]), rel=1e-5
    )


def test_labels_are_told_one_by_one(tmp_path: Path) -> None:
    model, outputs = made(tmp_path, "labels")
    found = model.predict_rows(ROWS)
    for place, name in enumerate(("cough", "fever")):
        np.testing.assert_allclose(found[f"probability_{name}"], expit(outputs[:, place]), rtol=1e-4)
        assert found[name].tolist() == ["yes" if output > 0 else "no" for output in outputs[:, place]]


def test_survival_is_the_product_of_what_is_left(tmp_path: Path) -> None:
    model, outputs = made(tmp_path, "survival")
    found = model.predict_rows(ROWS)
    left = np.cumprod(1 - expit(outputs), 1)
    for place, cut in enumerate(("1", "2", "5")):
        np.testing.assert_allclose(found[f"survival_{cut}"], left[:, place], rtol=1e-3, atol=1e-12)
    np.testing.assert_allclose(found["risk"], 1 - left[:, -1], rtol=1e-4)


def test_survival_of_a_task_yaml_has_a_column_for_the_end_of_each_interval(tmp_path: Path) -> None:
    """It was told as arrays, which no table holds: only the metrics of a test had what was looked for."""
    task = task_from_text(
        'format: 1\nname: t_stay\ntitle: t\nversion: "1"\nperson: one row a person\n'
        "columns: {age: {kind: number, low: 0, high: 120}}\n"
        "target: {kind: survival, time: days, event: died, high: 1000, intervals: 4}\nmodel: {family: linear}\n"
    )
    registry.add(task)
    save_model(tmp_path, task, *model_of(task), RUN)
    model = load_model(tmp_path)
    found = model.predict_rows({"age": [30, 90]})
    assert list(found) == ["risk", "survival_250", "survival_500", "survival_750", "survival_1000"]
    left = np.cumprod(1 - expit(model.outputs({SCALARS: np.array([[30], [90]], np.float32)})), 1)
    np.testing.assert_allclose(np.stack(list(found.values())[1:], 1), left, rtol=1e-3)
    np.testing.assert_allclose(found["risk"], 1 - left[:, -1], rtol=1e-3)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("heart", CLASSES), ("digits_cnn", CLASSES), ("pneumonia", CLASSES), ("synthetic_text", CLASSES),
        ("statutes", RAW), ("t_labels", LABELS), ("t_number", NUMBERS), ("t_survival", SURVIVAL),
    ],
)  # fmt: skip
def test_the_kind_follows_from_the_schema(name: str, kind: str) -> None:
    assert kind_of(get_task(name)) == kind


def test_batches_change_nothing(tmp_path: Path) -> None:
    from dataclasses import replace

    model, _ = made(tmp_path, "binary")
    table = model.task.schema.made_up(23)
    small = replace(model, task=replace(model.task, evaluation_batch=5))
    np.testing.assert_allclose(small.outputs(table), model.outputs(table), rtol=1e-6)
    assert model.outputs({name: part[:0] for name, part in table.items()}).shape == (0, 1)
