"""A run's curves: no panel, and no name in a legend, of what the run does not tell."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from sovfed.server.runs.curves import draw_curves

PUBLIC = [{"auc": 0.5, "loss": 0.7}, {}, {"auc": 0.75, "loss": 0.5}]  # the second round measured nothing


def drawn(folder: Path, *metrics: dict[str, float], loss: float | None) -> Figure:
    told: dict[str, Any] = {"train_loss": loss, "seconds": 2.0, "seconds_compute": loss, "overhead_seconds": loss}
    lines = [{"round": number, "metrics": measured, **told} for number, measured in enumerate(metrics, start=1)]
    (folder / "rounds.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return draw_curves(folder)


@pytest.mark.parametrize(
    ("metrics", "loss", "panels"),
    [
        (PUBLIC, 0.6, [["training", "held out"], ["auc"], ["slowest institution's compute", "overhead"]]),
        ([{}, {}], 0.6, [["training"], ["slowest institution's compute", "overhead"]]),
        ([{"auc": 0.5}], None, [["auc"], ["whole round"]]),
        ([{}, {}], None, [["whole round"]]),
    ],
)
def test_every_panel_has_something_in_it(
    tmp_path: Path, metrics: list[dict[str, float]], loss: float | None, panels: list[list[str]]
) -> None:
    axes = drawn(tmp_path, *metrics, loss=loss).axes
    assert [axis.get_legend_handles_labels()[1] for axis in axes] == panels
    assert all(np.size(line.get_xdata()) > 0 for axis in axes for line in axis.lines)


def test_a_private_run_says_why_only_seconds_are_drawn(tmp_path: Path) -> None:
    assert drawn(tmp_path, {}, {}, loss=None).get_suptitle() == "No institution tells a loss or a metric in this run"
    assert drawn(tmp_path, *PUBLIC, loss=0.5).get_suptitle() == ""


def test_a_metric_stands_at_the_round_after_which_the_model_had_it(tmp_path: Path) -> None:
    (curve,) = drawn(tmp_path, *PUBLIC, loss=0.6).axes[1].lines
    assert np.asarray(curve.get_xydata()).tolist() == [[0, 0.5], [2, 0.75]]
