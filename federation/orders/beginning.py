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

    `start_round` rounds of the run were made elsewhere before; `start_file` is the SHA-256 (hex) of the model's file,
    "" where it has none. All empty where a run begins with a new model.
    """

    start: str = ""
    start_from: str = ""
    start_round: int = 0
    start_file: str = ""

    @property
    def file(self) -> str:
        """The SHA-256 (hex) of the model's file; also of an order from before that had a field of its own."""
        return self.start_file or parted(self.start_from)[1]

    @property
    def words(self) -> str:
        """Where the model is from, with its file, for people."""
        return f"{parted(self.start_from)[0]}{_FILE_WORDS}{self.file}" if self.file else self.start_from


_FILE_WORDS: Final = ", file SHA-256 "
_FILE: Final = re.compile(rf"{_FILE_WORDS}([0-9a-f]{{64}})\Z")


def parted(words: str) -> tuple[str, str]:
    """`words` of where a model is from, and the SHA-256 (hex) of its file that they end with; "" if with none."""
    told = _FILE.search(words)
    return (words[: told.start()], told[1]) if told else (words, "")


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
