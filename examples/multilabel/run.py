"""Several labels at once: each record has any of five, made up by scikit-learn.

python examples/multilabel/run.py [--quick]
"""

from __future__ import annotations

import sys

from sklearn.datasets import make_multilabel_classification
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

import sovfed
from sovfed.task import multilabel, number

LABELS = ["cough", "fever", "rash", "nausea", "fatigue"]
COLUMNS = [number(f"count_{place}", 0, 25) for place in range(12)]
TASK = multilabel("symptoms", lambda: nn.Linear(12, 5), COLUMNS, LABELS, one_row_a_person=True)
PRIVATE = {
    "privacy.population": 800, "privacy.epsilon": 8, "privacy.delta": 1e-4, "privacy.colluders": 0,
    "privacy.sampling_rate": 0.5, "server.min_cohort": 3, "privacy.clip": 0.5, "task.learning_rate": 2.0,
}  # fmt: skip


def run(quick: bool = False) -> dict[str, float]:
    """Macro AUC on held-out records: scikit-learn on all records, federated, and with privacy."""
    x, y = make_multilabel_classification(1200, 12, n_classes=5, n_labels=2, random_state=0)
    sites = [((x[site:800:4], y[site:800:4]), (x[800 + site :: 4], y[800 + site :: 4])) for site in range(4)]
    reference = make_pipeline(StandardScaler(), OneVsRestClassifier(LogisticRegression()))
    scores = reference.fit(x[:800], y[:800]).predict_proba(x[800:])
    rounds = 4 if quick else 15
    plain = sovfed.simulate(TASK, sites, rounds=rounds, settings={"task.local_epochs": 5, "task.learning_rate": 0.3})
    private = sovfed.simulate(TASK, sites, rounds=rounds, privacy="distributed", settings=PRIVATE)
    pooled = float(roc_auc_score(y[800:], scores, average="macro"))
    return {"pooled": pooled, "federated": plain.metrics["auc"], "private": private.metrics["auc"]}


if __name__ == "__main__":
    for name, value in run("--quick" in sys.argv).items():
        print(f"{name:<10} AUC {value:.3f}")
