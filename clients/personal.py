"""What an institution keeps from round to round of a run: SCAFFOLD's cᵢ, FedBN's layers, Ditto's model.

One safetensors file a round, with the features' scale beside the vector, so that a personal model is a model file like
the published one. The last two rounds are kept, so that a run that resumes finds what it had then.
"""

from __future__ import annotations

import hashlib
import logging
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from sovfed.federation.errors import DataError
from sovfed.federation.files import private_directory, write_atomic

if TYPE_CHECKING:
    from pathlib import Path

    from sovfed.federation.messages import EvaluateRequest, Sums, TrainRequest, Vector

log = logging.getLogger(__name__)
FOLDER: Final = "personal"
ROUNDS: Final = 2  # kept of a run
MAX_RUNS: Final = 8  # the newest are kept
_NAME: Final = re.compile(r"([0-9a-f]{24})\.([0-9]{1,9})\.safetensors")


@dataclass(frozen=True)
class Learned:
    """What a round of local training gave: `update` as in `TrainReply`; `state`, shape [d], stays here.

    `failed` says why there is no update (its values are those of an institution that did not move), for the own log
    alone; `cut` that an output was cut when the model was evaluated.
    """

    update: Vector
    loss: float
    steps: int
    evaluation: Sums
    state: Vector | None = None
    cut: bool = False
    failed: str = ""


@dataclass(frozen=True)
class Kept:
    """A kept file and what its head says; `round` is the last one that it had a part in."""

    path: Path
    run: str
    task: str
    algorithm: str
    round: int
    personal: bool  # a model that predicts, not a control variate


class PersonalStates:
    """The states of one institution, in a folder of their own (0700)."""

    def __init__(self, folder: Path, *, durable: bool = True) -> None:
        """What is not `durable` outlives the process, but not the machine."""
        self._folder, self._durable = folder, durable

    def load(self, request: TrainRequest | EvaluateRequest, last: int) -> Vector | None:
        """The newest state of the request's run of a round up to `last`, shape [d]; None if there is none.

        Raises DataError if the file cannot be read or is of another length than the model.
        """
        rounds = self._rounds(_key(request))
        usable = [number for number in rounds if number <= last]
        if not usable:
            if rounds:
                log.warning("run %s: nothing is kept of a round before %d; beginning anew", request.keep, last + 1)
            return None
        vector, _ = read(rounds[max(usable)])
        if vector.shape != request.model.shape:
            raise DataError(f"{rounds[max(usable)]}: {vector.shape}, the run's model is {request.model.shape}")
        return vector

    def save(self, request: TrainRequest | EvaluateRequest, vector: Vector) -> None:
        """Keep `vector` as the state after the request's round; on disk when this returns."""
        from safetensors.numpy import save

        private_directory(self._folder)
        key = _key(request)
        metadata = {
            "run": request.keep, "task": request.task, "algorithm": request.algorithm, "round": str(request.round),
        }  # fmt: skip
        content = save({"model": np.ascontiguousarray(vector), "scale": request.scale}, metadata=metadata)
        write_atomic(self._folder / f"{key}.{request.round}.safetensors", content, 0o600, durable=self._durable)
        rounds = self._rounds(key)
        rounds.pop(request.round)
        earlier = sorted(number for number in rounds if number < request.round)
        for number in set(rounds) - set(earlier[-(ROUNDS - 1) :]):  # those after it were of a run that was set back
            rounds[number].unlink()
        self._forget(key)

    def list(self) -> list[Kept]:
        """The newest file of each run, newest first."""
        newest: dict[str, tuple[int, Path]] = {}
        for path in sorted(self._folder.glob("*.safetensors"), key=lambda path: -path.stat().st_mtime_ns):
            if found := _NAME.fullmatch(path.name):
                newest.setdefault(found[1], (int(found[2]), path))
        return [_head(path) for _, path in newest.values()]

    def _rounds(self, key: str) -> dict[int, Path]:
        found = [(_NAME.fullmatch(path.name), path) for path in self._folder.glob(f"{key}.*.safetensors")]
        return {int(match[2]): path for match, path in found if match}

    def _forget(self, key: str) -> None:
        """Drop the runs beyond the newest."""
        age: dict[str, int] = {}
        for path in self._folder.glob("*.safetensors"):
            if found := _NAME.fullmatch(path.name):
                age[found[1]] = max(age.get(found[1], 0), path.stat().st_mtime_ns)
        for old in sorted(set(age) - {key}, key=lambda name: -age[name])[MAX_RUNS - 1 :]:
            for path in self._rounds(old).values():
                path.unlink()


def read(path: Path) -> tuple[Vector, Sums]:
    """Vector and scale of a kept file. Raises DataError."""
    from safetensors.numpy import load_file

    try:
        tensors = load_file(path)
        vector, scale = tensors["model"], tensors["scale"]
    except Exception as error:  # what safetensors raises is its own
        raise DataError(f"{path}: not a state that was kept here") from error
    if vector.dtype != np.float32 or vector.ndim != 1 or not np.isfinite(vector).all():
        raise DataError(f"{path}: {vector.dtype} of shape {vector.shape}, expected finite float32 of shape [d]")
    return vector, scale


def _head(path: Path) -> Kept:
    from safetensors import safe_open

    try:
        with safe_open(path, framework="np") as file:
            head: dict[str, str] = file.metadata()
        algorithm = head["algorithm"]
        return Kept(path, head["run"], head["task"], algorithm, int(head["round"]), algorithm in ("fedbn", "ditto"))
    except Exception as error:
        raise DataError(f"{path}: not a state that was kept here") from error


def _key(request: TrainRequest | EvaluateRequest) -> str:
    """The files' name: whatever the run is called, it is no path."""
    named = f"{request.keep}\0{request.task}\0{request.algorithm}\0{request.model.size}"
    return hashlib.sha256(named.encode()).hexdigest()[:24]
