"""Local training against plain torch and hand-made sums."""

from __future__ import annotations

import dataclasses
import logging
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
import torch
from tests.records import in_memory, inputs_of, records_of, targets_of, u_of

from sovfed.clients.data import load_records
from sovfed.clients.training.algorithms import Learner
from sovfed.clients.training.device import choose_device
from sovfed.clients.training.judging import LARGEST_OUTPUT, judged
from sovfed.clients.training.local import LocalTraining, evenly
from sovfed.clients.training.model import FlatModel
from sovfed.clients.training.steps import Plain
from sovfed.federation.config import DataConfig
from sovfed.federation.errors import ConfigError, ProtocolError, TrainingError
from sovfed.federation.messages import Sums, TrainRequest
from sovfed.federation.tasks import initial_vector, summarise
from sovfed.federation.tasks.columns import NUMBERS
from sovfed.federation.tasks.registry import get_task

TASK = get_task("breast_cancer")
RECORDS = in_memory(load_records(TASK, DataConfig(site="0")))
U = u_of(TASK.schema, inputs_of(RECORDS))
LABELS = targets_of(RECORDS)
SCALE: Sums = np.concatenate([U.mean(0), U.std(0)])


def _engine(site: str = "0", device: str = "cpu", precision: str = "float32") -> LocalTraining:
    return LocalTraining(TASK, RECORDS, site=site, device=device, precision=precision)


def _request(**changes: object) -> TrainRequest:
    request = TrainRequest(
        run="r", round=1, task=TASK.name, seed=1, local_epochs=2, batch_size=32, learning_rate=0.1, proximal_mu=0.0,
        model=initial_vector(TASK, 0), scale=SCALE,
    )  # fmt: skip
    return dataclasses.replace(request, **changes)  # type: ignore[arg-type]


def test_the_sum_enters_the_order_of_records_unless_the_policy_says_reproducible() -> None:
    """The same model, seed and round in another sum: another order, so two sums never differ by one update exactly."""
    one, other = (_request(begin=np.full(40, value, np.uint8)) for value in (1, 2))
    usual = _engine()
    assert np.array_equal(usual.train(one)[0], usual.train(one)[0])
    assert not np.array_equal(usual.train(one)[0], usual.train(other)[0])
    exact = LocalTraining(TASK, RECORDS, site="0", device="cpu", reproducible=True)
    assert np.array_equal(exact.train(one)[0], exact.train(other)[0])
    assert np.array_equal(exact.train(one)[0], usual.train(_request())[0])


def test_the_profile_is_the_sums_over_training_records() -> None:
    training = U[RECORDS.train]
    expected = [*[len(training)] * 30, *training.sum(0), *(training**2).sum(0)]
    assert _engine().profile().tolist() == pytest.approx(expected, rel=1e-12)


def test_warming_up_takes_few_records_and_leaves_all_of_them() -> None:
    engine, fresh = _engine(), _engine()
    engine.warm_up()
    assert engine.records is RECORDS
    assert np.array_equal(engine.train(_request())[0], fresh.train(_request())[0])


@pytest.mark.parametrize("mu", [0.0, 0.5])
def test_full_batch_steps_equal_gradient_descent_by_hand(mu: float) -> None:
    request = _request(batch_size=10_000, local_epochs=3, proximal_mu=mu)
    scaled = (U[RECORDS.train] - SCALE[:30]) / SCALE[30:]
    design = np.column_stack([scaled, np.ones(len(scaled))])
    labels = LABELS[RECORDS.train]
    weights = start = request.model.astype(np.float64)
    for _ in range(3):
        probability = 1 / (1 + np.exp(-design @ weights))
        gradient = design.T @ (probability - labels) / len(labels) + mu * (weights - start)
        weights = weights - 0.1 * gradient
    update, _ = _engine().train(request)
    assert update == pytest.approx(weights - start, abs=1e-6)


@pytest.mark.parametrize("name", ["digits", "heart"])
def test_views_of_the_flat_vector_train_like_a_plain_torch_model(name: str) -> None:
    task = get_task(name)
    random = np.random.default_rng(0)
    width, classes = task.transform.size, len(task.schema.classes)
    labels = random.integers(0, classes, 50)
    records = records_of(task.schema, random.normal(size=(50, width)), labels, np.arange(40), np.arange(40, 50))
    rows = torch.from_numpy(u_of(task.schema, inputs_of(records))[:40].astype(np.float32))
    scale = np.concatenate([np.zeros(width), np.ones(width)])
    start = initial_vector(task, 5)
    request = _request(task=name, batch_size=50, local_epochs=4, model=start, scale=scale)
    update, _ = LocalTraining(task, records, site="a", device="cpu").train(request)

    assert task.loss is not None
    module = task.model()
    torch.nn.utils.vector_to_parameters(torch.from_numpy(start.copy()), module.parameters())
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    for _ in range(4):
        optimizer.zero_grad()
        loss = task.loss(module(rows), torch.from_numpy(labels[:40])).mean()
        torch.autograd.backward(loss)
        optimizer.step()
    expected = torch.nn.utils.parameters_to_vector(module.parameters()).detach().numpy() - start
    assert update == pytest.approx(expected, abs=1e-6)


