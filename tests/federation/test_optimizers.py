"""The optimizers against torch.optim, alone and stacked, and against the formulas where torch's are coarser."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from sovfed.federation import plugins
from sovfed.federation.errors import ConfigError
from sovfed.federation.optimizers import Accumulator, LocalOptimizer, Muon, clip, make, names
from sovfed.federation.plan import LocalPlan

SHAPES = [(6, 4), (6,), (), (3, 2, 2, 2)]
STEPS, COPIES, RATE = 12, 7, 0.05
Factory = Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer]

SGD: list[tuple[LocalPlan, Factory]] = [
    (LocalPlan(), lambda p: torch.optim.SGD(p, RATE)),
    (LocalPlan(momentum=0.9), lambda p: torch.optim.SGD(p, RATE, momentum=0.9)),
    (LocalPlan(weight_decay=0.1), lambda p: torch.optim.SGD(p, RATE, weight_decay=0.1)),
    (
        LocalPlan(momentum=0.8, nesterov=True, weight_decay=0.01),
        lambda p: torch.optim.SGD(p, RATE, momentum=0.8, nesterov=True, weight_decay=0.01),
    ),
]
ADAMW: list[tuple[LocalPlan, Factory]] = [
    (LocalPlan(optimizer="adamw"), lambda p: torch.optim.AdamW(p, RATE, weight_decay=0)),
    (
        LocalPlan(optimizer="adamw", beta_1=0.8, beta_2=0.95, epsilon=1e-6, weight_decay=0.1),
        lambda p: torch.optim.AdamW(p, RATE, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.1),
    ),
]
PLANS = [plan for plan, _ in SGD + ADAMW] + [
    LocalPlan(optimizer="muon", momentum=0.95, nesterov=True, weight_decay=0.1),
    LocalPlan(optimizer="adamw", gradient_clip=0.5),
]


def values(copies: int, seed: int = 0) -> list[list[Tensor]]:
    """The start of each copy."""
    generator = torch.Generator().manual_seed(seed)
    return [[torch.randn(shape, generator=generator) for shape in SHAPES] for _ in range(copies)]


def gradients(copies: int) -> Iterator[list[list[Tensor]]]:
    for step in range(STEPS):
        yield values(copies, seed=1 + step)


def stack(copies: list[list[Tensor]]) -> list[Tensor]:
    return [torch.stack(parts) for parts in zip(*copies, strict=True)]


def by_torch(factory: Factory, start: list[Tensor], course: list[list[Tensor]], bound: float = 0.0) -> list[Tensor]:
    parameters = [torch.nn.Parameter(value.clone()) for value in start]
    optimizer = factory(parameters)
    for step in course:
        for parameter, gradient in zip(parameters, step, strict=True):
            parameter.grad = gradient.clone()
        if bound:
            torch.nn.utils.clip_grad_norm_(parameters, bound)
        optimizer.step()
    return [parameter.detach() for parameter in parameters]


def by_ours(
    optimizer: LocalOptimizer, start: list[Tensor], course: list[list[Tensor]], rate: float | Tensor = RATE
) -> list[Tensor]:
    mine = [value.clone() for value in start]
    state = optimizer.init(mine, SHAPES)
    for step in course:
        optimizer.step(mine, step, state, rate)
    return mine


def assert_close(ours: list[Tensor], theirs: list[Tensor], tolerance: float = 1e-6) -> None:
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize(("plan", "factory"), SGD + ADAMW)
def test_a_model_moves_as_under_torch_optim(plan: LocalPlan, factory: Factory) -> None:
    (start,), course = values(1), [step[0] for step in gradients(1)]
    assert_close(by_ours(make(plan), start, course), by_torch(factory, start, course))


@pytest.mark.parametrize(("plan", "factory"), SGD + ADAMW)
def test_seven_stacked_models_move_as_each_under_torch_optim(plan: LocalPlan, factory: Factory) -> None:
    starts, course = values(COPIES), list(gradients(COPIES))
    ours = by_ours(make(plan), stack(starts), [stack(step) for step in course])
    theirs = [by_torch(factory, start, [step[i] for step in course]) for i, start in enumerate(starts)]
    assert_close(ours, stack(theirs))


@pytest.mark.parametrize("plan", PLANS)
def test_a_stack_moves_as_its_members_also_with_a_rate_for_each(plan: LocalPlan) -> None:
    starts, course = values(COPIES), list(gradients(COPIES))
    rates = torch.linspace(0.01, 0.1, COPIES)
    ours = by_ours(make(plan), stack(starts), [stack(step) for step in course], rates)
    alone = [
        by_ours(make(plan), start, [step[i] for step in course], float(rates[i])) for i, start in enumerate(starts)
    ]
    assert_close(ours, stack(alone))


@pytest.mark.parametrize("plan", PLANS)
def test_members_that_are_done_drop_out_and_the_rest_goes_on(plan: LocalPlan) -> None:
    starts, course = values(3), list(gradients(3))
    mine = stack(starts)
    optimizer = make(plan)
    state = optimizer.init(mine, SHAPES)
    for number, step in enumerate(course):
        left = 3 if number < 5 else 2
        optimizer.step([part[:left] for part in mine], [part[:left] for part in stack(step)], state, RATE)
    alone = [
        by_ours(make(plan), start, [step[i] for step in course[: 5 if i == 2 else STEPS]])
        for i, start in enumerate(starts)
    ]
    assert_close(mine, stack(alone))


def test_gradients_are_clipped_by_the_norm_of_all_as_torch_does_each_institution_by_itself() -> None:
    starts, course = values(COPIES), list(gradients(COPIES))
    ours = by_ours(make(LocalPlan(gradient_clip=0.5)), stack(starts), [stack(step) for step in course])
    sgd = SGD[0][1]
    theirs = [by_torch(sgd, start, [step[i] for step in course], 0.5) for i, start in enumerate(starts)]
    assert_close(ours, stack(theirs))


def test_a_gradient_within_the_bound_stays_as_it_is() -> None:
    (clipped,) = clip([torch.tensor([3.0, 4.0])], [(2,)], 5.1)
    assert clipped.tolist() == [3.0, 4.0]


def test_gradients_are_not_overwritten_so_that_two_parameters_may_share_one() -> None:
    shared = torch.ones(1).expand(3)
    mine = [torch.zeros(3), torch.zeros(3)]
    for plan in PLANS:
        optimizer = make(plan)
        state = optimizer.init(mine)
        optimizer.step(mine, [shared, shared], state, RATE)
        assert shared.tolist() == [1.0, 1.0, 1.0]
        assert torch.equal(mine[0], mine[1])


@pytest.mark.parametrize("turned", ["value", "gradient"])
def test_adamw_reads_a_transposed_tensor_as_what_it_is(turned: str) -> None:
    plan, (start,), slope = ADAMW[1][0], values(1), torch.arange(24.0).view(6, 4)
    plain, other = start[0].clone(), start[0].clone()
    if turned == "value":
        other = other.T.contiguous().T
    for value, gradient in ((plain, slope), (other, slope.T.contiguous().T if turned == "gradient" else slope)):
        optimizer = make(plan)
        state = optimizer.init([value])
        for _ in range(3):
            optimizer.step([value], [gradient], state, RATE)
    assert_close([other], [plain])


def test_no_gradient_is_a_gradient_of_zeros() -> None:
    plan = LocalPlan(momentum=0.5, weight_decay=0.1)
    mine = [[torch.ones(3)], [torch.ones(3)]]
    for copy, gradient in zip(mine, (None, torch.zeros(3)), strict=True):
        optimizer = make(plan)
        optimizer.step(copy, [gradient], optimizer.init(copy), RATE)
    assert torch.equal(mine[0][0], mine[1][0])


def newton_schulz(matrix: np.ndarray) -> np.ndarray:
    """Jordan's iteration in float64, written from the formula."""
    x = matrix.astype(np.float64) / np.linalg.norm(matrix)
    flip = x.shape[0] > x.shape[1]
    x = x.T if flip else x
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x.T if flip else x


