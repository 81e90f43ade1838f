"""A task's records cut into simulated institutions: each of them a lazy view, however many there are.

A partition is a matrix of shares, shape [classes, parts]: part `k` gets the share [c, k] of the records of class c, of
the training and of the held-out ones alike.

    iid        equal shares
    dirichlet  a class's shares are drawn from Dirichlet(alpha): label skew (Yurochkin et al. 2019, arXiv:1905.12022,
               section 4.1)
    quantity   all classes have the same shares, drawn from Dirichlet(alpha): quantity skew (Li et al. 2022,
               arXiv:2102.02079, section 4.1)
    shards     records in the order of their labels, cut into `shards` pieces for each part and dealt at random
               (McMahan et al. 2017, arXiv:1602.05629, section 3)
    feature    equal shares, and Gaussian noise whose standard deviation grows evenly from part to part (Li et al. 2022,
               section 4.1, noise-based feature imbalance), as does what `fade` takes of the contrast: values move
               towards their upper bound, as in an overexposed image

A package brings others (entry points `sovfed.partitions`): a function of the settings, the label [n] of each training
record, how many classes and parts there are, and the seeded generator to draw from.

More institutions than the records give parts for (`PART_RECORDS` each) share them: beyond the last part, institution k
is a bootstrap sample (Efron 1979) of part k mod parts. Training and held-out records never mix, and a person
goes to one institution with all records, dealt by the class of the first. Everything follows from
(seed, institution), so that an institution's records are made when it is trained, and nothing is kept of the others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from sovfed.clients.data import Dataset, Indices, Records, load_records
from sovfed.federation import plugins
from sovfed.federation.compose import PARTITIONS
from sovfed.federation.config import Config, PartitionConfig
from sovfed.federation.errors import ConfigError, DataError
from sovfed.federation.tasks import Task
from sovfed.federation.tasks.columns import NUMBERS
from sovfed.federation.tasks.registry import configured_task
from sovfed.simulations.baselines import columns_of, merge
from sovfed.simulations.own_settings import natural_institutions

PART_RECORDS: Final = 10  # training records of a part, on average and at least
LEAST: Final = {"train": 2, "test": 1}  # records of a part, taken from the largest where the shares give fewer
_ROWS: Final = 1  # what an institution's random numbers are for: each purpose has a stream of its own
_NOISE: Final = 2
NATURAL: Final = "natural"
Shares = npt.NDArray[np.float64]
Recipe = Callable[[PartitionConfig, Indices, int, int, np.random.Generator], npt.ArrayLike]


def pooled(task: Task, config: Config) -> Dataset:
    """All records of `task` as one institution's. Raises DataError."""
    if sources := natural_institutions(config.data):
        return merge([load_records(task, source) for source in sources])
    return load_records(task, replace(config.data, site="0", sites=1))


