"""What holds for a task that works, tried on made-up records: the checks of `sovfed task check`.

Both sides make them before a run's first round too, and refuse a task that no record could be trained on, in the same
words; what is only unwise (a loss that depends on the batch, say) may be trained without privacy. A model's size is
asked first, without values; the rest is tried with values, on a CPU, since what is not finite, which buffers a pass
changes, and whether two builds are equal, shows in no shape.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from sovfed.federation.errors import ConfigError, SovfedError
from sovfed.federation.tasks.targets import GIVEN

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor

    from sovfed.federation.tasks import Task

RECORDS: Final = 8  # made up: the first two at their bounds
TOLERANCE: Final = 1e-4  # relative difference of a loss computed alone and in a batch


@dataclass(frozen=True)
class Check:
    """What was tried, whether it held, and what was seen or must be mended.

    `fatal`: nothing can be trained where it does not hold. `error` is what the task's own code raised.
    """

    what: str
    held: bool
    detail: str
    fatal: bool = True
    error: Exception | None = None


def conform(task: Task) -> list[Check]:
    """The checks of `task`, in order; they end where one does not let the others be tried."""
    checks: list[Check] = []
    try:
        for check in _checks(task):
            checks.append(check)  # noqa: PERF402  (an error ends it, and what was found stays)
    except Exception as error:  # a task's own code may raise whatever it likes
        message = str(error) if isinstance(error, SovfedError) else f"{type(error).__name__}: {error}"
        checks.append(Check(_NEXT[min(len(checks), len(_NEXT) - 1)], False, message, error=error))
    return checks


def require_works(task: Task) -> None:
    """Raise ConfigError, with what the task's own code raised as its cause, where nothing could be trained."""
    if "_works" in task.__dict__:
        return
    for check in conform(task):
        if check.held or not check.fatal:
            continue
        if isinstance(check.error, SovfedError):
            raise check.error
        raise ConfigError(f"task '{task.name}' cannot be trained: {check.what}: {check.detail}") from check.error
    task.__dict__["_works"] = True


_NEXT: Final = ("schema", "model", "size", "same model for the same seed", "outputs", "loss", "gradient", "metrics")


def _checks(task: Task) -> Iterator[Check]:
    schema = task.schema
    yield Check("schema", bool(schema.targets or task.loss is None), _schema(task))
    if task.build is None or task.loss is None:
        yield Check("model", True, "none: nothing is trained")
        return
    import torch

    from sovfed.federation.tasks.sizes import demands, require_room

    require_room(task.name, task.build, task.trained)
    frozen = "" if task.trained is None else ", some frozen"
    yield Check("model", True, f"{task.parameters:,} values travel, {task.layout.trained:,} of them trained{frozen}")
    yield Check("size", True, demands(task.parameters))
    first, again = (task.layout.vector(task.model(7)) for _ in range(2))
    yield Check(*_same(first, again), fatal=False)
    inputs, targets = task.made_up(RECORDS)
    module = task.model().eval()
    with torch.no_grad():
        outputs = module(inputs).float()  # as the trainer judges them, whatever the model computes in
    one_per_record = outputs.ndim > 0 and len(outputs) == RECORDS
    finite = bool(outputs.isfinite().all())
    description = f"{list(outputs.shape)} for {RECORDS} made-up records, some at their bounds"
    yield Check(
        "outputs",
        one_per_record and finite,
        description if finite else f"not finite, {description}",
        fatal=not one_per_record,
    )
    if not one_per_record:
        return
    loss = _loss(task.loss, outputs, targets)
    yield loss
    if not loss.held:
        return
    yield _gradient(task, task.loss, inputs, targets)
    yield _metrics(task, task.loss, outputs, targets)


def _schema(task: Task) -> str:
    person = "each row another person" if task.schema.one_row_a_person else task.schema.person or "the institution says"
    inputs, targets = len(task.schema.inputs), len(task.schema.targets)
    return f"{inputs} inputs ({task.transform.width} packed values), {targets} targets; person: {person}"


