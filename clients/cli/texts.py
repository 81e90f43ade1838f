"""`sovfed client data prepare`: an institution's documents as tokens, made once and mapped from then on."""

from __future__ import annotations

from pathlib import Path

import click

from sovfed.federation.help import Group


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
@click.option("--id", "id_key", default="id", show_default=True, help="The key that names the document.")
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
def prepare(
    task: str, files: tuple[Path, ...], out: Path, tokenizer_path: Path, text_key: str, id_key: str, person_key: str,
    split_key: str, held_out: float, opt_out: Path | None,
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
    from sovfed.clients.data.tables.opt_out import read_list
    from sovfed.clients.data.token_store import Rules, write_store
    from sovfed.federation.errors import ConfigError
    from sovfed.federation.tasks.tokenizer import read_tokenizer

    selected = task_of(task)
    if not selected.tokenizer:
        raise ConfigError(f"task '{selected.name}' learns no text: its target is not of kind next_token")
    tokenizer = read_tokenizer(tokenizer_path, selected.tokenizer)
    names = frozenset[str]() if opt_out is None else read_list(opt_out)
    keys = Keys(text_key, id_key, person_key, split_key)
    counts = write_store(out, documents_in(files, keys), tokenizer, Rules(names, held_out))
    click.echo(
        f"{out}: {counts.documents} documents, {counts.tokens} tokens of {counts.bytes / counts.tokens:.2f} bytes; "
        f"left out: {counts.opted_out} that opted out, {counts.repeated} repeated, {counts.empty} empty"
    )
