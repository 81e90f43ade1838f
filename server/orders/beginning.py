"""The model that a run begins with, as its order names it: of a file, of a run, or of a run that is made anew."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sovfed.federation.files import write_private
from sovfed.federation.orders.beginning import Beginning, parted, start_digest
from sovfed.federation.tasks.registry import configured_task
from sovfed.federation.text import visible
from sovfed.server.rounds.beginning import read_start
from sovfed.server.rounds.checkpoint import kept_model

if TYPE_CHECKING:
    from sovfed.federation.config import Config

ORIGIN: Final = ".origin"  # how the file beside a run's own copy ends that says where the model is from
WORDS: Final = 120  # letters of a name that an order takes


def beginning(config: Config) -> Beginning:
    """That of a run of `config`, whose `task.start` is a file; none where it begins with a new model.

    Raises DataError or ConfigError as `read_start`.
    """
    if config.task.start is None:
        return Beginning()
    path = Path(config.task.start)
    vector, _ = read_start(path, configured_task(config.task), private=config.privacy.private)
    words, file = origin(path)
    return Beginning(start_digest(vector), words, 0, file)


def beginning_after(folder: Path, number: int) -> Beginning:
    """That of the run which makes the one in `folder` anew from after round `number`; none if that is 0."""
    if not number:
        return Beginning()
    where = f"the model of run {folder.name} after its round {number}"
    return Beginning(start_digest(kept_model(folder, number)), where, number)


def origin(path: Path, run: str = "") -> tuple[str, str]:
    """Where the model in the file `path` is from, and the file's SHA-256 (hex), by which releases call that model.

    In words for people: of run `run`, as was kept beside it, or a file.
    """
    kept = path.with_suffix(ORIGIN)
    if not run and kept.exists():
        return parted(kept.read_text(encoding="utf-8"))
    name = path.parent.name if path.name == "model.safetensors" else path.name
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return f"the model of run {run}" if run else f"the model in {visible(name)[:WORDS]}", digest


def keep_origin(copy: Path, words: str, file: str) -> None:
    """Write beside the model in the file `copy` where it is from, and the SHA-256 (hex) of the file that it was."""
    write_private(copy.with_suffix(ORIGIN), Beginning(start_from=words, start_file=file).words.encode())
