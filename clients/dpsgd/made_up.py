"""Made-up records of a task, from its schema alone: for every check that comes before a real record."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from sovfed.federation.tasks import public_scale

if TYPE_CHECKING:
    from torch import Tensor

    from sovfed.federation.tasks import Task


def made_up_records(task: Task, count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """`count` records as private training sees them (features float32 [n, f], labels [n]), the same for the same seed.

    Features lie anywhere within their declared bounds, symbols are any of their codes, labels any class. Of three
    records or more the first has every feature at its lower bound, the second at its upper one.
    """
    generator = torch.Generator().manual_seed(seed)
    low, high = (
        torch.tensor([getattr(one, end) for one in task.schema.features], dtype=torch.float64)
        for end in ("low", "high")
    )
    place = torch.rand(count, len(low), generator=generator, dtype=torch.float64)
    raw = low + ((place * (high - low + 1)).floor() if task.symbols else place * (high - low))
    if count > 2:
        raw[0], raw[1] = low, high
    middle, half = torch.from_numpy(public_scale(task)).chunk(2)
    labels = torch.randperm(count, generator=generator) % len(task.schema.classes)
    return ((raw - middle) / half).float(), labels