@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (3, 2, 2, 2)])
def test_muon_steps_along_the_orthogonal_factor_of_the_momentum(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    one, two = (rng.normal(size=shape).astype(np.float32) for _ in range(2))
    matrix = (shape[0], int(np.prod(shape[1:])))
    expected = np.zeros(matrix)
    scale = 0.2 * np.sqrt(max(matrix))
    buffer = one.astype(np.float64)
    for turn, gradient in enumerate((one, two)):
        buffer = buffer if turn == 0 else 0.95 * buffer + gradient
        ahead = (gradient + 0.95 * buffer).reshape(matrix)
        expected -= 0.1 * scale * newton_schulz(ahead)
    mine = [torch.zeros(shape)]
    optimizer = make(LocalPlan(optimizer="muon", momentum=0.95, nesterov=True))
    state = optimizer.init(mine)
    for gradient in (one, two):
        optimizer.step(mine, [torch.from_numpy(gradient)], state, 0.1)
    np.testing.assert_allclose(mine[0].numpy().reshape(matrix), expected, atol=2e-6)


def test_muon_is_torchs_to_the_rounding_of_its_bfloat16() -> None:
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(16, 32, generator=generator)
    course = [torch.randn(16, 32, generator=generator) for _ in range(STEPS)]
    parameter = torch.nn.Parameter(start.clone())
    theirs = torch.optim.Muon(
        [parameter], RATE, weight_decay=0.1, momentum=0.95, nesterov=True, adjust_lr_fn="match_rms_adamw"
    )
    mine = [start.clone()]
    optimizer = make(LocalPlan(optimizer="muon", momentum=0.95, nesterov=True, weight_decay=0.1))
    state = optimizer.init(mine)
    for gradient in course:
        parameter.grad = gradient.clone()
        theirs.step()  # type: ignore[no-untyped-call]
        optimizer.step(mine, [gradient], state, RATE)
    moved = (mine[0] - start).square().mean().sqrt()
    assert (mine[0] - parameter.detach()).square().mean().sqrt() < 0.02 * moved


def test_muon_takes_vectors_as_adamw_does() -> None:
    (start,), course = values(1), [step[0] for step in gradients(1)]
    muon = by_ours(make(LocalPlan(optimizer="muon", weight_decay=0.1)), start, course)
    adamw = by_ours(make(LocalPlan(optimizer="adamw", weight_decay=0.1)), start, course)
    for ours, theirs, shape in zip(muon, adamw, SHAPES, strict=True):
        assert torch.equal(ours, theirs) == (len(shape) < 2)


def test_only_sgd_with_nothing_added_is_plain() -> None:
    assert make(LocalPlan()).plain
    for plan in PLANS[1:]:
        assert not make(plan).plain
    assert not make(LocalPlan(gradient_clip=1.0)).plain


def test_batches_of_unequal_length_accumulate_to_the_gradient_of_their_union() -> None:
    rows = torch.randn(20, 5, generator=torch.Generator().manual_seed(0))
    accumulator = Accumulator(3, [(5,)])
    value = [torch.zeros(5)]
    due = [accumulator.add([part.mean(0)], len(part), value) for part in torch.split(rows, 8)]
    assert due == [False, False, True]
    torch.testing.assert_close(accumulator.mean()[0], rows.mean(0))
    accumulator.add([rows[:4].mean(0)], 4, value)  # the last of an epoch
    torch.testing.assert_close(accumulator.mean()[0], rows[:4].mean(0))


def test_stacked_gradients_accumulate_each_by_its_own_records() -> None:
    first, second = torch.tensor([[1.0], [2.0]]), torch.tensor([[4.0], [6.0]])
    accumulator = Accumulator(2, [(1,)])
    accumulator.add([first], torch.tensor([1.0, 3.0]), [first])
    assert accumulator.add([second], torch.tensor([2.0, 1.0]), [first])
    torch.testing.assert_close(accumulator.mean()[0], torch.tensor([[3.0], [3.0]]))


@pytest.mark.parametrize("plan", PLANS)
def test_state_survives_as_vectors(plan: LocalPlan) -> None:
    (start,), course = values(1), [step[0] for step in gradients(1)]
    whole = by_ours(make(plan), start, course)
    mine = [value.clone() for value in start]
    optimizer = make(plan)
    state = optimizer.init(mine)
    for step in course[:5]:
        optimizer.step(mine, step, state, RATE)
    again = make(plan)
    restored = again.init(mine)
    restored.load(state.vectors(), state.count)
    for step in course[5:]:
        again.step(mine, step, restored, RATE)
    assert all(torch.equal(a, b) for a, b in zip(mine, whole, strict=True))


def test_state_of_another_model_is_refused() -> None:
    state = Muon(LocalPlan(optimizer="muon")).init([torch.zeros(2, 2)])
    with pytest.raises(ConfigError, match="does not fit"):
        state.load({"momentum": np.zeros(5, np.float32)}, 1)


def test_what_an_epoch_leaves_over_is_pending_until_a_step_takes_it() -> None:
    accumulator = Accumulator(2, [(1,)])
    pending = [accumulator.pending]
    accumulator.add([torch.ones(1)], 1, [torch.ones(1)])
    pending.append(accumulator.pending)
    accumulator.mean()
    assert [*pending, accumulator.pending] == [False, True, False]


def test_an_unknown_optimizer_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match=r"unknown optimizer 'adam' \(did you mean 'adamw'\?\)"):
        make(LocalPlan(optimizer="adam"))


