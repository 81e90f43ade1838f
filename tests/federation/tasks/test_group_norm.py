"""A task's model with GroupNorm in the place of BatchNorm."""

from __future__ import annotations

import torch
from torch import nn

from sovfed.federation.tasks import initial_vector
from sovfed.federation.tasks.group_norm import batchnorms, grouped, replace_batchnorm
from sovfed.federation.tasks.registry import get_task


def test_a_grouped_task_has_groups_of_gcd_32_and_no_statistics() -> None:
    own, task = get_task("digits_cnn"), get_task("digits_cnn", normalisation="group")
    assert own.build is not None and task.build is not None
    assert batchnorms(own.build()) == ["2", "5"]
    built = task.build()
    assert [(part.num_groups, part.num_channels) for part in built if isinstance(part, nn.GroupNorm)] == [  # type: ignore[attr-defined]
        (16, 16),
        (32, 32),
    ]
    assert task.parameters == 160 + 4_640 + 5_130 + 2 * (16 + 32)
    assert initial_vector(task, 0).shape == (task.parameters,)
    assert (task.name, task.schema, task.loss) == (own.name, own.schema, own.loss)


def test_groups_are_the_greatest_divisor_in_common_with_32() -> None:
    fixed = replace_batchnorm(nn.Sequential(nn.BatchNorm2d(12), nn.Sequential(nn.BatchNorm1d(12)), nn.BatchNorm3d(5)))
    assert [part.num_groups for part in fixed.modules() if isinstance(part, nn.GroupNorm)] == [4, 1, 1]
    assert isinstance(replace_batchnorm(nn.BatchNorm2d(64)), nn.GroupNorm)


def test_weights_keep_their_places() -> None:
    before = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten())
    vector = torch.nn.utils.parameters_to_vector(before.parameters())
    assert torch.equal(vector, torch.nn.utils.parameters_to_vector(replace_batchnorm(before).parameters()))


def test_a_task_without_batchnorm_stays_as_it_is() -> None:
    for name in ("digits", "echo"):
        task = get_task(name)
        assert grouped(task) is task
        assert task.with_normalisation("group") is task


def test_the_grouped_task_is_made_once_and_has_a_digest_of_its_own() -> None:
    own = get_task("digits_cnn")
    assert own.with_normalisation("own") is own
    assert own.with_normalisation("group") is own.with_normalisation("group")
    assert own.with_normalisation("group").digest != own.digest
    assert own.layout.coupled and not own.with_normalisation("group").layout.coupled
