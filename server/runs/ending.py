"""What a person is told when a run has ended: how good, how private, where the model is, and what to do next."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from sovfed.federation.errors import DataError
from sovfed.federation.models.usage import usage
from sovfed.server.runs.converged import risen, still_falling
from sovfed.server.runs.curves import read_rounds
from sovfed.server.runs.release import MODEL, TABLE

if TYPE_CHECKING:
    from pathlib import Path

    from sovfed.federation.models.facts import TaskFacts

CARD: Final = "model.html"
STATEMENT: Final = "privacy.html"


def intervals_told(summary: dict[str, Any]) -> str:
    """How sure the metrics of `summary` are, in a line; "" where none has an interval."""
    within = summary.get("intervals") or {}
    spans = "  ".join(f"{name} {low:.3f} to {high:.3f}" for name, (low, high) in within.items())
    return f"95 % intervals, of records drawn at random: {spans}" if spans else ""


def _unfinished(summary: dict[str, Any], folder: Path) -> str:
    """That the loss still fell in the last rounds of the run in `folder`, or had risen again; "" if neither."""
    config, lines = summary.get("config", {}), read_rounds(folder)
    if "table" in summary:
        return ""
    return still_falling(lines, config.get("task", {})) or ("" if config.get("keep_best") else risen(lines))


def ending(summary: dict[str, Any], folder: Path, model: str, option: str = "") -> list[str]:
    """Lines about the run in `folder`; `model` is what `sovfed model` finds its model by: a run's name, or a path.

    `option` is what its command line needs beside it.
    """
    lines = []
    if summary["metrics"]:
        figures = "  ".join(f"{name} {value:.3f}" for name, value in summary["metrics"].items())
        lines.append(f"held-out metrics of all institutions: {figures}")
        lines += filter(None, [intervals_told(summary), _unfinished(summary, folder)])
    if summary.get("epsilon") is not None:
        silent = "" if "table" in summary else "; no metric left the institutions"
        lines.append(
            f"differential privacy: {summary['privacy']['mechanism']}, ε = {summary['epsilon']:.3f} at "
            f"δ = {summary['delta']:g} for every person{silent}"
        )
        lines.append(f"statement: {folder / STATEMENT}")
    if "table" in summary:
        lines.append(f"table: {folder / TABLE}")
        if recipients := summary.get("delivered_to"):
            lines.append(
                f"delivered, signed, to {len(recipients)} institutions, who have it by `sovfed client table get`"
            )
        return lines
    lines.append(f"model: {folder / MODEL}, card: {folder / CARD}")
    if recipients := summary.get("delivered_to"):
        measured = "sovfed client model evaluate RUN"
        lines.append(f"delivered to {len(recipients)} institutions, who measure it with `{measured}`")
    lines.append(f"next: {usage(_task(folder), model, option)}")
    return lines


def _task(folder: Path) -> TaskFacts | None:
    """What the model in `folder` is of; None if that cannot be read."""
    from sovfed.federation.models.saved import read_facts

    try:
        return read_facts(folder / MODEL).task
    except DataError:
        return None
