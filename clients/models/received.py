"""Models that the federation made, as this institution received them: files like the agency's own, in a folder of ours.

A model comes as the vector that travelled with its facts, and is written out by the task that is installed here; where
that gives the very file that the agency published, its SHA-256 says so. No message deletes or replaces the model of
another run: where there is no room, the model is refused.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sovfed.federation.errors import DataError, PolicyError, SovfedError
from sovfed.federation.files import private_directory, write_private
from sovfed.federation.messages import local_work
from sovfed.federation.schema import nearest

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from sovfed.federation.messages import ReleaseRequest, TrainRequest, Vector
    from sovfed.federation.models.facts import Facts
    from sovfed.federation.tasks import Task

log = logging.getLogger(__name__)
FOLDER: Final = "received"
ABOUT: Final = "received.json"
MAX_MODELS: Final = 32  # runs whose models are kept; more are refused
MAX_BYTES: Final = 8 << 30  # of all of them
MAX_ABOUT_BYTES: Final = 1 << 16
PLAN: Final = ("seed", "local_epochs", "batch_size", "learning_rate")  # of a request, beside its `local_work`
_DRAFT: Final = ".draft-"
_NAME: Final = re.compile(r"([0-9a-f]{24})\.([0-9]{20})")
_HEAD_BYTES: Final = 1 << 20  # what facts and card take up beside the tensors, roughly


@dataclass(frozen=True)
class Received:
    """A model that is kept here. `published` is the agency's SHA-256 of it, "" if it told none.

    `plan` are the scalars of the last request that trained it here, by which a model can be trained alone.
    """

    path: Path
    facts: Facts
    sha256: str
    published: str
    owner: str
    plan: dict[str, Any]

    @property
    def run(self) -> str:
        return self.facts.run.name

    @property
    def same(self) -> bool:
        """Whether the file is, byte for byte, the one that the agency published."""
        return self.sha256 == self.published


class ReceivedModels:
    """The models of one institution, each in a folder of its own (0700), its files 0600."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @property
    def folder(self) -> Path:
        return self._folder

    def check_room(self, run: str, task: str, owner: str, size: int) -> None:
        """Raise PolicyError if a model of `size` values would be one too many, or too large: none is deleted for it."""
        paths = [path for path in self._kept() if _key_of(path) != _key(run, task, owner)]
        room = MAX_BYTES - sum(map(_size, paths))
        if len({_key_of(path) for path in paths}) >= MAX_MODELS or 4 * size + _HEAD_BYTES > room:
            raise PolicyError(
                f"{len(paths)} received models are kept here, at most {MAX_MODELS} of {MAX_BYTES >> 30} GiB together; "
                "`sovfed client model remove RUN` makes room"
            )

    def keep(
        self, task: Task, vector: Vector, facts: Facts, *, owner: str, published: str = "", plan: Mapping[str, Any]
    ) -> Received:
        """Keep the model `vector` [d] of `task`; on disk when this returns, whole or not at all.

        `owner` is Flower's number of the run: a later model of the same run and owner takes an earlier one's place.
        Raises PolicyError if there is no room, DataError if the vector is not the task's or not finite.
        """
        from sovfed.federation.models.saved import write_model

        run, name = facts.run.name, facts.task.name
        self.check_room(run, name, owner, vector.size)
        with self._draft() as draft:
            digest = write_model(draft, task, vector, facts)
            about = {"sha256": digest, "published": published, "owner": owner, "plan": dict(plan)}
            write_private(draft / ABOUT, json.dumps(about).encode())
            earlier = [path for path in self._kept() if _key_of(path) == _key(run, name, owner)]
            target = self._folder / f"{_key(run, name, owner)}.{time.time_ns():020}"
            draft.rename(target)  # within the folder: a sealed process may move nothing out of one
        for path in earlier:
            shutil.rmtree(path)
        return _read(target)

    def list(self) -> Sequence[Received]:
        """The newest model of each run, newest first. Raises DataError naming a folder that was damaged."""
        newest = {_key_of(path): path for path in sorted(self._kept(), key=_time_of)}
        return [_read(path) for path in sorted(newest.values(), key=_time_of, reverse=True)]

    def find(self, run: str, owner: str | None = None) -> Received:
        """The model of `run`. Raises DataError if there is none, or several and `owner` does not choose."""
        models = self.list()
        named = [model for model in models if model.run == run and owner in (None, model.owner)]
        if not named:
            raise DataError(f"no model of run '{run}' was received here{nearest(run, {model.run for model in models})}")
        if len(named) > 1:
            raise DataError(
                f"run '{run}' left {len(named)} models, as Flower's runs "
                f"{', '.join(sorted(model.owner for model in named))}: choose one with --of"
            )
        return named[0]

    def remove(self, run: str) -> int:
        """Delete what was received of `run`, whichever of Flower's runs sent it; how many models that were."""
        doomed = [model for model in self.list() if model.run == run]
        for model in doomed:
            shutil.rmtree(model.path)
        return len(doomed)

    @contextmanager
    def _draft(self) -> Iterator[Path]:
        """A folder that is gone in the end, unless it was renamed; so are those of a process that was killed."""
        private_directory(self._folder)
        for stale in self._folder.glob(f"{_DRAFT}*"):
            shutil.rmtree(stale, ignore_errors=True)
        draft = Path(tempfile.mkdtemp(dir=self._folder, prefix=_DRAFT))
        try:
            yield draft
        finally:
            shutil.rmtree(draft, ignore_errors=True)

    def _kept(self) -> Sequence[Path]:
        if not self._folder.is_dir():
            return []
        return [path for path in self._folder.iterdir() if _NAME.fullmatch(path.name)]


