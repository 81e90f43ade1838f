"""Any of five labels for each record, by one linear layer: what each institution installs."""

from __future__ import annotations

from torch import nn

from sovfed.task import multilabel, number

LABELS = ["cough", "fever", "rash", "nausea", "fatigue"]
COLUMNS = [number(f"count_{index}", 0, 25) for index in range(12)]
TASK = multilabel("symptoms", lambda: nn.Linear(12, 5), COLUMNS, LABELS, one_row_a_person=True)
