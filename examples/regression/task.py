"""How far diabetes has gone after a year, by one linear layer: what each institution installs."""

from __future__ import annotations

from torch import nn

from sovfed.task import number, regressor

BOUNDS = {
    "age": (18, 80), "sex": (1, 2), "bmi": (15, 45), "bp": (60, 140), "tc": (90, 310), "ldl": (40, 250),
    "hdl": (20, 100), "tch": (1.5, 10), "ltg": (3, 6.5), "glu": (50, 130),
}  # fmt: skip
COLUMNS = [number(name, low, high) for name, (low, high) in BOUNDS.items()]
TASK = regressor("diabetes", lambda: nn.Linear(10, 1), COLUMNS, low=0, high=400, one_row_a_person=True)
