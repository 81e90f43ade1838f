"""Who has withdrawn from a run, as the run's folder has it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Final

from sovfed.federation.errors import ConfigError
from sovfed.federation.files import alone, write_private
from sovfed.federation.schema import bind, bounded
from sovfed.federation.text import LAST_MOMENT, day

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FILE: Final = "withdrawn.json"  # in the run's folder
PROFILED: Final = "profiled.json"  # whose records are in the columns' profile, which the whole run is scaled by


@dataclass(frozen=True)
class Withdrawal:
    """An institution's withdrawal from a run: when, by which signed word (SHA-256), and what had been made with it."""

    institution: str = bounded(low=1, high=63)
    at: int = bounded(low=0, high=LAST_MOMENT)
    answer: str = bounded(low=64, high=64)
    rounds: int = bounded(0, 0, 1_000_000)
    first: int = bounded(0, 0, 1_000_000)
    models: tuple[str, ...] = ()

    def told(self) -> Iterator[str]:
        """It in plain words."""
        yield f"{self.institution}: withdrawn on {day(self.at)}, asked for nothing more"
        if self.rounds:
            yield f"{self.institution}: took part in {self.rounds} rounds, the first was round {self.first}"
        for model in self.models:
            yield f"{self.institution}: its part is in the model with SHA-256 {model}"


def read_withdrawn(folder: Path) -> list[Withdrawal]:
    """Who has withdrawn from the run in `folder`, by name. Raises ConfigError if that cannot be read."""
    path = folder / FILE
    if not path.exists():
        return []
    try:
        values = json.loads(path.read_bytes())
        return [bind(Withdrawal, entry, str(path)) for entry in values]
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"{path}: cannot be read; whoever has withdrawn would be asked again") from error


def withdrawn_from(folder: Path) -> frozenset[str]:
    """Their names."""
    return frozenset(withdrawal.institution for withdrawal in read_withdrawn(folder))


def add_withdrawal(folder: Path, withdrawal: Withdrawal) -> None:
    """Write down one more, in place of an earlier one of the same institution."""
    with alone(folder):
        kept = [entry for entry in read_withdrawn(folder) if entry.institution != withdrawal.institution]
        entries = sorted([*kept, withdrawal], key=lambda entry: entry.institution)
        write_private(folder / FILE, json.dumps([asdict(entry) for entry in entries], indent=1).encode())