def test_training_is_repeatable_and_leaves_no_trace() -> None:
    engine, request = _engine(), _request()
    state = torch.get_rng_state()
    first, loss = engine.train(request)
    engine.train(_request(round=2, learning_rate=0.7))
    again, same_loss = engine.train(request)
    assert np.array_equal(first, again)
    assert loss == same_loss
    assert torch.equal(state, torch.get_rng_state())
    assert np.array_equal(first, _engine().train(request)[0])


def test_institutions_that_share_a_model_train_as_with_their_own() -> None:
    make_model = lru_cache(1)(FlatModel)
    shared = [LocalTraining(TASK, RECORDS, site=site, device="cpu", make_model=make_model) for site in ("0", "1")]
    request = _request()
    request.model.flags.writeable = False  # as one that came in a message: it is loaded once
    for one in (*shared, *shared):
        own = _engine(site="0" if one is shared[0] else "1")
        assert np.array_equal(one.evaluate(request.model, SCALE), own.evaluate(request.model, SCALE))
        assert np.array_equal(one.train(request)[0], own.train(request)[0])


def test_a_model_that_was_written_into_is_loaded_anew() -> None:
    engine, model = _engine(), _request().model
    before = engine.evaluate(model, SCALE)
    model += 1
    assert np.array_equal(engine.evaluate(model, SCALE), _engine().evaluate(model, SCALE))
    assert not np.array_equal(engine.evaluate(model, SCALE), before)


def test_round_seed_and_site_each_give_another_order() -> None:
    updates = [
        _engine().train(_request())[0],
        _engine().train(_request(round=2))[0],
        _engine().train(_request(seed=2))[0],
        _engine(site="1").train(_request())[0],
    ]
    assert len({update.tobytes() for update in updates}) == 4


def test_evaluation_counts_the_held_out_records_only() -> None:
    engine = _engine()
    update, _ = engine.train(_request(local_epochs=10))
    model = _request().model + update
    logits = engine.logits(model, SCALE, RECORDS.test)[:, 0]
    labels = LABELS[RECORDS.test]
    sums = engine.evaluate(model, SCALE)
    found = summarise(TASK, sums)
    assert sums[0] == len(RECORDS.test)
    assert found["accuracy"] == pytest.approx(((logits > 0) == labels).mean())
    assert found["loss"] == pytest.approx(np.logaddexp(0, np.where(labels == 1, -logits, logits)).mean(), rel=1e-5)


@pytest.mark.parametrize("most", [1, 7, 10_000])
def test_rounds_are_evaluated_on_a_fixed_sample_and_the_end_of_a_run_on_all(most: int) -> None:
    model, held_out = initial_vector(TASK, 3), len(RECORDS.test)
    sampled = Learner(TASK, RECORDS, site="0", device="cpu", evaluation_records=most)
    told, again = (sampled.learn(_request(round=number, model=model), None).evaluation for number in (1, 2))
    np.testing.assert_array_equal(told, again)
    rows = evenly(RECORDS.test, most)
    assert len(set(rows.tolist())) == min(most, held_out) and set(rows) <= set(RECORDS.test)
    alone = Learner(TASK, dataclasses.replace(RECORDS, test=rows), site="0", device="cpu")
    np.testing.assert_allclose(told, alone.evaluate(model, SCALE))
    np.testing.assert_array_equal(sampled.evaluate(model, SCALE), _engine().evaluate(model, SCALE))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_comes_close_to_float32(precision: str) -> None:
    request = _request(local_epochs=5)
    full, _ = _engine().train(request)
    mixed, _ = _engine(precision=precision).train(request)
    assert mixed.dtype == np.float32
    assert not np.array_equal(mixed, full)
    assert np.linalg.norm(mixed - full) < 0.02 * np.linalg.norm(full)


def test_an_update_that_is_not_finite_is_none() -> None:
    with pytest.raises(TrainingError, match="not finite"):
        _engine().train(_request(learning_rate=1e3, proximal_mu=1e6, local_epochs=20))