class Partition:
    """The records of every simulated institution, by its number."""

    def __init__(self, task: Task, records: Dataset, config: PartitionConfig, institutions: int, seed: int) -> None:
        """Raises DataError where there are too few records, or it needs classes and has none."""
        self._several = len(np.unique(records.persons)) != len(records.persons)
        self.institutions, self._records, self._config, self._seed = institutions, records, config, seed
        self._changed = _changeable(task) if config.name == "feature" else {}
        labels, classes = _strata(task, records, config)
        sides = {"train": records.train, "test": records.test}
        heads = {name: _heads(records.persons, rows) for name, rows in sides.items()}
        parts = min(institutions, len(heads["train"]) // PART_RECORDS)
        if parts < 1 or parts > len(heads["test"]):
            what = "persons" if self._several else "records"
            raise DataError(
                f"{len(heads['train'])} training and {len(heads['test'])} held-out {what} are too few to cut up"
            )
        generator = np.random.default_rng([seed, 0])
        shares = make_shares(config, labels[heads["train"]], classes, parts, generator)
        self._parts = {
            name: [_all_rows(records.persons, sides[name], hand) for hand in hands]
            for name, hands in (
                (name, _top_up(_deal(labels, rows, shares, generator), LEAST[name])) for name, rows in heads.items()
            )
        }

    @property
    def table(self) -> Dataset | None:
        """The records that `rows` are of; None where institutions hold changed ones."""
        return None if self._config.name == "feature" and self.institutions > 1 else self._records

    def rows(self, institution: int) -> tuple[Indices, Indices]:
        """The training and the held-out records of institution number `institution`, as rows of those cut up."""
        source = institution % len(self._parts["train"])
        train, test = self._parts["train"][source], self._parts["test"][source]
        if institution == source:
            return train, test
        generator = self._generator(_ROWS, institution)
        train, test = (np.sort(rows[generator.integers(0, len(rows), len(rows))]) for rows in (train, test))
        return train, test

    def records(self, institution: int) -> Records:
        """What institution number `institution` holds."""
        splits = self.rows(institution)
        union = np.concatenate(splits)
        train, test = np.split(np.arange(len(union)), [len(splits[0])])
        columns = dict(self._records.take(union))
        if self.table is None:
            generator = self._generator(_NOISE, institution)
            for name in self._changed:
                columns[name] = self._shifted(name, columns[name], institution, generator)
        return Records(
            columns, self._records.persons[union], train, test,
            several_records=self._several or institution >= len(self._parts["train"]),  # as in a bootstrap sample
            not_private=self._records.not_private,
        )  # fmt: skip

    def _shifted(
        self, name: str, values: npt.NDArray[Any], institution: int, generator: np.random.Generator
    ) -> npt.NDArray[Any]:
        """`values` of column `name` with the institution's noise and fading, within the bounds and of the same type."""
        low, high = self._changed[name]
        training_values = columns_of(self._records)[name][self._records.train]
        level = self._config.noise * institution / (self.institutions - 1)
        lost = self._config.fade * institution / (self.institutions - 1)
        noisy = values + generator.normal(size=values.shape) * level * np.nanstd(training_values, axis=0)
        shifted = np.clip((1 - lost) * noisy + lost * high, low, high)
        whole_numbers = values.dtype.kind in "iu"
        result: npt.NDArray[Any] = (np.rint(shifted) if whole_numbers else shifted).astype(values.dtype)
        return result

    def _generator(self, purpose: int, institution: int) -> np.random.Generator:
        """A stream of its own for each institution, made in a fraction of the time that `default_rng` takes."""
        return np.random.Generator(np.random.Philox(key=[self._seed, purpose], counter=[0, 0, 0, institution]))


def recipes() -> tuple[str, ...]:
    """Every partition that cuts records up, ours and those that packages bring, in alphabetical order."""
    return tuple(sorted({*_OURS, *plugins.installed(PARTITIONS)}))


def make_shares(
    config: PartitionConfig, labels: Indices, classes: int, parts: int, generator: np.random.Generator
) -> Shares:
    """Each part's share of each class, shape [classes, parts]; every row adds up to 1.

    Raises ConfigError for an unknown partition, or one whose shares are none.
    """
    recipe = _OURS.get(config.name) or plugins.load(PARTITIONS, "partition", config.name, (NATURAL, *recipes()))
    shares = np.asarray(recipe(config, labels, classes, parts, generator), np.float64)
    fits = shares.shape == (classes, parts) and bool((shares >= 0).all())
    if not fits or not np.allclose(shares.sum(1), 1):
        raise ConfigError(
            f"partition '{config.name}' gives shares of shape {list(shares.shape)}, expected {[classes, parts]}, none "
            "below 0, and 1 in all for each class"
        )
    return shares


def _equal(
    config: PartitionConfig, labels: Indices, classes: int, parts: int, generator: np.random.Generator
) -> Shares:
    return np.full((classes, parts), 1 / parts)


def _by_label(
    config: PartitionConfig, labels: Indices, classes: int, parts: int, generator: np.random.Generator
) -> Shares:
    return generator.dirichlet(np.full(parts, config.alpha), size=classes)


def _by_quantity(
    config: PartitionConfig, labels: Indices, classes: int, parts: int, generator: np.random.Generator
) -> Shares:
    return np.tile(generator.dirichlet(np.full(parts, config.alpha)), (classes, 1))


def _shards(
    config: PartitionConfig, labels: Indices, classes: int, parts: int, generator: np.random.Generator
) -> Shares:
    """Of the records in the order of their labels, how much of each class lies in each part's shards."""
    shards = config.shards
    ends = np.cumsum(np.bincount(labels, minlength=classes))
    starts = ends - np.bincount(labels, minlength=classes)
    cuts = np.linspace(0, len(labels), shards * parts + 1)
    overlap = np.minimum(ends[:, None], cuts[1:]) - np.maximum(starts[:, None], cuts[:-1])
    dealt = np.clip(overlap, 0, None)[:, generator.permutation(shards * parts)].reshape(classes, parts, shards).sum(2)
    return np.where(dealt.sum(1, keepdims=True) > 0, dealt / np.maximum(dealt.sum(1, keepdims=True), 1), 1 / parts)


_OURS: Final[dict[str, Recipe]] = {
    "iid": _equal, "feature": _equal, "dirichlet": _by_label, "quantity": _by_quantity, "shards": _shards,
}  # fmt: skip


def _heads(persons: Indices, rows: Indices) -> Indices:
    """The first of each person's records among `rows`: it stands for them all, and its class for the person's."""
    heads: Indices = np.sort(rows[np.unique(persons[rows], return_index=True)[1]])
    return heads


def _all_rows(persons: Indices, rows: Indices, heads: Indices) -> Indices:
    """All of `rows` that are of a person one of whose records is in `heads`."""
    return rows[np.isin(persons[rows], persons[heads])]


def _deal(labels: Indices, rows: Indices, shares: Shares, generator: np.random.Generator) -> list[Indices]:
    """`rows` dealt to the parts, class by class, by their shares."""
    hands: list[list[Indices]] = [[] for _ in range(shares.shape[1])]
    for label, share in enumerate(shares):
        of_label = generator.permutation(rows[labels[rows] == label])
        ends = np.rint(np.cumsum(share) * len(of_label)).astype(np.int64)
        for hand, dealt in zip(hands, np.split(of_label, ends[:-1]), strict=True):
            hand.append(dealt)
    return [np.concatenate(hand) for hand in hands]


def _top_up(parts: list[Indices], least: int) -> list[Indices]:
    """The parts, none with fewer than `least` records: what is missing comes from the largest."""
    for number in range(len(parts)):
        while len(parts[number]) < least:
            largest = max(range(len(parts)), key=lambda other: len(parts[other]))
            parts[number] = np.append(parts[number], parts[largest][-1])
            parts[largest] = parts[largest][:-1]
    return [np.sort(rows) for rows in parts]


def _changeable(task: Task) -> dict[str, tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]]:
    """The bounds of each stored array whose values may be moved: numbers and images."""
    bounds = {c.name: c.bounds for c in task.schema.shaped if c.kind in ("number", "image")}
    ranges = {name: (np.float32(low), np.float32(high)) for name, (low, high) in bounds.items()}
    numbers = np.array([column.bounds for column in task.schema.numbers], np.float32).reshape(-1, 2)
    return {**ranges, **({NUMBERS: (numbers[:, 0], numbers[:, 1])} if len(numbers) else {})}  # type: ignore[dict-item]


def _strata(task: Task, records: Dataset, config: PartitionConfig) -> tuple[Indices, int]:
    """What the records are dealt by, and how many there are of it: classes, or one where nothing is classified."""
    target = task.schema.targets[0] if len(task.schema.targets) == 1 else None
    if target is not None and (target.kind in ("category", "boolean")):
        return columns_of(records)[target.name].astype(np.int64), max(2, len(task.schema.classes))
    if config.name in ("dirichlet", "shards"):
        raise DataError(f"partition '{config.name}' deals records by class, and task '{task.name}' has none: take iid")
    return np.zeros(len(records.persons), np.int64), 1


def make_partition(config: Config) -> Partition:
    """The partition that `config` describes. Raises DataError."""
    task = configured_task(config.task)
    return Partition(task, pooled(task, config), config.partition, config.simulation.institutions, config.seed)