def _same(first: Any, again: Any) -> tuple[str, bool, str]:
    equal = bool(np.array_equal(first, again))
    return _NEXT[3], equal, "yes" if equal else "no: build() must draw from torch's generator and nothing else"


def _loss(loss: Callable[[Any, Any], Tensor], outputs: Tensor, targets: Any) -> Check:
    import torch

    losses = loss(outputs, targets)
    if tuple(losses.shape) != (RECORDS,):
        return Check("loss", False, f"has shape {list(losses.shape)}, expected [{RECORDS}]: one value a record")
    if not bool(losses.isfinite().all()):
        return Check("loss", False, "is not finite for made-up records", fatal=False)
    try:
        alone = torch.cat([loss(outputs[row : row + 1], _row(targets, row)) for row in range(RECORDS)])
    except Exception as error:  # the task's own
        return Check("loss", False, f"of one record cannot be had: {error!r}", fatal=False, error=error)
    if float((losses - alone).abs().max()) > TOLERANCE * max(1.0, float(losses.abs().max())):
        return Check("loss", False, "a record's loss depends on the others: take reduction='none'", fatal=False)
    part = (
        " (made-up windows predict a part of their tokens)" if isinstance(targets, Mapping) and GIVEN in targets else ""
    )
    return Check("loss", True, f"of each record by itself; {float(losses.mean()):.3f} before training{part}")


def _gradient(task: Task, loss_of: Callable[[Any, Any], Tensor], inputs: Any, targets: Any) -> Check:
    import torch

    module = task.model().train()
    named = [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]
    loss = loss_of(module(inputs).float(), targets).mean()
    gradients = torch.autograd.grad(loss, [parameter for _, parameter in named], allow_unused=True)
    unreached = [name for (name, _), gradient in zip(named, gradients, strict=True) if gradient is None]
    if any(gradient is not None and not bool(gradient.isfinite().all()) for gradient in gradients):
        return Check("gradient", False, "is not finite for made-up records", fatal=False)
    note = f"; not reached: {', '.join(unreached[:4])}" if unreached else ""
    return Check("gradient", True, f"finite, of {len(named)} tensors{note}")


def _metrics(task: Task, loss_of: Callable[[Any, Any], Tensor], outputs: Tensor, targets: Any) -> Check:
    losses = loss_of(outputs, targets).detach().numpy()
    values, truth = outputs.numpy(), _arrays(targets)
    total = task.metrics.sums(values, truth, losses)
    half = RECORDS // 2
    parts = [
        task.metrics.sums(values[rows], _slice(truth, rows), losses[rows]) for rows in (slice(half), slice(half, None))
    ]
    summary = task.metrics.summarise(total)
    if total.shape != (task.evaluation_size,):
        return Check("metrics", False, f"sums of shape {total.shape}, expected ({task.evaluation_size},)")
    if not np.allclose(total, parts[0] + parts[1], rtol=1e-4, atol=1e-6):
        return Check("metrics", False, "sums of two halves do not add up to the sums of all", fatal=False)
    if not np.isfinite(list(summary.values())).all() or task.headline not in task.metrics.names:
        has_headline = task.headline in task.metrics.names
        return Check(
            "metrics",
            False,
            f"{summary}: expected finite numbers, '{task.headline}' one of them",
            fatal=not has_headline,
        )
    return Check(
        "metrics", True, f"{', '.join(task.metrics.names)}; {task.headline} first; {task.evaluation_size} sums"
    )


def _row(tree: Any, row: int) -> Any:
    return _slice(tree, slice(row, row + 1))


def _slice(tree: Any, part: slice) -> Any:
    return {name: value[part] for name, value in tree.items()} if isinstance(tree, dict) else tree[part]


def _arrays(tree: Any) -> Any:
    return {name: value.numpy() for name, value in tree.items()} if isinstance(tree, dict) else tree.numpy()
