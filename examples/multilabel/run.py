"""Several labels at once: each record has any of five, made up by scikit-learn.

python examples/multilabel/run.py [--quick]
"""

from __future__ import annotations

import sys
from pathlib import Path

from sklearn.datasets import make_multilabel_classification
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

sys.path.insert(0, str(Path(__file__).parents[1]))
from arrays.connector import write
from multilabel.task import TASK
from study import Study, divided, main, united


def prepare(folder: Path) -> Path:
    """A third of 1,200 records for each institution; 400 of all are held out."""
    x, y = make_multilabel_classification(1200, 12, n_classes=5, n_labels=2, random_state=0)
    return write(folder, divided((x[:800], y[:800]), (x[800:], y[800:])))


def pooled(folder: Path) -> float:
    """Mean AUC of the labels by one logistic regression each, on all training records."""
    x, y, held_out, expected = united(folder)
    model = make_pipeline(StandardScaler(), OneVsRestClassifier(LogisticRegression())).fit(x, y)
    return float(roc_auc_score(expected, model.predict_proba(held_out), average="macro"))


STUDY = Study(
    "multilabel", TASK, "auc", "arrays", prepare, pooled, "scikit-learn's logistic regressions", persons=800, rounds=15,
    plain={"task.local_epochs": 5, "task.learning_rate": 0.3},
    private={"privacy.clip": 0.5, "task.learning_rate": 2.0},
)  # fmt: skip

if __name__ == "__main__":
    main(STUDY)
