"""`sovfed model`: use a trained model, wherever one is: at the agency, an institution, a researcher's machine."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from sovfed.federation.errors import ConfigError, DataError
from sovfed.federation.help import Group
from sovfed.federation.host.homes import default_home
from sovfed.federation.tasks.cli import BASE
from sovfed.federation.text import NAME, visible

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sovfed.federation.models.coefficients import Coefficient
    from sovfed.federation.models.facts import Facts
    from sovfed.federation.models.saved import LoadedModel

COEFFICIENTS: Final = 60  # that are printed
FILE: Final = click.Path(dir_okay=False, path_type=Path)
HOME: Final = click.option(
    "--home", type=click.Path(path_type=Path, file_okay=False), default=default_home("server"),
    show_default="~/.sovfed/server", envvar="SOVFED_SERVER_HOME", help="The agency's home folder, for a run's name.",
)  # fmt: skip
ARCHIVE: Final = click.option(
    "--task", "archive", type=FILE, help="The archive of MODEL's task (.sovtask); of a run in --home it is known."
)
ANY_VERSION: Final = click.option(
    "--any-version", is_flag=True, help="Take a task of another digest than the model's, if schema and sizes agree."
)


@click.group(cls=Group, name="model")
def cli() -> None:
    """Use a trained model. MODEL is a run's name, a run's folder, or a model.safetensors.

    \b
    Examples:
      sovfed model show heart-20260301-101500-1f2e
      sovfed model predict model.safetensors patients.csv --out predictions.csv
      sovfed model export sovfed-simulation-x1/ --onnx heart.onnx
    """


@cli.command()
@click.argument("model")
@HOME
@BASE
@click.option("--json", "as_json", is_flag=True, help="Print JSON for machines.")
def show(model: str, home: Path, as_json: bool) -> None:
    """Show what MODEL is: task, run, metrics, privacy, what it is given.

    \b
    Example:
      sovfed model show model.safetensors
    """
    from sovfed.federation.models.facts import to_json
    from sovfed.federation.models.saved import linear_of, read_facts
    from sovfed.federation.models.usage import learns_text, usage

    path = find(model, home)
    facts = read_facts(path)
    what, lines = linear_of(path)
    if as_json:
        more = {"coefficients": [dataclasses.asdict(line) for line in lines]} if lines else {}
        click.echo(json.dumps({**json.loads(to_json(facts)), **more}, indent=2))
        return
    for line in told(facts):
        click.echo(visible(line))
    _print_coefficients(what, lines)
    if not learns_text(facts.task) or facts.task.text:
        click.echo(f"next: {usage(facts.task, model)}")


@cli.command()
@click.argument("model")
@click.argument("table", type=FILE)
@click.argument("settings", nargs=-1)
@click.option("--out", type=FILE, help="Write the predictions here (a file of yours alone); default: print them.")
@click.option("--id", "keep", default="", help="A column of TABLE to carry through; default: the line.")
@click.option("--skip-bad", is_flag=True, help="Leave empty what cannot be predicted; default: refuse such a TABLE.")
@ARCHIVE
@ANY_VERSION
@HOME
def predict(
    model: str, table: Path, settings: tuple[str, ...], out: Path | None, keep: str, skip_bad: bool,
    archive: Path | None, any_version: bool, home: Path,
) -> None:  # fmt: skip
    """Predict for each row of TABLE (CSV, Parquet, JSON lines) with the model's input columns as they are, unscaled.

    SETTINGS of the group data say how TABLE is written, as in data.missing_words=[-99]; days without data.date_format
    may be 2026-01-31 or 31.01.2026. What a file NAME.yaml beside NAME.csv says of it, and what a simulation's tables
    were declared to mean, holds without being repeated.
    Where the task is code out of an archive, that runs in a process without network that opens these files alone.

    \b
    Examples:
      sovfed model predict heart-20260301-101500-1f2e patients.csv --out predictions.csv
      sovfed model predict model.safetensors patients.csv --id patient_id
      sovfed model predict model.safetensors patients.csv --skip-bad --out predictions.csv
      sovfed model predict model.safetensors patients.csv data.missing_words=[-99]
      sovfed model predict model.safetensors patients.csv --task lab-1.sovtask
    """
    from sovfed.clients.models.predicted import counted, table_of
    from sovfed.federation.files import not_there, write_private

    if not table.is_file():
        raise DataError(f"{table}: not a regular file" if table.exists() else not_there(table))
    if out is not None and not out.absolute().parent.is_dir():
        raise ConfigError(f"--out {out}: there is no folder {out.absolute().parent}")
    path = find(model, home)
    _require_rows(path, model)
    settings = _with_those_of_training(path, _with_those_beside(table, settings))
    archive = archive or _archive_of(path, home)
    if archive is None:
        loaded = load(model, home, any_version=any_version)
        text, faults = table_of(loaded, table, keep, settings, skip_bad=skip_bad)
    else:
        from sovfed.clients.models.prediction_apart import Prediction, predictions_apart

        model_file, archive_file, table_file = (str(file.absolute()) for file in (path, archive, table))
        asked = Prediction(
            model_file, archive_file, table_file, keep, any_version, settings=_absolute(settings), skip_bad=skip_bad
        )
        text, faults = predictions_apart(asked), "without --skip-bad the command says why"
    rows, skipped = counted(text)
    if out is None:
        click.echo(text, nl=False)
    else:
        write_private(out, text.encode())
        click.echo(f"{out}: {rows - skipped} predictions")
    if skipped:
        click.echo(visible(f"{skipped} of {rows} rows have no prediction: {faults}"), err=True)


def _with_those_beside(table: Path, settings: tuple[str, ...]) -> tuple[str, ...]:
    """`settings` over, said aloud, those that a file beside `table` has of how it is written."""
    from sovfed.clients.data.beside import as_words, own_settings, settings_of
    from sovfed.clients.data.chosen import OF_A_PREDICTION

    own = settings_of(table)
    if own is None:
        return settings
    click.echo(f"with the settings in {visible(str(own))}", err=True)
    given = {setting.partition("=")[0].removeprefix("data.") for setting in settings}
    kept = {key: value for key, value in own_settings(own).items() if key in OF_A_PREDICTION and key not in given}
    return (*as_words(kept), *settings)


def _with_those_of_training(model: Path, settings: tuple[str, ...]) -> tuple[str, ...]:
    """`settings` and, said aloud, those of the simulation that `model` came of. Raises ConfigError."""
    from sovfed.clients.data.chosen import for_prediction, of_training

    for_prediction(settings)
    given = {setting.partition("=")[0].removeprefix("data.") for setting in settings}
    trained = [text for text in of_training(model) if text.partition("=")[0].removeprefix("data.") not in given]
    if trained:
        click.echo(visible(f"as the tables of its training: {' '.join(trained)}"), err=True)
        for_prediction((*settings, *trained))
    return (*settings, *trained)


def _require_rows(path: Path, model: str) -> None:
    """Raises ConfigError if the model in `path`, called `model`, predicts no rows but writes text."""
    from sovfed.federation.models.saved import read_facts
    from sovfed.federation.models.usage import learns_text, usage

    if learns_text(task := read_facts(path).task):
        raise ConfigError(
            f"task '{task.name}' is a language model, which predicts no rows of a table: {usage(task, model)}"
        )


def _print_coefficients(what: str, lines: Sequence[Coefficient]) -> None:
    """The table of a linear model's coefficients; nothing of any other's."""
    from sovfed.federation.models.coefficients import NO_ERRORS
    from sovfed.federation.tables import print_rows

    if not lines:
        return
    click.echo(visible(f"coefficients of {what}; {NO_ERRORS}"))
    several, odds = len({line.output for line in lines}) > 1, any(line.ratio is not None for line in lines)
    rows = []
    for line in lines[:COEFFICIENTS]:
        ratio = "" if line.ratio is None else f"{line.ratio:.4g}"
        value = (line.column, line.of, f"{line.value:.4g}", *([ratio] if odds else []))
        rows.append((line.output, *value) if several else value)
    heads = ("column", "", "coefficient", *(["odds ratio"] if odds else []))
    print_rows(("of", *heads) if several else heads, rows)
    if len(lines) > COEFFICIENTS:
        click.echo(f"… {len(lines)} in all: --json, or the model's card")


def _absolute(settings: tuple[str, ...]) -> tuple[str, ...]:
    """`settings` with the mapping's whole path: whoever reads it works in another folder."""
    pairs = [text.partition("=") for text in settings]
    return tuple(
        f"data.mapping={Path(value).expanduser().absolute()}"
        if key.removeprefix("data.") == "mapping"
        else f"{key}={value}"
        for key, _, value in pairs
    )


