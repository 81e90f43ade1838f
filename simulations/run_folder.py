"""Where a simulation leaves its run: never over another one, and nothing is left where nothing came of it."""

from __future__ import annotations

import shutil
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sovfed.federation.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

PREFIX: Final = "sovfed-simulation-"
REMOVE_S: Final = 5.0


@contextmanager
def run_folder(chosen: Path | None, beside: Path | None = None, *, resume: bool = False) -> Iterator[Path]:
    """`chosen`, which is empty unless its run is to `resume`, or a new folder in `beside` (None: the temporary ones).

    What was made here is gone again if an error ends the simulation before its first round. Raises ConfigError.
    """
    require_usable(chosen, resume=resume)
    made = chosen is None or not chosen.exists()
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=beside)) if chosen is None else chosen
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        yield folder
    except BaseException:
        if made:
            _remove_unless_worth(folder)
        raise


def require_usable(chosen: Path | None, *, resume: bool = False) -> None:
    """Raise ConfigError unless a run can lie in `chosen`: asked before any work, which can be long.

    It is empty or not there, or has a run to `resume`, and no part of its path is a file.
    """
    from sovfed.server.rounds.checkpoint import NAME as CHECKPOINT

    if chosen is None:
        return
    there = next(part for part in (chosen.absolute(), *chosen.absolute().parents) if part.exists())
    if not there.is_dir():
        raise ConfigError(f"{chosen}: {there} is a file: name a folder that is empty, or that is not there yet")
    if resume and not (chosen / CHECKPOINT).exists():
        raise ConfigError(f"{chosen}: no run to go on with lies there: leave out --resume, or name its folder")
    if not resume and chosen.is_dir() and any(chosen.iterdir()):
        raise ConfigError(f"{chosen} is not empty: choose another folder, or --resume goes on with the run in it")


def to_resume(folder: Path) -> str:
    """What is left of a run that was stopped in `folder`: how many rounds of it, "" if none can be gone on with."""
    from sovfed.server.rounds.checkpoint import NAME as CHECKPOINT
    from sovfed.server.runs.curves import read_rounds

    rounds = len(read_rounds(folder)) if (folder / CHECKPOINT).exists() else 0
    return f"after {rounds} round{'' if rounds == 1 else 's'}" if rounds else ""


def _remove_unless_worth(folder: Path) -> None:
    from sovfed.server.runs.curves import read_rounds

    deadline = time.monotonic() + REMOVE_S
    while not read_rounds(folder) and folder.exists() and time.monotonic() < deadline:
        shutil.rmtree(folder, ignore_errors=True)  # while a tracker's thread may be making its database in it
        time.sleep(0.02)
