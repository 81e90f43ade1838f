"""Predictions of a model whose task is code out of an archive: in a process without network that opens its own files.

`predictions_apart` asks that process, this module run as a program, and gives what it printed: a table in CSV.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from sovfed.federation.errors import ConfigError, SovfedError
from sovfed.federation.host import landlock
from sovfed.federation.host.quiet import python_command, quiet_environment
from sovfed.federation.host.sandbox import seal, system_rules
from sovfed.federation.schema import bind, bounded
from sovfed.federation.text import visible

SHOWN: Final = 2_000


@dataclass(frozen=True)
class Prediction:
    """Which model, of which archive's task, is to say what of which table; whole paths."""

    model: str = bounded(low=1, high=4096)
    archive: str = bounded(low=1, high=4096)
    table: str = bounded(low=1, high=4096)
    keep: str = bounded("", 0, 256)
    any_version: bool = False


def predictions_apart(asked: Prediction) -> str:
    """The predictions, as `sovfed model predict` prints them. Raises ConfigError with what the process complains of.

    The task's code can print into them what it likes: nothing of it steers a terminal, or is a formula. DataError.
    """
    with tempfile.TemporaryDirectory(prefix="sovfed-prediction-") as scratch:
        environment = {**quiet_environment(), "HOME": scratch, "TMPDIR": scratch}
        completed = subprocess.run(
            python_command("sovfed.clients.models.prediction_apart"), input=json.dumps(asdict(asked)).encode(),
            cwd=scratch, env=environment, capture_output=True, check=False,
        )  # fmt: skip
    if completed.returncode:
        raise ConfigError(visible(completed.stderr[-SHOWN:].decode(errors="replace").strip(), keep="\n"))
    from sovfed.clients.models.predicted import guarded

    return guarded(completed.stdout.decode(errors="replace"))


def main() -> int:
    """Seal this process and print what standard input asks for."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the task's code prints is no prediction
    try:
        prediction = bind(Prediction, json.loads(sys.stdin.read()))
        _seal(prediction)
        out.write(_predicted(prediction))
    except SovfedError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    out.close()
    return 0


def _seal(asked: Prediction) -> None:
    model = Path(asked.model)
    paths = [model if model.is_dir() else model.parent, Path(asked.archive), Path(asked.table)]
    rules = [landlock.Rule(path, landlock.READ) for path in paths]
    scratch = landlock.Rule(Path(os.environ["TMPDIR"]), landlock.WRITE)
    isolation = seal([*system_rules(), *rules, scratch], network=False)
    if not isolation.network or not isolation.files:
        raise ConfigError(f"the code of an archive is not run here: {isolation.sentence()}")


def _predicted(asked: Prediction) -> str:
    from sovfed.clients.models.predicted import table_of
    from sovfed.federation.archive.opened import open_task
    from sovfed.federation.models.saved import load_model
    from sovfed.federation.tasks.registry import add

    add(open_task(Path(asked.archive)))
    return table_of(load_model(Path(asked.model), any_version=asked.any_version), Path(asked.table), asked.keep)


if __name__ == "__main__":
    sys.exit(main())
