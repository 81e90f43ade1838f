"""Four hospitals' folders of X-rays: who has which image, that both models learn from them, and the published file."""

from __future__ import annotations

import csv
import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.real_data import published

from sovfed.clients.data import load_records
from sovfed.federation.config import DataConfig
from sovfed.federation.errors import DataError

FOLDER = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def example() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [str(FOLDER), *sys.path])
        yield importlib.import_module("xray.run")


def images(count: int, seed: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Grey noise; with pneumonia the lower half is brighter."""
    generator = np.random.default_rng(seed)
    labels = (generator.random(count) < 0.7).astype(np.uint8)
    pixels = generator.integers(0, 120, (count, 28, 28))
    pixels[:, 14:] += 60 * labels[:, None, None]
    return pixels.astype(np.uint8), labels


@pytest.fixture(scope="module")
def folder(example: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made: Path = example.hospitals.prepare(tmp_path_factory.mktemp("xray") / "made-up", images(400, 0), images(90, 1))
    return made


def findings(hospital: Path) -> dict[str, str]:
    with (hospital / "table.csv").open(newline="") as file:
        return {row["image"]: row["finding"] for row in csv.DictReader(file)}


def test_each_image_is_at_one_hospital_and_their_case_mix_differs(example: Any, folder: Path) -> None:
    tables = [findings(folder / "hospitals" / name) for name in example.hospitals.SHARES]
    assert sum(map(len, tables)) == len({name for table in tables for name in table}) == 400
    ill = [list(table.values()).count("pneumonia") / len(table) for table in tables]
    assert ill == sorted(ill, reverse=True) and ill[0] > 0.85 and ill[-1] < 0.45
    for name, table in zip(example.hospitals.SHARES, tables, strict=True):
        assert {path.name for path in (folder / "hospitals" / name).glob("*.png")} == set(table)


def test_what_the_folder_connector_reads_is_what_was_written(example: Any, folder: Path) -> None:
    pixels, labels = images(90, 1)
    task = example.vit.TASK
    test = load_records(task, DataConfig(source="images", path=str(folder / example.hospitals.TEST)))
    read = test.take(np.arange(90))
    assert np.array_equal(read["image"][:, 0], pixels) and np.array_equal(read["finding"], labels)
    assert test.several_records is False and test.not_private == ""


@pytest.mark.parametrize("number", [0, 1])
def test_four_hospitals_learn_and_train_with_privacy_too(example: Any, folder: Path, number: int) -> None:
    """Of 400 images little is left under privacy, and its noise is another each time: no more is asked of it."""
    study = example.STUDIES[number]
    told = {row.trained: row for row in example.rows(study, folder, quick=True)}
    assert list(told) == ["pooled", "alone, mean of four", "federated", "federated, ε = 8"]
    assert {row.model for row in told.values()} == {study.name}
    assert told["pooled"].auc > 0.9 and told["federated"].auc > 0.9
    assert all(0 <= row.accuracy <= 1 for row in told.values())


def test_another_file_than_the_published_one_is_refused(example: Any, tmp_path: Path) -> None:
    path = tmp_path / "pneumoniamnist.npz"
    np.savez(path, train_images=np.zeros((2, 28, 28), np.uint8))
    with pytest.raises(DataError, match="SHA-256"):
        example.hospitals.read(path)


def test_of_the_published_file_each_image_is_trained_on_once_and_the_test_stays_whole(
    example: Any, tmp_path: Path
) -> None:
    train, test = example.hospitals.read(published("pneumoniamnist") / "pneumoniamnist.npz")
    assert len(np.unique(train[0].reshape(len(train[0]), -1), axis=0)) == len(train[0])
    assert 4_708 + 524 - 30 < len(train[0]) < 4_708 + 524
    assert test[0].shape == (624, 28, 28) and test[1].sum() == 390
    folder = example.hospitals.prepare(tmp_path / "real", train, test)
    sizes = [len(findings(folder / "hospitals" / name)) for name in example.hospitals.SHARES]
    assert sum(sizes) == len(train[0])
    few = example.hospitals.prepare(tmp_path / "few", (train[0][:1_000], train[1][:1_000]), test)
    told = {row.trained: row for row in example.rows(example.STUDIES[0], few, quick=True, private=False)}
    assert told["pooled"].auc > 0.75  # 0.5 is chance, 0.95 what all images and rounds reach