SIGN_SGD = """
from sovfed.federation.optimizers import State, descend

class SignSgd:
    plain = False

    def __init__(self, plan):
        self.decay = plan.weight_decay

    def init(self, values, shapes=None):
        return State([tuple(value.shape) for value in values] if shapes is None else list(shapes))

    def step(self, values, gradients, state, rate):
        signs = [0 * value if gradient is None else gradient.sign() for value, gradient in zip(values, gradients)]
        descend(values, [sign + self.decay * value for sign, value in zip(signs, values)], rate, state.shapes)
"""


def test_an_optimizer_of_an_installed_package_is_found_and_stacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "outside_optimizer.py").write_text(SIGN_SGD)
    facts = tmp_path / "outside_optimizer-1.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: outside-optimizer\nVersion: 1\n")
    (facts / "entry_points.txt").write_text("[sovfed.optimizers]\nsign_sgd = outside_optimizer:SignSgd\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    plugins._installed.cache_clear()
    try:
        assert "sign_sgd" in names()
        mine = [torch.tensor([[1.0, -1.0], [2.0, 0.0]])]
        optimizer = make(LocalPlan(optimizer="sign_sgd", weight_decay=0.5))
        state = optimizer.init(mine, [(2,)])
        optimizer.step(mine, [torch.tensor([[3.0, -4.0], [0.0, 5.0]])], state, torch.tensor([0.1, 0.2]))
    finally:
        plugins._installed.cache_clear()
    torch.testing.assert_close(mine[0], torch.tensor([[0.85, -0.85], [1.8, -0.2]]))


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("rows", [2048, 100, 10])
def test_values_stay_within_the_reach_that_is_known_beforehand(optimizer: str, rows: int) -> None:
    """Also of a matrix of which few rows have a gradient, as of an embedding."""
    plan = LocalPlan(
        optimizer=optimizer, local_steps=8, learning_rate=0.01, final_rate=0.002, momentum=0.95, nesterov=True
    )
    generator = torch.Generator().manual_seed(rows)
    shapes = [(2048, 64), (64, 64), (16, 3, 3, 3), (64,)]
    values = [torch.randn(shape, generator=generator) for shape in shapes]
    before, stepper = [value.clone() for value in values], make(plan)
    state, slope = stepper.init(values), [torch.randn(shape, generator=generator) for shape in shapes]
    for step in range(8):
        gradients = [torch.randn(shape, generator=generator) + one for shape, one in zip(shapes, slope, strict=True)]
        gradients[0][torch.randperm(2048, generator=generator)[rows:]] = 0.0
        stepper.step(values, gradients, state, plan.rate(step, 8))
    moved = [float((value - old).abs().max()) / plan.reach(shape)
             for value, old, shape in zip(values, before, shapes, strict=True)]  # fmt: skip
    assert max(moved) <= 1.0 and min(moved) > 0.02, moved
