"""The steps of training: SGD, AdamW, Muon, for one model and for many stacked ones, at institutions and on the server.

An optimizer works in place on a list of tensors, each of shape [..., *shape]: any leading dimensions are copies of the
model that learn side by side, and each of them moves as it would alone. A package may bring another one (entry points
`sovfed.optimizers`: a function from `LocalPlan` to `LocalOptimizer`).

Sources: SGD with momentum, Sutskever et al. 2013, and AdamW, Loshchilov and Hutter 2019, arXiv:1711.05101, Algorithm 2,
both as torch.optim has them; Muon, Jordan 2024, https://kellerjordan.github.io/posts/muon/, with the scale of Liu et
al. 2025, arXiv:2502.16982, equation 4, by which one learning rate and weight decay serve matrices and the rest.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias, cast

import numpy as np
import torch
from torch import Tensor

from sovfed.federation import plugins
from sovfed.federation.errors import ConfigError
from sovfed.federation.plan import SGD

if TYPE_CHECKING:
    import numpy.typing as npt

    from sovfed.federation.plan import LocalPlan

GROUP: Final = "sovfed.optimizers"
MATRIX: Final = 2  # dimensions from which on Muon takes a tensor for a matrix
NEWTON_SCHULZ: Final = (3.4445, -4.7750, 2.0315)  # coefficients of the quintic, Jordan 2024
NEWTON_SCHULZ_STEPS: Final = 5
NORM_FLOOR: Final = 1e-7
RMS: Final = 0.2  # of a step's values, about as AdamW's; Liu et al. 2025
CLIP_EPSILON: Final = 1e-6  # torch.nn.utils.clip_grad_norm_'s
Tensors: TypeAlias = list[Tensor]
Shapes: TypeAlias = Sequence[tuple[int, ...]]
Rate: TypeAlias = float | Tensor  # a tensor has the leading dimensions: each copy has its own


@dataclass
class State:
    """What an optimizer carries from step to step: tensors by name, and how many steps were taken."""

    shapes: Shapes  # of one copy of each value
    slots: dict[str, Tensors] = field(default_factory=dict)
    count: int = 0
    counter: Tensor | None = None  # `count` for torch's kernel of a whole step, where the values lie as it reads them

    def vectors(self) -> dict[str, npt.NDArray[np.float32]]:
        """The slots as flat vectors, for a checkpoint."""
        return {
            name: torch.cat([tensor.detach().reshape(-1).float().cpu() for tensor in parts]).numpy()
            for name, parts in self.slots.items()
            if parts
        }

    def load(self, vectors: Mapping[str, npt.NDArray[Any]], count: int) -> None:
        """Take back what `vectors` told. Raises ConfigError if they are not of these slots."""
        sizes = {name: sum(tensor.numel() for tensor in parts) for name, parts in self.slots.items() if parts}
        if {name: value.size for name, value in vectors.items()} != sizes:
            raise ConfigError(f"optimizer state {sorted(vectors)} does not fit, expected values by slot: {sizes}")
        for name, vector in vectors.items():
            pieces = torch.split(torch.from_numpy(np.array(vector)), [tensor.numel() for tensor in self.slots[name]])
            for tensor, piece in zip(self.slots[name], pieces, strict=True):
                tensor.copy_(piece.view_as(tensor))
        self.count = count


class LocalOptimizer(Protocol):
    """Moves values by gradients, in place; neither asks for gradients of its own. Its state is the caller's to keep."""

    @property
    def plain(self) -> bool:
        """Whether a step is value ← value − rate · gradient and nothing else, which the caller may do itself."""

    def init(self, values: Sequence[Tensor], shapes: Shapes | None = None) -> State:
        """The state before the first step; `shapes` are those of one copy, by default the values' own."""

    def step(self, values: Sequence[Tensor], gradients: Sequence[Tensor | None], state: State, rate: Rate) -> None:
        """One step; the gradients stay as they are, and None is a gradient of zeros.

        `values` may be the first rows only of those that `init` saw, when the rest of the stack is done.
        """


