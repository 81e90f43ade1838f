"""The last model of a run, held for the next round's, which may come as a change of it.

It is the federation's model, which the agency has too: nothing of the own records is in it that was not sent. In memory
alone; an institution that holds none, since its trainer was started anew or it missed a round, is sent the whole one.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, TypeVar, cast

import numpy as np

from sovfed.federation.changes import changed
from sovfed.federation.codec import check
from sovfed.federation.errors import ProtocolError, WholeModelError
from sovfed.federation.messages import Request, TrainRequest
from sovfed.federation.secagg.mask import hash_vector

if TYPE_CHECKING:
    from sovfed.federation.messages import Vector

R = TypeVar("R", bound=Request)
MAX_RUNS: Final = 2  # whose model is held, the newest
UNUSED_S: Final = 3_600.0  # after which a model is let go: its run is over, or its rounds are long beside sending it


@dataclass(frozen=True)
class _Model:
    digest: str
    values: Vector
    at_s: float


class HeldModels:
    """By the run's own name. A simulation's institutions share one: it is the same model."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._held: dict[str, _Model] = {}
        self._now = now

    def whole(self, request: R) -> R:
        """`request` as it would have come with its whole model, which is held from now on if it came of a change.

        Raises WholeModelError if its base is not held here, ProtocolError if no proper model comes of it.
        """
        if not isinstance(request, TrainRequest) or not (request.base or request.becomes or request.change.size):
            return request
        if request.model.size or not request.hold:
            raise ProtocolError("a change, and a model beside it or none to be held")
        held = self._held.get(_run(request))
        if held is None or held.digest not in (request.base, request.becomes):
            raise WholeModelError(f"the model {request.base[:12]} of this run, which a change came of, is not held")
        model = held.values if held.digest == request.becomes else changed(held.values, request.change)
        bare = replace(request, model=model, base="", becomes="", change=np.zeros(0, np.uint8))
        if model is not held.values:
            if hash_vector(model).hex() != request.becomes:
                raise ProtocolError(f"the change does not come to the model {request.becomes[:12]}")
            check(bare)  # what is finite may add up to what is not
            self._held[_run(request)] = _Model(request.becomes, model, self._now())
        return cast("R", bare)

    def hold(self, request: Request) -> None:
        """Hold the model of a request that was admitted, in the place of the run's last."""
        if not isinstance(request, TrainRequest) or not request.hold:
            return
        run = _run(request)
        held = self._held.pop(run, None)
        if held is None or held.values is not request.model:
            held = _Model(hash_vector(request.model).hex(), request.model, 0.0)
        self._held[run] = replace(held, at_s=self._now())
        while len(self._held) > MAX_RUNS:
            del self._held[next(iter(self._held))]

    def let_go(self) -> None:
        """Give back the memory of models that nothing was asked with for UNUSED_S; to be called now and then."""
        before = self._now() - UNUSED_S
        for run in [run for run, model in self._held.items() if model.at_s < before]:
            del self._held[run]


def _run(request: TrainRequest) -> str:
    """The run's own name, which it keeps when it is taken up again or goes on as another part."""
    return request.keep or request.run
