"""Does a patient have heart disease? Logistic regression on FLamby's 13 features; four real hospitals.

Source of features and coding: Ogier du Terrail et al. 2022, FLamby, arXiv:2210.04620 (Fed-Heart-Disease).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sovfed.federation.metrics import BinaryMetrics
from sovfed.federation.tasks import Feature, Schema, Task
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
        features=(
            Feature("age", 0, 120),
            Feature("sex", 0, 1),
            Feature("trestbps", 0, 300),  # 0 stands for a missing value in one VA record
            Feature("chol", 0, 700),  # 0 stands for a missing value in Switzerland and VA
            Feature("fbs", 0, 1),
            Feature("thalach", 0, 250),
            Feature("exang", 0, 1),
            Feature("oldpeak", -5, 10),
            Feature("cp_2", 0, 1),
            Feature("cp_3", 0, 1),
            Feature("cp_4", 0, 1),
            Feature("restecg_1", 0, 1),
            Feature("restecg_2", 0, 1),
        ),
        label="disease",
        classes=("absent", "present"),
    ),
    parameters=14,
    metrics=BinaryMetrics(),
    headline="auc",
    simulated_split=False,
    licence="CC BY 4.0",
    citation="Janosi, Steinbrunn, Pfisterer, Detrano 1988: Heart Disease, UCI, doi 10.24432/C52P4X",
    build=build,
    loss=binary_cross_entropy,
)