def make(plan: LocalPlan) -> LocalOptimizer:
    """The optimizer that `plan` names, clipping included. Raises ConfigError with the nearest name otherwise."""
    return _maker(plan.optimizer)(plan)


def names() -> tuple[str, ...]:
    """Every optimizer that is known here, in alphabetical order."""
    return tuple(sorted({*_OWN, *plugins.installed(GROUP)}))


def clip(gradients: Sequence[Tensor], shapes: Shapes, bound: float) -> Tensors:
    """The gradients scaled so that the norm over all of them is at most `bound` > 0, each copy by itself."""
    lead = _lead(gradients, shapes)
    squares = [gradient.reshape(*lead, -1).square().sum(-1) for gradient in gradients]
    factor = (bound / (torch.stack(squares).sum(0).sqrt() + CLIP_EPSILON)).clamp(max=1.0)
    return list(torch._foreach_mul(list(gradients), _widened(factor, shapes)))


class Accumulator:
    """The mean gradient of several batches, weighted by their records: that of one batch of all of them.

    Tensors have leading dimensions as `LocalOptimizer`'s; `count` is a number, or one for each copy.
    """

    def __init__(self, batches: int, shapes: Shapes) -> None:
        self._batches, self._shapes = batches, shapes
        self._sums: Tensors = []
        self._taken, self._count = 0, cast("float | Tensor", 0.0)

    def add(self, gradients: Sequence[Tensor | None], count: float | Tensor, values: Sequence[Tensor]) -> bool:
        """Add the mean gradients of a batch of `count` records; whether a step is due."""
        weighted = _scaled(_filled(gradients, values), count, self._shapes)
        if self._taken:
            torch._foreach_add_(self._sums, weighted)
        else:
            self._sums = weighted
        self._taken += 1
        self._count = self._count + count
        return self._taken >= self._batches

    def mean(self) -> Tensors:
        """The mean of all that was added since the last call; call it at the end of an epoch also."""
        result = _scaled(self._sums, 1.0 / self._count, self._shapes)
        self._sums, self._taken, self._count = [], 0, 0.0
        return result

    @property
    def pending(self) -> bool:
        """Whether there are gradients that no step was taken on."""
        return self._taken > 0


class _Clipping(ABC):
    """What every optimizer here does before its own step: missing gradients are zeros, and all are clipped."""

    def __init__(self, plan: LocalPlan) -> None:
        self._plan = plan

    @property
    def plain(self) -> bool:
        return False

    def init(self, values: Sequence[Tensor], shapes: Shapes | None = None) -> State:
        return State([tuple(value.shape) for value in values] if shapes is None else list(shapes))

    def step(self, values: Sequence[Tensor], gradients: Sequence[Tensor | None], state: State, rate: Rate) -> None:
        moving, slopes = list(values), _filled(gradients, values)
        if self._plan.gradient_clip:
            slopes = clip(slopes, state.shapes, self._plan.gradient_clip)
        state.count += 1
        self._move(moving, slopes, state, rate)

    @abstractmethod
    def _move(self, values: Tensors, gradients: Tensors, state: State, rate: Rate) -> None: ...


class Sgd(_Clipping):
    """b ← momentum · b + gradient + decay · value; value ← value − rate · b, or Nesterov's look ahead."""

    @property
    def plain(self) -> bool:
        return self._plan.plain

    def init(self, values: Sequence[Tensor], shapes: Shapes | None = None) -> State:
        state = super().init(values, shapes)
        if self._plan.momentum:
            state.slots["momentum"] = [torch.zeros_like(value) for value in values]
        return state

    def _move(self, values: Tensors, gradients: Tensors, state: State, rate: Rate) -> None:
        plan = self._plan
        if plan.weight_decay:
            gradients = list(torch._foreach_add(gradients, values, alpha=plan.weight_decay))
        if plan.momentum:
            gradients = _with_momentum(gradients, _slot(state, "momentum", values), plan)
        descend(values, gradients, rate, state.shapes)


