"""What goes down to whom in a round: the whole model, or what has changed of the one that an institution holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import numpy as np

from sovfed.federation.messages import SumRequest, TrainRequest

if TYPE_CHECKING:
    from sovfed.server.strategies.rounded import Rounded


class Downlink:
    """Knows which model each institution trained last, and so holds, unless its trainer was started anew since."""

    def __init__(self, rounded: Rounded | None = None) -> None:
        """`rounded` makes the changes; without, every model goes down whole."""
        self._rounded = rounded
        self._holds: dict[int, str] = {}  # by node, the digest

    def requests(self, request: SumRequest, nodes: Sequence[int]) -> dict[int, SumRequest]:
        """What each of `nodes` is sent for `request`: a change in the place of its model where it can be."""
        short = self._short(request)
        if short is None:
            return dict.fromkeys(nodes, request)
        usable = (short.base, short.becomes)
        return {node: short if self._holds.get(node) in usable else request for node in nodes}

    def _short(self, request: SumRequest) -> TrainRequest | None:
        """`request` with the last change; None if there is none that comes to its model."""
        change = None if self._rounded is None else self._rounded.change
        if not isinstance(request, TrainRequest) or change is None or request.model is not change.model:
            return None
        nothing = np.zeros(0, np.float32)
        return replace(request, model=nothing, base=change.base, becomes=change.becomes, change=change.values)

    def took(self, request: SumRequest, node: int) -> None:
        """`node` has answered `request`, and so holds its model."""
        if self._rounded is not None and isinstance(request, TrainRequest):
            self._holds[node] = self._rounded.digest(request.model)


WHOLE: Final = Downlink()
