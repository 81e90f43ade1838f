"""How far does one person move the sum that noise is added to? Every engine, at the edges where it went wrong before.

Each case computes the sum of clipped gradients of two data sets that differ by one person, by the code that a private
run goes through (`PrivateTraining` on records that the connector read, `PrivateStep` by engine, and the vectorised
simulation), and measures their distance in L2 in clips. Nobody is left to chance: q = 1 and no noise. The promise is
that it is at most one clip for *all* records and models; the cases are the worst that are known, so they show a fault
and never that there is none. The controls are the two ways in which it was broken once.
"""

from __future__ import annotations

import csv
import logging
import math
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from sovfed.clients.data import Dataset, Records, load_records, table_of
from sovfed.clients.data.split import by_person
from sovfed.clients.dpsgd.step import PrivateStep
from sovfed.clients.training.feed import Feed
from sovfed.clients.training.private import PrivateTraining
from sovfed.federation.config import DataConfig
from sovfed.federation.errors import PrivacyError
from sovfed.federation.messages import PrivateRequest, Vector
from sovfed.federation.metrics import ClassMetrics
from sovfed.federation.privacy.compatibility import EXAMPLES
from sovfed.federation.tasks import Task, initial_vector
from sovfed.federation.tasks.columns import NUMBERS, Column, Schema, Table, target
from sovfed.federation.tasks.losses import cross_entropy
from sovfed.federation.tasks.registry import get_task
from sovfed.federation.tasks.transform import values_of
from sovfed.federation.tasks.trees import leaves
from sovfed.simulations.vectorised_private import Persons, StackedPrivate

ALLOWED: Final = 1.0001  # clips
REACHED: Final = 0.99  # that every engine must show somewhere, or nothing was measured
REFUSED: Final = ("table that names no person", "data.limit")  # and nothing else may be
CLIP: Final = 1.0
ENGINES: Final = ("vmap", "hooks", "ghost", "trainer", "vectorised")
TOKENS: Final = 16
Sum = Callable[[Tensor, Tensor, Tensor], Tensor]  # features, labels, persons → the clipped sum, float64 [d]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Movement:
    """The farthest that one person's coming or going moved the sum, of all pairs of an edge; or that it was refused."""

    engine: str
    kind: str
    edge: str
    persons: int
    pairs: int
    worst_over_clip: float
    refused: bool = False


def audit_sensitivity(*, quick: bool) -> list[Movement]:
    """A row for every engine, kind of task and edge that there is; `quick` takes fewer persons and pairs."""
    with _quiet():
        movements = [row for engine in ENGINES for kind in KINDS for row in _edges(engine, kind, quick=quick)]
        movements += list(_many(quick=quick))
        return movements + list(_connector())


def audit_broken() -> list[Movement]:
    """The controls: float32 sums of one piece, and persons named by the number of their row."""
    with _quiet():
        return [_float32(), _row_numbers()]


def _text_model() -> nn.Module:
    return nn.Sequential(
        _Tokens(), nn.Embedding(TOKENS, 6), nn.Flatten(), nn.Linear(48, 24), nn.ReLU(), nn.Linear(24, 3)
    )


class _Tokens(nn.Module):
    def forward(self, codes: Tensor) -> Tensor:
        return codes.long()


def _text_task() -> Task:
    return Task(
        name="codes", title="Made-up codes", metrics=ClassMetrics(3), headline="auc", build=_text_model,
        schema=Schema((Column("codes", "tokens", 0, TOKENS - 1, shape=(8,)), target("class", "a", "b", "c"))),
        loss=cross_entropy,
    )  # fmt: skip


KINDS: Final[dict[str, Callable[[], Task]]] = {
    "tabular": partial(get_task, "heart"),
    "image": partial(get_task, "digits"),
    "image, convolution": partial(get_task, "digits_cnn", normalisation="group"),
    "text": _text_task,
}


