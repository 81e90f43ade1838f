"""A language model by ten ministries, one step a round on their mean gradient, against the same on the pooled text.

Model, start, steps, batch, optimizer and schedule are the same; Muon and AdamW run at the server. Test text is a fixed
sample of each ministry's, half a window before every token that counts. Tokenizer and store are made as an operator
makes them; the tokenizer's text is the parliament's, which is public.
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from sovfed.clients.data.documents import Keys, documents_in
from sovfed.clients.data.token_store import Rules, write_store
from sovfed.clients.data.tokens import Windows, load
from sovfed.federation.config import DataConfig
from sovfed.federation.errors import ConfigError
from sovfed.federation.tasks.declared import DeclaredTask, task_from_text
from sovfed.federation.tasks.tokenizer import Tokenizer, read_tokenizer, train_tokenizer
from sovfed.simulations.api import simulate
from sovfed.simulations.baselines import merge
from sovfed.simulations.benchmarks.report import Column, Files, Report, conditions, publish

if TYPE_CHECKING:
    from rich.console import Console

    from sovfed.clients.data import Dataset

SUFFIX: Final = ".jsonl.xz"
PUBLIC: Final = ("diet_acts", "bundestag_gesetze")  # what parliaments have published: the tokenizer's text
SYMBOLS, CONTEXT = 4_096, 128
ROUNDS, QUICK_ROUNDS = 1_600, 300
TESTED, QUICK_TESTED = 200, 60  # windows of each ministry
KEYS: Final = Keys(side="split")
CLIP: Final = 0.05  # on a value of a gradient whose norm is near 1: known before any data
RECIPE: Final = {
    "strategy": "fedsgd", "task.optimizer": "muon", "task.learning_rate": 0.007, "task.beta_1": 0.9,
    "task.beta_2": 0.95, "task.schedule": "wsd", "task.warmup": 0.03, "task.cooldown": 0.4, "task.floor": 0.03,
    "task.gradient_clip": 1.0, "client": "cpu",
}  # fmt: skip
ARMS: Final[dict[str, dict[str, Any]]] = {
    "pooled": {"secagg": "none"},
    "federated": {"secagg": "full"},
    "federated, 16 bits": {"secagg": "full", "secagg.bits": 16, "secagg.clip": CLIP},
}
COLUMNS: Final = (
    Column("model", "model"),
    Column("rounds", "rounds"),
    Column("tokens", "tokens", "{:,}".format),
    Column("bits_per_byte", "bits per byte", "{:.4f}".format),
    Column("cpu_s", "CPU s", "{:.0f}".format),
)


def run(
    *, data: Path, quick: bool, rounds: int | None, files: Files, console: Console, symbols: int = SYMBOLS
) -> dict[str, Any]:
    """Train pooled and federated on the ministries of the folder `data`, and publish the report."""
    files.check()
    steps = rounds or (QUICK_ROUNDS if quick else ROUNDS)
    with tempfile.TemporaryDirectory() as folder:
        task, sites = prepared(data, Path(folder), QUICK_TESTED if quick else TESTED, symbols)
        rows = []
        for name, settings in ARMS.items():
            rows.append(_row(task, sites, name, settings, steps))
            console.print(f"{name}: {rows[-1]['bits_per_byte']:.4f} bits per byte, {rows[-1]['cpu_s']:.0f} CPU s")
    pooled, federated, narrow = (row["bits_per_byte"] for row in rows)
    ratios = {
        "federated_bpb": federated, "pooled_bpb": pooled, "federated_over_pooled": federated / pooled,
        "sixteen_bits_over_32": narrow / federated,
    }  # fmt: skip
    title = f"A language model by {len(sites)} institutions: federated against pooled"
    return publish(Report(title, COLUMNS, rows, ratios, conditions=conditions()), console, files)


def prepared(data: Path, folder: Path, tested: int, symbols: int) -> tuple[DeclaredTask, dict[str, Windows]]:
    """The task, and each ministry's windows with `tested` held-out ones, made in `folder`. Raises ConfigError."""
    packed = sorted(data.glob(f"*{SUFFIX}"))
    public = [path for path in packed if path.name.removesuffix(SUFFIX) in PUBLIC]
    if not public or len(packed) < 3:
        raise ConfigError(f"{data}: {len(packed)} files *{SUFFIX}, expected 3 or more, one of them of {PUBLIC}")
    texts = (document.text for document in documents_in(public, KEYS) if document.side == "train")
    (folder / "tokenizer.json").write_bytes(train_tokenizer(texts, symbols))
    tokenizer = read_tokenizer(folder / "tokenizer.json")
    task = task_of(tokenizer, CONTEXT)
    sites = {}
    for path in packed:
        site = path.name.removesuffix(SUFFIX)
        write_store(folder / site, documents_in([path], KEYS), tokenizer, Rules())
        windows = load(task, DataConfig(source="tokens", path=str(folder), site=site))
        sample = np.linspace(0, len(windows.test) - 1, min(tested, len(windows.test))).astype(np.int64)
        sites[site] = dataclasses.replace(windows, test=windows.test[sample])
    return task, sites


def task_of(tokenizer: Tokenizer, context: int) -> DeclaredTask:
    """The next token of law, by the smallest decoder that is worth training."""
    return task_from_text(
        "format: 1\nname: law\ntitle: Law\nperson: document\n"
        f"columns:\n  window: {{kind: tokens, shape: [{context + 1}], high: {tokenizer.symbols - 1}}}\n"
        f'target: {{kind: next_token, tokenizer: "{tokenizer.sha256}"}}\n'
        "model: {family: decoder, width: 128, blocks: 3, heads: 4, hidden: 512}\n"
    )


def _row(
    task: DeclaredTask, sites: Mapping[str, Windows], name: str, settings: Mapping[str, Any], rounds: int
) -> dict[str, Any]:
    """One run, each step of it on a window of every ministry, or on as many of the pooled ones."""
    together = name == "pooled"
    data: dict[str, Dataset] = {"pooled": merge(list(sites.values()))} if together else dict(sites)
    batch = len(sites) if together else 1
    start = time.process_time()
    result = simulate(
        task, data, rounds=rounds,
        settings={**RECIPE, **settings, "task.batch_size": batch, "evaluate_every": rounds},
    )  # fmt: skip
    return {
        "model": name, "rounds": rounds, "tokens": rounds * len(sites) * CONTEXT,
        "bits_per_byte": result.metrics["bits_per_byte"], "cpu_s": time.process_time() - start,
    }  # fmt: skip
