"""What a run has taken from its institutions, by the agency's own books."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sovfed.server.runs.attendance import participants
from sovfed.server.runs.curves import read_rounds

if TYPE_CHECKING:
    from pathlib import Path


def taken(folder: Path) -> list[str]:
    """A line for each institution that took part: in how many rounds; one line if there was none."""
    lines = read_rounds(folder)
    rounds = {name: sum(name in line["participants"] for line in lines) for name in participants(lines)}
    return [f"a contribution to {count} rounds from {name}" for name, count in rounds.items()] or ["nothing yet"]
