"""Buffers that are used again give what was sent, and what is made ahead comes in order."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from sovfed.clients.training.staging import BUFFERS, Staging, ahead, one_behind

CPU = torch.device("cpu")


def test_what_was_sent_stays_what_it_is_while_its_buffer_is_used_again() -> None:
    staging, generator = Staging(CPU), np.random.default_rng(0)
    columns = [
        generator.random((size, 3)).astype(np.float32) if size % 2 else generator.integers(0, 9, size)
        for size in (4, 1, 0, 7, 3, 12, 5)
    ]
    sent = [staging.send("age", column) for column in columns]
    for tensor, column in zip(sent, columns, strict=True):
        assert tensor.shape == column.shape
        assert np.array_equal(tensor.numpy(), column)
    (buffers,) = staging._buffers.values()
    assert len(buffers) == BUFFERS


def test_memory_is_taken_anew_only_for_a_longer_column() -> None:
    staging, longest = Staging(CPU), np.arange(100)
    places = set()
    for size in (100, 100, 3, 50, 100, 99):
        staging.send("age", longest[:size])
        places |= {buffer._memory.data_ptr() for buffer in staging._buffers["age"] if buffer._memory.numel()}
    assert len(places) == BUFFERS


def test_items_come_in_order_and_the_next_is_made_meanwhile() -> None:
    made = [threading.Event() for _ in range(4)]

    def items() -> Iterator[int]:
        for number, event in enumerate(made):
            event.set()
            yield number

    coming = ahead(items())
    assert next(coming) == 0
    assert made[1].wait(10) and not made[2].is_set()
    assert list(coming) == [1, 2, 3]


def test_what_goes_wrong_ahead_is_told_in_its_turn_and_no_thread_is_left() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise ValueError("broken")

    before, coming = threading.active_count(), ahead(items())
    assert next(coming) == 1
    with pytest.raises(ValueError, match="broken"):
        next(coming)
    stopped = ahead(iter(range(9)))
    next(stopped)
    stopped.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_an_item_is_read_once_the_next_is_begun(count: int) -> None:
    begun: list[int] = []

    def items() -> Iterator[int]:
        for number in range(count):
            begun.append(number)
            yield number

    read = [(item, len(begun)) for item in one_behind(items())]
    assert read == [(number, min(number + 2, count)) for number in range(count)]