def test_an_output_that_overflows_is_cut_by_itself_and_leaves_the_other_records_alone() -> None:
    engine, model = _engine(), np.zeros(31, np.float32)
    model[0] = 1.0  # finite, but for the record whose first feature is huge
    usual, cut = engine.measure(model, SCALE)
    assert not cut
    numbers = inputs_of(RECORDS).copy()
    numbers[RECORDS.test[3], 0] = 3e38
    broken = dataclasses.replace(RECORDS, columns={**RECORDS.columns, NUMBERS: numbers})
    hit = LocalTraining(TASK, broken, site="0", device="cpu")
    found, cut = hit.measure(model, SCALE)
    assert cut and np.isfinite(found).all()
    assert found[0] == usual[0] == len(RECORDS.test)
    assert abs(found[1] - usual[1]) <= 2 * LARGEST_OUTPUT  # one record's loss, before and after
    assert np.abs(found[4:] - usual[4:]).sum() <= 2  # which left one cell and came into another


@pytest.mark.parametrize("fill", [np.nan, np.inf, -np.inf, 1e30])
def test_what_is_no_number_counts_as_a_bounded_one(fill: float) -> None:
    logits = np.full((3, 1), fill, np.float32)
    sums, cut = judged(TASK, logits, np.array([0, 1, 1]))
    assert cut and np.isfinite(sums).all() and sums[0] == 3
    assert sums[1] <= 3 * LARGEST_OUTPUT


def test_without_training_or_held_out_records_there_is_nothing_to_add_and_no_error() -> None:
    none = np.zeros(0, np.int64)
    engine = LocalTraining(TASK, dataclasses.replace(RECORDS, test=none), site="0", device="cpu")
    assert not engine.evaluate(_request().model, SCALE).any()
    empty = LocalTraining(TASK, dataclasses.replace(RECORDS, train=none), site="0", device="cpu")
    assert not empty.profile().any()
    with pytest.raises(TrainingError, match="no training records"):
        empty.train(_request())


def test_a_batch_of_more_than_all_records_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    """In the institution's own log: nobody else is told how many records there are."""
    caplog.set_level(logging.INFO)
    few = dataclasses.replace(RECORDS, train=RECORDS.train[:5])
    engine = LocalTraining(TASK, few, site="0", device="cpu")
    engine.warm_up()
    engine.train(_request(batch_size=5))
    assert "batch" not in caplog.text
    for _ in range(3):
        engine.train(_request(batch_size=8))
    assert caplog.text.count("a batch of 8 asks for more than the 5 training records here") == 1


def test_after_a_failure_the_next_round_is_not_tainted() -> None:
    engine = _engine()
    with pytest.raises(TrainingError):
        engine.train(_request(learning_rate=1e3, proximal_mu=1e6, local_epochs=20))
    assert np.array_equal(engine.train(_request())[0], _engine().train(_request())[0])


def test_vectors_of_another_length_are_refused() -> None:
    with pytest.raises(ProtocolError, match="31 parameters"):
        _engine().train(_request(model=np.zeros(30, dtype=np.float32)))
    with pytest.raises(ProtocolError, match="scale of shape"):
        _engine().train(_request(scale=np.ones(59)))


def test_a_read_only_model_is_neither_copied_aside_nor_changed() -> None:
    model = np.frombuffer(initial_vector(TASK, 0).tobytes(), dtype=np.float32)
    before = model.copy()
    assert np.array_equal(_engine().train(_request(model=model))[0], _engine().train(_request())[0])
    assert np.array_equal(model, before)


def test_a_feature_that_never_varies_does_no_harm() -> None:
    scale = SCALE.copy()
    scale[30] = 0.0
    update, _ = _engine().train(_request(scale=scale, learning_rate=1e-9))
    assert np.isfinite(update).all()


@pytest.mark.parametrize("device", ["rocm", "tpu"])
def test_a_device_that_is_not_there_is_refused(device: str) -> None:
    with pytest.raises(ConfigError, match=f"device '{device}' is not there"):
        choose_device(device)


class Crowded(torch.nn.Linear):
    """Has memory for so many records at once."""

    room = 1 << 30

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if len(x) > self.room:
            raise torch.OutOfMemoryError(f"{len(x)} records at once")
        return super().forward(x)


def _crowded(room: int) -> LocalTraining:
    task = dataclasses.replace(TASK, build=lambda: Crowded(30, 1))
    engine = LocalTraining(task, RECORDS, site="0", device="cpu")
    engine._model.module.room = room  # type: ignore[assignment]
    return engine


