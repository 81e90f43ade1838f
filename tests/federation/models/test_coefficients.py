"""Coefficients in columns' own units: what they say is what the model says."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from click.testing import CliRunner

from sovfed.clients.cli.use import cli
from sovfed.federation.messages import Sums
from sovfed.federation.models.coefficients import INTERCEPT, coefficients, meaning
from sovfed.federation.models.facts import RunFacts
from sovfed.federation.models.saved import linear_of, load_model, save_model, tensors_of
from sovfed.federation.tasks import Task
from sovfed.federation.tasks.declared import task_from_text

HEAD = """
format: 1
name: ward
title: Ward
person: one row a person
columns:
  age: {kind: number, low: 0, high: 120, unit: years}
  crp: {kind: number, low: 0, high: 500, missing: mean, indicator: true}
  bnp: {kind: number, low: 5, high: 80000, scaling: log}
  smoker: {kind: boolean}
  ward: {kind: category, categories: [A, B, C], missing: category}
model: {family: linear}
"""
NUMBER = "target: {kind: number, column: stay, low: 0, high: 60, unit: days}"
BINARY = 'target: {kind: binary, column: ill, classes: ["no", "yes"]}'
CLASSES = "target: {kind: classes, column: stage, classes: [one, two, three]}"
SURVIVAL = "target: {kind: survival, time: weeks, event: dead, high: 100, intervals: 2}"
LABELS = "target: {kind: labels, columns: [cough, fever]}"
ROW: dict[str, float | str] = {"age": 71.0, "crp": 12.5, "bnp": 900.0, "smoker": 1.0, "ward": "B"}


def _made(target: str, folder: Path) -> tuple[Task, npt.NDArray[np.float32], Sums]:
    """A task with a model of random weights and a scale, saved in `folder`."""
    task = task_from_text(HEAD + target)
    draw = np.random.default_rng(3)
    vector = draw.normal(size=task.parameters).astype(np.float32)
    size = task.transform.size
    scale = np.concatenate([draw.uniform(-0.5, 0.5, size), draw.uniform(0.1, 0.9, size)])
    save_model(folder, task, vector, scale, RunFacts("ward-1", metrics={"auc": 0.75}), within={"auc": (0.7, 0.8)})
    return task, vector, scale


def _log_odds(chance: float, other: float | None = None) -> float:
    return math.log(chance / (1 - chance if other is None else other))


@pytest.mark.parametrize("target", [NUMBER, BINARY, CLASSES, LABELS, SURVIVAL])
def test_the_coefficients_times_the_values_are_what_the_model_says(tmp_path: Path, target: str) -> None:
    task, vector, scale = _made(target, tmp_path)
    lines = coefficients(task, tensors_of(task, vector), scale)
    by_place = {(line.output, line.column, line.of): line.value for line in lines}
    answers = load_model(tmp_path).predict_rows({name: [value] for name, value in ROW.items()})
    said = {name: values[0] for name, values in answers.items()}
    first = said.get("probability_no", said.get("probability_one"))
    for output in {line.output for line in lines}:
        value = by_place[output, INTERCEPT, ""] + 71 * by_place[output, "age", "per years"]
        value += 12.5 * by_place[output, "crp", "per 1"] + by_place[output, "smoker", "yes, not no"]
        value += (
            by_place[output, "ward", "B, not A"] + math.log(896) * by_place[output, "bnp", "per 1 of ln(1 + bnp - 5)"]
        )
        expected = {
            "stay": said.get("stay"), "0 to 50": _log_odds(1 - said.get("survival_50", 0.5)),
            "50 to 100": _log_odds(1 - said.get("survival_100", 0.5) / said.get("survival_50", 1.0)),
        }  # fmt: skip
        if output not in expected:
            expected[output] = _log_odds(said[f"probability_{output}"], first)
        assert value == pytest.approx(expected[output], rel=1e-3, abs=1e-3)
    ratios = [line.ratio for line in lines if line.column == "age"]
    assert ratios == [None if target == NUMBER else math.exp(line.value) for line in lines if line.column == "age"]


def test_a_missing_value_has_a_coefficient_beside_the_mean(tmp_path: Path) -> None:
    task, vector, scale = _made(BINARY, tmp_path)
    said = {(line.column, line.of): line.value for line in coefficients(task, tensors_of(task, vector), scale)}
    rows = {name: [value, value] for name, value in ROW.items()}
    mean = 250 + 250 * scale[1]  # of crp, whose declared middle and half width are 250
    rows |= {"crp": [float(mean), math.nan], "ward": ["A", ""]}
    present, missing = load_model(tmp_path).predict_rows(rows)["probability_yes"].astype(float)
    expected = said["crp", "missing, not the mean"] + said["ward", "missing, not A"]
    assert _log_odds(missing) - _log_odds(present) == pytest.approx(expected, rel=1e-3)


def test_no_other_model_has_coefficients(tmp_path: Path) -> None:
    task = task_from_text(HEAD.replace("family: linear", "family: mlp, hidden: [2]") + BINARY)
    vector = np.zeros(task.parameters, np.float32)
    assert coefficients(task, tensors_of(task, vector), task.transform.public_scale) == []
    save_model(tmp_path, task, vector, task.transform.public_scale, RunFacts("ward-1"))
    assert linear_of(tmp_path) == ("", [])
    assert "coefficients" not in (tmp_path / "model.html").read_text()


def test_show_and_the_card_tell_them_and_claim_no_errors(tmp_path: Path) -> None:
    task, _, _ = _made(BINARY, tmp_path)
    shown = CliRunner().invoke(cli, ["show", str(tmp_path)], catch_exceptions=False).output
    assert f"coefficients of {meaning(task)}; no standard errors" in shown
    assert "B, not A" in shown and "odds ratio" in shown
    card = (tmp_path / "model.html").read_text()
    assert "<h2>Its coefficients</h2>" in card and "<td>per years</td>" in card and "no standard errors" in card
    assert "<td>0.7 to 0.8</td>" in card
    told = CliRunner().invoke(cli, ["show", str(tmp_path), "--json"], catch_exceptions=False).output
    assert '"coefficients"' in told
