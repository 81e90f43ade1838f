"""The last reply to each kind of request of a run, for transports that ask again what was answered already."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from sovfed.federation.codec import vectors
from sovfed.federation.messages import LedgerRequest, ReleaseRequest, Reply, Request, RunRequest, TrainRequest
from sovfed.federation.secagg.mask import hash_vector

if TYPE_CHECKING:
    from sovfed.federation.messages import Message

NOT_KEPT: Final = (RunRequest, LedgerRequest, ReleaseRequest)  # whose reply may be another, if asked again
MAX_RUNS: Final = 4  # whose last replies are kept


class Replies:
    """What was answered last, by run and kind of request; of the newest runs."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, dict[type[Request], _Kept]] = OrderedDict()

    def again(self, request: Request) -> Reply | None:
        """The reply that was given to this very request."""
        kept = self._of(request.run, type(request))
        return kept.reply if kept is not None and kept.answers(request) else None

    def last_trained(self, run: str) -> TrainRequest | None:
        """The last request of `run` that was trained for, without its vectors."""
        kept = self._of(run, TrainRequest)
        return kept.request if kept is not None and isinstance(kept.request, TrainRequest) else None

    def keep(self, request: Request, reply: Reply) -> None:
        """Keep `reply` for a request that is repeated, but for the ledger, which goes on, and for a run's model."""
        kept = self._of(request.run, type(request))
        if isinstance(request, NOT_KEPT) or (kept is not None and kept.reply is reply):
            return
        self._kept.setdefault(request.run, {})[type(request)] = _Kept.of(request, reply)
        self._kept.move_to_end(request.run)
        while len(self._kept) > MAX_RUNS:
            self._kept.popitem(last=False)

    def let_go(self, request: Request) -> None:
        """Free the memory of the last reply to a request of this kind, now that another is worked on."""
        self._kept.get(request.run, {}).pop(type(request), None)

    def clear(self) -> None:
        self._kept.clear()

    def _of(self, run: str, kind: type[Request]) -> _Kept | None:
        return self._kept.get(run, {}).get(kind)


@dataclasses.dataclass(frozen=True)
class _Kept:
    """The reply to `request`, of which only the scalars and M1 are kept: `digests` stand for its vectors.

    With M1 they need not be compared: it binds them, and whoever changed them gets what was given already.
    """

    request: Request
    digests: dict[str, bytes]
    reply: Reply

    @classmethod
    def of(cls, request: Request, reply: Reply) -> _Kept:
        bare: Any = {name: np.empty(0, vector.dtype) for name, vector in vectors(request).items() if name != "begin"}
        return cls(dataclasses.replace(request, **bare), _digests(request), reply)

    def answers(self, request: Request) -> bool:
        """Whether `request` is the same again; scalars are compared before vectors."""
        return _scalars(request) == _scalars(self.request) and _digests(request) == self.digests


def _scalars(message: Message) -> dict[str, Any]:
    beside = vectors(message)
    return {name: value for name, value in vars(message).items() if name not in beside}


def _digests(request: Request) -> dict[str, bytes]:
    begin = getattr(request, "begin", None)
    if begin is not None and begin.size:
        return {"begin": begin.tobytes()}
    return {name: hash_vector(vector) for name, vector in vectors(request).items()}