def facts_of_release(request: ReleaseRequest, task: Task) -> Facts:
    """The facts of the model in `request`: this institution's `task`, and of the agency's words what a run may say.

    Raises ProtocolError on any other words.
    """
    from sovfed.federation.models.facts import facts_of, from_told

    claimed = from_told(request.facts.tobytes())
    return replace(facts_of(task, request.scale, claimed.run, request.normalisation), sovfed=claimed.sovfed)


def plan_of(request: TrainRequest | None) -> dict[str, Any]:
    """How `request` trains here, as far as training alone can follow it: without the schedule of the run."""
    if request is None:
        return {}
    return {name: getattr(request, name) for name in PLAN} | local_work(request)


def keep_released(
    models: ReceivedModels, task: Task, request: ReleaseRequest, facts: Facts, plan: Mapping[str, Any]
) -> None:
    """Keep the model in `request`, or say in the own log why not: whoever sent it is told neither."""
    try:
        models.keep(task, request.model, facts, owner=request.run, published=request.sha256, plan=plan)
    except (OSError, SovfedError) as error:
        log.warning("the model of run %r is not kept: %s", facts.run.name, error)
    except Exception:  # of the task's own code, say
        log.exception("the model of run %r is not kept", facts.run.name)
    else:
        log.info(
            "the model of run %r (%s in the lines above) is kept: `sovfed client model evaluate` measures it",
            facts.run.name, request.run,
        )  # fmt: skip


def _read(path: Path) -> Received:
    from sovfed.federation.models.saved import read_facts

    about = path / ABOUT
    try:
        with about.open("rb") as file:
            values = json.loads(file.read(MAX_ABOUT_BYTES))
        provenance = str(values["sha256"]), str(values["published"]), str(values["owner"])
        plan = dict(values["plan"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: not a model that was received here") from error
    return Received(path, read_facts(path), *provenance, plan)


def _key(run: str, task: str, owner: str) -> str:
    """The folder's name: whatever the run is called, it is no path, and nobody else's model is replaced."""
    return hashlib.sha256(f"{run}\0{task}\0{owner}".encode()).hexdigest()[:24]


def _key_of(path: Path) -> str:
    return path.name.partition(".")[0]


def _time_of(path: Path) -> str:
    return path.name.partition(".")[2]


def _size(path: Path) -> int:
    return sum(each.stat().st_size for each in path.iterdir())
