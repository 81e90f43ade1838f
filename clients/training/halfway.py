"""A round's local work as it stood at some step, on disk: a trainer that dies in a round of hours goes on from there.

One file, of the round that is under way: what it trains, what the optimizer carries, which records are still to come,
and the state of every generator. On a CPU what comes of it is what would have come without the death, to the bit. It
holds what the institution's model holds at that moment, so it is the owner's alone, and gone when the round is over.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from sovfed.federation.codec import encode
from sovfed.federation.files import drafts, private_directory, replacing

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path
    from typing import TypeAlias

    import torch
    from torch import Tensor

    from sovfed.federation.messages import TrainRequest, Vector
    from sovfed.federation.tasks import Task

    Kept: TypeAlias = tuple[int, dict[str, int], dict[str, Tensor]]  # steps to take, counts, tensors

log = logging.getLogger(__name__)
FILE: Final = "run/trainer/halfway.safetensors"  # in a home
KEY, COUNTS = "key", "counts"


class Halfway:
    """Keeps the state of a round in `path`, `every_s` seconds apart. What cannot be written or read is done without.

    `source` changes where the records of a task are others by now, whose round then begins anew. One process at a time
    has the file: what a dead one was writing is removed.
    """

    def __init__(self, path: Path, every_s: float, source: Callable[[Task], object] = lambda _task: None) -> None:
        self._path, self._every_s, self.source = path, every_s, source
        for draft in drafts(path.parent, path.name):
            draft.unlink(missing_ok=True)
        self._written = time.monotonic()
        self._there = path.exists()  # a dead trainer's

    def begin(self, key: Key) -> Kept | None:
        """Steps still to take, counts and tensors, as they were kept of just this round; another's are removed."""
        self._written = time.monotonic()
        if not self._there:
            return None
        found = self._read(key)
        if found is None:
            self.end()
        else:
            log.info("goes on where it was: %d steps are left", found[0])
        return found

    def due(self) -> bool:
        """Whether the state is to be kept now."""
        return time.monotonic() - self._written >= self._every_s

    def keep(self, key: Key, remaining: int, counts: Mapping[str, int], tensors: Mapping[str, Tensor]) -> None:
        """Put down a state in the place of the last."""
        from safetensors.torch import save_file

        try:
            private_directory(self._path.parent)
            with replacing(self._path) as draft:
                own = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
                save_file(own, draft, metadata={KEY: key.digest, COUNTS: json.dumps([remaining, dict(counts)])})
            self._there = True
        except OSError as error:  # a full disk costs nothing but what would be done again
            log.warning("the round's state was not kept: %s", error)
        self._written = time.monotonic()  # a slow disk takes no more than half of the time

    def end(self) -> None:
        """Forget the state: the round is over."""
        if self._there:
            self._path.unlink(missing_ok=True)
            self._there = False

    def _read(self, key: Key) -> Kept | None:
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self._path, framework="pt") as file:
                metadata: dict[str, str] = file.metadata() or {}
                if metadata.get(KEY) != key.digest:
                    return None
                remaining, counts = json.loads(metadata[COUNTS])
                return remaining, counts, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        except (OSError, ValueError, TypeError, KeyError, SafetensorError) as error:
            log.warning("%s: no state of a round, which begins anew: %s", self._path, error)
            return None


@dataclass
class Key:
    """What makes a round the same, down to its bits; the digest is made once it is asked for."""

    request: TrainRequest
    about: tuple[Any, ...]  # of the institution: records, device, arithmetic
    vectors: tuple[Vector | None, ...]  # beside the request's
    _digest: str = ""

    @property
    def digest(self) -> str:
        """SHA-256, hex."""
        if not self._digest:
            kind, scalars, vectors = encode(self.request)
            found = hashlib.sha256(json.dumps([kind, scalars, *self.about], sort_keys=True).encode())
            for vector in (*vectors.values(), *self.vectors):
                found.update(b"-" if vector is None else hashlib.sha256(vector.tobytes()).digest())
            self._digest = found.hexdigest()
        return self._digest


def generators(device: torch.device) -> dict[str, Tensor]:
    """The state of torch's own generators, from which dropout draws."""
    import torch

    card = {"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {}
    return {"generator.cpu": torch.get_rng_state(), **{f"generator.{name}": state for name, state in card.items()}}


def set_generators(device: torch.device, kept: Mapping[str, Tensor]) -> None:
    """Go on where `generators` was asked."""
    import torch

    torch.set_rng_state(kept["generator.cpu"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(kept["generator.cuda"], device)
