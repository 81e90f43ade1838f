"""Records as a model takes them, whether they are kept so or decoded for each batch: the same numbers."""

from __future__ import annotations

import time
import tracemalloc
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from sovfed.clients.data import Records
from sovfed.clients.training import feed as module
from sovfed.clients.training.feed import Feed, arrays_of, batches_of, profile_of, tensors_of
from sovfed.clients.training.staging import Staging
from sovfed.federation.metrics import BinaryMetrics
from sovfed.federation.tasks import Task
from sovfed.federation.tasks.columns import NUMBERS, Column, Schema, number, target
from sovfed.federation.tasks.losses import binary_cross_entropy
from sovfed.federation.tasks.registry import get_task

if TYPE_CHECKING:
    from sovfed.clients.data import Indices
    from sovfed.federation.tasks.columns import Table
    from sovfed.federation.tasks.trees import Tree

CPU = torch.device("cpu")
MIXED = Task(
    name="mixed", title="t", metrics=BinaryMetrics(), headline="auc", build=None, loss=binary_cross_entropy,
    schema=Schema(
        (
            number("age", 0, 100, missing="mean", indicator=True),
            Column("ward", "category", categories=("a", "b", "c"), missing="category"),
            Column("scan", "image", shape=(1, 4, 4)),
            Column("word", "tokens", low=0.0, high=9.0, shape=(3,)),
            target("ill", "no", "yes"),
            number("stay", 0, 365, role="target"),
        )
    ),
)  # fmt: skip
SCALE = np.array([0.25, -0.5, 0.5, 0.75])


class Counting:
    """A data set that is decoded when it is asked, and counts for how many records at once."""

    several_records, not_private = True, ""

    def __init__(self, table: Table) -> None:
        self._table, self.asked = table, list[int]()
        self.persons = np.arange(len(next(iter(table.values()))))
        self.train, self.test = self.persons[:-1], self.persons[-1:]

    def take(self, rows: Indices) -> Table:
        self.asked.append(len(rows))
        return {name: part[rows] for name, part in self._table.items()}


def table(count: int) -> dict[str, Any]:
    found = MIXED.schema.made_up(count)
    found[NUMBERS][::3] = np.nan
    found[".codes"][::4] = -1
    return found


def kept(count: int) -> Feed:
    records = Records(table(count), np.arange(count), np.arange(count - 1), np.array([count - 1]))
    return Feed(MIXED, records, SCALE, CPU)


def equal(one: Tree, other: Tree) -> bool:
    if isinstance(one, dict) and isinstance(other, dict):
        return list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)
    return isinstance(one, Tensor) and isinstance(other, Tensor) and torch.equal(one, other)


def test_a_record_is_what_the_transform_makes_of_it() -> None:
    feed, stored = kept(12), {name: torch.from_numpy(part) for name, part in table(12).items()}
    bound = MIXED.transform.bound(SCALE)
    inputs, targets = feed.take(torch.tensor([7, 0, 3]))
    chosen = {name: part[[7, 0, 3]] for name, part in stored.items()}
    assert equal(inputs, bound.inputs(chosen)) and equal(targets, bound.targets(chosen))
    assert isinstance(inputs, dict) and list(inputs) == ["x", "scan", "word"]
    assert isinstance(targets, dict) and list(targets) == ["ill", "stay"]


