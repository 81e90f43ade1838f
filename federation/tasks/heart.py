"""Does a patient have heart disease? Logistic regression on FLamby's 13 features; four real hospitals.

Source of features and coding: Ogier du Terrail et al. 2022, FLamby, arXiv:2210.04620 (Fed-Heart-Disease).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sovfed.federation.metrics import BinaryMetrics
from sovfed.federation.tasks import Task
from sovfed.federation.tasks.columns import Schema, number, target
from sovfed.federation.tasks.losses import binary_cross_entropy

if TYPE_CHECKING:
    from torch.nn import Module


def build() -> Module:
    from torch import nn

    return nn.Linear(13, 1)


TASK = Task(
    name="heart",
    title="Heart disease: absent or present (Cleveland, Hungary, Switzerland, VA Long Beach)",
    schema=Schema(
        columns=(
            number("age", 0, 120),
            number("sex", 0, 1),
            number("trestbps", 0, 300),  # 0 stands for a missing value in one VA record
            number("chol", 0, 700),  # 0 stands for a missing value in Switzerland and VA
            number("fbs", 0, 1),
            number("thalach", 0, 250),
            number("exang", 0, 1),
            number("oldpeak", -5, 10),
            number("cp_2", 0, 1),
            number("cp_3", 0, 1),
            number("cp_4", 0, 1),
            number("restecg_1", 0, 1),
            number("restecg_2", 0, 1),
            target("disease", "absent", "present"),
        ),
    ),
    metrics=BinaryMetrics(),
    headline="auc",
    simulated_split=False,
    licence="CC BY 4.0",
    citation="Janosi, Steinbrunn, Pfisterer, Detrano 1988: Heart Disease, UCI, doi 10.24432/C52P4X",
    build=build,
    loss=binary_cross_entropy,
)
