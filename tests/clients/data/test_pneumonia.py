"""PneumoniaMNIST: what the connector takes, what it leaves out, and what it refuses."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.real_data import published
from tests.records import targets_of

from sovfed.clients.data import load_records, pneumoniamnist
from sovfed.clients.dpsgd.examination import examine_task
from sovfed.federation.compose import compose
from sovfed.federation.config import DataConfig
from sovfed.federation.errors import DataError
from sovfed.federation.tasks.pneumonia import TASK, build
from sovfed.simulations.federation import simulate_population
from sovfed.simulations.population import make_population


def arrays(train: int = 300, val: int = 40, test: int = 300) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    found: dict[str, np.ndarray] = {}
    for name, count in (("train", train), ("val", val), ("test", test)):
        labels = generator.integers(0, 2, (count, 1), dtype=np.uint8)
        images = generator.integers(0, 100, (count, 28, 28), dtype=np.uint8) + 60 * labels[:, :, None]
        found |= {f"{name}_images": images.astype(np.uint8), f"{name}_labels": labels}
    found["train_images"][:8] = found["val_images"][:8]
    return found


def written(folder: Path, monkeypatch: pytest.MonkeyPatch, content: dict[str, np.ndarray]) -> str:
    """A file of our own in the place of the published one: its checksum is taken as the known one."""
    path = folder / pneumoniamnist.NAME
    np.savez_compressed(path, **content)  # type: ignore[arg-type]
    monkeypatch.setattr(pneumoniamnist, "SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    return str(folder)


def test_sites_hold_every_image_once_but_those_that_stand_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path, monkeypatch, arrays())
    parts = [load_records(TASK, DataConfig(source="pneumoniamnist", path=path, site=str(k))) for k in range(4)]
    assert sum(len(part.train) for part in parts) == 300 + 40 - 8
    assert sum(len(part.test) for part in parts) == 300
    assert len(np.unique(np.concatenate([part.persons for part in parts]))) == 300 + 40 - 8 + 300
    assert len({len(part.train) for part in parts}) == 4
    for part in parts:
        assert set(targets_of(part)[part.train]) == set(targets_of(part)[part.test]) == {0, 1}


def test_the_published_file_gives_the_published_counts() -> None:
    config = DataConfig(source="pneumoniamnist", path=str(published("pneumoniamnist")), site="0", sites=1)
    records = load_records(TASK, config)
    assert (len(records.train), len(records.test)) == (4_708 + 524 - 10, 624)
    assert targets_of(records)[records.test].sum() == 390


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"val_images": np.zeros((40, 28, 27), np.uint8)}, r"val_images: uint8 of shape \(40, 28, 27\)"),
        ({"test_labels": np.zeros((199, 1), np.uint8)}, r"test_labels: uint8 of shape \(199, 1\) for 300 images"),
        ({"train_labels": np.full((300, 1), 2, np.uint8)}, "are no known class"),
        ({"train_images": np.zeros((300, 28, 28))}, "train_images: float64"),
        ({"train_images": np.full((300, 28, 28), None)}, "not PneumoniaMNIST's arrays"),
        ({"more": np.zeros(1 << 26, np.uint8)}, "once unpacked, expected at most"),
    ],
)
def test_other_arrays_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, np.ndarray], said: str
) -> None:
    path = written(tmp_path, monkeypatch, arrays() | change)
    with pytest.raises(DataError, match=said):
        load_records(TASK, DataConfig(source="pneumoniamnist", path=path, sites=1))


def test_no_path_another_file_and_another_task_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"needs data\.path"):
        load_records(TASK, DataConfig(source="pneumoniamnist"))
    with pytest.raises(DataError, match="no such file"):
        load_records(TASK, DataConfig(source="pneumoniamnist", path=str(tmp_path)))
    (tmp_path / pneumoniamnist.NAME).write_bytes(b"PK")
    with pytest.raises(DataError, match="SHA-256"):
        load_records(TASK, DataConfig(source="pneumoniamnist", path=str(tmp_path)))


def test_the_model_can_be_made_private() -> None:
    assert not [finding for finding in examine_task(TASK, several_records=False) if finding.refused]
    assert build()(torch.zeros(3, 1, 28, 28)).shape == (3, 1)


def test_stacked_training_gives_the_same_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, monkeypatch, arrays(80, 20, 30))
    models = []
    for engine in ("inprocess", "vectorised"):
        config = compose([
            "task=pneumonia", f"data.path={path}", "partition=quantity", "simulation.institutions=3", "rounds=2",
            "secagg=none", f"simulation.engine={engine}", "task.batch_size=8",
        ]).config  # fmt: skip
        models.append(simulate_population(config, make_population(config), tmp_path / engine).model)
    assert np.abs(models[0] - models[1]).max() < 1e-4


def test_auto_takes_the_faster_way_to_train_a_cnn_and_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, monkeypatch, arrays(400, 20, 30))
    config = compose([
        "task=pneumonia", f"data.path={path}", "partition=iid", "simulation.institutions=8", "rounds=1",
        "secagg=none", "task.batch_size=8",
    ]).config  # fmt: skip
    summary = simulate_population(config, make_population(config), tmp_path / "run").summary
    why = summary["engine_reason"]
    found = re.fullmatch(r"8 institutions took ([\d.]+) ms, stacked ([\d.]+) ms.*", why)
    assert found is not None, why
    worth_it = float(found[2]) <= 0.8 * float(found[1])
    assert summary["engine"] == ("vectorised" if worth_it else "inprocess")
    assert ("arithmetic, not overhead" in why) is not worth_it
