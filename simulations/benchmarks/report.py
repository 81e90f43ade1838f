"""What a benchmark hands back: rows and ratios as a table, JSON, CSV and a picture, and where they were measured."""

from __future__ import annotations

import csv
import io
import json
import os
import platform
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sovfed.federation.errors import ConfigError
from sovfed.federation.files import check_writable, write_atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from rich.console import Console

PANELS_ABREAST: Final = 3
WIDEST: Final = 1_000  # characters of a table


@dataclass(frozen=True)
class Column:
    """A key of the rows, its heading in the table, and how a value is shown there."""

    key: str
    heading: str
    show: Callable[[Any], str] = str


@dataclass(frozen=True)
class Bars:
    """The picture: `value` of each row as a bar, one colour per `series`, side by side in groups.

    `low` and `high` name the ends of the error bars.
    """

    value: str
    low: str
    high: str
    group: str
    series: str
    label: str
    log: bool = True
    only: tuple[str, str] = ("", "")  # a key, and the value of the rows that are drawn
    panel: str = ""  # a key, each value of which has axes of its own


@dataclass(frozen=True)
class Report:
    """Rows of equal keys; `ratios` are peer ÷ ours, above 1 where ours is better; `figures` is whatever else counts."""

    title: str
    columns: tuple[Column, ...]
    rows: list[dict[str, Any]]
    ratios: dict[str, float]
    figures: dict[str, float] = field(default_factory=dict)
    conditions: dict[str, Any] = field(default_factory=dict)
    bars: Bars | None = None
    draw: Callable[[Figure], None] | None = None  # in place of bars

    def to_dict(self) -> dict[str, Any]:
        """What `--json` writes."""
        return {
            "rows": self.rows,
            "ratios": self.ratios,
            "figures": self.figures,
            "conditions": self.conditions,
        }


@dataclass(frozen=True)
class Files:
    """Where the report is written, beside the console."""

    json: Path | None = None
    csv: Path | None = None
    plot: Path | None = None

    def check(self) -> None:
        """As `check_writable`."""
        check_writable(self.json, self.csv, self.plot)


def conditions(**more: Any) -> dict[str, Any]:
    """The machine and the versions that measure."""
    from importlib.metadata import version

    from sovfed import __version__

    return {
        "cpus": os.cpu_count(),
        "load_1_min": os.getloadavg()[0],
        "system": platform.platform(),
        "python": platform.python_version(),
        "flwr": version("flwr"),
        "sovfed": __version__,
        **more,
    }


def publish(report: Report, console: Console, files: Files) -> dict[str, Any]:
    """Print the report, write the files that are asked for, and return what the JSON file holds."""
    table = _table(report)
    needed = console.measure(table, options=console.options.update(width=WIDEST)).maximum
    before, console.width = console.width, max(needed, console.width)  # a narrow terminal must not hide figures
    console.print(table if report.rows else report.title)
    console.width = before
    for name, value in {**report.ratios, **report.figures}.items():
        console.print(f"  {name:<36} [bold]{_plain(value)}[/]")
    console.print("  [dim]" + ", ".join(f"{key} {value}" for key, value in report.conditions.items()) + "[/]")
    document = report.to_dict()
    if files.json is not None:
        write_atomic(files.json, json.dumps(document, indent=2).encode())
    if files.csv is not None:
        write_atomic(files.csv, _csv(report).encode())
    if files.plot is not None:
        write_atomic(files.plot, _picture(report))
    return document


def _plain(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 or float(value).is_integer() else f"{value:.3g}"


def _table(report: Report) -> Any:
    from rich.table import Table

    table = Table(title=report.title)
    for number, column in enumerate(report.columns):
        table.add_column(column.heading, justify="right" if number else "left")
    for row in report.rows:
        table.add_row(*(column.show(row[column.key]) for column in report.columns))
    return table


def _csv(report: Report) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(report.rows[0]) if report.rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(report.rows)
    return text.getvalue()


def _picture(report: Report) -> bytes:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    if report.draw is not None:
        report.draw(figure)
    elif report.bars is not None:
        key, value = report.bars.only
        _draw_bars(figure, report.title, report.bars, [row for row in report.rows if not key or row[key] == value])
    else:
        raise ConfigError(f"{report.title}: there is no picture of it")
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=150)
    return content.getvalue()


def _draw_bars(figure: Figure, title: str, bars: Bars, all_rows: list[dict[str, Any]]) -> None:
    panels = list(dict.fromkeys(row[bars.panel] for row in all_rows)) if bars.panel else [""]
    series = list(dict.fromkeys(row[bars.series] for row in all_rows))
    columns = min(PANELS_ABREAST, len(panels))
    lines = -(-len(panels) // columns)
    if bars.panel:
        figure.set_size_inches(5 * columns, 3.5 * lines)
        figure.suptitle(title)
    grid = figure.subplots(lines, columns, squeeze=False).flatten()
    for axes, panel in zip(grid, panels, strict=False):
        rows = [row for row in all_rows if not bars.panel or row[bars.panel] == panel]
        _draw_panel(axes, str(panel) if bars.panel else title, bars, rows, series)
    for axes in grid[len(panels) :]:
        axes.axis("off")
    if bars.panel:
        handles = {name: bar for axes in grid for bar, name in zip(*axes.get_legend_handles_labels(), strict=True)}
        figure.legend(
            [handles[name] for name in series if name in handles], series, loc="outside lower center", ncols=len(series)
        )


def _draw_panel(axes: Axes, title: str, bars: Bars, all_rows: list[dict[str, Any]], series: list[Any]) -> None:
    """Bars of the `series` that have rows here, in their colours."""
    groups = list(dict.fromkeys(row[bars.group] for row in all_rows))
    names = [name for name in series if any(row[bars.series] == name for row in all_rows)]
    width = 0.8 / max(1, len(names))
    for number, name in enumerate(names):
        rows = [row for row in all_rows if row[bars.series] == name]
        places = [groups.index(row[bars.group]) + (number - (len(names) - 1) / 2) * width for row in rows]
        values = [row[bars.value] for row in rows]
        errors = [[row[bars.value] - row[bars.low] for row in rows], [row[bars.high] - row[bars.value] for row in rows]]
        drawn = axes.bar(places, values, width, yerr=errors, capsize=3, label=name, color=f"C{series.index(name)}")
        axes.bar_label(drawn, [f"{value:.3g}" for value in values], padding=3, fontsize=7 if bars.panel else None)
    axes.set_xticks(range(len(groups)), [str(group) for group in groups])
    axes.set(title=title, ylabel=bars.label, yscale="log" if bars.log else "linear")
    if bars.panel:
        axes.set_xlabel(bars.group)
    axes.margins(y=0.15)
    if not bars.panel:
        axes.legend()
