"""Private training at one institution: nothing leaves before the ledger has it, and nothing but what was granted."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import chi2
from tests.records import Unreadable, in_memory, records_of
from torch import nn

from sovfed.clients.data import load_records
from sovfed.clients.ledger.book import PrivacyLedger, replay
from sovfed.clients.ledger.entries import Budget, History
from sovfed.clients.ledger.file import create_ledger, ledger_path, read_ledger
from sovfed.clients.trainer.books import Books
from sovfed.clients.trainer.service import make_trainer
from sovfed.clients.training.local import LocalTraining
from sovfed.clients.training.private import CONSTANTS, PrivateTraining, admit, plan_of
from sovfed.federation.config import ClientConfig, DataConfig
from sovfed.federation.errors import ConfigError, DataError, PolicyError, PrivacyError
from sovfed.federation.messages import PrivateRequest
from sovfed.federation.privacy.noise import Units
from sovfed.federation.tasks import initial_vector, summarise
from sovfed.federation.tasks.columns import Column, Schema, target
from sovfed.federation.tasks.registry import get_task

TASK = get_task("breast_cancer")
DATASET = "breast_cancer"
DATA = DataConfig(source=DATASET, site="0", sites=4)
ROOM = 2**29
REQUEST = PrivateRequest(
    run="1", grant="trial", round=1, task=TASK.name, mechanism="distributed", rounds=10, steps=1, spare=2,
    noise_multiplier=4.0, sampling_rate=0.5, clip=1.0, delta=1e-6, honest=3, grid_bits=16, batch=100.0, seed=0,
    local_epochs=1, batch_size=16, learning_rate=0.5, model=initial_vector(TASK, 0), digest=TASK.digest,
)  # fmt: skip


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[PrivacyLedger]:
    create_ledger(tmp_path, DATASET, time.time())
    opened = PrivacyLedger(tmp_path, Budget(population_name=DATASET, max_share_per_run=1.0))
    seq, head = opened.position()
    opened.countersign(REQUEST.run, seq, head.hex(), b"signed", ours=True)
    yield opened
    opened.unlock()


def training(ledger: PrivacyLedger | None) -> PrivateTraining:
    return PrivateTraining(TASK, load_records(TASK, DATA), site="0", device="cpu", ledger=ledger)


def history(home: Path) -> History:
    return replay(read_ledger(home, DATASET)[0])


def test_nobody_who_is_shown_the_ledger_can_try_what_a_release_was(ledger: PrivacyLedger, tmp_path: Path) -> None:
    """Its noise is for the sum: with its own share alone it tells more of a person than what was charged."""
    vector = training(ledger).update(REQUEST, ROOM).vector
    shown = ledger_path(tmp_path, DATASET).read_text()  # what `ledger export` gives an auditor
    ((_, spent),) = history(tmp_path).spends
    assert spent.release.digest in shown
    for word in (vector.tobytes(), b"release\n" + vector.tobytes()):
        assert hashlib.sha256(word).hexdigest() not in shown
    assert ledger.digest(vector.tobytes()) == spent.release.digest


@pytest.mark.parametrize("mechanism", ["distributed", "silo", "institution"])
def test_each_mechanism_is_charged_for_what_it_releases(ledger: PrivacyLedger, tmp_path: Path, mechanism: str) -> None:
    steps = 3 if mechanism == "silo" else 1
    request = dataclasses.replace(REQUEST, mechanism=mechanism, steps=steps, noise_multiplier=20.0)
    found = training(ledger).update(request, ROOM).vector
    assert found.shape == request.model.shape
    assert found.dtype == (np.float32 if mechanism == "silo" else np.int32)
    (event,) = history(tmp_path).spent()
    whole = mechanism == "institution"
    assert (event.noise_multiplier, event.sampling_rate, event.count) == (
        10.0 if whole else 20.0, 1.0 if whole else 0.5, steps,
    )  # fmt: skip


def test_another_attempt_at_a_sum_gets_the_same_release_and_is_not_charged_again(
    ledger: PrivacyLedger, tmp_path: Path
) -> None:
    place = training(ledger)
    first = place.update(REQUEST, ROOM, (b"roster", 3))
    assert place.update(dataclasses.replace(REQUEST, begin=np.ones(3, np.uint8)), ROOM, (b"roster", 3)) is first
    assert len(history(tmp_path).spends) == 1


@pytest.mark.parametrize("other", [(b"roster", 4), (b"another", 3), None])
@pytest.mark.parametrize("mechanism", ["distributed", "silo", "institution"])
def test_another_sum_gets_another_release_and_is_charged(
    ledger: PrivacyLedger, tmp_path: Path, mechanism: str, other: tuple[bytes, int] | None
) -> None:
    """Another number, epoch or roster: the one release would be in two sums, which differ in whose noise they hold."""
    place, request = training(ledger), dataclasses.replace(REQUEST, mechanism=mechanism, noise_multiplier=20.0)
    first = place.update(request, ROOM, (b"roster", 3))
    second = place.update(request, ROOM, other)
    assert not np.array_equal(first.vector, second.vector)
    third = place.update(request, ROOM, (b"roster", 3))  # the first is forgotten: never given again
    assert not np.array_equal(first.vector, third.vector)
    assert [spent.release.attempt for _, spent in history(tmp_path).spends] == [0, 1, 2]


def test_repeats_are_granted_up_to_the_plan_s_spare_steps(ledger: PrivacyLedger, tmp_path: Path) -> None:
    place = training(ledger)
    for number in range(REQUEST.rounds + REQUEST.spare):
        place.update(REQUEST, ROOM, (b"roster", number))
    with pytest.raises(PrivacyError):
        place.update(REQUEST, ROOM, (b"roster", 99))
    assert len(history(tmp_path).spends) == REQUEST.rounds + REQUEST.spare


def test_what_the_ledger_would_not_pay_is_refused_before_a_record_is_touched(
    ledger: PrivacyLedger, tmp_path: Path
) -> None:
    place = training(ledger)
    for number in range(REQUEST.rounds + REQUEST.spare):
        admit(REQUEST, TASK, ROOM, ledger)
        place.update(REQUEST, ROOM, (b"roster", number))
    spent = history(tmp_path).spent()
    again = (b"roster", REQUEST.rounds + REQUEST.spare - 1)
    assert place.keeps(REQUEST, again) and not place.keeps(REQUEST, (b"roster", 99))
    admit(REQUEST, TASK, ROOM, ledger, paid=True)  # another attempt at that sum
    with pytest.raises(PrivacyError, match="of which 0 are left"):
        admit(REQUEST, TASK, ROOM, ledger)
    assert history(tmp_path).spent() == spent


def test_a_model_that_cannot_be_private_is_refused_before_a_record_is_touched(
    ledger: PrivacyLedger, tmp_path: Path
) -> None:
    task = get_task("digits_cnn")  # BatchNorm
    request = dataclasses.replace(REQUEST, task=task.name, model=initial_vector(task, 0))
    with pytest.raises(PrivacyError, match="BatchNorm"):
        admit(request, task, ROOM, ledger)
    assert not history(tmp_path).grants
    admit(dataclasses.replace(request, normalisation="group"), get_task(task.name, normalisation="group"), ROOM, None)


def test_after_a_crash_the_round_is_noised_and_charged_anew(ledger: PrivacyLedger, tmp_path: Path) -> None:
    first = training(ledger).update(REQUEST, ROOM)
    again = training(ledger).update(REQUEST, ROOM)  # a new process: nothing in memory
    assert not np.array_equal(first.vector, again.vector)
    assert [spent.release.attempt for _, spent in history(tmp_path).spends] == [0, 1]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"noise_multiplier": 3.9}, "noise_multiplier is 3.9, granted 4.0: a grant never changes"),
        ({"sampling_rate": 0.6}, "sampling_rate is 0.6, granted 0.5"),
        ({"clip": 2.0}, "clip is 2.0, granted 1.0"),
        ({"rounds": 11}, "count is 13, granted 12"),
        ({"honest": 2}, "config is"),
        ({"learning_rate": 0.6}, "config is"),
        ({"mechanism": "silo"}, "mechanism is silo, granted distributed"),
        ({"round": 1, "model": REQUEST.model + 1}, "round is 1 .*round 3 .*was spent already"),
        ({"delta": 1e-5, "grant": "other"}, "delta is 1e-05, policy.yaml says 1e-06"),
    ],
)
def test_a_server_that_asks_for_something_else_is_refused_and_the_ledger_says_why(
    ledger: PrivacyLedger, tmp_path: Path, change: dict[str, float | str], reason: str
) -> None:
    place = training(ledger)
    place.update(REQUEST, ROOM)
    place.update(dataclasses.replace(REQUEST, round=3), ROOM)
    spent = history(tmp_path).spent()
    with pytest.raises(PrivacyError, match=reason):
        place.update(dataclasses.replace(REQUEST, **{"round": 4, **change}), ROOM)  # type: ignore[arg-type]
    after = history(tmp_path)
    assert after.spent() == spent
    assert len(after.refusals) == 1


def test_runs_in_parallel_share_one_budget(ledger: PrivacyLedger, tmp_path: Path) -> None:
    """The second does not fit beside the first, though nothing of it was spent yet."""
    place = training(ledger)
    costly = dataclasses.replace(REQUEST, noise_multiplier=1.6, rounds=8, sampling_rate=0.2)
    place.update(costly, ROOM)
    place.update(dataclasses.replace(REQUEST, grant="small", noise_multiplier=50.0, rounds=2), ROOM)
    with pytest.raises(PrivacyError, match=r"over the limit annual_epsilon 3\.00"):
        place.update(dataclasses.replace(costly, grant="second"), ROOM)
    assert [entry.run for _, entry in history(tmp_path).refusals] == ["second"]


def test_the_share_of_noise_has_the_variance_that_is_counted_on() -> None:
    """Where nobody is sampled nothing but noise leaves: Σ x²/s² is χ² with d degrees of freedom.

    Chance fails one run in five million, and lets the share that is too small pass as seldom.
    """
    request = dataclasses.replace(REQUEST, sampling_rate=1e-9, noise_multiplier=2.0)
    place, count = training(None), 150
    draws = [
        place.update(dataclasses.replace(request, round=1 + i), ROOM).vector.astype(np.float64) for i in range(count)
    ]
    units = Units(1.0, request.model.size, 16)
    variance = (2.0 * units.sensitivity) ** 2 / request.honest
    total = sum(float((draw**2).sum()) for draw in draws) / variance
    low, high = chi2.ppf([1e-7, 1 - 1e-7], count * request.model.size)
    assert low < total < high
    assert not low < total / 1.3 < high  # a share that is 14 % too small would be seen


def test_without_noise_to_speak_of_the_sum_is_the_clipped_gradient_sum() -> None:
    request = dataclasses.replace(REQUEST, sampling_rate=1.0, noise_multiplier=0.05, grid_bits=20)
    units = Units(1.0, request.model.size, 20)
    place = training(None)
    released = units.dequantise(place.update(request, ROOM).vector.astype(np.int64))
    expected = place._sum(request, request.model)
    assert np.linalg.norm(expected) > 5
    assert np.abs(released - expected).max() < 6 * 0.05 / math.sqrt(3)


def test_noise_that_does_not_fit_the_ring_is_refused_before_it_is_charged(
    ledger: PrivacyLedger, tmp_path: Path
) -> None:
    with pytest.raises(PrivacyError, match="take fewer grid_bits"):
        training(ledger).update(REQUEST, room=2**20)
    assert not history(tmp_path).spends


def test_an_update_that_is_not_finite_is_noise_alone_and_charged(ledger: PrivacyLedger, tmp_path: Path) -> None:
    """A refusal would tell that some record made it so."""
    request = dataclasses.replace(REQUEST, mechanism="institution", noise_multiplier=20.0, learning_rate=1e3)
    broken = dataclasses.replace(request, model=np.full_like(request.model, 1e38))
    integers = training(ledger).update(broken, ROOM).vector.astype(np.int64)
    released = Units(1.0, request.model.size, 16).dequantise(integers)
    deviation = 20.0 / math.sqrt(3)
    assert 0.3 * deviation < float(released.std()) < 2 * deviation  # of 31 values, far beyond chance
    assert [event.count for event in history(tmp_path).spent()] == [1]


@pytest.mark.parametrize("mechanism", ["distributed", "silo", "institution"])
def test_no_seed_makes_sampling_or_noise_repeat(mechanism: str) -> None:
    request = dataclasses.replace(REQUEST, mechanism=mechanism)
    found = []
    for _ in range(2):
        torch.manual_seed(5)
        np.random.seed(5)  # noqa: NPY002 -- the generator that Flower's LocalDpMod draws from
        found.append(training(None).update(request, ROOM).vector)
    assert not np.array_equal(found[0], found[1])


def test_persons_are_sampled_whole() -> None:
    """Two records of a person are in a step together, and move the sum by no more than one record could."""
    records = in_memory(load_records(TASK, DATA))
    twin = dataclasses.replace(records, persons=records.persons // 2 * 2, several_records=True)
    place = PrivateTraining(TASK, twin, site="0", device="cpu", ledger=None)
    assert place._count == len(np.unique(twin.persons[twin.train]))
    total = place._sum(dataclasses.replace(REQUEST, sampling_rate=1.0, clip=1e-3), REQUEST.model)
    assert np.linalg.norm(total) <= 1e-3 * place._count


def test_of_a_person_no_more_records_than_asked_for_are_in_a_step() -> None:
    """Three records of a person, all but one of them the same as its first: their mean is that record's gradient."""
    records = in_memory(load_records(TASK, DATA))
    train = np.sort(records.train)[: len(records.train) // 3 * 3]
    people = records.persons.copy()
    people[train] = np.arange(len(train)) // 3
    columns = {name: values.copy() for name, values in records.columns.items()}
    for values in columns.values():
        values[train] = values[train[::3]].repeat(3, axis=0)
    thrice = dataclasses.replace(records, columns=columns, persons=people, train=train, several_records=True)
    place = PrivateTraining(TASK, thrice, site="0", device="cpu", ledger=None)
    asked = dataclasses.replace(REQUEST, sampling_rate=1.0)
    drawn = place._drawn(dataclasses.replace(asked, person_records=2)).numpy()
    assert np.bincount(drawn // 3).tolist() == [2] * (len(train) // 3)
    expected = place._sum(asked, asked.model)
    for count in (1, 2):
        total = place._sum(dataclasses.replace(asked, person_records=count), asked.model)
        np.testing.assert_allclose(total, expected, atol=1e-4)
    assert np.linalg.norm(expected) > 5


def test_how_many_records_of_a_person_are_taken_is_part_of_the_plan_unless_it_is_all() -> None:
    assert plan_of(dataclasses.replace(REQUEST, person_records=4)).config != plan_of(REQUEST).config
    names = {f.name for f in dataclasses.fields(REQUEST)} - {*CONSTANTS, "candidates", "scores", "person_records"}
    before = json.dumps({name: getattr(REQUEST, name) for name in names}, sort_keys=True)  # as plans were kept before
    assert plan_of(REQUEST).config == hashlib.sha256(before.encode()).hexdigest()


@pytest.mark.parametrize("several", [False, True])
def test_a_record_that_cannot_be_read_takes_nobody_else_out_of_a_step(several: bool) -> None:
    """Else its person would move the sum by everybody's part, which the noise is not for. It is told at home alone."""
    records = dataclasses.replace(in_memory(load_records(TASK, DATA)), several_records=several)
    bad = tuple(int(row) for row in records.train[[2, 31, 32]])
    said: list[str] = []
    place = PrivateTraining(
        TASK, Unreadable(records, bad), site="0", device="cpu", ledger=None, lacking=lambda _, why: said.append(why)
    )
    request = dataclasses.replace(REQUEST, sampling_rate=1.0)
    others = dataclasses.replace(records, train=np.setdiff1d(records.train, bad))
    expected = PrivateTraining(TASK, others, site="0", device="cpu", ledger=None)._sum(request, request.model)
    np.testing.assert_allclose(place._sum(request, request.model), expected, rtol=0, atol=1e-9)
    assert np.linalg.norm(expected) > 3 and said == ["3 persons of a step could not be trained on"]


def test_a_task_without_a_model_cannot_be_private() -> None:
    with pytest.raises(ConfigError, match="trains nothing"):
        PrivateTraining(get_task("echo"), load_records(TASK, DATA), site="0", device="cpu", ledger=None)


def test_what_is_granted_depends_on_no_round() -> None:
    later = dataclasses.replace(REQUEST, round=9, run="7", model=REQUEST.model + 1, begin=np.ones(4, np.uint8))
    assert plan_of(later) == plan_of(REQUEST)


def test_records_whose_persons_nobody_declared_are_refused() -> None:
    records = dataclasses.replace(in_memory(load_records(TASK, DATA)), not_private="nobody said who is a person")
    with pytest.raises(PrivacyError, match="nobody said"):
        PrivateTraining(TASK, records, site="0", device="cpu", ledger=None)


def test_the_engine_follows_from_the_declaration_and_not_from_the_records() -> None:
    """The first person with two records would otherwise change the arithmetic for all."""
    records = in_memory(load_records(TASK, DATA))
    for several, engine in ((False, "ghost"), (True, "vmap")):
        place = PrivateTraining(
            TASK, dataclasses.replace(records, several_records=several), site="0", device="cpu", ledger=None
        )
        assert place._step(1.0).engine == engine


def test_every_local_step_of_silo_has_all_of_its_noise() -> None:
    """Where nobody is sampled the update is the noise of its steps: 8 of them, not one."""
    request = dataclasses.replace(
        REQUEST, mechanism="silo", steps=8, sampling_rate=1e-9, noise_multiplier=3.0, learning_rate=1.0, batch=1.0
    )
    draws = np.concatenate([training(None).update(request, ROOM).vector for _ in range(8)]).astype(np.float64)
    low, high = chi2.ppf([1e-9, 1 - 1e-9], draws.size)
    assert low < float((draws**2).sum()) / (8 * 3.0**2) < high
    assert not low < float((draws**2).sum()) / (1 * 3.0**2) < high


def test_the_ring_keeps_three_quarters_of_its_room_free_of_noise() -> None:
    """Of a room of four reserves the noise fits, of one less it does not."""
    units = Units(1.0, REQUEST.model.size, 16)
    reserve = int(14 * math.ceil((4.0 * units.sensitivity) ** 2 / 3 + 4 / 3) ** 0.5) + 1
    found = training(None).update(REQUEST, 4 * reserve + 8)
    assert found.vector.shape == REQUEST.model.shape
    with pytest.raises(PrivacyError, match="take fewer grid_bits"):
        training(None).update(REQUEST, 4 * reserve - 8)


def test_a_table_that_names_no_person_is_refused_before_a_record_is_read(tmp_path: Path) -> None:
    """By the trainer that a process serves, from its settings and the header; also where data.limit is set."""
    table = tmp_path / "table.csv"
    header = ",".join(column.name for column in TASK.schema.columns)
    table.write_text(header + "\nthis is no record\n")
    for data, said in (
        (DataConfig(source="csv", path=str(table)), r"data\.person=row"),
        (DataConfig(source="csv", path=str(table), person="row", limit=10), r"data\.limit"),
    ):
        trainer = make_trainer(ClientConfig(data=data), books=Books(lambda: pytest.fail("the ledger was opened")))
        with pytest.raises(PrivacyError, match=said):
            trainer._admit(REQUEST)
    declared = make_trainer(ClientConfig(data=DataConfig(source="csv", path=str(table), person="row")))
    with pytest.raises(PolicyError, match="needs secure aggregation"):
        declared._admit(REQUEST)
    with pytest.raises(DataError, match="line 2"):
        declared._loaded.private_training(TASK, lambda: None, lambda *_: None, lambda *_: None)


def headed() -> nn.Module:
    """A backbone that is frozen, and a head."""
    module = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1))
    module[0].requires_grad_(False)
    return module