@pytest.mark.parametrize("batch", [1, 3, 4, 11, 12, 50])
@pytest.mark.parametrize("gathered", [1, 100, 1 << 20])
def test_batches_are_the_records_in_their_order(batch: int, gathered: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether many of them are put in order at once or each by itself."""
    monkeypatch.setattr(module, "GATHERED", gathered)
    feed, order = kept(12), torch.randperm(12)[:11]
    batches = list(feed.batches(order, batch))
    assert [len(targets["ill"]) for _, targets in batches if isinstance(targets, dict)] == [
        len(part) for part in torch.split(order, batch)
    ]
    assert len(batches) == batches_of(11, batch, coupled=False)
    for (inputs, targets), rows in zip(batches, torch.split(order, batch), strict=True):
        expected = feed.take(rows)
        assert equal(inputs, expected[0]) and equal(targets, expected[1])


@pytest.mark.parametrize(
    ("count", "batch", "sizes"),
    [
        (9, 4, [4, 5]),  # BatchNorm has no statistics of one
        (5, 4, [5]),
        (8, 4, [4, 4]),
        (10, 4, [4, 4, 2]),
        (1, 4, [1]),  # there is nothing that it could go to
        (4, 4, [4]),
        (13, 4, [4, 4, 5]),
    ],
)
@pytest.mark.parametrize("gathered", [1, 1 << 20])
def test_a_last_record_alone_goes_to_the_batch_before_it_where_records_are_coupled(
    count: int, batch: int, sizes: list[int], gathered: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "GATHERED", gathered)
    feed = kept(20)
    order = torch.arange(count)
    coupled = [targets["ill"] for _, targets in feed.batches(order, batch, coupled=True) if isinstance(targets, dict)]
    assert [len(part) for part in coupled] == sizes
    _, every = feed.take(order)
    assert isinstance(every, dict) and torch.equal(torch.cat(coupled), every["ill"])
    assert batches_of(count, batch, coupled=True) == len(sizes)
    assert batches_of(count, batch, coupled=False) == -(-count // batch)


def test_what_is_not_kept_is_decoded_batch_by_batch_to_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    resident, lazy = kept(50), Counting(table(50))
    streamed = Feed(MIXED, lazy, SCALE, CPU)
    assert lazy.asked == []  # nothing is decoded before it is asked for
    monkeypatch.setattr(module, "GATHERED", 1)
    order = torch.randperm(50)
    for one, other in zip(resident.batches(order, 8), streamed.batches(order, 8), strict=True):
        assert equal(one[0], other[0]) and equal(one[1], other[1])
    assert lazy.asked == [8, 8, 8, 8, 8, 8, 2]


def test_records_in_memory_that_would_be_too_large_for_the_model_are_decoded_as_well(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    resident = kept(50)
    monkeypatch.setattr(module, "RESIDENT_BYTES", 50 * resident.bytes_each - 1)
    streamed = kept(50)
    assert resident._whole is not None and streamed._whole is None
    for one, other in zip(resident.batches(torch.arange(50), 8), streamed.batches(torch.arange(50), 8), strict=True):
        assert equal(one[0], other[0]) and equal(one[1], other[1])


def test_what_a_record_takes_is_counted_as_the_model_is_given_it() -> None:
    # x: number, indicator, 3 + 1 categories; scan 16; 4 bytes each. word 3 int32, ill int64, stay float32.
    assert kept(5).bytes_each == 4 * (6 + 16) + 4 * 3 + 8 + 4


@pytest.mark.parametrize("lazy", [False, True])
def test_an_index_of_any_shape_gives_records_in_that_shape(lazy: bool) -> None:
    feed = Feed(MIXED, Counting(table(12)), SCALE, CPU) if lazy else kept(12)
    index = torch.tensor([[3, 1], [0, 11], [5, 5]])
    inputs, targets = feed.take(index)
    assert isinstance(inputs, dict) and isinstance(targets, dict)
    assert (inputs["x"].shape, inputs["scan"].shape, targets["ill"].shape) == ((3, 2, 6), (3, 2, 1, 4, 4), (3, 2))
    flat, _ = feed.take(index.flatten())
    assert isinstance(flat, dict) and torch.equal(inputs["scan"].flatten(0, 1), flat["scan"])


def test_no_record_gives_trees_of_no_rows() -> None:
    for feed in (kept(12), Feed(MIXED, Counting(table(12)), SCALE, CPU)):
        inputs, targets = feed.take(torch.zeros(0, dtype=torch.int64))
        assert isinstance(inputs, dict) and isinstance(targets, dict)
        assert (inputs["x"].shape, targets["stay"].shape) == ((0, 6), (0,))


def test_a_feed_knows_its_scale_by_value() -> None:
    scale = SCALE.copy()
    feed = Feed(MIXED, Counting(table(3)), scale, CPU)
    assert feed.has(SCALE)
    scale[0] += 0.125  # the message's buffer is used again: what is scaled already stays what it is
    assert feed.has(SCALE) and not feed.has(scale)


def test_memory_does_not_grow_with_the_records_that_are_not_kept() -> None:
    """4,000 images of 3 × 64 × 64: 192 MiB as the model takes them, 24 MiB as bytes; a batch of 32 is 1.5 MiB."""
    schema = Schema((Column("scan", "image", shape=(3, 64, 64)), target("ill", "no", "yes")))
    task = Task(name="scans", title="t", schema=schema, metrics=BinaryMetrics(), headline="auc", build=None, loss=None)
    images = np.zeros((4_000, 3, 64, 64), np.uint8)
    images[:, 0, 0, 0] = np.arange(4_000) % 256
    stored: Table = {"scan": images, "ill": np.zeros(4_000, np.int64)}
    records = Records(stored, np.arange(4_000), np.arange(3_999), np.array([3_999]))
    scale = task.transform.public_scale
    tracemalloc.start()  # what numpy takes; torch's tensors are counted by their own size
    try:
        feed, largest, first = Feed(task, records, scale, CPU), 0, list[float]()
        for inputs, _ in feed.batches(torch.arange(4_000), 32):
            assert isinstance(inputs, Tensor)
            largest = max(largest, inputs.untyped_storage().nbytes())
            first += inputs[:, 0, 0, 0].tolist()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert feed._whole is None and largest == 32 * 3 * 64 * 64 * 4
    assert peak < 4 << 20
    assert first == pytest.approx(((np.arange(4_000) % 256) - 127.5) / 127.5, abs=1e-6)


class Moves(TorchFunctionMode):
    """Counts how often row numbers are sent to another device."""

    count = 0

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is Tensor.to and args[0].dtype == torch.int64 and args[0].device != torch.device("meta"):
            self.count += 1
        return function(*args, **(kwargs or {}))


def test_an_epochs_order_goes_to_the_device_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GATHERED", 1)
    records = Records(table(50), np.arange(50), np.arange(49), np.array([49]))
    feed = Feed(MIXED, records, SCALE, torch.device("meta"))  # a device that holds nothing
    assert feed._whole is not None
    with Moves() as moves:
        assert len(list(feed.batches(torch.arange(50), 8))) == 7
    assert moves.count == 1


def test_what_goes_through_staging_is_the_same_and_is_read_while_a_batch_is_in_use(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "GATHERED", 1)
    plain, lazy = Feed(MIXED, Counting(table(50)), SCALE, CPU), Counting(table(50))
    staged = Feed(MIXED, lazy, SCALE, CPU)
    staged._staging = Staging(CPU)
    order = torch.randperm(50)
    batches, seen = staged.batches(order, 8), []
    seen.append(next(batches))
    until = time.monotonic() + 10
    while len(lazy.asked) < 2 and time.monotonic() < until:
        time.sleep(0.01)
    assert lazy.asked == [8, 8]  # nobody has asked for the second yet, and no third is made
    seen += batches
    for one, other in zip(seen, plain.batches(order, 8), strict=True):
        assert equal(one[0], other[0]) and equal(one[1], other[1])


def test_a_profile_of_many_records_is_that_of_its_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK", 7)
    lazy = Counting(table(30))
    rows = np.array([2, 29, 4, 5, 7, 11, 1, 8, 10, 13])
    found = profile_of(MIXED, lazy, rows)
    assert lazy.asked == [7, 3]
    assert found == pytest.approx(MIXED.transform.profile({name: part[rows] for name, part in table(30).items()}))
    assert profile_of(MIXED, lazy, np.zeros(0, np.int64)).tolist() == [0.0] * 3 * MIXED.transform.size


def test_targets_are_arrays_and_tensors_over_the_same_memory() -> None:
    array = np.arange(3)
    tensor = tensors_of(array)
    assert isinstance(tensor, Tensor) and np.shares_memory(tensor.numpy(), array)
    both = tensors_of({"a": array, "b": np.ones(2)})
    assert isinstance(both, dict) and list(both) == ["a", "b"]
    back = arrays_of(both)
    assert isinstance(back, dict) and np.shares_memory(back["a"], array)


def test_symbols_are_given_as_they_are_stored() -> None:
    task = get_task("statutes")
    stored = task.schema.made_up(4)
    feed = Feed(task, Records(stored, np.arange(4), np.arange(3), np.array([3])), np.zeros(0), CPU)
    inputs, _ = feed.take(torch.tensor([2, 1]))
    assert isinstance(inputs, Tensor) and inputs.dtype == torch.int32
    assert inputs.tolist() == stored["window"][[2, 1]].tolist()
