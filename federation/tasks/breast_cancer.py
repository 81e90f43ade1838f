"""Is a breast mass malignant? Logistic regression on 30 measurements of cell nuclei (Wisconsin, 569 real patients).

The records come from one hospital; cutting them into four is simulated.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sovfed.federation.metrics import BinaryMetrics
from sovfed.federation.tasks import Task
from sovfed.federation.tasks.columns import Schema, number, target
from sovfed.federation.tasks.losses import binary_cross_entropy

if TYPE_CHECKING:
    from torch.nn import Module

_HIGHEST: Final = {  # of a nucleus' mean value; its standard error and worst value are held to the same bound
    "radius": 100.0, "texture": 100.0, "perimeter": 1000.0, "area": 10_000.0, "smoothness": 1.0, "compactness": 5.0,
    "concavity": 5.0, "concave points": 1.0, "symmetry": 1.0, "fractal dimension": 1.0,
}  # fmt: skip


def build() -> Module:
    from torch import nn

    return nn.Linear(30, 1)


TASK = Task(
    name="breast_cancer",
    title="Breast mass: benign or malignant (Wisconsin)",
    schema=Schema(
        columns=(
            *(
                number(pattern.format(what), 0.0, high)
                for pattern in ("mean {}", "{} error", "worst {}")
                for what, high in _HIGHEST.items()
            ),
            target("malignant", "benign", "malignant"),
        ),
    ),
    metrics=BinaryMetrics(),
    headline="auc",
    simulated_split=True,
    licence="CC BY 4.0",
    citation="Wolberg, Mangasarian, Street, Street 1993: Breast Cancer Wisconsin, UCI, doi 10.24432/C5DW2B",
    build=build,
    loss=binary_cross_entropy,
)
