"""`sovfed client data prepare`: an institution's documents as tokens, made once and mapped from then on."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from sovfed.federation.help import Group

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from sovfed.clients.data.token_store import Counts, Document
    from sovfed.federation.tasks import Task

MOST_IDLE: Final = 0.5  # of the places in training windows
EVERY_S: Final = 3.0  # between two words of how far it is
ENCODING: Final = "How text that is not UTF-8 is written, as cp1252 or shift_jis."


@click.group(cls=Group)
def data() -> None:
    """Make an institution's texts ready for a language model.

    \b
    Example:
      sovfed client data prepare law.yaml archive.jsonl.xz --tokenizer tokenizer.json --out store/
    """


@data.command()
@click.argument("task")
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The folder to make.")
@click.option(
    "--tokenizer", "tokenizer_path", required=True, type=click.Path(dir_okay=False, path_type=Path),
    help="The file that TASK names by its digest.",
)  # fmt: skip
@click.option("--text", "text_key", default="text", show_default=True, help="The key of a line that holds its text.")
@click.option("--id", "id_key", default="", help="The key that names a document; default: id, where there is one.")
@click.option(
    "--person", "person_key", default="", help="The key that says whose it is; default: each is one by itself."
)
@click.option("--split", "split_key", default="", help="The key that says train, test or valid; default: by hash.")
@click.option(
    "--held-out", type=click.FloatRange(0.0, 0.9), default=0.1, show_default=True, help="Share of persons, by hash."
)
@click.option(
    "--opt-out", type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A file of names, a line each: documents and persons to leave out.",
)  # fmt: skip
@click.option("--encoding", default="", help=ENCODING)
def prepare(
    task: str, files: tuple[Path, ...], out: Path, tokenizer_path: Path, text_key: str, id_key: str, person_key: str,
    split_key: str, held_out: float, opt_out: Path | None, encoding: str,
) -> None:  # fmt: skip
    """Cut the documents in FILES (lines of JSON, .txt, folders) into tokens for TASK, equal ones of a person once.

    Nothing leaves this machine, and no document is printed. The folder is then `data.path` of the source `tokens`.

    \b
    Examples:
      sovfed client data prepare law.yaml archive.jsonl.xz --tokenizer tokenizer.json --out store/
      sovfed client data prepare notes.yaml notes/ --tokenizer tokenizer.json --person patient --opt-out no.txt --out s/
    """
    from sovfed.clients.cli.data import task_of
    from sovfed.clients.data.documents import Keys, documents_in
    from sovfed.clients.data.tables.opt_out import read_lines
    from sovfed.clients.data.token_store import Rules, write_store
    from sovfed.federation.errors import ConfigError
    from sovfed.federation.tasks.declared import DeclaredTask
    from sovfed.federation.tasks.tokenizer import read_tokenizer

    selected = task_of(task)
    if not selected.tokenizer:
        raise ConfigError(f"task '{selected.name}' learns no text: its target is not of kind next_token")
    tokenizer = read_tokenizer(tokenizer_path, selected.tokenizer)
    listed = [] if opt_out is None else read_lines(opt_out)
    named = bool(id_key) or (opt_out is not None and not person_key)
    keys = Keys(text_key, id_key or "id", person_key, split_key, named, encoding)
    tell_passed_over(files)
    rules = Rules(frozenset[str]().union(*listed), held_out)
    counts = write_store(out, counted(documents_in(files, keys)), tokenizer, rules)
    click.echo(
        f"{out}: {counts.documents} documents, {counts.tokens} tokens of {counts.bytes / counts.tokens:.2f} bytes; "
        f"left out: {counts.opted_out} that opted out, {counts.repeated} repeated, {counts.empty} empty"
    )
    if opt_out is not None:
        found = sum(bool(line & counts.found) for line in listed)
        click.echo(f"{opt_out}: {len(listed)} names, of which {found} stand in these documents")
    _tell_what_is_learnt(selected, out, counts, by=person_key)
    if not split_key and (share := counts.held_out / (counts.train + counts.held_out)) > 2 * held_out:
        click.echo(
            f"warning: {share:.0%} of the documents are held out, not {held_out:.0%}: they are of few persons, whom a "
            "hash draws as a whole. With --split the documents say it themselves",
            err=True,
        )
    named_task, store = shlex.quote(task), shlex.quote(str(out))
    named_task += " --base FOLDER" if isinstance(selected, DeclaredTask) and selected.base else ""
    click.echo(f"next, in a federation: sovfed client join INVITATION --task {named_task} --data {store}")
    click.echo(f"or, joined already: sovfed client study add {selected.name} --task {named_task} data.path={store}")


def counted(documents: Iterable[Document]) -> Iterator[Document]:
    """`documents`; how many have been read is told on stderr now and then."""
    from time import monotonic

    told = monotonic()
    for number, document in enumerate(documents):
        if monotonic() - told > EVERY_S:
            told = monotonic()
            click.echo(f"{number} documents read …", err=True)
        yield document


def tell_passed_over(files: Iterable[Path]) -> None:
    """Say on stderr what in folders is no document, so that nobody believes that it was read."""
    from sovfed.clients.data.documents import KINDS, passed_over

    if over := passed_over(files):
        kinds = ", ".join(f"{count} {kind or 'without an ending'}" for kind, count in over.items())
        click.echo(f"not read, since they are none of {', '.join(KINDS)}: {kinds}", err=True)


def _tell_what_is_learnt(task: Task, out: Path, counts: Counts, by: str) -> None:
    from sovfed.clients.data.tokens import load
    from sovfed.federation.config import DataConfig

    windows, context = load(task, DataConfig(source="tokens", path=str(out))), task.schema.shaped[0].size - 1
    click.echo(
        f"persons: {counts.persons}, {f'by {by!r}' if by else 'each document by itself'}; "
        f"{counts.train} documents train, in {len(windows.train)} windows of {context} tokens, "
        f"{counts.held_out} are held out, in {len(windows.test)}"
    )
    if not len(windows.train):
        click.echo("warning: nothing is left to train: take more documents, or a smaller --held-out", err=True)
    elif not len(windows.test):
        click.echo("warning: nothing is held out, so no model is tested here: a larger --held-out", err=True)
    if windows.idle > MOST_IDLE:
        click.echo(
            f"warning: {windows.idle:.0%} of the places in windows predict nothing, since documents are short beside a "
            f"context of {context} tokens, and each costs as much as one that does: a task of less --context",
            err=True,
        )