def _edges(engine: str, kind: str, *, quick: bool) -> Iterator[Movement]:
    """Every edge of one engine and kind; none where the engine refuses the model."""
    task = KINDS[kind]()
    slow = kind == "image, convolution"
    piece = 32 if slow else 64
    for several in (False, True):
        for edge, model in _models(task).items():
            summing = _summing(engine, task, model, several=several)
            if summing is None:
                return
            sizes = (1, piece, piece + 1) if quick else (1, 2, piece, piece + 1, 2 * piece, 4 * piece + 1)
            for records, make in RECORDS.items():
                if quick and slow and (several or records != "alike"):
                    continue
                pairs = [_pair(summing, *make(task, size), several=several) for size in sizes]
                yield Movement(
                    engine, kind, f"{records} records, {edge}{', several each' if several else ''}", sizes[-1],
                    len(pairs), max(pairs),
                )  # fmt: skip


def _pair(summing: Sum, features: Tensor, labels: Tensor, *, several: bool) -> float:
    """The movement by the first, by the last, and, where persons may have several records, by the first with two."""
    count = len(features)
    persons = torch.arange(count)
    if several and count > 2:
        persons[-1] = persons[-2]  # the last one has two: with them the first person with several goes
    full_sum = summing(features, labels, persons)
    moved = 0.0
    for gone in {int(persons[0]), int(persons[-1])}:
        remaining = persons != gone
        moved = max(
            moved, float((full_sum - summing(features[remaining], labels[remaining], persons[remaining])).norm()) / CLIP
        )
    return moved