@pytest.mark.parametrize("plan", [{}, {"optimizer": "adamw"}, {"momentum": 0.9, "accumulation": 3}])
def test_where_memory_runs_out_a_step_is_taken_on_the_same_records_in_pieces(plan: dict[str, object]) -> None:
    request = _request(**plan)
    roomy, crowded = _crowded(1_000), _crowded(5)
    expected, loss = roomy.train(request)
    update, same_loss = crowded.train(request)
    assert np.allclose(update, expected, rtol=1e-4, atol=1e-6)
    assert same_loss == pytest.approx(loss, rel=1e-5)
    assert crowded._most == 4  # of 32: 16, 8, 4
    assert crowded.steps(request) == roomy.steps(request)
    assert np.array_equal(crowded.train(request)[0], update)  # which it remembers


def test_values_move_alike_whether_one_by_one_or_by_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    alone, _ = _engine().train(_request())

    def together(self: Plain, *arguments: Any) -> None:
        made(self, *arguments)
        self._together = True  # as on a GPU

    made = Plain.__init__
    monkeypatch.setattr(Plain, "__init__", together)
    assert np.array_equal(_engine().train(_request())[0], alone)


def test_memory_that_does_not_do_for_one_record_is_a_failure() -> None:
    with pytest.raises(TrainingError, match="out of memory"):
        _crowded(0).train(_request())
    with pytest.raises(TrainingError, match="out of memory"):
        _crowded(0).evaluate(initial_vector(TASK, 0), SCALE)


def test_records_that_are_coupled_are_not_torn_apart_where_memory_runs_out() -> None:
    task = get_task("digits_cnn")
    records = load_records(task, DataConfig(source="digits", site="0"))
    engine = LocalTraining(task, records, site="0", device="cpu")

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError

    engine._model.module.register_forward_pre_hook(full)
    model = initial_vector(task, 0)
    with pytest.raises(TrainingError, match="out of memory"):
        engine.train(_request(task=task.name, model=model, scale=task.transform.public_scale))
    assert engine._most is None


def test_an_evaluation_goes_on_with_fewer_records_where_memory_runs_out() -> None:
    roomy, crowded, model = _crowded(1_000), _crowded(7), initial_vector(TASK, 3)
    assert np.allclose(crowded.evaluate(model, SCALE), roomy.evaluate(model, SCALE))
    assert crowded._most_evaluated <= 7
    assert np.allclose(crowded.logits(model, SCALE, RECORDS.train), roomy.logits(model, SCALE, RECORDS.train))


def test_bf16_steps_on_a_float32_model_so_that_small_ones_add_up() -> None:
    """A step of 1e-4 is lost on a bf16 weight of 1, whose neighbours are 2⁻⁷ away."""
    ones = np.ones_like(initial_vector(TASK, 0))
    request = _request(model=ones, learning_rate=1e-4, local_epochs=20)
    update, _ = _engine(precision="bf16").train(request)
    expected, _ = _engine().train(request)
    assert 0 < np.abs(expected).max() < 2**-8
    assert np.linalg.norm(update - expected) < 0.05 * np.linalg.norm(expected)


class Asked(torch.nn.Linear):
    """Notes how matrices are multiplied."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen = torch.get_float32_matmul_precision()
        return super().forward(x)


@pytest.mark.parametrize(("precision", "expected"), [("float32", "highest"), ("tf32", "high"), ("bf16", "highest")])
def test_tf32_is_for_whoever_asks_for_it_and_for_nobody_after(precision: str, expected: str) -> None:
    task = dataclasses.replace(TASK, build=lambda: Asked(30, 1))
    engine = LocalTraining(task, RECORDS, site="0", device="cpu", precision=precision)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")  # by other code of this process
    try:
        for work in (lambda: engine.train(_request()), lambda: engine.evaluate(initial_vector(TASK, 0), SCALE)):
            work()
            assert engine._model.module.seen == expected
            assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


def test_a_device_is_always_found() -> None:
    assert choose_device("auto").type in ("cuda", "mps", "cpu")
    assert choose_device("cpu").type == "cpu"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA or ROCm device here")
@pytest.mark.parametrize("precision", ["float32", "bf16", "fp16"])
@pytest.mark.parametrize("resident", [True, False])
def test_a_gpu_gives_the_cpus_update(precision: str, resident: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not resident:
        monkeypatch.setattr("sovfed.clients.training.feed.RESIDENT_SHARE", 0.0)
    expected, _ = _engine().train(_request())
    engine = _engine(device="cuda", precision=precision)
    update, _ = engine.train(_request())
    tolerance = 1e-4 if precision == "float32" else 0.03
    assert np.linalg.norm(update - expected) < tolerance * np.linalg.norm(expected)
    assert engine.evaluate(_request().model + update, SCALE)[0] == len(RECORDS.test)
