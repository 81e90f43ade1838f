"""The model that a run begins with, where an order names one: by a digest that the trainer computes of what arrives."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from sovfed.federation.messages import PrivateRequest, TrainRequest, Vector


@dataclass(frozen=True)
class Beginning:
    """A model: `start` is the `start_digest` of its vector, `start_from` where it is from, in words.

    `start_round` rounds of the run were made elsewhere before. All empty where a run begins with a new model.
    """

    start: str = ""
    start_from: str = ""
    start_round: int = 0


_FILE: Final = re.compile(r", file SHA-256 ([0-9a-f]{64})\Z")


def file_words(digest: str) -> str:
    """How the words of an order end that name the file (SHA-256, hex) of a model."""
    return f", file SHA-256 {digest}"


def file_of(words: str) -> str:
    """The SHA-256 (hex) of the file that the `words` of an order name; "" if they name none."""
    told = _FILE.search(words)
    return told[1] if told else ""


def start_digest(model: Vector) -> str:
    """SHA-256 (hex) of a model (shape [d]): another one for any other value."""
    content = hashlib.sha256(b"sovfed start 1\0%d\0" % model.size)
    content.update(model.astype("<f4", copy=False).tobytes())
    return content.hexdigest()


def begins_otherwise(begins: Beginning, request: TrainRequest | PrivateRequest) -> str:
    """What of the model in `request` is otherwise than an order that `begins` so says; "" if nothing, or it says none.

    One SHA-256 in the first round. Whoever is asked for a later one is sent what others have trained, which no order
    knows.
    """
    if not begins.start or request.round > begins.start_round + 1:
        return ""
    if request.round <= begins.start_round:
        return f"round {request.round}, which was before it begins"
    return "" if start_digest(request.model) == begins.start else "the model that it begins with"