@pytest.mark.parametrize("mechanism", ["distributed", "silo", "institution"])
def test_of_a_frozen_backbone_nothing_moves_and_its_head_learns_in_private(mechanism: str) -> None:
    """Noise goes to the 9 values of the head alone: none to the 56 that nobody trains."""
    columns = (*(Column(f"c{place}", low=-1.0) for place in range(6)), target("y", "no", "yes"))
    task = dataclasses.replace(TASK, name="headed", build=headed, schema=Schema(columns))
    model = initial_vector(task, 0)
    assert model.size == 9
    inputs = np.random.default_rng(0).uniform(-1, 1, (300, 6))
    labels = (inputs[:, :2].sum(1) > 0).astype(np.int64)
    records = records_of(task.schema, inputs, labels, np.arange(200), np.arange(200, 300), several_records=False)
    place = PrivateTraining(task, records, site="0", device="cpu", ledger=None)
    measured = LocalTraining(task, records, site="0", device="cpu")
    frozen = task.model().state_dict()["0.weight"].clone()
    scale = task.transform.public_scale
    before = summarise(task, measured.evaluate(model, scale))["loss"]
    request = dataclasses.replace(
        REQUEST, task="headed", digest=task.digest, mechanism=mechanism, noise_multiplier=0.05, sampling_rate=1.0,
        batch=200.0, grid_bits=20, steps=10 if mechanism == "silo" else 1, learning_rate=1.0,
    )  # fmt: skip
    for turn in range(1, 3 if mechanism == "silo" else 21):
        asked = dataclasses.replace(request, round=turn, model=model)
        found = place.update(asked, ROOM).vector
        assert found.shape == (9,)
        if mechanism == "silo":
            model = model + found
        else:
            total = Units(1.0, 9, 20).dequantise(found.astype(np.int64))
            step = total if mechanism == "institution" else -total / place._count
            model = (model + step).astype(np.float32)
    assert summarise(task, measured.evaluate(model, scale))["loss"] < 0.9 * before
    if mechanism != "institution":
        assert torch.equal(place._step(1.0)._module.state_dict()["0.weight"], frozen)
    assert torch.equal(task.model().state_dict()["0.weight"], frozen)
