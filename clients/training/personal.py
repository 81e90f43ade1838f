"""What an institution keeps from round to round of a run: SCAFFOLD's cᵢ, FedBN's layers, own heads, Ditto's model.

One safetensors file a round, with the features' scale beside the vector, so that a personal model is a model file like
the published one. The last two rounds are kept, so that a run that resumes finds what it had then. No message deletes
or replaces the personal model of another run: where there is no room, the request is refused. A run takes its place
before a record is touched: whether training comes to anything depends on records, and must not show by a free place.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from sovfed.clients.training.kept import KeptFile, kept_files
from sovfed.clients.training.moments import Moments
from sovfed.federation.algorithms import LOCAL, MODEL, VARIATE
from sovfed.federation.errors import DataError, PolicyError
from sovfed.federation.files import drafts, private_directory, write_atomic
from sovfed.federation.secagg.request import whole_run

if TYPE_CHECKING:
    from pathlib import Path

    from sovfed.federation.messages import EvaluateRequest, Sums, TrainRequest, Vector

log = logging.getLogger(__name__)
FOLDER: Final = "personal"
ROUNDS: Final = 2  # kept of a run
PERSONAL: Final = MODEL
PLACE: Final = "place"  # taken by a run, whether or not it comes to a model
MAX_PERSONAL: Final = 16  # runs whose models are kept; more are refused
MAX_VARIATES: Final = 8  # runs whose control variates are kept; the newest


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
    """A kept file and what its head says; `round` is the last one that it had a part in.

    `run` is the name that the agency gave, `flower_run` the number under which Flower ran it.
    """

    path: Path
    run: str
    flower_run: str
    task: str
    algorithm: str
    round: int
    kind: str  # a model that predicts, a control variate, an optimizer's moments, or a place for a model to come

    @property
    def personal(self) -> bool:
        return self.kind == PERSONAL


class PersonalStates:
    """The states of one institution, in a folder of their own (0700)."""

    def __init__(self, folder: Path, *, durable: bool = True) -> None:
        """What is not `durable` outlives the process, but not the machine."""
        self._folder, self._durable = folder, durable
        # Of optimizers, which lie beside them and are removed with them; a run that goes on as a part keeps its own.
        self.moments = Moments(folder, _key, lambda run: _owner(whole_run(run)))

    def forget_drafts(self) -> None:
        """Remove what a process that died has left half written; for the one process that writes here, as it starts."""
        for draft in drafts(self._folder):
            draft.unlink(missing_ok=True)

    def load(self, request: TrainRequest | EvaluateRequest, last: int) -> Vector | None:
        """The newest state of the request's run of a round up to `last`, shape [d]; None if there is none.

        A resumed run is another to Flower: until it has kept a state, it finds that of its predecessor.

        Raises DataError if the file cannot be read or is of another length than the model, PolicyError if no room is
        left for what the request would keep.
        """
        self.check_room(request)
        files = [file for file in self._files() if file.key == _key(request) and file.kind != PLACE]
        own = [file for file in files if file.owner == _owner(request.run)]
        usable = [file for file in own if file.round <= last] or [file for file in files if file.round <= last]
        if not usable:
            if files:
                log.warning("run %s: nothing is kept of a round before %d; beginning anew", request.keep, last + 1)
            return None
        newest = max(usable, key=lambda file: (file.round, file.age))
        vector, _ = read(newest.path)
        if vector.shape != request.model.shape:
            raise DataError(f"{newest.path}: {vector.shape}, the run's model is {request.model.shape}")
        return vector

    def claim(self, request: TrainRequest | EvaluateRequest) -> None:
        """Take a place for the request's run; to be called for every request, before a record is touched for it.

        So what is refused for lack of room follows from the requests alone. Raises PolicyError if no room is left.
        """
        self.check_room(request)
        if _kind(request) == PERSONAL and (_key(request), _owner(request.run)) not in self._held():
            self._write(request, PLACE, np.zeros(0, np.float32))

    def save(self, request: TrainRequest | EvaluateRequest, vector: Vector) -> None:
        """Keep `vector` as the state after the request's round; on disk when this returns.

        Only files that this very run of Flower left are replaced. Raises PolicyError if no room is left.
        """
        self.check_room(request)
        self._write(request, _kind(request), vector)
        of = _key(request), _owner(request.run)
        own = {file.round: file.path for file in self._files() if (file.key, file.owner) == of and file.kind != PLACE}
        own.pop(request.round)
        earlier = sorted(number for number in own if number < request.round)
        for number in set(own) - set(earlier[-(ROUNDS - 1) :]):  # those after it were of a run that was set back
            own[number].unlink()
        self._forget_variates()

    def list(self) -> list[Kept]:
        """The newest file of each run, newest first."""
        return [head_of(file.path) for file in self._newest()]

    def remove(self, run: str) -> int:
        """Delete what is kept under the name `run`, whichever of Flower's runs left it; how many states that were.

        What cannot be read goes too: it may be of that run, and no round can go on with it.
        """
        doomed = [(file.key, file.owner) for file in self._newest() if _run_of(file.path) in (run, None)]
        for file in self._files():
            if (file.key, file.owner) in doomed:
                file.path.unlink()
        return len(doomed)

    def _write(self, request: TrainRequest | EvaluateRequest, kind: str, vector: Vector) -> None:
        from safetensors.numpy import save

        private_directory(self._folder)
        metadata = {
            "run": request.keep, "flower_run": request.run, "task": request.task, "algorithm": request.algorithm,
            "round": str(request.round),
        }  # fmt: skip
        content = save({"model": np.ascontiguousarray(vector), "scale": request.scale}, metadata=metadata)
        path = self._folder / f"{_key(request)}.{_owner(request.run)}.{request.round}.{kind}.safetensors"
        write_atomic(path, content, 0o600, durable=self._durable)

    def _held(self) -> set[tuple[str, str]]:
        """The runs that have a place for a personal model."""
        return {(file.key, file.owner) for file in self._files() if file.kind in (PERSONAL, PLACE)}

    def _files(self) -> Sequence[KeptFile]:
        return kept_files(self._folder)

    def _newest(self, kind: str = "") -> Sequence[KeptFile]:
        """The newest file of each run (of `kind` alone), newest first."""
        newest: dict[tuple[str, str], KeptFile] = {}
        for file in sorted(self._files(), key=lambda file: (file.kind == PLACE, -file.age, -file.round)):
            if kind in ("", file.kind):
                newest.setdefault((file.key, file.owner), file)
        return [*newest.values()]

    def check_room(self, request: TrainRequest | EvaluateRequest) -> None:
        """Raise PolicyError if a personal model would be one too many: none is deleted to make room."""
        if _kind(request) != PERSONAL:
            return
        places = self._held()
        if len(places) >= MAX_PERSONAL and (_key(request), _owner(request.run)) not in places:
            raise PolicyError(
                f"{len(places)} personal models are kept here, the most; `sovfed client personal remove RUN` makes room"
            )

    def _forget_variates(self) -> None:
        """Drop the control variates beyond the newest runs': they are of use to nobody but a run that goes on."""
        newest = {(file.key, file.owner) for file in self._newest(VARIATE)[:MAX_VARIATES]}
        for file in self._files():
            if file.kind == VARIATE and (file.key, file.owner) not in newest:
                file.path.unlink()


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


def head_of(path: Path) -> Kept:
    """What a kept file says of itself. Raises DataError."""
    from safetensors import safe_open

    try:
        with safe_open(path, framework="np") as file:
            head: dict[str, str] = file.metadata()
        kind = path.name.split(".")[-2]
        return Kept(path, head["run"], head["flower_run"], head["task"], head["algorithm"], int(head["round"]), kind)
    except Exception as error:
        raise DataError(f"{path}: not a state that was kept here") from error


def _run_of(path: Path) -> str | None:
    """The name of the run that a kept file is of; None where it does not say."""
    try:
        return head_of(path).run
    except DataError as error:
        log.warning("%s", error)
        return None


def _key(request: TrainRequest | EvaluateRequest) -> str:
    """The files' name: whatever the run is called, it is no path."""
    named = f"{request.keep}\0{request.task}\0{request.algorithm}\0{request.model.size}"
    return hashlib.sha256(named.encode()).hexdigest()[:24]


def _owner(run: str) -> str:
    """Which of Flower's runs asks: nobody else's files are replaced."""
    return hashlib.sha256(run.encode()).hexdigest()[:16]


def _kind(request: TrainRequest | EvaluateRequest) -> str:
    return LOCAL[request.algorithm].keeps
