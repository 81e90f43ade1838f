"""What institutions add up is, value by value, what its form says: another meaning needs another number in `FORMS`.

All values are computed by hand. Whoever has to change one raises the number of its kind in `federation/sums.py`: else
institutions of two versions are summed as if they were of one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sovfed.clients.data import Records
from sovfed.clients.training.statistics import totals
from sovfed.federation.metrics import (
    BinaryMetrics,
    ClassMetrics,
    Metric,
    MultiLabelMetrics,
    RegressionMetrics,
    SurvivalMetrics,
    TextMetrics,
    TokenMetrics,
)
from sovfed.federation.metrics.bounded import bounded_scores
from sovfed.federation.statistics.question import read_question
from sovfed.federation.sums import FORMS, METRICS, PROFILE, SCORES, TABLE, form_of, sums_of
from sovfed.federation.tasks.columns import CODES, NUMBERS, Schema, number, target
from sovfed.federation.tasks.transform import Transform

SCHEMA = Schema((number("age", 0, 100), number("dose", -5, 5, missing="mean"), target("ill", "no", "yes")))
COLUMNS: dict[str, Any] = {
    NUMBERS: np.array([[30, 1], [100, np.nan]], np.float32), CODES: np.zeros((2, 0), np.int16),
    "ill": np.array([1, 0], SCHEMA.targets[0].dtype),
}  # fmt: skip
LOSSES = np.array([0.5, 0.25])
TWO_EVENTS = {"t": np.array([0.33, 1.63]), "e": np.array([1, 0])}
CASES: list[tuple[Metric, Any, Any, int, dict[int, float]]] = [
    (  # bins by asinh(2 · logit) / asinh(2000), of 128: −3 → 44, 0.3 → 68
        BinaryMetrics(), [[-3.0], [0.3]], np.array([0, 1]), 260,
        {0: 2, 1: 0.75, 2: 2, 3: 0.183348, 4 + 44: 1, 4 + 128 + 68: 1},
    ),
    (  # p = 0.880797 (right) and 0.731059 (wrong) in calibration bins 13 and 10; logits ±2 → 80, 47, ±1 → 75, 52
        ClassMetrics(2), [[0.0, 2.0], [1.0, 0.0]], np.array([1, 1]), 561,
        {0: 2, 1: 0.75, 2: 1, 3: 1.097312, 4 + 13: 1, 4 + 10: 1, 19 + 13: 0.880797, 19 + 10: 0.731059, 34 + 13: 1,
         49 + 47: 1, 49 + 75: 1, 433 + 80: 1, 433 + 52: 1},
    ),
    (  # by label: 2 → 80 and 1 → 75, −1 → 52 and 3 → 83
        MultiLabelMetrics(("a", "b")), [[2.0, -1.0], [1.0, 3.0]], {"a": np.array([1, 0]), "b": np.array([1, 1])}, 518,
        {0: 2, 1: 0.75, 3: 2, 4: 1, 5: 1, 6 + 75: 1, 262 + 80: 1, 390 + 52: 1, 390 + 83: 1},
    ),
    (RegressionMetrics(), [[1.0], [40.0]], np.array([3.0, 2.0]), 6,
     {0: 2, 1: 0.75, 2: 2 + 1000**0.5, 3: 4 + 1000, 4: 5, 5: 13}),
    (  # cells of a twentieth: 6 and 32; hazards 2 ln 2 and 2 ln(1 + e), risks 17 and 19 of 32; S = ½, ¼ and 0.268941
        SurvivalMetrics("t", "e", (0.0, 1.0, 2.0)), [[0.0, 0.0], [1.0, 1.0]], TWO_EVENTS, 2632,
        {0: 2, 1: 0.75, 2 + 32 * 32 + 19: 1, 2 + (41 + 6) * 32 + 17: 1, 2626: 0.25, 2627: 0.0625, 2630: 0.534447},
    ),
    (TextMetrics(), np.zeros((2, 5)), np.array([1, 2]), 3, {0: 2, 1: 0.5 * 4 + 0.25 * 3, 2: 7}),
    (TokenMetrics(), np.zeros((2, 5)), {"given": np.array([1, 2]), "bytes": np.array([9, 8])}, 4,
     {0: 2, 1: 0.00375, 2: 0.017, 3: 0.007}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("metric", "outputs", "targets", "size", "expected"), CASES, ids=lambda case: type(case).__name__
)
def test_metrics_of_form_2_count_so(
    metric: Metric, outputs: Any, targets: Any, size: int, expected: dict[int, float]
) -> None:
    assert FORMS[METRICS] == 2
    sums = metric.sums(np.asarray(outputs), targets, LOSSES)
    assert sums.shape == (size,) == (metric.size,)
    assert {int(place): float(sums[place]) for place in np.flatnonzero(sums)} == pytest.approx(expected, abs=1e-6)


def test_a_profile_of_form_1_counts_so() -> None:
    """u = (x − 50) / 50 and x / 5: −0.4 and 1; 0.2 and none."""
    assert FORMS[PROFILE] == 1
    profile = Transform(SCHEMA).profile(COLUMNS)
    assert profile == pytest.approx([2, 1, 0.6, 0.2, 1.16, 0.04], abs=1e-6)


def test_scores_of_form_1_count_so() -> None:
    assert FORMS[SCORES] == 1
    scores = bounded_scores(BinaryMetrics(), np.array([[0.3], [-3.0]]), np.array([1, 1]), np.array([1.0, 8.0]))
    assert scores.tolist() == [[1.0, 0.25], [0.0, 1.0]]


def test_a_table_of_form_1_counts_so() -> None:
    """[persons], bins of age, Σv and Σv² of v = −0.2 and 0.5, then dose (four bins, missing) by ill."""
    assert FORMS[TABLE] == 1
    records = Records(COLUMNS, np.array([0, 1]), np.array([0]), np.array([1]))
    table, _ = totals(records, SCHEMA, read_question("age, dose*ill, bins=4", SCHEMA))
    expected = [2, 0, 1, 0, 1, 0.3, 0.29, 0, 0, 0, 0, 0, 1, 0, 0, 1, 0]
    assert table == pytest.approx(expected, abs=1e-6)


def test_a_run_asks_for_sums_of_its_kind_alone() -> None:
    """A private run that trains adds up nothing but contributions to the model, whose form its request says."""
    assert sums_of("private", statistics=False, candidates=False) == ()
    assert sums_of("private", statistics=True, candidates=False) == (TABLE,)
    assert sums_of("private", statistics=False, candidates=True) == (SCORES,)
    assert sums_of("train", statistics=False, candidates=False) == (METRICS, PROFILE)
    assert sums_of("evaluate", statistics=False, candidates=True) == (METRICS,)
    assert form_of((METRICS, PROFILE), {METRICS: 2, PROFILE: 3}) == "metrics 2, profile 3"
    assert form_of((METRICS, PROFILE), {METRICS: 1, PROFILE: 1}) == ""
