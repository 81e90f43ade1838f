"""Rounds as a person sees them: a bar while they go on, a line or a row of a table of each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sovfed.federation.metrics import TOLD
from sovfed.federation.text import visible

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress
    from rich.table import Table


def rounds_bar(console: Console) -> Progress:
    """A bar with rounds, time and time left under a text of any length: both are whole at 80 columns."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class Stacked(Progress):
        def get_renderables(self) -> Any:
            for task in self.tasks:
                yield Text.from_markup(task.description, overflow="fold")
            yield self.make_tasks_table(self.tasks)

    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    return Stacked(*columns, console=console)


def round_text(line: dict[str, Any]) -> str:
    """One line about a round: institutions, training loss, metrics of the model that it began with."""
    metrics = "  ".join(f"{name} {line['metrics'][name]:.3f}" for name in TOLD if name in line["metrics"])
    loss = "private" if line["train_loss"] is None else f"loss {line['train_loss']:.4f}"
    loss = visible(line["model"]["name"]) if "model" in line else loss
    missing = sorted({*line.get("late", ()), *line.get("left_out", ()), *line.get("refused", ())})
    names = missing[0] if len(missing) == 1 else f"{len(missing)} others"
    without = f" without {visible(names)}" if missing else ""
    return f"round {line['round']}  {len(line['participants'])} institutions{without}  {loss}  {metrics}"


def round_table(lines: list[dict[str, Any]]) -> Table:
    """A row for each round, whole at 80 columns: its sites, loss, metrics, seconds and kilobytes."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    headings = ("round", "sites", "loss", "held out", "seconds", "overhead", "kB up")
    table = Table(*headings, box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for line in lines:
        metrics = "  ".join(f"{k} {v:.3f}" for k, v in line["metrics"].items() if k in TOLD)
        table.add_row(
            str(line["round"]), str(len(line["participants"])), _figure(line["train_loss"]), metrics,
            f"{line['seconds']:.3f}", _figure(line["overhead_seconds"], 3), f"{line['bytes_up'] / 1e3:.1f}",
        )  # fmt: skip
    return table


def _figure(value: float | None, digits: int = 4) -> str:
    return "–" if value is None else f"{value:.{digits}f}"