def _archive_of(path: Path, home: Path) -> Path | None:
    """The archive that a run of the agency in `home` was started with, once its signatures hold; None if there is none.

    An archive that lies beside a model from elsewhere is not taken: it must be named.
    """
    from sovfed.federation.archive.adding import checked
    from sovfed.federation.archive.archive import read_archive
    from sovfed.federation.archive.review import Rule

    archive = path / "task.sovtask"
    if path.absolute().parent != (home / "runs").absolute() or not archive.is_file():
        return None
    checked(read_archive(archive), home / "identity", Rule(0, 0))  # the run has asked for the reviews
    return archive


@cli.command()
@click.argument("model")
@click.option("--torch", "torch_path", type=FILE, help="A torch.export program (.pt2): raw values to predictions.")
@click.option("--onnx", "onnx_path", type=FILE, help="The same as ONNX (.onnx); needs pip install 'sovfed[onnx]'.")
@click.option("--hf", "folder", type=click.Path(file_okay=False, path_type=Path), help="A Hugging Face model's folder.")
@ARCHIVE
@ANY_VERSION
@BASE
@HOME
def export(
    model: str, torch_path: Path | None, onnx_path: Path | None, folder: Path | None, archive: Path | None,
    any_version: bool, home: Path,
) -> None:  # fmt: skip
    """Write MODEL for where sovfed is not.

    model.safetensors is already plain: torch loads its tensors by name. --torch and --onnx write a program that holds
    the scaling too, takes raw arrays and gives predictions; --hf is for models made by transformers or peft: the
    adapters of a task with a base are merged into it. Where the task is code out of an archive, that runs in a process
    without network, and what it writes is its word.

    \b
    Examples:
      sovfed model export heart-20260301-101500-1f2e --torch heart.pt2 --onnx heart.onnx
      sovfed model export model.safetensors --hf text-classifier/
      sovfed model export model.safetensors --onnx ward.onnx --task lab-1.sovtask
    """
    if torch_path is None and onnx_path is None and folder is None:
        raise ConfigError("choose --torch FILE, --onnx FILE or --hf FOLDER")
    path = find(model, home)
    archive = archive or _archive_of(path, home)
    wanted = {"torch": torch_path, "onnx": onnx_path, "hf": folder}
    asked = {form: out for form, out in wanted.items() if out is not None}
    if archive is None:
        _export(path, asked, any_version=any_version)
        return
    from sovfed.clients.models.prediction_apart import Prediction, exported_apart

    for form, out in asked.items():
        files = str(path.absolute()), str(archive.absolute())
        takes = exported_apart(Prediction(*files, any_version=any_version, form=form), out)
        click.echo(f"{out}: written by the task's code, sealed; load it as you would run that code" + _taking(takes))


