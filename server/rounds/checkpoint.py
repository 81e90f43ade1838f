"""A run's checkpoint: one safetensors file, replaced atomically after each round, so that a killed run resumes.

The file holds the model (shape [d]), the feature scale and the server optimizer's slots; its metadata the round, what
decides the training and the digest of that. Nothing is pickled.
"""

from __future__ import annotations

import hashlib
import json
import queue
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from sovfed.federation.config import Config
from sovfed.federation.errors import ConfigError
from sovfed.federation.files import private_directory, replacing
from sovfed.federation.messages import Sums, Vector
from sovfed.federation.tasks.registry import configured_task
from sovfed.server.strategies import Slots

NAME: Final = "checkpoint.safetensors"
KEPT: Final = "before"  # a folder: of models that were made before an institution came, for `run unlearn`
MOST_KEPT: Final = 8
DEFINITION: Final = "the task's definition"
ANY: Final = "task, strategy, privacy, secagg, seed or rounds"  # of a checkpoint that does not say with which
SHOWN: Final = 80  # characters of a setting that an error names
_SLOT: Final = "optimizer."


@dataclass(frozen=True)
class Checkpoint:
    """The state after `round`; `model` has shape [d], `scale` shape [2f]."""

    round: int
    model: Vector
    scale: Sums
    slots: Slots
    deciding: str


def config_digest(config: Config) -> str:
    """SHA-256 of what decides the training."""
    return _sha256(deciding(config))


def deciding(config: Config) -> str:
    """The settings that decide the training, as JSON: a resumed run must not change them.

    `rounds` may grow, unless the learning rate has a schedule over them.
    """
    parts = {name: _chosen(getattr(config, name)) for name in ("task", "strategy", "privacy", "secagg")}
    parts["secagg"].pop("max_error", None)  # which only says when a run is refused
    for place in ("file", "start", "base"):  # where they lie, which is another folder when the run is made anew
        parts["task"].pop(place, None)
    task = configured_task(config.task).digest
    rounds = [config.rounds] if config.task.scheduled else []  # over which the learning rate runs
    return json.dumps([parts, config.seed, task, *rounds], sort_keys=True)


def _differing(then: str, now: str) -> list[str]:
    """The settings in which two of `deciding` differ, each with both values."""
    was, now_is = _by_name(then), _by_name(now)
    names = [name for name in sorted({*was, *now_is}) if was.get(name) != now_is.get(name)]
    if any(name.startswith("task.") for name in names):  # of which these two come
        names = [name for name in names if name not in (DEFINITION, "rounds")]
    return [f"{name} was {was.get(name)}, now {now_is.get(name)}" for name in names]


def _by_name(deciding: str) -> dict[str, str]:
    parts, seed, task, *rounds = json.loads(deciding)
    named = {"seed": seed, DEFINITION: task} | ({"rounds": rounds[0]} if rounds else {})
    for part, chosen in parts.items():
        whole = asdict(getattr(Config(), part)) | chosen
        named |= {f"{part}.{name}": value for name, value in whole.items()}
    return {name: json.dumps(value)[:SHOWN] for name, value in named.items()}


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _chosen(part: Any) -> dict[str, Any]:
    """The settings that are not as they are by default: a version with more settings goes on with a run of an older."""
    values = asdict(part)
    return {
        field.name: values[field.name]
        for field in fields(part)
        if getattr(part, field.name) != (field.default if field.default_factory is MISSING else field.default_factory())
    }


def write(folder: Path, checkpoint: Checkpoint, name: str = NAME) -> None:
    """Replace the run's checkpoint; on return it is on disk (fsync of file and folder)."""
    from safetensors.numpy import save_file  # which copies nothing, as `save` does

    tensors: dict[str, npt.NDArray[Any]] = {"model": checkpoint.model, "scale": checkpoint.scale}
    tensors |= {_SLOT + name: np.ascontiguousarray(value) for name, value in checkpoint.slots.items()}
    with replacing(folder / name) as draft:
        metadata = {
            "round": str(checkpoint.round), "digest": _sha256(checkpoint.deciding), "deciding": checkpoint.deciding,
        }  # fmt: skip
        save_file(tensors, draft, metadata=metadata)


