"""Local training under each algorithm, against the papers' own lines."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from tests.records import inputs_of, targets_of, u_of

from sovfed.clients.data import load_records
from sovfed.clients.training.algorithms import Learner
from sovfed.clients.training.local import LocalTraining
from sovfed.federation.config import DataConfig
from sovfed.federation.errors import ConfigError, ProtocolError
from sovfed.federation.messages import TrainRequest, Vector
from sovfed.federation.tasks import initial_vector
from sovfed.federation.tasks.registry import get_task

RATE = 0.1


def make(task: str = "digits") -> Learner:
    found = get_task(task)
    return Learner(found, load_records(found, DataConfig(source="digits", site="1")), site="1", device="cpu")


def make_request(task: str = "digits", **more: object) -> TrainRequest:
    found = get_task(task)
    request = TrainRequest(
        run="1", round=3, task=task, seed=5, local_epochs=2, batch_size=32, learning_rate=RATE, proximal_mu=0.0,
        model=initial_vector(found, 0), scale=found.transform.public_scale,
    )  # fmt: skip
    return dataclasses.replace(request, **more)  # type: ignore[arg-type]


def full_gradient(learner: Learner, request: TrainRequest) -> Vector:
    """∇f at the request's model over all training records, by torch alone."""
    assert learner.task.loss is not None
    module = learner.task.model()
    torch.nn.utils.vector_to_parameters(torch.tensor(request.model), module.parameters())
    records, (mean, spread) = learner.records, np.split(request.scale, 2)
    u = u_of(learner.task.schema, inputs_of(records)[records.train])
    rows = torch.from_numpy(((u - mean) / spread).astype(np.float32))
    learner.task.loss(module(rows), torch.from_numpy(targets_of(records)[records.train])).mean().backward()  # type: ignore[no-untyped-call]
    return torch.cat([one.grad.reshape(-1) for one in module.parameters() if one.grad is not None]).numpy()


def test_scaffold_takes_the_papers_step_and_control() -> None:
    learner, generator = make(), np.random.default_rng(1)
    request = make_request(local_epochs=1, batch_size=100_000, algorithm="scaffold")
    control, own = (generator.normal(size=request.model.size).astype(np.float32) * 0.01 for _ in range(2))
    found = learner.learn(dataclasses.replace(request, control=control), own)
    gradient = full_gradient(learner, request)
    update, sent = np.split(found.update, 2)
    np.testing.assert_allclose(update, -RATE * (gradient - own + control), atol=1e-6)  # line 10
    np.testing.assert_allclose(sent, gradient, atol=1e-5)  # option II after one step: ∇f at the model received
    assert found.state is not None and found.steps == 1
    np.testing.assert_array_equal(found.state, sent)


