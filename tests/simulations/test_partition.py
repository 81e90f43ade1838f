"""A partition deals every record once, as its recipe says, the same for the same seed; more institutions resample."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from sovfed.clients.data import Dataset, Records, check
from sovfed.federation.compose import compose
from sovfed.federation.tasks.registry import get_task
from sovfed.simulations.baselines import columns_of, labels_of
from sovfed.simulations.cli import partition as partition_command
from sovfed.simulations.partition import Partition, make_partition, pooled

NAMES = ("iid", "dirichlet", "quantity", "shards", "feature")
TASK = get_task("digits")


def make(name: str, institutions: int, *overrides: str) -> Partition:
    return make_partition(
        compose(["task=digits", f"partition={name}", f"simulation.institutions={institutions}", *overrides]).config
    )


def pixels(records: Records) -> np.ndarray:
    return records.columns["pixel"]


def all_records() -> Dataset:
    return pooled(TASK, compose(["task=digits"]).config)


@pytest.mark.parametrize("name", NAMES)
def test_every_record_is_dealt_once_and_stays_on_its_side(name: str) -> None:
    whole, partition = all_records(), make(name, 12)
    datasets = [partition.records(number) for number in range(12)]
    for dataset in datasets:
        check(dataset, TASK.schema, name)
    for side in ("train", "test"):
        dealt = np.concatenate([dataset.persons[getattr(dataset, side)] for dataset in datasets])
        np.testing.assert_array_equal(np.sort(dealt), whole.persons[getattr(whole, side)])


@pytest.mark.parametrize("name", NAMES)
def test_a_partition_follows_the_seed(name: str) -> None:
    first, again, other = make(name, 10), make(name, 10), make(name, 10, "seed=1")
    for number in (0, 9, 3):
        a, b = first.records(number), again.records(number)
        np.testing.assert_array_equal(pixels(a), pixels(b))
        np.testing.assert_array_equal(a.persons, b.persons)
    assert not np.array_equal(first.records(3).persons, other.records(3).persons)


def classes(records: Records) -> int:
    return len(np.unique(labels_of(TASK, records)[records.train]))


def test_recipes_do_what_their_papers_say() -> None:
    sizes = {name: [len(make(name, 20).records(k).train) for k in range(20)] for name in ("iid", "quantity")}
    assert max(sizes["iid"]) - min(sizes["iid"]) <= 10
    assert max(sizes["quantity"]) > 4 * min(sizes["quantity"])
    shards, even, skewed = make("shards", 20), make("iid", 20), make("dirichlet", 20, "partition.alpha=0.05")
    assert max(classes(shards.records(k)) for k in range(20)) <= 4  # 2 shards, each within or across 2 labels
    assert min(classes(even.records(k)) for k in range(20)) == 10
    assert np.mean([classes(skewed.records(k)) for k in range(20)]) < 5


def test_feature_shift_grows_from_none_and_stays_within_the_schema() -> None:
    plain, noisy = make("iid", 10), make("feature", 10)
    gaps = [float(np.abs(pixels(noisy.records(k)) - pixels(plain.records(k))).mean()) for k in (0, 4, 9)]
    assert gaps[0] == 0.0
    assert 0.0 < gaps[1] < gaps[2]
    assert pixels(noisy.records(9)).min() >= 0.0 and pixels(noisy.records(9)).max() <= 16.0


def test_more_institutions_than_records_are_bootstrap_samples_of_one_part() -> None:
    partition = make("dirichlet", 10_000)
    parts = len(all_records().train) // 10
    first, later = partition.records(7), partition.records(7 + 3 * parts)
    assert set(later.persons[later.train]) <= set(first.persons[first.train])
    assert set(later.persons[later.test]) <= set(first.persons[first.test])
    assert len(later.train) == len(first.train)
    np.testing.assert_array_equal(later.persons, make("dirichlet", 10_000).records(7 + 3 * parts).persons)
    assert not np.array_equal(later.persons, partition.records(7 + 4 * parts).persons)


@pytest.mark.parametrize("name", ["iid", "dirichlet", "quantity", "shards", "feature"])
def test_a_person_goes_to_one_institution_with_all_records(name: str) -> None:
    whole, config = all_records(), compose([f"partition={name}"]).config
    persons = np.empty(len(whole.persons), np.int64)
    for rows in (whole.train, whole.test):
        persons[rows] = rows[np.arange(len(rows)) // 3 * 3]
    tripled = Records(columns_of(whole), persons, whole.train, whole.test)
    held = [Partition(TASK, tripled, config.partition, 4, 0).records(number) for number in range(4)]
    assert all(records.several_records for records in held)
    owners = [set(records.persons.tolist()) for records in held]
    assert set.union(*owners) == set(persons.tolist()) and sum(map(len, owners)) == len(set(persons.tolist()))
    assert sum(len(records.train) for records in held) == len(whole.train)
    assert sum(len(records.test) for records in held) == len(whole.test)


def test_the_command_shows_and_draws_what_each_institution_holds(tmp_path: Path) -> None:
    arguments = ["task=digits", "partition=shards", "simulation.institutions=6"]
    result = CliRunner().invoke(partition_command, [*arguments, "--json", "--plot", str(tmp_path / "shards.png")])
    held = json.loads(result.output)
    dealt = make("shards", 6)
    assert [holding["train"] for holding in held] == [len(dealt.records(k).train) for k in range(6)]
    assert (
        np.sum([holding["by_class"] for holding in held], axis=0).tolist()
        == np.bincount(labels_of(TASK, all_records())).tolist()
    )
    assert (tmp_path / "shards.png").read_bytes().startswith(b"\x89PNG")
    assert "hospital-6" in CliRunner().invoke(partition_command, arguments).output