def _made_up(task: Task, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """`Task.made_up` of a task with one tensor in and one target."""
    (features,), (labels,) = map(leaves, task.made_up(count, seed))
    return features, labels


def _alike(task: Task, count: int) -> tuple[Tensor, Tensor]:
    """All nearly the same, so that gradients are aligned and a rounding has the same sign in each."""
    features, labels = _made_up(task, 8, seed=3)
    features = features[5:6].repeat(count, 1)
    if features.is_floating_point():
        noise = torch.randn(features.shape, generator=torch.Generator().manual_seed(count))
        features = (features + 1e-3 * noise).clamp(-1, 1)
    return features, labels[5:6].repeat(count)


def _extreme(task: Task, count: int) -> tuple[Tensor, Tensor]:
    """Any within the bounds, some that no schema would let pass: not a number, infinite, 1e30; the first repeated."""
    features, labels = _made_up(task, count, seed=4)
    if features.is_floating_point():
        bad = torch.tensor([float("nan"), float("inf"), 1e30, -1e30])
        for row in range(3, count, 7):
            features[row, row % features.shape[1]] = bad[row // 7 % len(bad)]
    if count > 3:
        features[2], labels[2] = features[0], labels[0]
    return features, labels


RECORDS: Final = {"alike": _alike, "extreme": _extreme}


def _models(task: Task) -> dict[str, Vector]:
    """The usual model, and one with its first layer's units at the edge of dying for the records that are alike."""
    models = {"usual model": initial_vector(task, 0)}
    module = task.model()
    first = module[0] if isinstance(module, nn.Sequential) and len(module) > 1 else None
    if isinstance(first, nn.Linear):
        weight = torch.tensor(models["usual model"][: first.weight.numel()]).view_as(first.weight)
        vector = models["usual model"].copy()
        at = slice(first.weight.numel(), first.weight.numel() + len(weight))
        vector[at] = -(weight @ _alike(task, 1)[0][0]).numpy()
        models["units at the edge"] = vector
    return models


def _summing(engine: str, task: Task, model: Vector, *, several: bool) -> Sum | None:
    """The clipped sum at `model` by `engine`; None if the engine refuses the task."""
    if task.build is None or task.loss is None:
        return None
    try:
        if engine == "trainer":
            return partial(_by_trainer, task, model, several)
        if engine == "vectorised":
            return partial(_by_stack, task, StackedPrivate(task, CLIP, torch.device("cpu")), model)
        step = PrivateStep(
            task.model(), task.loss, CLIP, example=task.made_up(EXAMPLES), several_records=several, engine=engine,
        )  # fmt: skip
    except PrivacyError:
        return None
    flat = torch.from_numpy(model)
    return lambda features, labels, persons: step.clipped_sum(flat, features, labels, persons)[0]


def _by_trainer(task: Task, model: Vector, several: bool, features: Tensor, labels: Tensor, persons: Tensor) -> Tensor:
    """As an institution would: from records in the task's own scale, of which a last one is held out."""
    if not len(features):  # no connector gives an institution without records
        return torch.zeros(len(model), dtype=torch.float64)
    held_out = len(features)
    table = _stored(
        task, torch.cat([features, features.new_zeros(1, *features.shape[1:])]), nn.functional.pad(labels, (0, 1))
    )
    records = Records(
        table, np.append(persons.numpy(), int(persons.max()) + 1), np.arange(held_out), np.array([held_out]),
        several_records=several,
    )  # fmt: skip
    return torch.from_numpy(_sum(task, records, model))


def _by_stack(
    task: Task, stacked: StackedPrivate, model: Vector, features: Tensor, labels: Tensor, persons: Tensor
) -> Tensor:
    if not len(features):
        return torch.zeros(len(model), dtype=torch.float64)
    rows = np.arange(len(features))
    records = Records(_stored(task, features, labels), persons.numpy(), rows, rows[:0])
    feed = Feed(task, records, task.transform.public_scale, torch.device("cpu"))
    everybody = Persons.of([rows], records.persons)
    models = torch.from_numpy(model).unsqueeze(0)
    return stacked.clipped_sums(models, feed, everybody, np.arange(len(everybody.first)))[0]


def _stored(task: Task, features: Tensor, labels: Tensor) -> Table:
    """The records that a model is given as `features` under the declared bounds, as an institution has them."""
    values = features.numpy()
    if features.is_floating_point():
        inputs = next(iter(task.schema.stored()))
        start, slope = task.transform.affine(task.transform.public_scale)[inputs]
        values = values / slope + start
        values = values_of(task.schema, values) if inputs == NUMBERS else values
    return table_of(task.schema, values, labels.numpy())


def _sum(task: Task, records: Dataset, model: Vector) -> Floats:
    """What `PrivateTraining` adds noise to if everybody is sampled."""
    request = PrivateRequest(
        run="1", grant="audit", round=1, task=task.name, mechanism="distributed", rounds=1, steps=1, spare=0,
        noise_multiplier=4.0, sampling_rate=1.0, clip=CLIP, delta=1e-6, honest=3, grid_bits=16, batch=100.0, seed=0,
        local_epochs=1, batch_size=16, learning_rate=0.5, model=model, digest=task.digest,
    )  # fmt: skip
    return PrivateTraining(task, records, site="0", device="cpu", ledger=None)._sum(request, model)


def _many(*, quick: bool) -> Iterator[Movement]:
    """Many persons who are alike: where pieces were cut, and where float32 lost a person's part."""
    for kind, engine, count in (
        ("tabular", "ghost", 2**14 if quick else 300_000),
        ("tabular", "vmap", 2**13 if quick else 100_000),
        ("tabular", "vectorised", 2**14 if quick else 300_000),
        ("image", "ghost", 2**12 if quick else 20_000),
    ):
        task = KINDS[kind]()
        for edge, model in _models(task).items():
            summing = _summing(engine, task, model, several=False)
            if summing is None:
                raise PrivacyError(f"engine {engine} refuses the model of task '{task.name}'")
            features, labels = _alike(task, count + 1)
            persons = torch.arange(count + 1)
            full_sum = summing(features, labels, persons)
            moved = [
                float((full_sum - summing(features[remaining], labels[remaining], persons[remaining])).norm()) / CLIP
                for remaining in (slice(0, count), slice(1, count + 1))
            ]
            yield Movement(engine, kind, f"many alike records, {edge}", count, len(moved), max(moved))


def _connector() -> Iterator[Movement]:
    """A table of an institution's own, by the connector, with a row less: persons named, persons by row, neither."""
    task = get_task("breast_cancer")
    rows, labels = _table(task, 120)
    rows[7], labels[7] = rows[3], labels[3]  # two rows that nothing tells apart
    names = [f"p{row // 2}" for row in range(len(rows))]
    for edge, people, config in (
        ("table with a person column", names, DataConfig(source="csv")),
        ("table of one row a person", None, DataConfig(source="csv", person="row")),
        ("table that names no person", None, DataConfig(source="csv")),
        ("data.limit", names, DataConfig(source="csv", limit=40)),
    ):
        moved, refused, places = 0.0, False, (0, 3, 7, 60, 118)
        for gone in places:
            remaining = [
                row for row in range(len(rows)) if row != gone and (people is None or people[row] != people[gone])
            ]
            try:
                sums = [
                    _of_table(task, rows, labels, people, chosen, config) for chosen in (range(len(rows)), remaining)
                ]
            except PrivacyError:
                refused = True
                break
            moved = max(moved, float(np.linalg.norm(sums[0] - sums[1])) / CLIP)
        yield Movement("trainer", "tabular", edge, len(rows), len(places), moved, refused)


def _table(task: Task, count: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Rows and class numbers of made-up records of a table."""
    table = task.schema.made_up(count, seed=5)
    return table[NUMBERS], table[task.schema.targets[0].name]


def _of_table(
    task: Task, rows: npt.NDArray[np.float32], labels: npt.NDArray[np.int64], people: list[str] | None,
    chosen: range | list[int], config: DataConfig,
) -> Floats:  # fmt: skip
    names, classes = [column.name for column in task.schema.columns], task.schema.classes
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table.csv"
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow([*names, *(["person"] if people else [])])
            for row in chosen:
                person = [people[row]] if people else []
                writer.writerow([*map(repr, rows[row].tolist()), classes[labels[row]], *person])
        records = load_records(task, replace(config, path=str(path)))
    return _sum(task, records, initial_vector(task, 0))


def _float32() -> Movement:
    """Control: persons' clipped gradients added up in float32, in one piece or, with one person more, in two."""
    count = 2**17
    gradient = torch.randn(14, generator=torch.Generator().manual_seed(0))
    gradients = (CLIP * gradient / gradient.norm()).repeat(count + 1, 1)
    one_piece = torch.ones(count) @ gradients[:count]
    two_pieces = sum(torch.ones(len(piece)) @ piece for piece in gradients.tensor_split(2))
    return Movement(
        "float32", "tabular", "one piece, then two", count, 1, float((two_pieces - one_piece).double().norm()) / CLIP
    )


def _row_numbers() -> Movement:
    """Control: persons named by the number of their row, so that the first one's going renames all others."""
    task = get_task("breast_cancer")
    raw, labels = _table(task, 200)
    sums = []
    for first in (0, 1):
        train, test = by_person(task.name, map(str, range(len(raw) - first)))
        table = table_of(task.schema, raw[first:], labels[first:])
        records = Records(table, np.arange(len(raw) - first), train, test)
        sums.append(_sum(task, records, initial_vector(task, 0)))
    return Movement(
        "trainer", "tabular", "persons by row number", len(raw), 1, float(np.linalg.norm(sums[0] - sums[1])) / CLIP
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """On one thread, and without a log line for each of some hundred steps."""
    threads, logger = torch.get_num_threads(), logging.getLogger("sovfed.clients.dpsgd.step")
    level = logger.level
    torch.set_num_threads(1)
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        logger.setLevel(level)


def worst(rows: list[Movement]) -> float:
    """The largest movement of all; infinite if there is none to speak of."""
    return max((row.worst_over_clip for row in rows), default=math.inf)