def keep(folder: Path, checkpoint: Checkpoint, rounds: int) -> None:
    """Keep `checkpoint` of a run of so many `rounds` for good, unless a little older one is: MOST_KEPT at most."""
    kept = kept_rounds(folder)
    if not kept or checkpoint.round - kept[-1] >= max(1, rounds // (MOST_KEPT - 1)):
        write(private_directory(folder / KEPT), checkpoint, f"{checkpoint.round}.safetensors")


def kept_rounds(folder: Path) -> list[int]:
    """The rounds whose checkpoints are kept for good, ascending."""
    return sorted(int(path.stem) for path in (folder / KEPT).glob("*.safetensors"))


def kept_model(folder: Path, number: int) -> Vector:
    """The model (shape [d]) after round `number` that is kept for good."""
    from safetensors import safe_open

    with safe_open(folder / KEPT / f"{number}.safetensors", framework="np") as file:
        model: Vector = file.get_tensor("model")
    return model


def read(folder: Path, config: Config) -> Checkpoint | None:
    """The run's last checkpoint, None if there is none yet.

    Raises ConfigError if it belongs to another configuration, or is damaged.
    """
    path = folder / NAME
    if not path.exists():
        return None
    metadata, tensors = _read_whole(path)
    now = deciding(config)
    if metadata.get("digest") != _sha256(now):
        differing = _differing(metadata["deciding"], now) if "deciding" in metadata else []
        raise ConfigError(
            f"{path} was written with other settings ({'; '.join(differing) or ANY}); "
            f"a new run may train its model further: start={folder}"
        )
    slots = {name.removeprefix(_SLOT): value for name, value in tensors.items() if name.startswith(_SLOT)}
    return Checkpoint(int(metadata["round"]), tensors["model"], tensors["scale"], slots, now)


def _read_whole(path: Path) -> tuple[dict[str, str], dict[str, Any]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            tensors: dict[str, Any] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata: dict[str, str] = file.metadata() or {}
    except SafetensorError as error:
        raise ConfigError(
            f"{path} is damaged ({error}): restore it from a backup and resume the run, or start another"
        ) from error
    if not {"model", "scale"} <= tensors.keys() or not metadata.get("round", "").isdigit():
        raise ConfigError(f"{path} is no checkpoint of a run: restore it from a backup, or start another run")
    return metadata, tensors


class Writer:
    """Writes checkpoints on a thread of its own, one behind at most, so that the disk does not slow the rounds.

    With `spacing_s` they are at least that far apart, and one that waits is replaced by a later one. `on_disk` is
    called with the round of each that was written, on the writer's thread: rounds up to that one are not run again.
    """

    def __init__(
        self, folder: Path, spacing_s: float = 0.0, on_disk: Callable[[int], None] = lambda _round: None
    ) -> None:
        self._folder, self._spacing_s, self._on_disk = folder, spacing_s, on_disk
        self._queue: queue.Queue[Checkpoint | None] = queue.Queue(maxsize=1)
        self._hurry = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="checkpoint", daemon=True)
        self._thread.start()

    def submit(self, checkpoint: Checkpoint) -> None:
        """Queue `checkpoint`; without spacing, waits while the one before is being written. Raises what a write raised.

        Only one thread may submit.
        """
        self._raise()
        if self._spacing_s:
            with suppress(queue.Empty):
                self._queue.get_nowait()
                self._queue.task_done()
        self._queue.put(checkpoint)

    def flush(self) -> None:
        """Wait until everything submitted is on disk. Raises what a write raised."""
        self._hurry.set()
        self._queue.join()
        self._hurry.clear()
        self._raise()

    def close(self) -> None:
        """Wait until everything submitted is on disk."""
        self._hurry.set()
        self._queue.put(None)
        self._thread.join()
        self._raise()

    def _work(self) -> None:
        while (checkpoint := self._queue.get()) is not None:
            if self._failure is None:
                try:
                    write(self._folder, checkpoint)
                    self._on_disk(checkpoint.round)
                except BaseException as error:  # told to the round loop at its next submit
                    self._failure = error
            del checkpoint  # with a model that is the last round's soon
            self._queue.task_done()
            self._hurry.wait(self._spacing_s)

    def _raise(self) -> None:
        if self._failure is not None:
            raise self._failure