class AdamW(_Clipping):
    """Adam with decoupled weight decay."""

    def init(self, values: Sequence[Tensor], shapes: Shapes | None = None) -> State:
        state = super().init(values, shapes)
        state.slots = {name: [torch.zeros_like(value) for value in values] for name in ("first", "second")}
        state.counter = _counter(values)
        return state

    def _move(self, values: Tensors, gradients: Tensors, state: State, rate: Rate) -> None:
        moments = _slot(state, "first", values), _slot(state, "second", values)
        _adamw(values, gradients, moments, self._plan, state, rate, state.shapes)


class Muon(_Clipping):
    """Momentum made orthogonal for matrices (kernels are taken as matrices [out, rest]); AdamW for everything else.

    In float32 throughout, so that a stack and its members agree; torch.optim.Muon iterates in bfloat16.
    """

    def init(self, values: Sequence[Tensor], shapes: Shapes | None = None) -> State:
        state = super().init(values, shapes)
        matrices, remaining = self._parted(values, state.shapes)
        state.slots = {"momentum": [torch.zeros_like(value) for value in matrices]}
        state.slots |= {name: [torch.zeros_like(value) for value in remaining] for name in ("first", "second")}
        state.counter = _counter(remaining)
        return state

    def _move(self, values: Tensors, gradients: Tensors, state: State, rate: Rate) -> None:
        plan = self._plan
        matrices, remaining = self._parted(values, state.shapes)
        steep, remaining_gradients = self._parted(gradients, state.shapes)
        tall, flat = self._parted(list(state.shapes), state.shapes)
        if remaining:
            moments = _slot(state, "first", remaining), _slot(state, "second", remaining)
            _adamw(remaining, remaining_gradients, moments, plan, state, rate, flat)
        if not matrices:
            return
        moved = _with_momentum(steep, _slot(state, "momentum", matrices), plan)
        _decay(matrices, plan.weight_decay, rate, tall)
        descend(matrices, [_orthogonal(matrix, shape) for matrix, shape in zip(moved, tall, strict=True)], rate, tall)

    @staticmethod
    def _parted(items: Sequence[Any], shapes: Shapes) -> tuple[list[Any], list[Any]]:
        """Those of `items` that belong to matrices, and the others."""
        pairs = list(zip(items, shapes, strict=True))
        matrices = [item for item, shape in pairs if len(shape) >= MATRIX]
        return matrices, [item for item, shape in pairs if len(shape) < MATRIX]


def _orthogonal(momentum: Tensor, shape: tuple[int, ...]) -> Tensor:
    """About U·Vᵀ of each copy's matrix U·S·Vᵀ, by five Newton-Schulz steps; its values' mean square is about 0.04."""
    matrix = momentum.reshape(-1, shape[0], math.prod(shape[1:]))
    turned = matrix.shape[-2] > matrix.shape[-1]
    x = (matrix.mT if turned else matrix).float()
    x = x / torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True).clamp(min=NORM_FLOOR)
    a, b, c = NEWTON_SCHULZ
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    x = x.mT if turned else x
    return (x * (RMS * math.sqrt(max(matrix.shape[-2:])))).reshape(momentum.shape).to(momentum.dtype)


def _with_momentum(gradients: Tensors, buffers: Tensors, plan: LocalPlan) -> Tensors:
    """The direction of the step; the buffers move on."""
    torch._foreach_mul_(buffers, plan.momentum)
    torch._foreach_add_(buffers, gradients)
    if not plan.nesterov:
        return buffers
    return list(torch._foreach_add(gradients, buffers, alpha=plan.momentum))


