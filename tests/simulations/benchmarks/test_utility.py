"""The table of `sovfed bench utility`: a line for all institutions together, and for each of them."""

from __future__ import annotations

from sovfed.simulations.baselines import Comparison
from sovfed.simulations.benchmarks.utility import _rows


def test_a_row_spans_the_seeds_and_an_undefined_metric_has_none() -> None:
    comparisons = [
        Comparison("bits_per_byte", 2.0, 3.0, federated, [{"pooled": 2.0, "alone": None, "federated": federated}])
        for federated in (2.25, 2.75)
    ]
    rows = {(row["institution"], row["model"]): row for row in _rows("statutes_x", ["moj-justice"], comparisons)}
    assert set(rows) == {
        ("all", "pooled"), ("all", "alone"), ("all", "federated"), ("moj-justice", "pooled"),
        ("moj-justice", "federated"),
    }  # fmt: skip
    told = rows["moj-justice", "federated"]
    assert (told["mean"], told["low"], told["high"], told["seeds"]) == (2.5, 2.25, 2.75, 2)
    assert rows["all", "alone"]["mean"] == 3.0
