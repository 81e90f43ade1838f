"""What a request of the round loop is to secure aggregation: its purpose, what it binds, its sums as header metrics.

Both roles compute the digests from the request that they hold, so an institution that was sent another model, learning
rate or scale than the rest masks under another context, and no sum comes out.
"""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Final

import numpy as np

from sovfed.federation.codec import encode
from sovfed.federation.errors import ProtocolError
from sovfed.federation.messages import (
    EvaluateRequest,
    PrivateRequest,
    ProfileRequest,
    SumRequest,
    Sums,
    TrainRequest,
    Vector,
)
from sovfed.federation.secagg.keys import digest
from sovfed.federation.secagg.mask import hash_vector
from sovfed.federation.secagg.purpose import Purpose
from sovfed.federation.secagg.ring import FRACTION_BITS
from sovfed.federation.secagg.wire import RUN_BYTES
from sovfed.federation.tasks.registry import get_task

SPOILT: Final = 1  # the first header metric of every sum without noise: how many contributions were spoilt
TRAIN_METRICS: Final = 3  # before the evaluation: Σ countᵢ·lossᵢ, Σ countᵢ·stepsᵢ, the values beyond the clip
MAX_PARTS: Final = 64  # of a run: more would be for institutions that go for good again and again
WIDE: Final = 3  # words of a wide metric
_COARSE: Final = 2.0**26
_FINE: Final = 2.0**FRACTION_BITS
WIDEST: Final = 2.0**56  # the largest sum that three words hold
_EMPTY: Final[Vector] = np.zeros(0, np.float32)


@lru_cache(maxsize=64)
def run_bytes(run: str) -> bytes:
    """The name of a run on the wire, 16 bytes."""
    return digest("run", run.encode())[:RUN_BYTES]


def whole_run(run: str) -> str:
    """The run that `run` is, or is a part of: where survivors are gone for good it goes on as "RUN.2", "RUN.3"."""
    return run.partition(".")[0]


@lru_cache(maxsize=64)
def run_parts(run: str) -> tuple[str, ...]:
    """The whole run `run` and all that may be a part of it."""
    return run, *(f"{run}.{number}" for number in range(2, MAX_PARTS + 1))


def purpose(request: SumRequest) -> Purpose:
    match request:
        case ProfileRequest():
            return Purpose.PROFILE
        case TrainRequest():
            return Purpose.TRAIN
        case PrivateRequest():
            if request.statistics or request.candidates:
                return Purpose.COUNT
            return Purpose.SILO if request.mechanism == "silo" else Purpose.STEP
        case EvaluateRequest():
            return Purpose.EVALUATE


def update_size(request: SumRequest) -> int:
    """Length of the vector that answers `request`."""
    match request:
        case TrainRequest():
            return request.update_size
        case PrivateRequest():
            return request.width
        case _:
            return 0


def header_metrics(request: SumRequest, width: int) -> int:
    """Words of the header that the request's sums of length `width` take, with what goes before them."""
    if isinstance(request, PrivateRequest):
        return 0
    if isinstance(request, ProfileRequest):
        return SPOILT + WIDE * width
    return SPOILT + width + (TRAIN_METRICS if isinstance(request, TrainRequest) else 0)


def model_digest(request: SumRequest) -> bytes:
    """The digest of the model that arrived with the request, of an empty one where there is none."""
    return hash_vector(_EMPTY if isinstance(request, ProfileRequest) else request.model)


def subject(request: SumRequest) -> bytes:
    """The digest of the columns that the request's task reads: tasks over the same ones are about the same records."""
    return _subject(request.task)


@lru_cache(maxsize=64)
def _subject(task: str) -> bytes:
    return digest("subject", *(column.name.encode() for column in get_task(task).schema.columns))


def task_digest(request: SumRequest) -> bytes:
    """The digest of everything else: the kind of request, its scalars, its other vectors."""
    kind, scalars, vectors = encode(request)
    fields = [name.encode() + hash_vector(vectors[name]) for name in sorted(vectors) if name not in ("begin", "model")]
    return digest("request", kind.encode(), json.dumps(scalars, sort_keys=True).encode(), *fields)


def widen(sums: Sums) -> Sums:
    """`sums` (shape [k], |sum| ≤ 2^56) as 3k metrics that keep 48 bits behind the point, where one keeps 24."""
    coarse = np.trunc(sums / _COARSE)
    remainder = sums - coarse * _COARSE
    middle = np.rint(remainder * _FINE) / _FINE
    return np.concatenate([coarse, middle, (remainder - middle) * _FINE])


def narrow(metrics: Sums) -> Sums:
    """The sums, shape [k], that summed `widen`ed metrics (shape [3k]) stand for."""
    if metrics.size % WIDE:
        raise ProtocolError(f"{metrics.size} metrics, expected a multiple of {WIDE}")
    coarse, middle, fine = np.split(metrics, WIDE)
    return coarse * _COARSE + (middle + fine / _FINE)
