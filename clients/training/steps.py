"""The gradient steps of local training: plain SGD without torch.optim, with a scaled loss, or any optimizer.

A stepper is called with a batch's losses, in as many pieces as memory asks for, and says whether a step was taken on
them: with accumulation, not on all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Final, Protocol

import torch
from torch import Tensor

from sovfed.clients.training.model import gradients
from sovfed.federation.errors import ConfigError
from sovfed.federation.optimizers import Accumulator, make
from sovfed.federation.plan import SGD

if TYPE_CHECKING:
    from sovfed.clients.training.model import FlatModel
    from sovfed.federation.plan import LocalPlan

FP16_SCALE: Final = 2.0**10  # the first loss scale; it adapts from there
Pull = Callable[[], Tensor | None]  # what is added to every gradient, shape [trained]; None: nothing


class Stepper(Protocol):
    """Takes the steps of a round."""

    def __call__(self, pieces: Iterable[Tensor], count: int) -> bool:
        """Go on by the losses of a batch of `count` records, which come in pieces; whether a step was taken."""

    def end_epoch(self) -> bool:
        """Take the step that is due on batches that came to no full accumulation; whether there was one."""

    def state(self) -> tuple[dict[str, int], dict[str, Tensor]] | None:
        """What `restore` goes on from: counts and tensors; None where that cannot be told now."""

    def restore(self, counts: Mapping[str, int], tensors: Mapping[str, Tensor]) -> None:
        """Go on where another stepper of the same plan was."""


def make_stepper(model: FlatModel, plan: LocalPlan, steps: int, pull: Pull, *, scaled: bool) -> Stepper:
    """The stepper of `plan`, whose round has `steps` steps; `scaled` for fp16. Raises ConfigError."""
    rates = [plan.rate(step, steps) for step in range(steps)] if plan.learning_rate != plan.final_rate else []
    if scaled:
        if not plan.plain or plan.accumulation > 1:
            raise ConfigError(
                f"client.precision fp16 trains by plain SGD, the run asks for '{plan.optimizer}' with accumulation "
                f"{plan.accumulation}: take bf16 or float32"
            )
        return Scaled(model, Rates(plan.learning_rate, rates), pull)
    if plan.plain and plan.accumulation == 1:
        return Plain(model, Rates(plan.learning_rate, rates), pull)
    return General(model, plan, Rates(plan.learning_rate, rates), pull)


def mean_gradients(
    pieces: Iterable[Tensor], shares: Tensor, parameters: tuple[torch.nn.Parameter, ...]
) -> Sequence[Tensor | None]:
    """The gradients of a batch's mean loss, whose losses come in pieces; `shares` [n] is what each weighs.

    Nothing is kept of a piece but its gradients.
    """
    total: Sequence[Tensor | None] = ()
    for losses in pieces:
        count = losses.shape[0]
        weights = shares if count == shares.shape[0] else shares[:count]
        slopes = gradients(losses, weights, parameters)
        total = [_sum(one, other) for one, other in zip(total, slopes, strict=True)] if total else slopes
    return total


def _sum(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    return other if one is None else one if other is None else one + other


class Rates:
    """The learning rate of each step, in order."""

    def __init__(self, constant: float, rates: list[float]) -> None:
        self._constant, self._rates, self.step = constant, rates, 0

    def __call__(self) -> float:
        if not self._rates:
            return self._constant
        self.step += 1
        return self._rates[self.step - 1]


class Plain:
    """w ← w − rate · gradient of the losses' mean, without torch.optim, whose import of the compiler takes seconds.

    Gradients are taken as they come: accumulating them would be two more passes over the model.
    """

    def __init__(self, model: FlatModel, rates: Rates, pull: Pull) -> None:
        self._model, self._rates, self._pull = model, rates, pull
        self._parameters, self._values = tuple(model.parameters), model.values
        self._flat = model.flat[: model.trained]
        self._together = self._flat.device.type != "cpu"  # a GPU waits for each call, a processor for lists

    def __call__(self, pieces: Iterable[Tensor], count: int) -> bool:
        rate = self._rates()
        slopes = mean_gradients(pieces, self._model.shares(count), self._parameters)
        if (added := self._pull()) is not None:
            self._flat.sub_(added, alpha=rate)
        moved = [(value, slope) for value, slope in zip(self._values, slopes, strict=True) if slope is not None]
        if self._together and moved:
            torch._foreach_add_(*map(list, zip(*moved, strict=True)), alpha=-rate)
        else:
            for value, slope in moved:
                value.sub_(slope, alpha=rate)
        self._model.scattered()
        return True

    def end_epoch(self) -> bool:
        return False

    def state(self) -> tuple[dict[str, int], dict[str, Tensor]] | None:
        return {"step": self._rates.step}, {}

    def restore(self, counts: Mapping[str, int], tensors: Mapping[str, Tensor]) -> None:
        self._rates.step = counts["step"]


class General:
    """Steps by an optimizer of `federation/optimizers.py`, on the mean gradient of the batches that it accumulates."""

    def __init__(self, model: FlatModel, plan: LocalPlan, rates: Rates, pull: Pull) -> None:
        self._model, self._rates, self._pull = model, rates, pull
        self._parameters = tuple(model.parameters)
        self._shapes, self._sizes = model.shapes, model.sizes
        self._optimizer = make(plan)
        self._flat = model.flat[: model.trained] if _by_value(plan) else None
        self._state = self._optimizer.init(model.values if self._flat is None else [self._flat])
        self._batches = Accumulator(plan.accumulation, self._shapes) if plan.accumulation > 1 else None

    def __call__(self, pieces: Iterable[Tensor], count: int) -> bool:
        slopes = mean_gradients(pieces, self._model.shares(count), self._parameters)
        if self._flat is not None:
            return self._step_flat(self._flat, slopes)
        floats = [None if slope is None else slope.float() for slope in slopes]
        if self._batches is None:
            return self._step(floats)
        if not self._batches.add(floats, count, self._model.values):
            return False
        return self._step(self._batches.mean())

    def end_epoch(self) -> bool:
        return self._batches is not None and self._batches.pending and self._step(self._batches.mean())

    def state(self) -> tuple[dict[str, int], dict[str, Tensor]] | None:
        if self._batches is not None and self._batches.pending:
            return None
        slots = {f"slot.{name}": torch.from_numpy(vector) for name, vector in self._state.vectors().items()}
        return {"step": self._rates.step, "taken": self._state.count}, slots

    def restore(self, counts: Mapping[str, int], tensors: Mapping[str, Tensor]) -> None:
        self._rates.step = counts["step"]
        slots = {name.removeprefix("slot."): value for name, value in tensors.items() if name.startswith("slot.")}
        self._state.load({name: value.numpy() for name, value in slots.items()}, counts["taken"])

    def _step_flat(self, flat: Tensor, slopes: Sequence[Tensor | None]) -> bool:
        """The same step of all values as one tensor, which takes one operation where a list takes one for each."""
        pieces = zip(slopes, self._sizes, strict=True)
        slope: Tensor = torch._C._nn.flatten_dense_tensors(
            [flat.new_zeros(size) if piece is None else piece for piece, size in pieces]
        ).float()
        if (added := self._pull()) is not None:
            slope = slope + added
        self._optimizer.step([flat], [slope], self._state, self._rates())
        self._model.scattered()
        return True

    def _step(self, slopes: list[Tensor | None] | list[Tensor]) -> bool:
        if (added := self._pull()) is not None:
            pieces = zip(torch.split(added, self._sizes), self._shapes, slopes, strict=True)
            slopes = [
                piece.view(shape) if slope is None else slope + piece.view(shape) for piece, shape, slope in pieces
            ]
        self._optimizer.step(self._model.values, slopes, self._state, self._rates())
        self._model.scattered()
        return True


def _by_value(plan: LocalPlan) -> bool:
    """Whether the optimizer moves each value by its own gradient alone, whatever tensor it is in."""
    return plan.optimizer in (SGD, "adamw") and not plan.gradient_clip and plan.accumulation == 1


class Scaled:
    """Plain SGD with a scaled loss, for fp16: a step whose gradient overflows is left out and the scale lowered."""

    def __init__(self, model: FlatModel, rates: Rates, pull: Pull) -> None:
        self._model, self._rates, self._pull = model, rates, pull
        self._weights = torch.nn.Parameter(model.flat[: model.trained])
        self._optimizer = torch.optim.SGD([self._weights], lr=1.0)
        self._scaler = torch.amp.GradScaler(model.flat.device.type, init_scale=FP16_SCALE)

    def __call__(self, pieces: Iterable[Tensor], count: int) -> bool:
        self._weights.grad = torch.zeros_like(self._weights)
        for losses in pieces:
            scaled = self._scaler.scale((losses * self._model.shares(count)[: len(losses)]).sum())
            slopes = torch.autograd.grad(scaled, self._model.parameters, allow_unused=True, materialize_grads=True)
            self._weights.grad += torch.cat([slope.reshape(-1).float() for slope in slopes])
        self._optimizer.param_groups[0]["lr"] = self._rates()
        self._scaler.unscale_(self._optimizer)
        if (added := self._pull()) is not None:
            self._weights.grad.add_(added)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._model.scattered()
        return True

    def end_epoch(self) -> bool:
        return False

    def state(self) -> None:
        """Not told: the loss scale is torch's own."""

    def restore(self, counts: Mapping[str, int], tensors: Mapping[str, Tensor]) -> None:
        raise ConfigError("a round in fp16 begins anew")
