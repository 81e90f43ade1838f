"""Can this model and this loss be trained with a person's gradient clipped? What stands against it, and the fix."""

from __future__ import annotations

import copy
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.modules.instancenorm import _InstanceNorm

from sovfed.federation.errors import ConfigError, PrivacyError
from sovfed.federation.tasks.group_norm import OVERRIDE
from sovfed.federation.tasks.layout import INNER, SAMPLE
from sovfed.federation.tasks.trees import Tree, rows, size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor

    from sovfed.federation.tasks import Task

    RecordLoss = Callable[[Tensor, Any], Tensor]


EXAMPLES: Final = SAMPLE  # made-up records
TOLERANCE: Final = 1e-4  # relative difference of float32 outputs computed alone and in a batch
FLOATS: Final = (torch.float32, torch.float64)


@dataclass(frozen=True)
class Finding:
    """What was found where. `refused` tells an obstacle from a remark; `fix` says what to do."""

    where: str
    reason: str
    fix: str
    refused: bool = True

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}. Fix: {self.fix}"


def check_private_compatible(module: nn.Module, loss: RecordLoss, features: Tree, labels: Tree) -> None:
    """Raise PrivacyError, with every reason and its fix, if `module` and `loss` cannot be made private.

    `features` [n, …] and `labels` [n] are made-up records, at least two. The module is left as it was.
    """
    refused = [str(finding) for finding in examine(module, loss, features, labels) if finding.refused]
    if refused:
        raise PrivacyError("; ".join(refused))


@lru_cache(maxsize=64)
def why_not_private(task: Task) -> str:
    """Why the gradients of the task's model cannot be clipped by person, tried on made-up records; "" if they can."""
    if task.build is None or task.loss is None:
        return f"task '{task.name}' trains nothing"
    try:
        check_private_compatible(task.model(), task.loss, *task.made_up(EXAMPLES))
    except PrivacyError as error:
        return str(error)
    return ""


def why_not_noised(task: Task) -> str:
    """Why noise on the task's whole update would spoil its model; "" if it would not."""
    if task.build is None or task.layout.trained == task.layout.size:
        return ""
    return f"it keeps running statistics of records, which noise would spoil. Fix: use GroupNorm: {OVERRIDE}"


def examine(module: nn.Module, loss: RecordLoss, features: Tree, labels: Tree) -> list[Finding]:
    """All findings on `module` and `loss`, found by type and by trial on the made-up records. Changes nothing.

    Tried as it was built and with other weights: a layer that begins at zero may mix records later.
    """
    if size(features) < 2 or size(features) != size(labels):
        raise ConfigError(f"{size(features)} example features and {size(labels)} labels, expected two or more of each")
    findings = list(_by_type(module))
    if not any(finding.refused for finding in findings):  # a trial would only say the same less clearly
        findings += _by_trial(copy.deepcopy(module).train(), loss, features, labels)
    if not any(finding.refused for finding in findings):
        findings += _by_trial(_shaken(module).train(), loss, features, labels)
    return findings


def _shaken(module: nn.Module) -> nn.Module:
    """A copy of `module` with other weights, each about as large as one that was drawn for its layer."""
    shaken, generator = copy.deepcopy(module), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in shaken.parameters():
            size = max(1, parameter[0].numel()) if parameter.dim() > 1 else parameter.numel()
            moved = torch.randn(parameter.shape, generator=generator) / size**0.5
            parameter.add_(moved.to(parameter.device, parameter.dtype))
    return shaken


@contextmanager
def still(module: nn.Module) -> Iterator[None]:
    """`module` in training mode with its dropout layers off."""
    dropouts = [layer for layer in module.modules() if isinstance(layer, _DropoutNd) and layer.training]
    for layer in dropouts:
        layer.eval()
    try:
        yield
    finally:
        for layer in dropouts:
            layer.train()


