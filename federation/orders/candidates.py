"""Models that are scored and not trained, as an order names them: by a digest of all that decides what they say."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from sovfed.federation.messages import EvaluateRequest, PrivateRequest, Sums, Vector

MOST: Final = 60  # of a run: their digests stand in one field of a message


def candidate_digest(model: Vector, scale: Sums) -> str:
    """SHA-256 (hex) of a model (shape [d]) with its scale: another one for any other value of either."""
    content = hashlib.sha256(b"sovfed candidate 1\0%d\0" % model.size)
    content.update(model.astype("<f4", copy=False).tobytes())
    content.update(scale.astype("<f8", copy=False).tobytes())
    return content.hexdigest()


def is_ordered(request: EvaluateRequest | PrivateRequest) -> bool:
    """Whether the model in `request` is the candidate that its digests name at its place; also where none are named."""
    if not request.candidates:
        return True
    digests = request.candidates.split(",")
    if not 1 <= request.round <= len(digests):
        return False
    return digests[request.round - 1] == candidate_digest(request.model, request.scale)
