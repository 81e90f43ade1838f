"""`sovfed task tokenizer` and `sovfed task language`: what a language model is made of, before there is one."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from sovfed.federation.errors import ConfigError
from sovfed.federation.text import NAME, NAME_IN_WORDS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from sovfed.clients.data.token_store import Document

FILE: Final = click.Path(dir_okay=False, path_type=Path)
TOKENIZER: Final = "tokenizer.json"  # in the folder of a model of Hugging Face


@click.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--out", required=True, type=FILE, help="The file to write.")
@click.option("--size", type=click.IntRange(257, 1 << 20), default=4_096, show_default=True, help="Tokens.")
@click.option("--text", "text_key", default="text", show_default=True, help="The key of a line that holds its text.")
@click.option("--split", "split_key", default="", help="The key that says train, test or valid: only train is read.")
@click.option("--encoding", default="", help="How text that is not UTF-8 is written, as cp1252 or shift_jis.")
@click.option("--force", is_flag=True, help="Write over a file that is there.")
def tokenizer(
    files: tuple[Path, ...], out: Path, size: int, text_key: str, split_key: str, encoding: str, force: bool
) -> None:
    """Make a tokenizer of the PUBLIC texts in FILES (lines of JSON, .txt, folders), and print its digest.

    It tells which words were frequent, and every institution gets it: never make it of texts that are not public.

    \b
    Example:
      sovfed task tokenizer diet_acts.jsonl.xz --size 4096 --out tokenizer.json
    """
    from sovfed.clients.cli.texts import counted, tell_passed_over
    from sovfed.clients.data.documents import Keys, documents_in
    from sovfed.federation.files import write_atomic
    from sovfed.federation.tasks.tokenizer import read_tokenizer, train_tokenizer

    _require_new(out, force)
    keys = Keys(text=text_key, side=split_key, encoding=encoding)
    tell_passed_over(files)
    content = train_tokenizer(_texts(counted(documents_in(files, keys)), split_key), size)
    write_atomic(out, content)
    made = read_tokenizer(out)
    click.echo(f"{out}: {made.symbols} tokens, SHA-256 {made.sha256}")
    click.echo(f"next: sovfed task language NAME --tokenizer {shlex.quote(str(out))}")


@click.command()
@click.argument("name")
@click.option(
    "--tokenizer", "tokenizer_path", type=FILE, help="What `sovfed task tokenizer` made; default: the base's."
)
@click.option(
    "--base", type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="The folder of a causal language model of Hugging Face, to go on from; the sizes below are its own then.",
)  # fmt: skip
@click.option(
    "--rank",
    type=click.IntRange(0, 1_024),
    default=8,
    show_default=True,
    help="Of --base's adapters; 0: all of it is trained.",
)
@click.option("--context", type=click.IntRange(2, 1 << 15), default=128, show_default=True, help="Tokens it sees.")
@click.option("--width", type=int, default=128, show_default=True)
@click.option("--blocks", type=int, default=3, show_default=True)
@click.option("--heads", type=int, default=4, show_default=True)
@click.option("--goldfish", type=click.IntRange(0, 128), default=0, help="Leave one token in K out of the loss.")
@click.option("--title", default="", help="What people are told it is.")
@click.option("--output", type=FILE, help="Where to write it; NAME.yaml unless given.")
@click.option("--force", is_flag=True, help="Write over a file that is there.")
def language(
    name: str, tokenizer_path: Path | None, base: Path | None, rank: int, context: int, width: int, blocks: int,
    heads: int, goldfish: int, title: str, output: Path | None, force: bool,
) -> None:  # fmt: skip
    """Write NAME.yaml: a task that learns the next token, with a decoder of these sizes, or from a model on.

    Of a model of Hugging Face (--base) the file holds the digest: each institution has its own copy of the folder.

    \b
    Examples:
      sovfed task language law --tokenizer tokenizer.json
      sovfed task language law --tokenizer tokenizer.json --context 256 --width 192 --blocks 4 --heads 6
      sovfed task language law --tokenizer tokenizer.json --goldfish 4
      sovfed task language law --base /models/national-1b --rank 16 --context 512
    """
    from sovfed.federation.tasks import bases
    from sovfed.federation.tasks.document import flow
    from sovfed.federation.tasks.families import require_size
    from sovfed.federation.tasks.sizes import demands, parameters_of
    from sovfed.federation.tasks.taskfile import read_text, to_text
    from sovfed.federation.tasks.tokenizer import read_tokenizer

    if not NAME.fullmatch(name) or len(name) > 64:
        raise ConfigError(f"a task's name must be {NAME_IN_WORDS}, at most 64 long, got {name[:64]!a}")
    where = Path(f"{name}.yaml") if output is None else output
    _require_new(where, force)
    if base is None and tokenizer_path is None:
        raise ConfigError("--tokenizer says how texts are cut into tokens, or --base brings its own")
    read = read_tokenizer(tokenizer_path or Path(f"{base}") / TOKENIZER)
    bases.offer(base)
    if base is None:
        sizes = f"width: {width}, blocks: {blocks}, heads: {heads}, hidden: {4 * width}, goldfish: {goldfish}"
        model = f"{{family: decoder, {sizes}}}"
    else:
        model = f'{{family: causal_lm, base: "{bases.digest_of(base)}", rank: {rank}}}'
    file = read_text(
        f"format: 1\nname: {name}\ntitle: {flow(title or name)}\nperson: document\n"
        f"columns:\n  window: {{kind: tokens, shape: [{context + 1}], high: {read.symbols - 1}}}\n"
        f'target: {{kind: next_token, tokenizer: "{read.sha256}"}}\n'
        f"model: {model}\n"
    )
    require_size(file.model, file.schema, read.symbols)
    parameters = parameters_of(lambda: file.model.make(file.schema, read.symbols))
    where.write_text(to_text(file), encoding="utf-8")
    click.echo(f"{parameters:,} values{' beside the base' if base and rank else ''}: {demands(parameters)}")
    more = "" if base is None else f" --base {shlex.quote(str(base))}"
    click.echo(f"wrote {where}; next: sovfed task check {where}{more}")


def _require_new(path: Path, force: bool) -> None:
    if path.exists() and not force:
        raise ConfigError(f"{path} is there already; --force writes over it, or choose another")


def _texts(documents: Iterable[Document], split_key: str) -> Iterator[str]:
    return (document.text for document in documents if not split_key or document.side == "train")
