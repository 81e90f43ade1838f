"""What stands under examples/ runs, and learns what it says."""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from sovfed.federation.errors import ConfigError

FOLDER = Path(__file__).parents[2] / "examples"
NOTEBOOKS = sorted((FOLDER / "notebooks").glob("*.ipynb"))


def load(name: str) -> ModuleType:
    """examples/NAME.py as a module of its own."""
    spec = importlib.util.spec_from_file_location(f"example_{name.replace('/', '_')}", FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def _paths(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a script's top folder is on the path."""
    monkeypatch.setattr(sys, "path", [str(FOLDER), *sys.path])


def compared(study: Any, private: bool = True) -> dict[str, float]:
    """The example's figures after a few rounds."""
    from study import compared  # type: ignore[import-not-found]

    figures: dict[str, float] = compared(study, quick=True, private=private)
    return figures


def test_every_published_case_is_converted_in_at_most_five_lines() -> None:
    conversions = load("conversions/run")
    assert len(conversions.CASES) == 10
    assert {case: lines for case in conversions.CASES if (lines := conversions.lines_of_ours(case)) > 5} == {}


def test_every_converted_model_takes_the_records_that_its_task_declares() -> None:
    for case in load("conversions/run").CASES:
        task = importlib.import_module(f"conversions.{case}.task").TASK
        assert task.name == case
        assert task.parameters > 0


@pytest.mark.parametrize("case", ["hello_pt", "factory_optimizer"])
def test_a_federation_is_as_accurate_as_the_original_loop_on_all_data(case: str) -> None:
    result = load("conversions/run").run(case)
    assert result["original"] > 0.85
    assert result["federated"] >= result["original"] - 0.015


def test_a_model_of_other_sizes_is_another_task_or_none() -> None:
    import dataclasses

    from conversions.state_mismatch_pt.original import Classifier  # type: ignore[import-not-found]
    from conversions.state_mismatch_pt.task import TASK  # type: ignore[import-not-found]

    three = dataclasses.replace(TASK, build=lambda: Classifier(inputs=4, classes=3))
    assert three.digest != TASK.digest
    wide = dataclasses.replace(TASK, build=lambda: Classifier(inputs=8, classes=3))
    with pytest.raises(ConfigError, match="does not take"):
        _ = wide.layout


def test_regression_learns() -> None:
    figures = compared(load("regression/run").STUDY)
    assert figures["federated"] > figures["pooled"] - 0.1
    assert set(figures) == {"pooled", "federated", "private"}


def test_several_labels_are_learnt() -> None:
    figures = compared(load("multilabel/run").STUDY)
    assert figures["federated"] > figures["pooled"] - 0.02
    assert figures["private"] > 0.6


def test_of_a_frozen_base_only_the_head_travels(tmp_path: Path) -> None:
    base = load("frozen_image/make_base").prepare(tmp_path / "base.safetensors")
    study = load("frozen_image/run").study(base)
    assert study.task.parameters == 32 * 5 + 5
    assert sum(values.numel() for values in study.task.model().parameters()) > 9_000
    figures = compared(study)
    assert figures["federated"] > figures["pooled"] - 0.1


def test_survival_needs_a_task_yaml_only() -> None:
    study = load("survival/run").STUDY
    assert study.task.name == "task.yaml"
    figures = compared(study)
    assert figures["federated"] == pytest.approx(figures["pooled"], abs=0.03)


def test_lora_sends_its_matrices_and_the_head_only(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    pytest.importorskip("transformers")
    base = load("text_lora/make_base").prepare(tmp_path / "base", steps=40)
    task = load("text_lora/run").study(base).task
    assert task.parameters == 2 * 3 * (64 * 8 * 2) + (64 * 64 + 64) + (3 * 64 + 3)  # LoRA, pooler, head
    assert sum(values.numel() for values in task.model().parameters()) > 80_000


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_from_top_to_bottom(path: Path) -> None:
    cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    code = "\n\n".join("".join(cell["source"]) for cell in cells)
    exec(compile(code, str(path), "exec"), {"__name__": "__main__"})  # noqa: S102
