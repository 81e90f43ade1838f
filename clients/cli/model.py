"""`sovfed client model`: the federation's models, received here, and what they are worth on the own records."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from sovfed.clients.cli.home import HOME
from sovfed.federation.errors import ConfigError, DataError, PolicyError
from sovfed.federation.help import Group
from sovfed.federation.text import visible

if TYPE_CHECKING:
    from sovfed.clients.models.own_figures import Figures
    from sovfed.clients.models.received import Received, ReceivedModels
    from sovfed.clients.training.personal import Kept
    from sovfed.federation.archive.archive import Archive
    from sovfed.federation.config import ClientConfig
    from sovfed.federation.models.saved import LoadedModel

JSON: Final = click.option("--json", "as_json", is_flag=True, help="Print JSON for machines.")
OF: Final = click.option("--of", "owner", help="Flower's number of the run, where `list` shows several under one name.")
ANY_VERSION: Final = click.option(
    "--any-version", is_flag=True, help="Take a task of another digest than the model's, if schema and sizes agree."
)
MANY: Final = 20


@click.group(cls=Group, name="model")
def model() -> None:
    """The federation's models, received here: files like the agency's own.

    \b
    Examples:
      sovfed client model list
      sovfed client model evaluate heart-2026-11
      sovfed client model get heart-2026-11 heart/
      sovfed client model remove heart-2025-03
    """


@model.command("list")
@JSON
@HOME
def list_(as_json: bool, home: Path) -> None:
    """List the models that runs left here, newest first.

    \b
    Example:
      sovfed client model list
    """
    models = _models(home).list()
    if as_json:
        click.echo(json.dumps([_said(each) for each in models], indent=2))
        return
    if not models:
        click.echo("Nothing yet: models come with the runs that this institution takes part in.")
        return
    from sovfed.federation.tables import print_rows

    several = len({each.run for each in models}) < len(models)  # which --of tells apart
    headings = ("run", "task", "rounds", "privacy", "as published", *(("Flower's number",) if several else ()))
    rows = [
        (each.run, each.facts.task.name, str(each.facts.run.rounds), _privacy(each), _as_published(each))
        + ((each.owner,) if several else ())
        for each in models
    ]
    print_rows(headings, rows)


@model.command()
@click.argument("run")
@click.argument("out", type=click.Path(path_type=Path, file_okay=False))
@OF
@HOME
def get(run: str, out: Path, owner: str | None, home: Path) -> None:
    """Write the model of RUN to the folder OUT: model.safetensors, model.json and its card, model.html.

    \b
    Example:
      sovfed client model get heart-2026-11 heart/
      sovfed model predict heart/ patients.csv
    """
    from sovfed.clients.models.own_parts import kept_of
    from sovfed.federation.models.saved import write_model
    from sovfed.federation.models.stored import FILES
    from sovfed.federation.models.usage import usage
    from sovfed.federation.tasks.shelf import Shelf

    received = _models(home).find(run, owner)
    if any((out / name).exists() for name in FILES):
        raise ConfigError(f"{out} holds a model already; choose another folder")
    state = kept_of(home, received)
    Shelf(home).make_known()
    if state is not None and (archive := _own_package(home, received)) is not None:
        own = _written_apart(received, archive, state, out)
        click.echo(visible(f"{out}: {received.facts.task.name}, {own}; it is this institution's alone"))
        click.echo(f"next: sovfed model predict {out} FILE.csv --task {visible(archive.file_name)}")
        return
    loaded, own = (None, "") if state is None else _with_own_parts(home, received)
    out.mkdir(mode=0o700, parents=True, exist_ok=True)
    if loaded is not None:
        write_model(out, loaded.task, loaded.vector, loaded.facts)
        click.echo(visible(f"{out}: {received.facts.task.name}, {own}; it is this institution's alone"))
    else:
        for name in FILES:
            shutil.copy(received.path / name, out / name)
        click.echo(visible(f"{out}: {received.facts.task.name}, {_same(received)}"))
    click.echo(f"next: {usage(received.facts.task, str(out))}")


@model.command()
@click.argument("run")
@OF
@click.option("--alone/--no-alone", default=True, help="Train a model on the own records alone, to compare with.")
@click.option("--rounds", type=click.IntRange(1, 100_000), help="Rounds of training alone; default: as RUN.")
@click.option("--epochs", "local_epochs", type=click.IntRange(1, 10_000), help="Passes a round; default: as in RUN.")
@click.option("--batch-size", type=click.IntRange(1, 1_000_000), help="Default: as in RUN.")
@click.option("--learning-rate", type=click.FloatRange(1e-9, 1e3), help="Default: as in RUN.")
@ANY_VERSION
@click.option(
    "--tokenizer", "tokenizer_path", type=click.Path(dir_okay=False, path_type=Path),
    help="Of a language model: also tell text that stands in the own training text apart from new text.",
)  # fmt: skip
@JSON
@HOME
def evaluate(
    run: str, owner: str | None, alone: bool, any_version: bool, tokenizer_path: Path | None, as_json: bool,
    home: Path, **asked: float | None,
) -> None:  # fmt: skip
    """Measure the model of RUN on the own held-out records, beside one trained here alone with the same plan.

    Everything is computed here and told to nobody: nothing of it leaves, and no ledger is charged. A private run tells
    no plan that fits training alone, so give the rounds and the rest.

    \b
    Examples:
      sovfed client model evaluate heart-2026-11
      sovfed client model evaluate heart-2026-11 --no-alone --json
      sovfed client model evaluate private-2026 --rounds 50 --learning-rate 0.05
      sovfed client model evaluate law-1 --no-alone --tokenizer tokenizer.json
    """
    config = _know_tasks(home)
    from sovfed.clients.models.own_evaluation import measure  # after the seal: what it loads starts threads

    received = _models(home).find(run, owner)
    loaded, own = _with_own_parts(home, received, any_version)
    plan = {**received.plan, **{name: value for name, value in asked.items() if value is not None}}
    plan.setdefault("rounds", max(1, received.facts.run.rounds))
    figures = measure(config, loaded, plan if alone else None, tokenizer_path)
    if as_json:
        click.echo(json.dumps({"run": run, "task": loaded.task.name, **figures.to_dict()}, indent=2))
        return
    if own:
        click.echo(visible(own))
    for line in told(figures):
        click.echo(line)


@model.command()
@click.argument("run")
@HOME
def remove(run: str, home: Path) -> None:
    """Delete the model of RUN. New models are refused while 32 are kept: no message deletes one.

    \b
    Example:
      sovfed client model remove heart-2025-03
    """
    from sovfed.federation.schema import nearest

    models = _models(home)
    if not models.remove(run):
        raise DataError(f"nothing of run '{run}' here{nearest(run, {each.run for each in models.list()})}")
    click.echo(f"deleted what was received of run '{run}'")


def told(figures: Figures) -> list[str]:
    """The figures as lines of text, the headline first."""
    first = [figures.headline] if figures.headline in figures.federated else []
    names = first + [name for name in figures.federated if name not in first]
    lines = [f"{figures.test} own held-out records; {figures.train} to train on"]
    if figures.test < MANY:
        lines.append("so few held-out records that chance decides these figures")
    if not names:
        lines.append("no metric is defined on them (no held-out records, or of one class only)")
    for name in names:
        better = "lower" if name in figures.smaller else "higher"
        alone = "" if figures.alone is None else f"   alone {_figure(figures.alone.get(name))}"
        lines.append(f"{name:<14} federated {_figure(figures.federated[name])}{alone}   ({better} is better)")
    if (passages := figures.passages) is not None:
        lines.append(
            f"{passages.copied_share:.1%} of the held-out text stands in the own training text; bits per byte there "
            f"{_figure(passages.copied)}, elsewhere {_figure(passages.new)}"
        )
    return lines


def _know_tasks(home: Path) -> ClientConfig:
    """Make the tasks of `home` known; its settings. Before code out of archives is imported, this process is sealed."""
    from sovfed.clients.home.folder import load_config
    from sovfed.federation.archive.kept import folders
    from sovfed.federation.tasks.shelf import Shelf

    config = load_config(home)
    if folders(home):
        from sovfed.clients.home.packages import make_packages_known
        from sovfed.clients.home.policy import load_policy
        from sovfed.clients.node.sandbox import places_of, seal_as

        places, policy = places_of(dataclasses.asdict(config)), load_policy(home)
        isolation = seal_as("trainer", home.absolute(), *places.records, files=places.files)
        if not isolation.network and not policy.allow_open_network:
            raise PolicyError(f"code out of archives is not run here: {isolation.sentence()}")
        make_packages_known(home, policy)
    Shelf(home).make_known()
    return config


def _with_own_parts(home: Path, received: Received, any_version: bool = False) -> tuple[LoadedModel, str]:
    """The received model as it is used here, and what of it stays here; "" if nothing does."""
    from sovfed.clients.models.own_parts import with_own_parts
    from sovfed.federation.models.saved import load_model

    loaded = load_model(received.path, any_version=any_version, sha256=received.sha256)
    return with_own_parts(home, received, loaded)


def _own_package(home: Path, received: Received) -> Archive | None:
    """The archive in `home` of the task that `received` is of, once signatures and reviews hold; None without one."""
    from sovfed.clients.home.packages import rule_of
    from sovfed.clients.home.policy import load_policy
    from sovfed.federation.archive.adding import checked
    from sovfed.federation.archive.kept import folders, read_kept

    for folder in folders(home):
        archive = read_kept(folder)
        if archive.manifest.entry and archive.manifest.digest == received.facts.task.digest:
            policy = load_policy(home)
            checked(archive, home / "identity", rule_of(policy))
            if not policy.allows_own(archive.manifest):
                raise PolicyError(f"no entry of allowed_tasks has name and digest of task '{archive.manifest.name}'")
            return archive
    return None


def _written_apart(received: Received, archive: Archive, state: Kept, out: Path) -> str:
    """Write the model with the own parts to `out`, by the package's code in a sealed process; what is said of them."""
    import tempfile

    from sovfed.clients.models.prediction_apart import OWN, Prediction, exported_apart
    from sovfed.federation.files import write_private
    from sovfed.federation.models.saved import write_card

    with tempfile.TemporaryDirectory(prefix="sovfed-archive-") as scratch:
        file = Path(scratch) / archive.file_name
        write_private(file, archive.to_bytes())
        model, archive_file, parts = (str(path.absolute()) for path in (received.path, file, state.path))
        asked = Prediction(model=model, archive=archive_file, state=parts, form=OWN)
        out.mkdir(mode=0o700, parents=True, exist_ok=True)
        own = exported_apart(asked, out)
    write_card(out)
    return own


def _models(home: Path) -> ReceivedModels:
    from sovfed.clients.models.received import FOLDER, ReceivedModels

    return ReceivedModels(home / FOLDER)


def _said(received: Received) -> dict[str, Any]:
    privacy = received.facts.run.privacy
    return {
        "run": received.run,
        "flower_run": received.owner,
        "task": received.facts.task.name,
        "task_digest": received.facts.task.digest,
        "rounds": received.facts.run.rounds,
        "privacy": None if privacy is None else dataclasses.asdict(privacy),
        "started_from": received.facts.run.started_from or None,
        "sha256": received.sha256,
        "as_published": received.same,
        "path": str(received.path),
    }


def _privacy(received: Received) -> str:
    privacy = received.facts.run.privacy
    further = ", trained further" if received.facts.run.started_from else ""
    return ("none" if privacy is None else f"{privacy.mechanism}, ε = {privacy.epsilon:.2f}") + further


def _same(received: Received) -> str:
    if received.same:
        return "as the agency published it"
    return "written here" + (", not the very bytes of the agency's" if received.published else "")


def _as_published(received: Received) -> str:
    """What the list says of the file's bytes: the agency may have told no digest of its own."""
    if not received.published:
        return "not told"
    return "yes" if received.same else "no"


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"