def _export(path: Path, asked: dict[str, Path], *, any_version: bool) -> None:
    from sovfed.federation.models.export import WRITERS, inputs_of
    from sovfed.federation.models.saved import load_model

    loaded = load_model(path, any_version=any_version)
    for form, out in asked.items():
        WRITERS[form](loaded, out)
        click.echo(f"{out}: written" + _taking("" if form == "hf" else inputs_of(loaded)))


def _taking(inputs: str) -> str:
    return f"; inputs: {inputs}" if inputs else ""


def find(model: str, home: Path) -> Path:
    """The file or folder that MODEL means: a path, or the name of a run in `home`. Raises ConfigError."""
    path = Path(model)
    if path.exists():
        return path
    run = home / "runs" / model
    if NAME.fullmatch(model) and run.is_dir():
        if not (run / "model.safetensors").exists():
            raise ConfigError(f"run '{model}' has no model yet; `sovfed run show {model}` tells how it goes")
        return run
    from sovfed.federation.schema import nearest

    runs = [each.name for each in (home / "runs").iterdir()] if (home / "runs").is_dir() else []
    raise ConfigError(f"no file and no run '{model}'" + (nearest(model, runs) if runs else f" in {home}"))


def load(model: str, home: Path, *, any_version: bool = False) -> LoadedModel:
    """The model that MODEL means. Raises ConfigError, DataError."""
    from sovfed.federation.models.saved import load_model

    return load_model(find(model, home), any_version=any_version)


def told(facts: Facts) -> list[str]:
    """What a person wants to know of a model first, a line each."""
    task, run = facts.task, facts.run
    inputs = [column.name for column in task.schema.inputs]
    shown = ", ".join(inputs[:12]) + (f", … ({len(inputs)} in all)" if len(inputs) > 12 else "")
    lines = [
        f"{task.title or task.name}",
        f"task {task.name}, version {task.version}, digest {task.digest[:16]}…",
        f"run {run.name}: {run.rounds} rounds, {len(run.institutions)} institutions, {run.date}",
        f"inputs: {shown}",
    ]
    if facts.classes:
        lines.append(f"classes: {', '.join(facts.classes[:20])}")
    if run.metrics:
        lines.append("held-out metrics: " + "  ".join(f"{name} {value:.3f}" for name, value in run.metrics.items()))
    if run.privacy is None:
        lines.append("privacy: none")
    else:
        lines.append(f"privacy: {run.privacy.mechanism}, ε = {run.privacy.epsilon:.3f}, δ = {run.privacy.delta:g}")
    return lines
