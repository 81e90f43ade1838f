"""Early stopping and the best model, by the federated validation of the task's headline metric.

Held-out records that choose a model are no test of it any more: the metric of the best model is the best of many, so a
little better than new records will show.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sovfed.federation.files import replacing

if TYPE_CHECKING:
    from pathlib import Path

    from sovfed.federation.config import Config
    from sovfed.federation.messages import Vector

BEST: Final = "best.safetensors"


@dataclass(frozen=True)
class Best:
    """The best model so far, shape [d]: of the end of `round`, with `value` of the headline metric."""

    round: int
    value: float
    model: Vector


class Stopping:
    """Sees the metric after each round; `due` when it has not become better for `config.patience` rounds.

    With `config.keep_best` the best model is kept in the run's folder, from which a resumed run goes on.
    """

    def __init__(self, config: Config, gain: Callable[[float, float], float], folder: Path) -> None:
        """`gain(value, over)` is by how much `value` is better than `over`."""
        self._patience, self._least, self._keep = config.patience, config.min_delta, config.keep_best
        self._gain, self._path = gain, folder / BEST
        self._value: float | None = None
        self._last = self.round = 0  # `round`: after which the metric was best

    @property
    def due(self) -> bool:
        """Whether the run should end."""
        return 0 < self._patience <= self._last - self.round

    def see(self, number: int, value: float | None, model: Vector | None = None) -> None:
        """Take note of `value`, of the model after round `number`; None: it was not evaluated, or is undefined."""
        if value is None:
            return
        self._last = number
        if not self._better(value, self._least):
            return
        self.round, self._value = number, value
        if self._keep and model is not None:
            _write(self._path, Best(number, value, model))

    def replay(self, scores: Iterable[tuple[int, float | None]]) -> None:
        """Take note of what an earlier part of the run saw, whose best model is in the folder; of none, none is."""
        for number, value in scores:
            self.see(number, value)
        if self._value is None:
            self._path.unlink(missing_ok=True)

    def better(self, value: float | None) -> Best | None:
        """The best model, if one is kept that is better than `value`, the last one's."""
        if not self._keep or not self._path.exists():
            return None
        best = _read(self._path)
        if value is None or math.isnan(value):
            return best
        return best if self._gain(best.value, value) > 0 else None

    def _better(self, value: float, least: float) -> bool:
        if math.isnan(value):
            return False
        gained = math.inf if self._value is None else self._gain(value, self._value)
        return gained > 0 and gained >= least


def _write(path: Path, best: Best) -> None:
    from safetensors.numpy import save_file

    with replacing(path) as draft:
        save_file({"model": best.model}, draft, {"round": str(best.round), "value": repr(best.value)})


def _read(path: Path) -> Best:
    from safetensors import safe_open

    with safe_open(path, framework="np") as file:
        metadata: dict[str, str] = file.metadata() or {}
        return Best(int(metadata["round"]), float(metadata["value"]), file.get_tensor("model"))
