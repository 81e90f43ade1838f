"""A task.yaml of every family and every kind of target, for the tests beside it."""

from __future__ import annotations

from typing import Final

HEAD: Final = "name: mine\ntitle: Mine\nperson: patient\n"
TABLE: Final = """columns:
  age: {kind: number, low: 0, high: 120, unit: years, plausible: [40, 70]}
  chol: {kind: number, low: 0, high: 700, missing: mean, indicator: true}
  ward: {kind: category, categories: [a, b, "no"], missing: category}
  smoker: {kind: boolean, missing: constant, fill: 0}
  visit: {kind: date, low: 1990-01-01, high: 2030-12-31}
"""
IMAGE: Final = "columns:\n  scan: {kind: image, shape: [1, 12, 12]}\n"
TEXT: Final = "columns:\n  note: {kind: text, shape: [30]}\n"
BOTH: Final = IMAGE + "  age: {kind: number, low: 0, high: 120}\n"
TARGETS: Final = {
    "binary": "target: {kind: binary, column: ill, classes: [healthy, ill]}\n",
    "classes": "target: {kind: classes, column: grade, classes: [1, 2, 3]}\n",
    "labels": "target: {kind: labels, columns: [cough, fever]}\n",
    "number": "target: {kind: number, column: days, low: 0, high: 60, unit: d}\n",
    "survival": "target: {kind: survival, time: days, event: died, high: 365, unit: d, intervals: 6}\n",
}
MODELS: Final = {
    "linear": (TABLE, "model: {family: linear}\n"),
    "mlp": (TABLE, "model: {family: mlp, hidden: [16, 8]}\n"),
    "mlp without norm": (TABLE, "model: {family: mlp, hidden: [16], norm: none, dropout: 0.1}\n"),
    "tabular_resnet": (TABLE, "model: {family: tabular_resnet, width: 16, hidden: 32}\n"),
    "cnn": (IMAGE, "model: {family: cnn, widths: [8, 16]}\n"),
    "cnn and numbers": (BOTH, "model: {family: cnn, widths: [8, 16]}\n"),
    "resnet": (IMAGE, "model: {family: resnet, widths: [8, 16], blocks: 1}\n"),
    "transformer": (TEXT, "model: {family: transformer, width: 16, heads: 2, blocks: 1}\n"),
    "transformer and numbers": (
        TEXT + "  age: {kind: number, low: 0, high: 120}\n",
        "model: {family: transformer, width: 16, heads: 2, blocks: 1, patch: 7}\n",
    ),
}


def text_of(model: str = "linear", target: str = "binary", rest: str = "") -> str:
    """The file with a model and a target of those above."""
    columns, family = MODELS[model]
    return HEAD + columns + TARGETS[target] + family + rest
