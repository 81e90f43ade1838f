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
    made = chosen is None or not chosen.exists()
    if chosen is not None and not resume and chosen.is_dir() and any(chosen.iterdir()):
        raise ConfigError(f"{chosen} is not empty: choose another folder, or --resume goes on with the run in it")
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=beside)) if chosen is None else chosen
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        yield folder
    except BaseException:
        if made:
            _remove_unless_worth(folder)
        raise


def _remove_unless_worth(folder: Path) -> None:
    from sovfed.server.runs.curves import read_rounds

    deadline = time.monotonic() + REMOVE_S
    while not read_rounds(folder) and folder.exists() and time.monotonic() < deadline:
        shutil.rmtree(folder, ignore_errors=True)  # while a tracker's thread may be making its database in it
        time.sleep(0.02)
