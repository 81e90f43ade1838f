"""Stacked private steps: the sums of `PrivateStep`, the persons and the noise of `PrivateTraining`, the same claims."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from sovfed.clients.data import Records, table_of
from sovfed.clients.dpsgd.step import PrivateStep
from sovfed.clients.training.feed import Feed
from sovfed.clients.training.private import PrivateTraining
from sovfed.federation.compose import compose
from sovfed.federation.errors import PrivacyError
from sovfed.federation.messages import PrivateRequest
from sovfed.federation.privacy.noise import Units, share_variance
from sovfed.federation.tasks import Task, initial_vector
from sovfed.federation.tasks.registry import get_task
from sovfed.simulations import vectorised_private
from sovfed.simulations.federation import simulate_population
from sovfed.simulations.population import make_population
from sovfed.simulations.vectorised import Cohort
from sovfed.simulations.vectorised_private import Persons, StackedPrivate, _sampled, clip_updates, noised_sum

CPU = torch.device("cpu")
SIZES = (9, 1, 30, 4)  # records of the institutions


def request(task: Task, **changed: object) -> PrivateRequest:
    made = PrivateRequest(
        run="1", grant="trial", round=1, task=task.name, mechanism="silo", rounds=4, steps=3, spare=2,
        noise_multiplier=1e-5, sampling_rate=1.0, clip=0.5, delta=1e-6, honest=1, grid_bits=16, batch=10.0, seed=0,
        local_epochs=1, batch_size=16, learning_rate=0.5, model=initial_vector(task, 0), digest=task.digest,
    )  # fmt: skip
    return dataclasses.replace(made, **changed)  # type: ignore[arg-type]


class Table(Feed):
    """Records that the model is given as they are, also where no institution could have them."""

    def __init__(self, features: torch.Tensor, labels: torch.Tensor) -> None:
        self._whole, self._device, self.bytes_each = (features, labels), CPU, features[0].nbytes


def table(task: Task, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    stored = task.schema.stored()
    _, shape = stored[next(iter(stored))]
    features = torch.randn(sum(SIZES), *shape, generator=generator)
    return features, torch.arange(sum(SIZES)) % len(task.schema.classes)


def parts() -> list[np.ndarray]:
    return np.split(np.arange(sum(SIZES)), np.cumsum(SIZES)[:-1])


@pytest.mark.parametrize(
    ("name", "several", "piece_bytes"),
    [
        ("digits", False, 64 << 20),
        ("digits", True, 64 << 20),
        ("digits", True, 1),
        ("digits", False, 1),
        ("breast_cancer", False, 64 << 20),
        ("pneumonia", True, 64 << 20),
        ("pneumonia", False, 4 << 20),
    ],
)
def test_sums_are_those_of_the_private_step(
    name: str, several: bool, piece_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vectorised_private, "PIECE_BYTES", piece_bytes)
    task = get_task(name)
    features, labels = table(task)
    owners = np.repeat(np.arange(len(SIZES)), SIZES)
    people = 100 * owners + np.arange(sum(SIZES)) % 5 if several else np.arange(sum(SIZES))[::-1].copy()
    persons = Persons.of(parts(), people)
    assert persons.several is several
    drawn = np.random.default_rng(0).random(len(persons.first)) < 0.6
    who = np.flatnonzero(drawn & (persons.owner != 1))  # of one institution nobody is sampled
    models = torch.stack([torch.from_numpy(initial_vector(task, seed)) for seed in range(len(SIZES))])
    sums = StackedPrivate(task, 0.5, CPU).clipped_sums(models, Table(features, labels), persons, who)
    assert task.loss is not None
    step = PrivateStep(
        task.model(), task.loss, 0.5, example=(features[:4], labels[:4]), several_records=True, engine="vmap"
    )
    for index, model in enumerate(models):
        mine = [person for person in who if persons.owner[person] == index]
        rows = np.array(
            [row for person in mine for row in persons.rows[persons.first[person] :][: persons.count[person]]], int
        )
        expected, used = step.clipped_sum(model, features[rows], labels[rows], torch.from_numpy(people[rows]))
        assert used == len(mine)
        np.testing.assert_allclose(sums[index].numpy(), expected.numpy(), atol=2e-5)
    assert sums[1].abs().sum() == 0 and sums[0].abs().sum() > 0


@pytest.mark.parametrize("name", ["digits", "pneumonia"])
def test_a_person_whose_gradient_is_not_finite_is_left_out(name: str) -> None:
    task = get_task(name)
    features, labels = table(task)
    persons = Persons.of(parts(), np.arange(sum(SIZES)))
    models = torch.from_numpy(initial_vector(task, 0)).repeat(len(SIZES), 1)
    stacked, who = StackedPrivate(task, 0.5, CPU), np.arange(sum(SIZES))
    expected = stacked.clipped_sums(models, Table(features, labels), persons, np.delete(who, 12))
    features[12] = float("inf")
    sums = stacked.clipped_sums(models, Table(features, labels), persons, who)
    np.testing.assert_allclose(sums.numpy(), expected.numpy(), atol=1e-5)


@pytest.mark.parametrize("several", [False, True])
def test_local_steps_are_those_of_the_deployed_code(several: bool) -> None:
    """Everybody is sampled and the noise is a millionth of the clip, so both must end at the same model."""
    task = get_task("digits")
    rng = np.random.default_rng(1)
    institutions = []
    for size in SIZES:
        values = rng.random((size + 1, 64)) * 16
        people = np.arange(size + 1) // (3 if several else 1)
        people[-1] = people.max() + 1
        columns = table_of(task.schema, values, rng.integers(0, 10, size + 1))
        institutions.append(Records(columns, people, np.arange(size), np.array([size])))
    asked = request(task)
    deployed = [
        PrivateTraining(task, records, site="0", device="cpu", ledger=None).update(asked, 2**29).vector
        for records in institutions
    ]
    starts = np.cumsum([0, *SIZES])
    people = np.concatenate(
        [100 * number + dataset.persons[dataset.train] for number, dataset in enumerate(institutions)]
    )
    features = np.concatenate([(dataset.columns["pixel"][dataset.train] - 8) / 8 for dataset in institutions])
    labels = np.concatenate([dataset.columns["digit"][dataset.train] for dataset in institutions])
    persons = Persons.of([np.arange(a, b) for a, b in itertools.pairwise(starts)], people)
    given = Table(torch.from_numpy(features), torch.from_numpy(labels))
    stacked = StackedPrivate(task, asked.clip, CPU).descend(asked, given, persons)
    np.testing.assert_allclose(stacked.numpy(), np.stack(deployed), atol=3e-6)
    assert np.abs(np.stack(deployed)).max(1).min() > 1e-3


def test_of_a_person_no_more_records_than_asked_for_are_in_a_step() -> None:
    people = np.array([5, 5, 5, 2, 2, 8, 1, 1, 1, 1])
    persons = Persons.of([np.arange(3), np.arange(3, 6), np.arange(6, 10)], people)
    assert persons.at_most(0) is persons
    seen: set[int] = set()
    for _ in range(60):
        few = persons.at_most(2)
        pieces = [few.rows[first : first + count] for first, count in zip(few.first, few.count, strict=True)]
        assert few.count.tolist() == np.minimum(persons.count, 2).tolist()
        assert all(len(set(people[piece])) == 1 for piece in pieces)
        assert [people[piece[0]] for piece in pieces] == [people[persons.rows[first]] for first in persons.first]
        assert few.owner is persons.owner
        seen.update(few.rows.tolist())
    assert seen == set(range(10))


def test_every_step_samples_everybody_anew_at_the_rate() -> None:
    steps = list(_sampled(500, 400, 0.3, np.random.default_rng(0).bytes))
    there = np.zeros((400, 500), bool)
    for step, who in enumerate(steps):
        assert (np.diff(who) > 0).all()
        there[step, who] = True
    deviation = math.sqrt(0.3 * 0.7 / there.size)
    assert abs(there.mean() - 0.3) < 5 * deviation
    assert abs((there[1:] & there[:-1]).mean() - 0.09) < 5 * math.sqrt(0.09 * 0.91 / there.size)
    assert (np.abs(there.mean(0) - 0.3) < 5 * math.sqrt(0.21 / 400)).all()
    assert [len(who) for who in _sampled(7, 3, 1.0, np.random.default_rng(0).bytes)] == [7, 7, 7]


def test_where_nobody_is_sampled_an_update_is_the_charged_noise_of_each_institution() -> None:
    task = get_task("digits")
    features, labels = table(task)
    persons = Persons.of(parts(), np.arange(sum(SIZES)))
    asked = request(task, noise_multiplier=1.5, sampling_rate=1e-9, steps=1)
    updates = StackedPrivate(task, asked.clip, CPU).descend(asked, Table(features, labels), persons).numpy()
    units = Units(asked.clip, task.parameters, 20)
    expected = math.sqrt(share_variance(1.5, units)) * math.ldexp(1.0, units.exponent) * 0.5 / asked.batch
    spread = updates.std(1) / expected
    assert (np.abs(spread - 1) < 6 / math.sqrt(2 * task.parameters)).all()  # 2e-9 by chance, for each
    assert np.abs(np.corrcoef(updates) - np.eye(len(SIZES))).max() < 6 / math.sqrt(task.parameters)


def test_a_distributed_sum_has_the_noise_of_every_share() -> None:
    task = get_task("digits")
    features, labels = table(task)
    persons = Persons.of(parts(), np.arange(sum(SIZES)))
    asked = request(task, mechanism="distributed", noise_multiplier=1.5, honest=3, steps=1)
    stacked = StackedPrivate(task, asked.clip, CPU)
    units = Units(asked.clip, task.parameters, asked.grid_bits)
    noise = math.sqrt(4 * share_variance(1.5, units, 3))
    model = torch.from_numpy(initial_vector(task, 0)).repeat(len(SIZES), 1)
    plain = stacked.clipped_sums(model, Table(features, labels), persons, np.arange(sum(SIZES))).sum(0).numpy()
    rest = stacked.sample(asked, Table(features, labels), persons) - units.quantise(plain)
    assert abs(rest.std() / noise - 1) < 6 / math.sqrt(2 * task.parameters)
    zeros = noised_sum(np.zeros((2, task.parameters)), asked, 4)
    assert abs(zeros.std() / noise - 1) < 6 / math.sqrt(2 * task.parameters)


def test_updates_are_clipped_and_those_that_are_not_finite_are_named() -> None:
    updates = torch.tensor([[3.0, 4.0], [0.3, 0.4], [float("nan"), 0.0]])
    clipped, good = clip_updates(updates, 1.0)
    np.testing.assert_allclose(clipped[:2].numpy(), [[0.6, 0.8], [0.3, 0.4]], rtol=1e-6)
    assert good.tolist() == [True, True, False]


@pytest.mark.parametrize("mechanism", ["silo", "distributed", "institution"])
def test_a_private_run_claims_what_the_deployed_code_claims(mechanism: str, tmp_path: Path) -> None:
    outcomes = {}
    for engine in ("inprocess", "vectorised"):
        config = compose(
            [
                "task=digits", f"privacy={mechanism}", "privacy.local_steps=4", "privacy.population=1250", "rounds=2",
                "partition=iid", "simulation.institutions=6", f"simulation.engine={engine}", "privacy.epsilon=8",
            ]
        ).config  # fmt: skip
        outcome = simulate_population(config, make_population(config), tmp_path / engine)
        outcomes[engine] = outcome
    deployed, stacked = (outcomes[engine].summary for engine in ("inprocess", "vectorised"))
    for key in ("epsilon", "delta", "privacy", "institutions", "metrics"):
        assert deployed[key] == stacked[key], key
    assert stacked["secure_aggregation"] is False and "in the clear" in stacked["engine_details"]
    promises = [json.loads((tmp_path / engine / "privacy.json").read_text()) for engine in outcomes]
    assert promises[0]["promises"] == promises[1]["promises"]
    start = initial_vector(get_task("digits"), 0)
    moved = [float(np.linalg.norm(outcomes[engine].model - start)) for engine in outcomes]
    assert moved[0] == pytest.approx(moved[1], rel=0.4)  # noise, whose size is tested above: deviation 0.04


def test_a_model_that_cannot_be_private_is_refused_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(PrivacyError, match="BatchNorm mixes the records of a batch"):
        StackedPrivate(get_task("digits_cnn"), 1.0, CPU)
    config = compose(["task=digits_cnn", "privacy=silo", "simulation.engine=vectorised"]).config
    with pytest.raises(PrivacyError, match=r"task\.normalisation=group"):
        simulate_population(config, make_population(config), tmp_path)


def test_persons_of_a_cohort_are_its_training_persons() -> None:
    config = compose(["task=digits", "partition=iid", "simulation.institutions=5"]).config
    cohort = Cohort.of(get_task("digits"), make_population(config), "cpu")
    chunks = list(cohort.persons(2))
    assert [chunk.institutions for chunk in chunks] == [2, 2, 1]
    assert sorted(np.concatenate([chunk.rows for chunk in chunks])) == sorted(np.concatenate(cohort.train))
