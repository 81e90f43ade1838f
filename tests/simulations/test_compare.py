"""Runs side by side: names that tell them apart, and a figure that shows each of them, whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sovfed.simulations.compare import Group, read_runs
from sovfed.simulations.compare_groups import group_runs
from sovfed.simulations.compare_plot import draw


def write(folder: Path, *, auc: float = 0.9, epsilon: float | None = None, **settings: Any) -> Path:
    folder.mkdir(parents=True)
    mechanism = "none" if epsilon is None else "distributed"
    config = {"seed": 0, "task": {"name": "own"}, "privacy": {"mechanism": mechanism, "epsilon": epsilon}, **settings}
    measured = {"auc": auc}
    summary = {
        "config": config, "metrics": measured if epsilon is None else {}, "metrics_by_institution": {}, "metric": "auc",
        "simulated_metrics": measured, "epsilon": epsilon, "seconds_training": 1.0,
    }  # fmt: skip
    told = {"auc": 0.5} if epsilon is None else {}
    lines = [{"round": number, "metrics": told, "bytes_up": 5, "bytes_down": 5} for number in (1, 2)]
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "rounds.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def write_sweep(folder: Path, **common: Any) -> Path:
    names = [f"{strategy}-{seed}" for strategy in ("fedavg", "fedprox") for seed in (1, 2)]
    for name in names:
        strategy, seed = name.split("-")
        write(folder / name, strategy={"name": strategy}, seed=int(seed), **common)
    (folder / "sweep.json").write_text(json.dumps({"runs": [{"name": name} for name in names]}))
    return folder


def labels(*folders: Path) -> list[str]:
    return [group.label for group in group_runs(read_runs(folders))]


def test_a_run_is_called_as_its_folder_and_a_sweeps_by_what_it_varies(tmp_path: Path) -> None:
    lone, sweep = write(tmp_path / "sim1", rounds=9), write_sweep(tmp_path / "sweep")
    assert labels(sweep) == ["strategy=fedavg", "strategy=fedprox"]
    assert labels(lone) == ["sim1"]
    assert labels(lone, sweep) == ["sim1", "sweep: strategy=fedavg", "sweep: strategy=fedprox"]


def test_runs_of_the_same_name_are_told_apart(tmp_path: Path) -> None:
    folders = [
        write(tmp_path / name / "agency" / "runs" / "demo", rounds=rounds) for name, rounds in (("a", 1), ("b", 2))
    ]
    assert labels(*folders) == ["a/demo", "b/demo"]
    deeper = [write(tmp_path / name / "a" / "demo", rounds=rounds) for name, rounds in (("x", 3), ("y", 4))]
    assert labels(*deeper) == [str(folder) for folder in deeper]


def test_runs_that_differ_in_the_seed_alone_share_a_line_with_all_their_names(tmp_path: Path) -> None:
    runs = [write(tmp_path / name, seed=seed) for seed, name in enumerate("abcde")]
    assert labels(*runs[:2]) == ["a, b"]
    assert labels(*runs) == ["a, b, c and 2 more"]


def test_settings_in_words_leave_out_what_is_null() -> None:
    group = Group("a", {"strategy.name": "fedavg", "task.momentum": None, "task.learning_rate": 0.25}, [])
    assert group.settings == "strategy=fedavg, learning_rate=0.25"


LONG = ("clinics-of-the-north-and-of-the-far-north-with-all-settings-as-they-were", "first"), (
    "clinics-of-the-north-and-of-the-far-north-with-all-settings-as-they-were", "second")  # fmt: skip


@pytest.mark.parametrize("epsilon", [1.0, None])
def test_the_figure_shows_every_run_whole(tmp_path: Path, epsilon: float | None) -> None:
    names = [f"{first} {second}" for first, second in LONG]
    runs = [write(tmp_path / name, rounds=number) for number, name in enumerate(names)]
    private = write(tmp_path / "private", auc=0.8, rounds=7, epsilon=epsilon)
    figure = draw(read_runs([*runs, private, write_sweep(tmp_path / "sweep", rounds=8)]))
    figure.canvas.draw()
    (legend,) = figure.legends
    named = [text.get_text() for text in legend.get_texts()]
    assert len(set(named)) == 5 and "private" in named
    assert [name.replace("\n", "") for name in named[:2]] == [name.replace(" ", "") for name in names]
    box = legend.get_window_extent()
    assert box.x0 >= 0 and box.x1 <= figure.bbox.width and box.y0 >= 0
    *_, by_bytes = figure.axes
    assert len({tick.get_text() for tick in by_bytes.get_yticklabels()}) == 5
    titles = [axis.get_title() for axis in figure.axes]
    assert ("Privacy and utility" in titles) == (epsilon is not None)


def test_a_private_run_alone_is_no_comparison_of_privacy_and_utility(tmp_path: Path) -> None:
    titles = [axis.get_title() for axis in draw(read_runs([write(tmp_path / "private", epsilon=2.0)])).axes]
    assert titles == ["MB moved in a run, up and down"]
