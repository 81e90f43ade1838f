"""Folders of Hugging Face models that tasks build on, each known by the digest of its configuration and weights.

A task names the digest; each place says where its copy lies (`task.base` of a run, `--base` of a command, or the
environment's SOVFED_BASES). Nothing is looked up by a model's name, and nothing is fetched.
"""

from __future__ import annotations

import hashlib
import json
import os
from functools import cache
from pathlib import Path
from typing import Final

from sovfed.federation.errors import ConfigError

CONFIG: Final = "config.json"
WEIGHTS: Final = "*.safetensors"
VARIABLE: Final = "SOVFED_BASES"
_OFFERED: dict[Path, None] = {}


def offer(folder: str | Path | None) -> None:
    """Let tasks find their base in `folder`, if that is what they name; nothing of it is read yet."""
    if folder:
        _OFFERED[Path(folder).expanduser()] = None


def offered() -> list[str]:
    """The folders that this process was told, for another one."""
    return [str(folder) for folder in _OFFERED]


def find(sha256: str) -> Path:
    """The folder of the base of that digest. Raises ConfigError."""
    folders = [*_OFFERED, *(Path(each) for each in os.environ.get(VARIABLE, "").split(os.pathsep) if each)]
    told = []
    for folder in folders:
        try:
            digest = digest_of(folder)
        except ConfigError as error:
            told.append(str(error))
            continue
        if digest == sha256:
            return folder
        told.append(f"{folder} is {digest[:16]}…")
    raise ConfigError(
        f"the model that the task builds on, of digest {sha256[:16]}…, is not here ({'; '.join(told) or 'none is'}): "
        f"say where its folder is, by task.base=FOLDER for a run, --base FOLDER, or {VARIABLE}"
    )


def digest_of(folder: Path) -> str:
    """SHA-256 over the names and contents of the folder's configuration and weights. Raises ConfigError.

    Weights count as safetensors alone: other forms can hold code.
    """
    try:
        files = [folder / CONFIG, *sorted(folder.glob(WEIGHTS))]
        states = tuple((file, file.stat().st_size, file.stat().st_mtime_ns) for file in files)
    except OSError as error:
        raise ConfigError(f"{folder}: no {CONFIG} in it ({error.strerror}): it is no model of Hugging Face") from error
    if len(files) == 1:
        raise ConfigError(f"{folder}: no weights as safetensors, and no others are read")
    return _digest(states)


@cache
def _digest(states: tuple[tuple[Path, int, int], ...]) -> str:
    """Kept for as long as sizes and times of change are the same: there may be many gigabytes."""
    digests = []
    for path, _, _ in states:
        try:
            with path.open("rb") as file:
                digests.append([path.name, hashlib.file_digest(file, "sha256").hexdigest()])
        except OSError as error:
            raise ConfigError(f"{path}: not readable: {error.strerror}") from error
    return hashlib.sha256(json.dumps(digests).encode()).hexdigest()