def _adamw(
    values: Tensors,
    gradients: Tensors,
    moments: tuple[Tensors, Tensors],
    plan: LocalPlan,
    state: State,
    rate: Rate,
    shapes: Shapes,
) -> None:
    first, second = moments
    if state.counter is not None and not isinstance(rate, Tensor) and all(map(Tensor.is_contiguous, values)):
        # One kernel a tensor: small tensors' time goes into calling eight, one after the other.
        torch._fused_adamw_(
            values, [gradient.contiguous() for gradient in gradients], first, second, [],
            [state.counter.fill_(state.count)] * len(values),
            lr=rate, beta1=plan.beta_1, beta2=plan.beta_2, weight_decay=plan.weight_decay, eps=plan.epsilon,
            amsgrad=False, maximize=False,
        )  # fmt: skip
        return
    _decay(values, plan.weight_decay, rate, shapes)
    torch._foreach_lerp_(first, gradients, 1 - plan.beta_1)
    torch._foreach_mul_(second, plan.beta_2)
    torch._foreach_addcmul_(second, gradients, gradients, 1 - plan.beta_2)
    below = torch._foreach_sqrt(second)
    torch._foreach_div_(below, math.sqrt(1 - plan.beta_2**state.count))
    torch._foreach_add_(below, plan.epsilon)
    rate = rate / (1 - plan.beta_1**state.count)
    if isinstance(rate, Tensor):
        descend(values, list(torch._foreach_div(first, below)), rate, shapes)
    else:
        torch._foreach_addcdiv_(values, first, below, value=-rate)


def _counter(values: Sequence[Tensor]) -> Tensor | None:
    """A counter for torch's kernel of a whole step, which reads memory in order; None: it does not do for `values`."""
    fits = all(
        value.device.type == "cpu" and value.dtype == torch.float32 and value.is_contiguous() for value in values
    )
    return torch.zeros(()) if fits else None


def _decay(values: Tensors, decay: float, rate: Rate, shapes: Shapes) -> None:
    """value ← (1 − rate · decay) · value."""
    if isinstance(rate, Tensor) and decay:
        torch._foreach_mul_(values, _widened(1 - rate * decay, shapes))
    elif decay:
        torch._foreach_mul_(values, 1 - rate * decay)


def descend(values: Tensors, directions: Tensors, rate: Rate, shapes: Shapes) -> None:
    """value ← value − rate · direction, with a rate for all copies or for each."""
    if isinstance(rate, Tensor):
        torch._foreach_sub_(values, torch._foreach_mul(directions, _widened(rate, shapes)))
    else:
        torch._foreach_add_(values, directions, alpha=-rate)


def _scaled(values: Tensors, factor: float | Tensor, shapes: Shapes) -> Tensors:
    if isinstance(factor, Tensor):
        return list(torch._foreach_mul(values, _widened(factor, shapes)))
    return list(torch._foreach_mul(values, factor))


def _widened(factor: Tensor, shapes: Shapes) -> Tensors:
    """`factor` (the leading dimensions) for each value, to be multiplied with it."""
    return [factor.reshape((*factor.shape, *(1 for _ in shape))) for shape in shapes]


def _lead(values: Sequence[Tensor], shapes: Shapes) -> tuple[int, ...]:
    """The leading dimensions that all values have."""
    return tuple(values[0].shape[: values[0].ndim - len(shapes[0])]) if values else ()


def _filled(gradients: Sequence[Tensor | None], values: Sequence[Tensor]) -> Tensors:
    pairs = zip(gradients, values, strict=True)
    return [torch.zeros_like(value) if gradient is None else gradient for gradient, value in pairs]


def _slot(state: State, name: str, values: Tensors) -> Tensors:
    """The slot's tensors, of as many copies as `values` have."""
    tensors = state.slots[name]
    if not values or tensors[0].shape == values[0].shape:
        return tensors
    return [tensor[: value.shape[0]] for tensor, value in zip(tensors, values, strict=True)]


_OWN: Final[dict[str, Callable[[LocalPlan], LocalOptimizer]]] = {SGD: Sgd, "adamw": AdamW, "muon": Muon}


def _maker(name: str) -> Callable[[LocalPlan], LocalOptimizer]:
    own = _OWN.get(name)
    return own or cast("Callable[[LocalPlan], LocalOptimizer]", plugins.load(GROUP, "optimizer", name, names()))
