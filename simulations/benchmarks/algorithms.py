"""`sovfed bench algorithms`: does each strategy that changes local training do here what its paper says?

    SCAFFOLD  fewer rounds to a given accuracy than FedAvg where local training drifts (Karimireddy et al. 2020,
              arXiv:1910.06378, table 3): label skew, several local epochs
    FedNova   a lower loss than FedAvg where institutions take unequal numbers of steps, which FedAvg weighs twice
              (Wang et al. 2020, arXiv:2007.07481, theorem 1): label skew and unequal sizes
    FedBN     a higher accuracy than FedAvg where features differ (Li et al. 2021, arXiv:2102.07623, table 1): noise
              and lost contrast that grow from institution to institution
    Ditto     personal models are more accurate than FedAvg's at the institutions, and the least accurate of them gains
              most (Li et al. 2021, arXiv:2012.04221, table 1): two labels or so each

Strategy and FedAvg train on the same parts of the same records from the same initial model, through the deployed
coordinator and trainers. Scores are of held-out records, each institution with the model that it would use.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sovfed.federation.compose import compose
from sovfed.simulations.benchmarks.report import Column, Files, Report, conditions, publish
from sovfed.simulations.federation import simulate_population
from sovfed.simulations.population import make_population

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.console import Console

PEER: Final = "fedavg"
TARGET: Final = 0.95  # accuracy that SCAFFOLD and its peer run for
SEEDS: Final = {True: (1, 2), False: (1, 2, 3, 4, 5)}
DRIFT: Final = (
    "task=digits", "task.local_epochs=5", "task.batch_size=8", "task.learning_rate=0.02", "rounds=25",
    "simulation.institutions=8", "partition=dirichlet", "partition.alpha=0.05",
)  # fmt: skip
SHARDS: Final = (
    "task=digits", "task.learning_rate=0.1", "rounds=20", "simulation.institutions=10", "partition=shards",
)  # fmt: skip
SHIFT: Final = (
    "task=digits_cnn", "rounds=12", "simulation.institutions=5", "partition=feature", "partition.noise=0.5",
    "partition.fade=0.9",
)  # fmt: skip


@dataclass(frozen=True)
class Run:
    """Of one training: the metrics of every model, from the initial to the last, and of each institution at the end."""

    accuracy: list[float]
    loss: list[float]
    institutions: list[float]  # accuracies


@dataclass(frozen=True)
class Claim:
    """`score` of a run is better under `strategy` than under FedAvg in this `setting`."""

    strategy: str
    setting: tuple[str, ...]
    what: str
    score: Callable[[Run], float]
    lower: bool = False  # whether lower is better


def rounds_to_target(run: Run) -> float:
    """Rounds after which the accuracy is at least `TARGET`; all of them where it never is."""
    return float(next((number for number, value in enumerate(run.accuracy) if value >= TARGET), len(run.accuracy)))


CLAIMS: Final = (
    Claim("scaffold", DRIFT, f"rounds to accuracy {TARGET}", rounds_to_target, lower=True),
    Claim("fednova", DRIFT, "loss", lambda run: run.loss[-1], lower=True),
    Claim("fedbn", SHIFT, "accuracy", lambda run: run.accuracy[-1]),
    Claim("ditto", SHARDS, "accuracy", lambda run: run.accuracy[-1]),
    Claim("ditto", SHARDS, "lowest accuracy of an institution", lambda run: min(run.institutions)),
)
COLUMNS: Final = (
    Column("claim", "claim"),
    Column("model", "strategy"),
    Column("mean", "mean", "{:.3f}".format),
    Column("low", "lowest", "{:.3f}".format),
    Column("high", "highest", "{:.3f}".format),
    Column("better", "better in"),
)


def run(quick: bool, files: Files, console: Console) -> dict[str, Any]:
    """Measure, print, write the files that are asked for; what the JSON file holds."""
    files.check()
    seeds, outcomes = SEEDS[quick], dict[tuple[str, tuple[str, ...]], list[Run]]()
    for claim in CLAIMS:
        for strategy in (PEER, claim.strategy):
            if (strategy, claim.setting) not in outcomes:
                with console.status(f"{strategy}: {claim.what}, {len(seeds)} seeds"):
                    outcomes[strategy, claim.setting] = [_train(strategy, claim.setting, seed) for seed in seeds]
    rows = [
        _row(claim, model, outcomes[model, claim.setting], outcomes[PEER, claim.setting])
        for claim in CLAIMS
        for model in (PEER, claim.strategy)
    ]
    report = Report(
        title="Strategies that change local training, against FedAvg on the same skewed parts",
        columns=COLUMNS,
        rows=rows,
        ratios=_ratios(rows),
        conditions=conditions(quick=quick, seeds=len(seeds)),
        draw=lambda figure: _draw(figure, outcomes),
    )
    return publish(report, console, files)


def _train(strategy: str, setting: tuple[str, ...], seed: int) -> Run:
    config = compose(
        [*setting, f"strategy={strategy}", f"seed={seed}", "secagg=none", "simulation.engine=inprocess"]
    ).config
    lines: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        summary = simulate_population(config, make_population(config), Path(folder), on_round=lines.append).summary
    metrics = [*(line["metrics"] for line in lines), summary["metrics"]]  # a round begins by scoring what it received
    each = [scores["accuracy"] for scores in summary["metrics_by_institution"].values()]
    return Run([scores["accuracy"] for scores in metrics], [scores["loss"] for scores in metrics], each)


def _row(claim: Claim, model: str, runs: list[Run], peers: list[Run]) -> dict[str, Any]:
    values, peer_values = [claim.score(outcome) for outcome in runs], [claim.score(outcome) for outcome in peers]
    sign = -1 if claim.lower else 1
    better = sum(sign * value > sign * peer_value for value, peer_value in zip(values, peer_values, strict=True))
    return {
        "claim": f"{claim.strategy}: {claim.what}",
        "model": model,
        "mean": statistics.mean(values),
        "low": min(values),
        "high": max(values),
        "better": "" if model == PEER else f"{better} of {len(values)}",
        "lower_is_better": claim.lower,
    }


def _ratios(rows: list[dict[str, Any]]) -> dict[str, float]:
    """How many times better than FedAvg, by claim."""
    pairs = zip(rows[::2], rows[1::2], strict=True)
    return {
        our["claim"].replace(":", "").replace(" ", "_"): (
            peer["mean"] / our["mean"] if our["lower_is_better"] else our["mean"] / peer["mean"]
        )
        for peer, our in pairs
    }


def _draw(figure: Figure, outcomes: dict[tuple[str, tuple[str, ...]], list[Run]]) -> None:
    """A panel a setting: accuracy by round, mean and range over the seeds."""
    settings = list(dict.fromkeys(setting for _, setting in outcomes))
    figure.set_size_inches(4 * len(settings), 3.6)
    for axes, setting in zip(figure.subplots(1, len(settings), squeeze=False)[0], settings, strict=True):
        for (strategy, where), runs in outcomes.items():
            if where == setting:
                by_round = list(zip(*(outcome.accuracy for outcome in runs), strict=True))
                axes.plot([statistics.mean(values) for values in by_round], label=strategy)
                lows, highs = [min(values) for values in by_round], [max(values) for values in by_round]
                axes.fill_between(range(len(by_round)), lows, highs, alpha=0.2)
        partition = next(override.partition("=")[2] for override in setting if override.startswith("partition="))
        axes.set(title=f"{setting[0].partition('=')[2]}, {partition}", xlabel="rounds", ylabel="held-out accuracy")
        axes.legend()
