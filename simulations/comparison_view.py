"""The federated model beside pooled and lone training: as a table on a terminal, and in a run's summary."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from sovfed.federation.metrics import gain

if TYPE_CHECKING:
    from rich.table import Table

    from sovfed.federation.tasks import Task
    from sovfed.simulations.baselines import Comparison

COLUMNS: Final = ("institution", "train", "test", "pooled", "alone", "federated", "gain")
ALL: Final = "all tests together"


def in_summary(comparison: Comparison) -> dict[str, Any]:
    """What a summary says of it."""
    return {
        "pooled": comparison.pooled,
        "alone_mean": comparison.alone_mean,
        "federated": comparison.federated,
        "federated_interval": comparison.interval,
        "by_institution": comparison.rows,
    }


def table(task: Task, comparison: Comparison, most: int | None = None) -> Table:
    """A line an institution, `most` of them at most, and one of all held-out records together."""
    from rich.table import Table

    rows, metric = comparison.rows, comparison.metric
    shown = Table(title=f"{task.title}: held-out {metric}")
    for column in COLUMNS:
        shown.add_column(column, justify="left" if column == "institution" else "right")
    for row in rows[:most]:
        figures = (row["pooled"], row["alone"], row["federated"])
        shown.add_row(*_cells(task, metric, row["institution"], (row["train"], row["test"]), figures))
    shown.add_section()
    counts = sum(row["train"] for row in rows), sum(row["test"] for row in rows)
    figures = (comparison.pooled, comparison.alone_mean, comparison.federated)
    shown.add_row(*_cells(task, metric, ALL, counts, figures))
    return shown


def how_sure(comparison: Comparison, most: int) -> str:
    """A line of the 95 % intervals of the federated model's figures, of `most` institutions at most; "" without."""
    if comparison.interval is None:
        return ""
    each = [(row["institution"], row["interval"]) for row in comparison.rows[:most] if row["interval"]]
    spans = (f"{name} {low:.3f}–{high:.3f}" for name, (low, high) in [*each, (ALL, comparison.interval)])
    return f"95 % intervals of federated, of records drawn at random: {', '.join(spans)}"


def _cells(
    task: Task, metric: str, name: str, counts: tuple[int, int], figures: tuple[float | None, ...]
) -> tuple[str, ...]:
    _, alone, federated = figures
    gained = "–" if alone is None or federated is None else f"{gain(metric, federated, alone, task.metrics):+.3f}"
    return (name, *map(str, counts), *("–" if value is None else f"{value:.3f}" for value in figures), gained)
