"""The optimizer `lab_sign`: value ← value − rate · sign(gradient), for one model and for stacked ones alike."""

from collections.abc import Sequence

from torch import Tensor

from sovfed.task import LocalPlan, State


class Sign:
    plain = False  # a step is more than value − rate · gradient

    def init(self, values: Sequence[Tensor], shapes: Sequence[tuple[int, ...]] | None = None) -> State:
        return State([tuple(value.shape) for value in values] if shapes is None else list(shapes))

    def step(
        self, values: Sequence[Tensor], gradients: Sequence[Tensor | None], state: State, rate: float | Tensor
    ) -> None:
        for value, gradient, shape in zip(values, gradients, state.shapes, strict=True):
            if gradient is not None:
                each = rate.reshape((*rate.shape, *(1 for _ in shape))) if isinstance(rate, Tensor) else rate
                value.sub_(each * gradient.sign())


def sign(plan: LocalPlan) -> Sign:
    return Sign()
