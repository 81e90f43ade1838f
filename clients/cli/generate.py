"""`sovfed generate`: text from a language model that a federation has trained."""

from __future__ import annotations

from pathlib import Path

import click

from sovfed.clients.cli.use import FILE, HOME, load
from sovfed.federation.tasks.cli import BASE


@click.command()
@click.argument("model")
@click.option("--tokenizer", "tokenizer_path", required=True, type=FILE, help="The file that the model's task names.")
@click.option("--prompt", default="", help="What the text begins with; default: as a document begins.")
@click.option("--tokens", type=click.IntRange(1, 100_000), default=200, show_default=True, help="The most.")
@click.option(
    "--temperature", type=click.FloatRange(0.0, 10.0), default=0.8, show_default=True, help="0: the likeliest."
)
@click.option("--top-p", type=click.FloatRange(0.0, 1.0), default=0.95, show_default=True, help="Probability kept.")
@click.option("--seed", type=int, default=0, show_default=True)
@BASE
@HOME
def generate(
    model: str, tokenizer_path: Path, prompt: str, tokens: int, temperature: float, top_p: float, seed: int, home: Path
) -> None:
    """Write text as MODEL, a run's name, a run's folder or a model.safetensors, has learnt it. It states no facts.

    \b
    Examples:
      sovfed generate law-run --tokenizer tokenizer.json --prompt 第一条
      sovfed generate model.safetensors --tokenizer tokenizer.json --temperature 0 --tokens 50
    """
    from sovfed.federation.models.generation import Drawing, continued
    from sovfed.federation.tasks.tokenizer import read_tokenizer
    from sovfed.federation.text import visible

    loaded = load(model, home)
    tokenizer = read_tokenizer(tokenizer_path, loaded.task.tokenizer)
    click.echo(visible(prompt, keep="\n\t"), nl=False)
    for piece in continued(loaded, tokenizer, prompt, Drawing(tokens, temperature, top_p, seed)):
        click.echo(visible(piece, keep="\n\t"), nl=False)
    click.echo()
