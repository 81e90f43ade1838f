"""A language model by ten ministries, one step a round on their mean gradient, against the same on the pooled text.

Model, start, steps, batch, optimizer and schedule are the same; Muon and AdamW run at the server. Test text is a fixed
sample of each ministry's, half a window before every token that counts. Tokenizer and store are made as an operator
makes them; the tokenizer's text is the parliament's, which is public. What rings of few bits cost is measured over
fewer rounds, each ring over the same. What of the test text stands in some ministry's training text is told apart, and
hidden terms and numbers are asked for (`cloze.py`).

At length also: more local steps between two exchanges, as FedAvg and as DiLoCo (Douillard et al. 2023,
arXiv:2311.08105), and each ministry alone, given the federation's whole compute and the best
of its evaluations.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from sovfed.clients.data.documents import Keys, documents_in
from sovfed.clients.data.token_store import Rules, write_store
from sovfed.clients.data.tokens import Windows, load
from sovfed.federation.config import DataConfig
from sovfed.federation.errors import ConfigError
from sovfed.federation.files import write_atomic
from sovfed.federation.tasks.declared import DeclaredTask, task_from_text
from sovfed.federation.tasks.tokenizer import Tokenizer, read_tokenizer, train_tokenizer
from sovfed.simulations.api import Result, simulate
from sovfed.simulations.baselines import merge
from sovfed.simulations.benchmarks.bare_language import tokens_per_s
from sovfed.simulations.benchmarks.cloze import cloze_figures
from sovfed.simulations.benchmarks.language_apart import Floats, apart_figures, by_document, groups_of, resampled
from sovfed.simulations.benchmarks.report import Column, Files, Report, conditions, publish

if TYPE_CHECKING:
    from rich.console import Console

    from sovfed.clients.data import Dataset

SUFFIX: Final = ".jsonl.xz"
TOKENIZER: Final = "tokenizer.json"
PUBLIC: Final = ("diet-acts", "bundestag-gesetze")  # what parliaments have published: the tokenizer's text
SYMBOLS, CONTEXT = 4_096, 128
WINDOWS: Final = 2  # of a ministry in a step
ROUNDS, QUICK_ROUNDS = 1_200, 400
RING_ROUNDS: Final = 10  # as many times fewer, in which rings are compared
TESTED, QUICK_TESTED = 1_000, 120  # windows of each ministry at most
POOLED, RINGED, STEPS, ALONE = "pooled", "rings", "steps", "alone"  # what is compared
PARTS: Final = (POOLED, RINGED, STEPS, ALONE)
QUICK_PARTS: Final = (POOLED, RINGED)
BETWEEN: Final = (0.025, 0.975)  # quantiles of what is drawn anew
LOOKS: Final = 8  # evaluations of a ministry alone, the best of which counts
KEYS: Final = Keys(side="split")
RATE: Final = 0.007
PLAN: Final = {
    "task.optimizer": "muon", "task.learning_rate": RATE, "task.beta_1": 0.9, "task.beta_2": 0.95,
    "task.schedule": "wsd", "task.warmup": 0.03, "task.cooldown": 0.4, "task.floor": 0.03, "task.gradient_clip": 1.0,
    "task.batch_size": WINDOWS, "client": "cpu",
}  # fmt: skip
CENTRAL: Final = {**PLAN, "strategy": "fedsgd"}
SCALED: Final = {"strategy.gradient_scale": 10, "secagg.clip": 1.0}  # no value of a gradient comes near a tenth
RINGS: Final[dict[str, dict[str, Any]]] = {
    "32 bits": {"secagg": "full"},
    "16 bits": {"secagg": "compact", **SCALED},
    "16 bits, 16 down": {"secagg": "compact", "strategy.down_bits": 16, **SCALED},
    "12 bits": {"secagg": "compact", "secagg.bits": 12, "secagg.max_error": 100, **SCALED},  # what rounding takes waits
    "8 bits": {"secagg": "compact", "secagg.bits": 8, "secagg.max_error": 100, **SCALED},
}
FEDERATED: Final = {**CENTRAL, **RINGS["16 bits"]}  # one step a round on the mean gradient, masked
QUICK_RINGS: Final = ("32 bits", "16 bits", "16 bits, 16 down")
FITTED: Final = {"secagg": "compact", "strategy.rate_units": True}  # 16 bits for local steps
RINGED_STEPS: Final = 6  # local steps of Muon: how far they move a value is known before, so that 8 bits fit
STEP_RINGS: Final[dict[str, dict[str, Any]]] = {
    "32 bits": {"secagg": "full"},
    "8 bits": {**FITTED, "secagg.bits": 8, "secagg.max_error": 100},
}
LOCAL_STEPS: Final = (1, 2, 5, 10, 30)
OUTSIDE: Final[dict[str, dict[str, Any]]] = {
    "FedAvg": {"strategy": "fedavg"},
    "DiLoCo": {
        "strategy": "fedavgm",
        "strategy.server_learning_rate": 0.7,
        "strategy.server_momentum": 0.9,
        "strategy.server_nesterov": True,
    },
}
COLUMNS: Final = (
    Column("model", "model"),
    Column("rounds", "rounds"),
    Column("tokens", "tokens", "{:,}".format),
    Column("bits_per_byte", "bits per byte", "{:.4f}".format),
    Column("rounding", "rounding", lambda share: "" if share is None else f"{share:.1%}"),
    Column("down_mb", "MB down", lambda megabytes: "" if megabytes is None else f"{megabytes:.2f}"),
    Column("cpu_s", "CPU s", "{:.0f}".format),
)


@dataclasses.dataclass(frozen=True)
class Size:
    """Of a decoder: tokens that it sees, values of each, blocks, heads."""

    context: int
    width: int = 128
    blocks: int = 3
    heads: int = 4


@dataclasses.dataclass(frozen=True)
class Bench:
    """The task, each ministry's windows, and where rows are told as they come."""

    task: DeclaredTask
    sites: Mapping[str, Windows]
    rounds: int
    console: Console
    rows: list[dict[str, Any]]
    keep: Path | None = None  # a folder for what each training came to

    def once(self, name: str, settings: Mapping[str, Any], make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What `make` comes to, and its rows: kept from an earlier call for the same task, texts and `settings`."""
        if self.keep is None:
            return make()
        texts = {site: [_sha256(windows.store.tokens), len(windows.test)] for site, windows in self.sites.items()}
        meant = json.dumps([name, self.task.digest, self.rounds, texts, settings], sort_keys=True)
        path = self.keep / f"{hashlib.sha256(meant.encode()).hexdigest()[:32]}.json"
        if path.exists():
            kept = json.loads(path.read_text())
            self.console.print(f"{name}: kept in {path}")
            self.rows.extend(kept["rows"])
        else:
            known = len(self.rows)
            kept = {"name": name, "made": make(), "rows": self.rows[known:]}
            self.keep.mkdir(parents=True, exist_ok=True)
            write_atomic(path, json.dumps(kept).encode())
        made: dict[str, Any] = kept["made"]
        return made

    def tell(
        self, name: str, rounds: int, steps: int, bits: float, rounding: float | None, cpu_s: float,
        down_mb: float | None = None,
    ) -> None:  # fmt: skip
        """Keep a run's row, and say it; `down_mb` goes down to an institution in a round."""
        self.rows.append({
            "model": name, "rounds": rounds, "tokens": rounds * steps * len(self.sites) * WINDOWS * CONTEXT,
            "bits_per_byte": bits, "rounding": rounding, "down_mb": down_mb, "cpu_s": cpu_s,
        })  # fmt: skip
        self.console.print(f"{name}: {bits:.4f} bits per byte, {rounds} rounds, {cpu_s:.0f} CPU s")

    def simulate(self, name: str, data: Mapping[str, Dataset], settings: Mapping[str, Any], rounds: int) -> Result:
        """A run over `data`; a terminal shows its rounds."""
        with self.console.status(f"{name}: {rounds} rounds") as shown:
            return simulate(
                self.task, dict(data), rounds=rounds, settings=settings,
                callbacks=[lambda line: shown.update(f"{name}: round {line['round']} of {rounds}")],
            )  # fmt: skip

    def train(
        self, name: str, data: Mapping[str, Dataset], settings: Mapping[str, Any], rounds: int, steps: int = 1
    ) -> Result:
        """A run over `data`, and its row: of `steps` steps a round, each on `WINDOWS` windows of every ministry."""
        start = time.process_time()
        result = self.simulate(name, data, {"evaluate_every": rounds, **settings}, rounds)
        errors, bits = result.rounds["ring_error"].dropna(), result.metrics["bits_per_byte"]
        rounding = float(errors.mean()) if len(errors) else None
        down_mb = result.summary["bytes_down_per_round"] / len(data) / 1e6
        self.tell(name, rounds, steps, bits, rounding, time.process_time() - start, down_mb)
        return result


def run(
    *, data: Path, quick: bool, rounds: int | None, files: Files, console: Console, symbols: int = SYMBOLS,
    parts: tuple[str, ...] = (), keep: Path | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Train on the ministries of the folder `data` what is compared in `parts`, by default all or those of `quick`.

    What rings, steps and lone ministries come to is kept in the folder `keep`, from where another call goes on.
    """
    files.check()
    start = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        task, sites = prepared(data, Path(folder), QUICK_TESTED if quick else TESTED, symbols)
        bench = Bench(task, sites, rounds or (QUICK_ROUNDS if quick else ROUNDS), console, [], keep)
        parts = parts or (QUICK_PARTS if quick else PARTS)
        ratios, figures = dict[str, float](), dict[str, float]()
        if POOLED in parts:
            ratios, figures = _against_pooled(bench, read_tokenizer(Path(folder) / TOKENIZER), data)
        if RINGED in parts:
            ratios |= _rings(bench, QUICK_RINGS if quick else tuple(RINGS))
            ratios |= {} if quick else _rings_of_steps(bench)
        ours, bare = tokens_per_s(task, next(iter(sites.values())), 4 * WINDOWS, 3 if quick else 20)
        figures |= {"tokens_per_s": ours, "bare_tokens_per_s": bare}
        if STEPS in parts:
            ratios |= _more_local_steps(bench)
        if ALONE in parts:
            figures |= _alone(bench)
    figures["cpu_s"] = time.process_time() - start
    title = f"A language model by {len(sites)} institutions: federated against pooled"
    report = Report(title, COLUMNS, bench.rows, {**ratios, "step_over_bare": ours / bare}, figures, conditions())
    return publish(report, console, files)


def _sha256(tokens: npt.NDArray[Any]) -> str:
    return hashlib.sha256(tokens.tobytes()).hexdigest()


def train_pooled(bench: Bench, seed: int = 0) -> Result:
    """One machine with all texts, the same batch, steps and optimizer."""
    together = {**CENTRAL, "secagg": "none", "task.batch_size": WINDOWS * len(bench.sites), "seed": seed}
    return bench.train("pooled", {"pooled": merge(list(bench.sites.values()))}, together, bench.rounds)


def _against_pooled(bench: Bench, tokenizer: Tokenizer, data: Path) -> tuple[dict[str, float], dict[str, float]]:
    """One machine with all texts, and the federation under secure aggregation of 16 bits: ratios, and more figures."""
    pooled = train_pooled(bench)
    federated = bench.train("federated", bench.sites, FEDERATED, bench.rounds)
    ours, theirs = (result.metrics["bits_per_byte"] for result in (federated, pooled))
    groups, tests = groups_of(tokenizer, bench.sites, files_of(data)), _tests(data)
    figures = dict[str, float]()
    for name, result in (("pooled", pooled), ("federated", federated)):
        figures |= apart_figures(name, result, bench.sites, groups)
        figures |= cloze_figures(name, result.model, tokenizer, tests)
    return {"federated_bpb": ours, "pooled_bpb": theirs, "federated_over_pooled": ours / theirs}, figures


def _rings(bench: Bench, names: tuple[str, ...]) -> dict[str, float]:
    """Bits per byte of each ring over that of 32 bits, over fewer rounds."""
    rounds = max(2, bench.rounds // RING_ROUNDS)
    told = {name: _metrics(bench, f"federated, {name}", {**CENTRAL, **RINGS[name]}, rounds) for name in names}
    words = {"16 bits": "sixteen", "16 bits, 16 down": "sixteen_down", "12 bits": "twelve", "8 bits": "eight"}
    widest = told["32 bits"]["bits_per_byte"]
    return {f"{words[name]}_bits_over_32": told[name]["bits_per_byte"] / widest for name in names if name in words}


def _rings_of_steps(bench: Bench) -> dict[str, float]:
    """The same of 8 bits where institutions take several steps between two exchanges."""
    rounds = max(2, bench.rounds // RING_ROUNDS)
    plan = {**PLAN, "strategy": "fedavg", "task.local_steps": RINGED_STEPS}
    wide, narrow = (
        _metrics(bench, f"{RINGED_STEPS} steps, {name}", {**plan, **ring}, rounds, RINGED_STEPS)["bits_per_byte"]
        for name, ring in STEP_RINGS.items()
    )
    return {"eight_bits_of_steps_over_32": narrow / wide}


def _more_local_steps(bench: Bench) -> dict[str, float]:
    """Over the federated model: as many steps in all, H of them with Muon at each ministry between two exchanges."""
    known = [row["bits_per_byte"] for row in bench.rows if row["model"] == "federated"]
    federated = known[0] if known else _metrics(bench, "federated", FEDERATED, bench.rounds)["bits_per_byte"]
    return {
        f"{name.lower()}_h{steps}_over_federated": _metrics(
            bench, f"{name}, H = {steps}", {**PLAN, **outside, **FITTED, "task.local_steps": steps},
            max(2, bench.rounds // steps), steps,
        )["bits_per_byte"] / federated
        for name, outside in OUTSIDE.items() for steps in LOCAL_STEPS
    }  # fmt: skip


def _metrics(bench: Bench, name: str, settings: Mapping[str, Any], rounds: int, steps: int = 1) -> dict[str, Any]:
    """Those of a run over all ministries."""
    return bench.once(
        name, {**settings, "rounds": rounds}, lambda: bench.train(name, bench.sites, settings, rounds, steps).metrics
    )


def _alone(bench: Bench) -> dict[str, float]:
    """In how many ministries the federated model is better on their own test text than their own, and by how much.

    A ministry's own model has the federation's rounds and batch, and is the best of `LOOKS` on its test text. Ratios of
    bits per byte, with what they are between in 95 % of drawings of the test's documents anew (paired bootstrap); a
    ministry is surely better off if all of that is below 1.
    """
    rounds, each = bench.rounds, max(1, bench.rounds // LOOKS)
    settings = {
        **CENTRAL, "secagg": "none", "task.batch_size": WINDOWS * len(bench.sites), "evaluate_every": each,
        "keep_best": True,
    }  # fmt: skip

    def together() -> dict[str, Any]:
        of_all = {**CENTRAL, "secagg": "none", "evaluate_every": rounds}
        federated = bench.simulate("federated", bench.sites, of_all, rounds)
        return {site: by_document(federated, windows).tolist() for site, windows in bench.sites.items()}

    def apart(site: str, windows: Windows) -> dict[str, Any]:
        own = bench.train(f"{site} alone", {site: windows}, settings, rounds)
        return {"nats": by_document(own, windows).tolist()}

    federated = bench.once("federated, by document", settings, together)
    drawn = dict[str, Floats]()
    for site, windows in bench.sites.items():
        own = bench.once(f"{site} alone", settings, partial(apart, site, windows))
        drawn[site] = resampled(np.array(federated[site]), np.array(own["nats"]))
    figures = {"better_than_alone": 0.0, "surely_better_than_alone": 0.0}
    for site, ratios in {**drawn, "federated": np.mean(list(drawn.values()), 0)}.items():
        low, high = np.quantile(ratios[1:], BETWEEN).tolist()
        figures |= {f"{site}_over_alone": ratios[0], f"{site}_over_alone_low": low, f"{site}_over_alone_high": high}
        if site in drawn:
            figures["better_than_alone"] += ratios[0] < 1
            figures["surely_better_than_alone"] += high < 1
    return {name: float(figure) for name, figure in figures.items()}


def prepared(data: Path, folder: Path, tested: int, symbols: int) -> tuple[DeclaredTask, dict[str, Windows]]:
    """The task, and each ministry's windows with `tested` held-out ones, made in `folder`. Raises ConfigError."""
    files = files_of(data)
    public = [path for site, path in files.items() if site in PUBLIC]
    if not public or len(files) < 3:
        raise ConfigError(f"{data}: {len(files)} files *{SUFFIX}, expected 3 or more, one of them of {PUBLIC}")
    texts = (document.text for document in documents_in(public, KEYS) if document.side == "train")
    (folder / TOKENIZER).write_bytes(train_tokenizer(texts, symbols))
    tokenizer = read_tokenizer(folder / TOKENIZER)
    task = task_of(tokenizer, CONTEXT)
    return task, dict(_sites(task, tokenizer, files, folder, tested))


def files_of(data: Path) -> dict[str, Path]:
    """Each ministry's file, by a name that an institution may have."""
    return {path.name.removesuffix(SUFFIX).replace("_", "-"): path for path in sorted(data.glob(f"*{SUFFIX}"))}


def _tests(data: Path) -> list[str]:
    return [document.text for document in documents_in(files_of(data).values(), KEYS) if document.side == "test"]


def _sites(
    task: DeclaredTask, tokenizer: Tokenizer, files: dict[str, Path], folder: Path, tested: int
) -> Iterator[tuple[str, Windows]]:
    for site, path in files.items():
        write_store(folder / site, documents_in([path], KEYS), tokenizer, Rules())
        windows = load(task, DataConfig(source="tokens", path=str(folder), site=site))
        sample = np.linspace(0, len(windows.test) - 1, min(tested, len(windows.test))).astype(np.int64)
        yield site, dataclasses.replace(windows, test=windows.test[sample])


def task_of(tokenizer: Tokenizer, context: int) -> DeclaredTask:
    """The next token of law, by the smallest decoder that is worth training."""
    return decoder_task("law", tokenizer.symbols, tokenizer.sha256, Size(context))


def decoder_task(name: str, symbols: int, tokenizer: str, size: Size) -> DeclaredTask:
    """The next of `symbols` tokens; `tokenizer` is the SHA-256 of the file that makes them."""
    return task_from_text(
        f"format: 1\nname: {name}\ntitle: {name.capitalize()}\nperson: document\n"
        f"columns:\n  window: {{kind: tokens, shape: [{size.context + 1}], high: {symbols - 1}}}\n"
        f'target: {{kind: next_token, tokenizer: "{tokenizer}"}}\n'
        f"model: {{family: decoder, width: {size.width}, blocks: {size.blocks}, heads: {size.heads}, "
        f"hidden: {4 * size.width}}}\n"
    )
