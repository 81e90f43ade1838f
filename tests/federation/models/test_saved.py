"""A model's file is whole, says what it is, and is refused if anything of it is another."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tests.federation.models.made_tasks import BINARY, RUN, TASKS, model_of

from sovfed.federation.errors import ConfigError, DataError
from sovfed.federation.models.saved import load_model, read_facts, save_model
from sovfed.federation.models.stored import CARD, FACTS, MODEL
from sovfed.federation.tasks import Task
from sovfed.federation.tasks.declared import task_from_text
from sovfed.federation.tasks.registry import add, get_task


def saved(folder: Path, task: Task = BINARY) -> tuple[np.ndarray, np.ndarray]:
    vector, scale = model_of(task)
    save_model(folder, task, vector, scale, RUN)
    return vector, scale


def rewrite(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """The file with a changed head, its tensors as they were."""
    content = path.read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    head = json.loads(content[8 : 8 + size])
    change(head)
    made = json.dumps(head).encode()
    path.write_bytes(struct.pack("<Q", len(made)) + made + content[8 + size :])


def facts_of(head: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(head["__metadata__"]["sovfed"])
    return found


@pytest.mark.parametrize("name", TASKS)
def test_what_is_loaded_is_what_was_saved(tmp_path: Path, name: str) -> None:
    vector, scale = saved(tmp_path, TASKS[name])
    model = load_model(tmp_path)
    assert model.vector.tobytes() == vector.tobytes() and model.scale.tobytes() == scale.tobytes()
    assert model.facts.run == RUN and model.task is TASKS[name]
    assert model.sha256 == hashlib.sha256((tmp_path / MODEL).read_bytes()).hexdigest()
    assert json.loads((tmp_path / FACTS).read_text())["model_sha256"] == model.sha256
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}


def test_plain_torch_loads_every_tensor_by_its_name(tmp_path: Path) -> None:
    """Frozen, tied, constant and of other types too, without sovfed."""
    task = TASKS["buffers"]
    vector, _ = saved(tmp_path, task)
    assert task.build is not None
    module = task.build()
    module.load_state_dict(load_file(tmp_path / MODEL), strict=True)
    named = {part.name: vector[part.place].reshape(part.shape) for part in task.layout.parts}
    assert named.keys() == {
        "norm.weight", "norm.bias", "head.weight", "head.bias", "norm.running_mean", "norm.running_var"
    }  # fmt: skip
    for name, values in named.items():
        np.testing.assert_array_equal(module.state_dict()[name].float().numpy(), values)
    assert module.state_dict()["mask"].tolist() == [0.0, -torch.inf]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        fresh = task.build()
    assert torch.equal(module.state_dict()["frozen.weight"], fresh.state_dict()["frozen.weight"])


def test_frozen_tensors_come_from_the_file_not_from_the_code_here(tmp_path: Path) -> None:
    saved(tmp_path, TASKS["buffers"])
    stored = load_file(tmp_path / MODEL)
    task = TASKS["buffers"]
    module = load_model(tmp_path).module
    assert torch.equal(module.state_dict()["frozen.weight"], stored["frozen.weight"])
    assert task.layout.tensors(module)[0].requires_grad


def test_one_file_is_enough_and_may_be_called_anything(tmp_path: Path) -> None:
    vector, _ = saved(tmp_path)
    (tmp_path / MODEL).rename(tmp_path / "heart.safetensors")
    (tmp_path / FACTS).unlink()
    assert load_model(tmp_path / "heart.safetensors").vector.tobytes() == vector.tobytes()
    assert read_facts(tmp_path / "heart.safetensors").task.name == BINARY.name


def test_a_task_that_trains_nothing_keeps_its_vector(tmp_path: Path) -> None:
    task = get_task("echo", 7)
    save_model(tmp_path, task, np.arange(7, dtype=np.float32), task.transform.public_scale, RUN)
    model = load_model(tmp_path)
    assert model.vector.tolist() == [0, 1, 2, 3, 4, 5, 6]
    with pytest.raises(ConfigError, match="trains nothing"):
        model.predict({"x": np.zeros((1, 1))})


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda head: head["__metadata__"].pop("sovfed"), "no model of sovfed"),
        (lambda head: head.pop("bias"), "1 tensors"),
        (lambda head: head.update(more=head["bias"]), "3 tensors"),
        (lambda head: head["weight"].update(shape=[12, 1]), "expected torch.float32 of"),
        (lambda head: head["weight"].update(dtype="I32"), "tensor 'weight' is 'I32'"),
        (lambda head: head["weight"].update(data_offsets=[0, 1 << 40]), "not a safetensors file"),
        (lambda head: head.update(weight=[]), "tensor 'weight'"),
        (lambda head: head["__metadata__"].update(sovfed="[" * 100_000), "not JSON"),
        (lambda head: head["__metadata__"].update(sovfed="[]"), "JSON object"),
    ],
)  # fmt: skip
def test_a_file_of_another_shape_is_refused(tmp_path: Path, change: Callable[[Any], None], told: str) -> None:
    saved(tmp_path)
    rewrite(tmp_path / MODEL, change)
    (tmp_path / FACTS).unlink()
    with pytest.raises(DataError, match=told):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("key", "value", "error", "told"),
    [
        (("format",), 2, DataError, "format '2', this version reads 1"),
        (("mean",), [0.0, 0.0], DataError, "scale is of 2 values, the task's schema has 4"),
        (("deviation",), [0.0], DataError, "not above 0"),
        (("run", "metrics"), {"auc": "0.9"}, DataError, "run.metrics.auc"),
        (("run", "name"), "a\x1b[2Jb", DataError, "control characters"),
        (("task", "digest"), "0" * 64, ConfigError, "--any-version"),
        (("task", "name"), "t_binery", ConfigError, "did you mean 't_binary'"),
        (("task", "schema", "person"), "who", ConfigError, "schema is not that of task"),
        (("surprise",), 1, DataError, "unknown key"),
    ],
)  # fmt: skip
def test_facts_that_do_not_fit_are_refused(
    tmp_path: Path, key: tuple[str, ...], value: object, error: type[Exception], told: str
) -> None:
    saved(tmp_path)

    def change(head: dict[str, Any]) -> None:
        said = facts_of(head)
        place = said
        for name in key[:-1]:
            place = place[name]
        place[key[-1]] = value
        head["__metadata__"]["sovfed"] = json.dumps(said)

    rewrite(tmp_path / MODEL, change)
    (tmp_path / FACTS).unlink()
    with pytest.raises(error, match=told):
        load_model(tmp_path)


def test_another_version_of_the_task_is_taken_on_request_alone(tmp_path: Path) -> None:
    vector, scale = model_of(BINARY)
    task = add(replace(BINARY, name="t_versions"))
    save_model(tmp_path, task, vector, scale, RUN)
    add(replace(task, version="2"))
    with pytest.raises(ConfigError, match="the one here is version 2"):
        load_model(tmp_path)
    assert load_model(tmp_path, any_version=True).vector.tobytes() == vector.tobytes()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_neither_saved_nor_loaded(tmp_path: Path, value: float) -> None:
    vector, scale = saved(tmp_path)
    wrong = vector.copy()
    wrong[3] = value
    with pytest.raises(DataError, match="finite"):
        save_model(tmp_path, BINARY, wrong, scale, RUN)
    content = (tmp_path / MODEL).read_bytes()
    assert content.count(vector[3:4].tobytes()) == 1
    (tmp_path / MODEL).write_bytes(content.replace(vector[3:4].tobytes(), wrong[3:4].tobytes()))
    (tmp_path / FACTS).unlink()
    with pytest.raises(DataError, match="tensor 'weight' has 1 values"):
        load_model(tmp_path)


def test_a_changed_byte_is_noticed_by_the_facts_beside_and_by_the_digest(tmp_path: Path) -> None:
    saved(tmp_path)
    content = bytearray((tmp_path / MODEL).read_bytes())
    content[-1] ^= 1
    (tmp_path / MODEL).write_bytes(content)
    with pytest.raises(DataError, match=r"model\.json beside it says"):
        load_model(tmp_path)
    with pytest.raises(DataError, match="expected"):
        load_model(tmp_path, sha256="0" * 64)


@pytest.mark.parametrize("content", [b"", b"\x00" * 8, b"\xff" * 100, struct.pack("<Q", 3) + b"{]}", b"\x80\x04."])
def test_what_is_no_safetensors_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / MODEL).write_bytes(content)
    with pytest.raises(DataError, match="not a safetensors file"):
        load_model(tmp_path)
    with pytest.raises(DataError, match="not a safetensors file"):
        read_facts(tmp_path)


def test_a_damaged_file_is_refused_or_is_the_same_whatever_byte_is_changed(tmp_path: Path) -> None:
    vector, _ = saved(tmp_path)
    (tmp_path / FACTS).unlink()
    content, generator = (tmp_path / MODEL).read_bytes(), np.random.default_rng(1)
    for _ in range(300):
        wrong = bytearray(content[: None if generator.random() < 0.8 else int(generator.integers(len(content)))])
        for place in generator.integers(len(wrong) or 1, size=2) if wrong else ():
            wrong[place] = generator.integers(256)
        (tmp_path / MODEL).write_bytes(wrong)
        try:
            found = load_model(tmp_path)
        except (DataError, ConfigError):
            continue
        assert found.vector.shape == vector.shape and np.isfinite(found.vector).all()


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="missing or not readable"):
        load_model(tmp_path)


def test_the_card_tells_all_and_is_escaped(tmp_path: Path) -> None:
    digest = save_model(tmp_path, BINARY, *model_of(BINARY), replace(RUN, name="<script>alert(1)</script>"))
    card = (tmp_path / CARD).read_text()
    assert "<script" not in card and "&lt;script&gt;" in card and "Of &lt;t_binary&gt;" in card
    for told in (digest, BINARY.digest, "ε = 1.250", "0.75", "north, south", "one of well, ill", "years", "A, B, C"):
        assert told in card
    assert "http" not in card  # nothing is loaded from elsewhere


def test_a_card_without_privacy_or_metrics_says_so(tmp_path: Path) -> None:
    save_model(tmp_path, BINARY, *model_of(BINARY), replace(RUN, privacy=None, metrics={}))
    card = (tmp_path / CARD).read_text()
    assert "<strong>Not private.</strong>" in card and "No metrics: none given" in card


def test_a_small_file_cannot_declare_a_large_model(tmp_path: Path) -> None:
    """Memory for it would else be taken before the shapes are compared."""
    text = (
        "name: mine\ntitle: Mine\nperson: patient\ncolumns:\n  age: {kind: number, low: 0, high: 120}\n"
        "target: {kind: binary, column: ill, classes: [healthy, ill]}\nmodel: {family: mlp, hidden: [4]}\n"
    )
    saved(tmp_path, task_from_text(text))
    (tmp_path / FACTS).unlink()

    def enlarge(head: dict[str, Any]) -> None:
        facts = head["__metadata__"]
        facts["sovfed"] = facts["sovfed"].replace("hidden: [4]", "hidden: [2000, 2000]")

    rewrite(tmp_path / MODEL, enlarge)
    with pytest.raises(DataError, match="bytes, the model that it declares has 40"):
        load_model(tmp_path)
