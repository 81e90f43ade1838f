"""A partition as a table and as a picture: what each institution holds."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from sovfed.federation.config import Config
from sovfed.federation.files import check_writable, write_atomic
from sovfed.federation.tasks.registry import configured_task
from sovfed.simulations.baselines import labels_of
from sovfed.simulations.population import make_population

if TYPE_CHECKING:
    from rich.table import Table

    from sovfed.clients.data import Dataset
    from sovfed.federation.tasks import Task

SHOWN: Final = 40  # institutions, the first ones


@dataclass(frozen=True)
class Holding:
    """What one institution holds: training and held-out records, and how many of each class among both."""

    name: str
    train: int
    test: int
    by_class: list[int]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def holdings(config: Config) -> list[Holding]:
    """What the first `SHOWN` institutions of `config` hold. Raises ConfigError and DataError."""
    task = configured_task(config.task)
    listed = []
    for institution in make_population(config)[:SHOWN]:
        records = institution.load(task)
        counts = class_counts(task, records)
        listed.append(Holding(institution.name, len(records.train), len(records.test), counts))
    return listed


def class_counts(task: Task, records: Dataset) -> list[int]:
    """How many records there are of each class; [] where nothing is classified."""
    if not task.schema.classes:
        return []
    labels = labels_of(task, records).astype(np.int64)
    counts: list[int] = np.bincount(labels, minlength=len(task.schema.classes)).tolist()
    return counts


def table(config: Config, held: Sequence[Holding]) -> Table:
    """A row for each institution."""
    from rich import box
    from rich.table import Table

    task = configured_task(config.task)
    shown = Table(title=_title(config), box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for heading in ("institution", "train", "test", *task.schema.classes):
        first = heading == "institution"
        shown.add_column(heading, justify="left" if first else "right", no_wrap=first)
    for holding in held:
        shown.add_row(holding.name, str(holding.train), str(holding.test), *(str(count) for count in holding.by_class))
    return shown


def picture(config: Config, held: Sequence[Holding], path: Path) -> None:
    """Draw each institution's records as a bar, a colour for each class. Raises ConfigError if it cannot be written."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    check_writable(path)
    classes = configured_task(config.task).schema.classes
    figure = Figure(figsize=(7, 1.6 + 0.18 * len(held)), layout="constrained")
    axes = figure.subplots()
    left = np.zeros(len(held))
    for number, name in enumerate(classes):
        counts = np.array([holding.by_class[number] for holding in held])
        axes.barh(range(len(held)), counts, left=left, label=name, color=colormaps["tab20"](number % 20))
        left += counts
    axes.set_yticks(range(len(held)), [holding.name for holding in held], fontsize=7)
    axes.invert_yaxis()
    axes.set(title=_title(config), xlabel="records")
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=150)
    write_atomic(path, content.getvalue())


def _title(config: Config) -> str:
    chosen = config.partition
    detail = {
        "dirichlet": f", alpha {chosen.alpha:g}",
        "quantity": f", alpha {chosen.alpha:g}",
        "shards": f", {chosen.shards} shards",
        "feature": f", noise {chosen.noise:g}",
    }.get(chosen.name, "")
    return f"{config.task.name}: {chosen.name}{detail}, seed {config.seed}"
