"""What holds for every task."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from sovfed.federation.tasks import initial_vector
from sovfed.federation.tasks.registry import get_task, names

NAMES = (
    "breast_cancer", "digits", "digits_cnn", "digits_linear", "echo", "heart", "pneumonia", "statutes",
    "synthetic_images", "synthetic_text",
)  # fmt: skip
TRAINED = [name for name in NAMES if get_task(name).build is not None]


@pytest.mark.parametrize("name", NAMES)
def test_a_task_names_its_source_and_knows_its_sizes(name: str) -> None:
    task = get_task(name)
    assert task.name == name
    assert task.licence
    assert task.citation
    assert initial_vector(task, 0).shape == (task.parameters,)


@pytest.mark.parametrize("name", TRAINED)
def test_the_model_fits_the_schema_and_the_loss_is_per_record(name: str) -> None:
    task = get_task(name)
    assert task.build is not None
    assert task.loss is not None
    module = task.build()
    floats = [buffer for buffer in module.buffers() if buffer.is_floating_point()]
    assert sum(tensor.numel() for tensor in (*module.parameters(), *floats)) == task.parameters == task.layout.size
    inputs, labels = task.made_up(5)
    assert isinstance(inputs, torch.Tensor) and isinstance(labels, torch.Tensor)
    with torch.no_grad():
        logits = module(inputs)
        losses = task.loss(logits, labels)
    assert losses.shape == (5,)
    assert task.metrics.sums(logits.numpy(), labels.numpy(), losses.numpy()).shape == (task.evaluation_size,)


@pytest.mark.parametrize("name", TRAINED)
def test_the_initial_model_depends_on_the_seed_alone(name: str) -> None:
    task = get_task(name)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first, again, other = (initial_vector(task, seed) for seed in (3, 3, 4))
    assert first.dtype == np.float32
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert torch.equal(state, torch.get_rng_state())


def test_the_losses_equal_their_definition() -> None:
    heart, digits = get_task("heart").loss, get_task("digits").loss
    assert heart is not None
    assert digits is not None
    assert heart(torch.tensor([[0.0], [2.0]]), torch.tensor([1, 0])).tolist() == pytest.approx([0.693147, 2.126928])
    assert digits(torch.zeros(1, 10), torch.tensor([4])).tolist() == pytest.approx([2.302585])


def test_the_echo_has_the_length_that_the_run_chooses() -> None:
    assert get_task("echo").parameters == 2_500
    assert initial_vector(get_task("echo", 10), 0).tolist() == [0.0] * 10


def test_our_own_tasks_come_as_a_stranger_s_do() -> None:
    """By the entry points of the installed distribution, in pyproject.toml."""
    assert set(NAMES) <= set(names())
    assert list(names()) == sorted(names())


def test_naming_a_task_imports_no_torch() -> None:
    code = "import sys; import sovfed.federation.tasks.registry as t; "
    code += "[t.get_task(n) for n in t.names()]; assert not {'torch', 'sklearn', 'pandas'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": os.pathsep.join(sys.path)})