def test_scaffold_without_a_past_is_sgd_and_its_control_the_mean_gradient() -> None:
    learner = make()
    request = make_request(algorithm="scaffold", control=np.zeros_like(make_request().model))
    found = learner.learn(request, None)
    update, sent = np.split(found.update, 2)
    np.testing.assert_array_equal(update, learner.train(make_request())[0])
    np.testing.assert_allclose(sent, -update / (found.steps * RATE), rtol=1e-5, atol=1e-9)
    assert found.steps == 2 * -(-learner.count // 32)


@pytest.mark.parametrize("algorithm", ["ditto", "scaffold"])
def test_a_state_that_overflows_is_not_kept(algorithm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would be found out when it is read, in the next round: too late for anything but a refusal."""
    learner, request = make(), make_request(algorithm=algorithm, learning_rate=1e-9)
    if algorithm == "scaffold":
        request = dataclasses.replace(request, control=np.zeros_like(request.model))
    own = np.full_like(request.model, 2e38)
    monkeypatch.setattr(learner, "train", lambda *_, **__: (np.full_like(request.model, 2e38), 1.0))
    found = learner.learn(request, own)
    assert found.failed and found.state is None
    assert np.isfinite(found.update).all()
    if algorithm == "scaffold":
        np.testing.assert_array_equal(found.update[request.model.size :], own)  # as if it had not moved


def test_fednova_sends_the_update_per_step() -> None:
    learner = make()
    found = learner.learn(make_request(algorithm="fednova"), None)
    np.testing.assert_allclose(found.update * found.steps, learner.train(make_request())[0], rtol=1e-6, atol=1e-9)
    assert found.state is None


def test_ditto_trains_the_same_global_update_and_a_model_of_its_own() -> None:
    learner, request = make(), make_request(algorithm="ditto", personal_lambda=0.5)
    first = learner.learn(request, None)
    update, loss = learner.train(make_request())
    np.testing.assert_array_equal(first.update, update)
    assert first.state is not None and first.loss == loss
    np.testing.assert_array_equal(first.state, request.model + learner.train(make_request(proximal_mu=0.5))[0])
    second = learner.learn(request, first.state)
    assert second.state is not None and not np.array_equal(second.state, first.state)
    np.testing.assert_array_equal(second.evaluation, learner.evaluate(first.state, request.scale))
    strong = learner.learn(dataclasses.replace(request, personal_lambda=5.0), first.state).state
    gap = [float(np.linalg.norm(one - request.model)) for one in (second.state, strong) if one is not None]
    assert gap[1] < gap[0]


def test_fedbn_sends_nothing_of_its_normalisation_layers_and_uses_them() -> None:
    learner, request = make("digits_cnn"), make_request("digits_cnn", algorithm="fedbn")
    own = learner.task.layout.normalisation
    assert int(own.sum()) == 4 * (16 + 32)  # weight, bias, running mean and variance
    found = learner.learn(request, None)
    plain, _ = learner.train(make_request("digits_cnn"))
    np.testing.assert_array_equal(found.update[own], 0)
    np.testing.assert_array_equal(found.update[~own], plain[~own])
    assert found.state is not None
    in_use = learner.model_in_use(request, found.state)
    np.testing.assert_array_equal(in_use[own], (request.model + plain)[own])
    np.testing.assert_array_equal(in_use[~own], request.model[~own])


def test_running_statistics_travel_with_the_model() -> None:
    """What a federated average of a model with BatchNorm evaluates to does not depend on who trained before."""
    learner, request = make("digits_cnn"), make_request("digits_cnn")
    update, _ = learner.train(request)
    model = (request.model + update).astype(np.float32)
    assert np.abs(update[-2 * (16 + 32) :]).max() > 0.01
    fresh = LocalTraining(learner.task, learner.records, site="1", device="cpu")
    np.testing.assert_array_equal(fresh.evaluate(model, request.scale), learner.evaluate(model, request.scale))
    pulled, _ = learner.train(dataclasses.replace(request, proximal_mu=100.0, learning_rate=1e-9))
    assert np.abs(pulled[-2 * (16 + 32) :]).max() > 0.01  # statistics are not pulled back to the model received


@pytest.mark.parametrize(("algorithm", "size"), [("scaffold", 0), ("scaffold", 7), ("sgd", 2410), ("ditto", 1)])
def test_a_control_of_the_wrong_length_is_refused(algorithm: str, size: int) -> None:
    with pytest.raises(ProtocolError, match="control"):
        make().learn(make_request(algorithm=algorithm, control=np.zeros(size, np.float32)), None)


def test_fedbn_refuses_a_model_without_normalisation() -> None:
    with pytest.raises(ConfigError, match="no normalisation layer"):
        make().learn(make_request(algorithm="fedbn"), np.zeros_like(make_request().model))


def test_units_of_a_rate_of_nothing_are_refused_before_a_record_is_read() -> None:
    """A malicious agency's: a multiple of 0, or of what no float32 is the inverse of, failed after training."""
    learner = make()
    learner._test = np.array([], np.int64)
    for share in (0.0, 1e-38):
        request = make_request(optimizer="adamw", local_steps=1, rate_units=True, rate_start=share, rate_end=share)
        with pytest.raises(ConfigError, match="no rate units"):
            learner.learn(request, None)