def _by_type(module: nn.Module) -> Iterator[Finding]:
    parameters = list(module.named_parameters())
    if not any(parameter.requires_grad for _, parameter in parameters):
        yield Finding("model", "has no trainable parameter", "train at least one")
    kinds = {parameter.dtype for _, parameter in parameters if parameter.requires_grad}
    for name, parameter in parameters:
        if parameter.requires_grad and parameter.dtype not in FLOATS:
            why = f"is {parameter.dtype}, too coarse for clipped sums"
            yield Finding(name.removeprefix(INNER), why, "build the model in float32")
    if len(kinds & set(FLOATS)) > 1:
        yield Finding("model", "trains parameters of several types", "build the model in float32")
    for name, layer in module.named_modules():
        where = f"{name.removeprefix(INNER) or 'model'} ({type(layer).__name__})"
        if isinstance(layer, _BatchNorm):
            yield Finding(
                where,
                "BatchNorm mixes the records of a batch and keeps their statistics, in any mode, also without weights",
                f"use GroupNorm: {OVERRIDE}",
            )
        elif isinstance(layer, _InstanceNorm) and layer.track_running_stats:
            yield Finding(where, "keeps running statistics of records", "set track_running_stats=False")
        elif isinstance(layer, _DropoutNd) and layer.p > 0:
            yield Finding(
                where,
                "dropout masks are drawn afresh from the operating system's entropy, so that runs do not repeat",
                "none needed",
                refused=False,
            )


def _by_trial(module: nn.Module, loss: RecordLoss, features: Tree, labels: Tree) -> Iterator[Finding]:
    before = {name: buffer.clone() for name, buffer in module.named_buffers()}
    try:
        with torch.no_grad(), still(module):
            together = module(features)
            alone = torch.cat([module(rows(features, slice(row, row + 1))) for row in range(size(features))])
            again = module(features)
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        reason = str(error).partition("\n")[0]
        yield Finding("model", f"cannot run on one record alone: {reason}", "take any number of records, also one")
        return
    for name, buffer in module.named_buffers():
        if not torch.equal(buffer, before[name]):
            yield Finding(name, "a buffer that changes with the records", "drop it, or make it a constant")
    if together.shape[:1] != (size(features),):
        yield Finding("model", f"gives {tuple(together.shape)} for {size(features)} records", "give one row a record")
        return
    if not _equal(together, again):
        yield Finding(
            "model", "gives other outputs the second time", "drop its hidden state; dropout only as nn.Dropout"
        )
    elif not _equal(together, alone):
        yield Finding("model", "a record's output depends on the others in the batch", "use layers that treat it alone")
    yield from _loss_by_trial(loss, together, labels)


def _loss_by_trial(loss: RecordLoss, logits: Tensor, labels: Tree) -> Iterator[Finding]:
    fix = "return the loss of each record by itself (reduction='none', no weights that are normalised over the batch)"
    logits = logits.detach().requires_grad_()
    try:
        losses = loss(logits, labels)
        if losses.shape != logits.shape[:1]:
            yield Finding("loss", f"has shape {tuple(losses.shape)} for {size(labels)} records", fix)
            return
        records = [slice(row, row + 1) for row in range(size(labels))]
        alone = torch.cat([loss(logits[record], rows(labels, record)) for record in records])
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        yield Finding("loss", f"cannot take one record alone: {str(error).partition(chr(10))[0]}", fix)
        return
    if not _equal(losses.detach(), alone.detach()):
        yield Finding("loss", "a record's loss depends on the others in the batch", fix)
        return
    for row in range(size(labels)):
        (slope,) = torch.autograd.grad(losses[row], logits, retain_graph=True)
        if bool(torch.cat([slope[:row], slope[row + 1 :]]).any()):
            yield Finding("loss", "its gradient depends on the others in the batch", fix)
            return


def _equal(first: Tensor, second: Tensor) -> bool:
    if first.shape != second.shape:
        return False
    return float((first - second).abs().max()) <= TOLERANCE * max(1e-6, float(first.abs().max()))
