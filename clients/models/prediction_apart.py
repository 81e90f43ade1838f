"""A model whose task is code out of an archive, used: in a process without network that opens its own files.

`predictions_apart` and `exported_apart` ask that process, this module run as a program: it prints a table in CSV, or
writes the model in another form into its scratch folder. Nothing of the archive is imported by who asks.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sovfed.federation.errors import ConfigError, SovfedError
from sovfed.federation.files import write_private
from sovfed.federation.host import landlock
from sovfed.federation.host.apart import MIB, Bounds, run_apart
from sovfed.federation.host.leaving import leave
from sovfed.federation.host.processes import die_with_parent
from sovfed.federation.host.sandbox import seal, system_rules
from sovfed.federation.schema import bind, bounded, choice
from sovfed.federation.text import visible

if TYPE_CHECKING:
    from sovfed.federation.models.saved import LoadedModel

SHOWN: Final = 2_000
PREDICT: Final = "predict"
HUGGING_FACE: Final = "hf"
OWN: Final = "own"  # the model itself, with the parts that stay at the institution
FORMS: Final = ("torch", "onnx", HUGGING_FACE, OWN)
EXPORTED: Final = "exported"  # in the scratch folder
DATA: Final = (".json", ".safetensors", ".txt", ".model", ".md")  # of an exported folder: files that hold no code


@dataclass(frozen=True)
class Prediction:
    """Which model, of which archive's task, is to say what of which table, or to be written as what; whole paths.

    `settings` say how the table is written, each KEY=VALUE of the group data; with `skip_bad` rows at fault have no
    prediction; `state` is what an institution kept of the run, for the form `OWN`.
    """

    model: str = bounded(low=1, high=4096)
    archive: str = bounded(low=1, high=4096)
    table: str = bounded("", 0, 4096)
    keep: str = bounded("", 0, 256)
    any_version: bool = False
    form: str = choice(PREDICT, (PREDICT, *FORMS))
    state: str = bounded("", 0, 4096)
    settings: tuple[str, ...] = bounded((), 0, 4096)
    skip_bad: bool = False


def predictions_apart(asked: Prediction) -> str:
    """The predictions, as `sovfed model predict` prints them. Raises ConfigError with what the process complains of.

    The task's code can print into them what it likes: nothing of it steers a terminal, or is a formula. DataError.
    """
    with tempfile.TemporaryDirectory(prefix="sovfed-prediction-", ignore_cleanup_errors=True) as scratch:
        printed = _printed(asked, Path(scratch), Bounds())
    from sovfed.clients.models.predicted import guarded

    return guarded(printed)


def exported_apart(asked: Prediction, out: Path) -> str:
    """Write the model as `asked.form` to `out`; what it takes, in words. Raises ConfigError.

    What is written is as the task's code wants it: data that whoever loads it trusts no more than that code.
    """
    with tempfile.TemporaryDirectory(prefix="sovfed-export-", ignore_cleanup_errors=True) as scratch:
        model = Path(asked.model)
        size = sum(path.stat().st_size for path in (model.iterdir() if model.is_dir() else [model]) if path.is_file())
        told = _printed(asked, Path(scratch), Bounds(printed=MIB, scratch=Bounds.scratch + 4 * size))
        source = Path(scratch) / EXPORTED
        if asked.form in (HUGGING_FACE, OWN):
            _take_folder(source, out)
        else:
            _take_file(source, out)
    return visible(told.strip()[:SHOWN], keep="")


def _printed(asked: Prediction, scratch: Path, bounds: Bounds) -> str:
    completed = run_apart(
        "sovfed.clients.models.prediction_apart", json.dumps(asdict(asked)).encode(), scratch, bounds
    )  # fmt: skip
    if completed.returncode:
        raise ConfigError(visible(completed.complained[-SHOWN:].decode(errors="replace").strip(), keep="\n"))
    return completed.printed.decode(errors="replace")


def _take_file(source: Path, out: Path) -> None:
    """Copy a file that others' code has written: no link, no device."""
    if not os.path.lexists(source) or not stat.S_ISREG(source.lstat().st_mode):
        raise ConfigError("the task's code wrote no file")
    shutil.copyfile(source, out, follow_symlinks=False)


def _take_folder(source: Path, out: Path) -> None:
    """The same of a folder's own files; what could be code stays out."""
    if source.is_symlink() or not source.is_dir():
        raise ConfigError("the task's code wrote no folder")
    out.mkdir(parents=True, exist_ok=True)
    for path in sorted(source.iterdir()):
        if path.suffix in DATA and stat.S_ISREG(path.lstat().st_mode):
            write_private(out / path.name, path.read_bytes())


def main() -> int:
    """Seal this process and print, or write, what standard input asks for."""
    die_with_parent()
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the task's code prints is no prediction
    try:
        asked = bind(Prediction, json.loads(sys.stdin.read()))
        _seal(asked)
        out.write(_predicted(asked) if asked.form == PREDICT else _exported(asked))
    except SovfedError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    out.close()
    return 0


def _seal(asked: Prediction) -> None:
    model = Path(asked.model)
    paths = [model if model.is_dir() else model.parent, Path(asked.archive)]
    paths += [Path(path) for path in (asked.table, asked.state) if path]
    pairs = [setting.partition("=") for setting in asked.settings]  # by hand: imports start threads
    paths += [Path(value) for key, _, value in pairs if key == "data.mapping"]
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
    loaded = load_model(Path(asked.model), any_version=asked.any_version)
    return table_of(loaded, Path(asked.table), asked.keep, asked.settings, skip_bad=asked.skip_bad).text


def _exported(asked: Prediction) -> str:
    from sovfed.federation.archive.opened import open_task
    from sovfed.federation.models.export import WRITERS, inputs_of
    from sovfed.federation.models.saved import load_model
    from sovfed.federation.tasks.registry import add

    add(open_task(Path(asked.archive)))
    loaded, out = load_model(Path(asked.model), any_version=asked.any_version), Path(os.environ["TMPDIR"]) / EXPORTED
    if asked.form == OWN:
        return _with_own(loaded, Path(asked.state), out)
    WRITERS[asked.form](loaded, out)
    return "" if asked.form == HUGGING_FACE else inputs_of(loaded)


def _with_own(loaded: LoadedModel, state: Path, out: Path) -> str:
    from sovfed.clients.models.own_parts import with_parts_of
    from sovfed.clients.training.personal import head_of
    from sovfed.federation.models.saved import write_model

    own, remark = with_parts_of(head_of(state), loaded)
    out.mkdir()
    write_model(out, own.task, own.vector, own.facts)
    return remark


if __name__ == "__main__":
    leave(main)
