"""What a finished run need not keep: its checkpoint, which nothing resumes from any more, and coordinators' old logs.

Model, card, statement, summary, rounds and `run.json` stay: they are what the run was for, and a name is used once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sovfed.federation.errors import ConfigError
from sovfed.federation.files import drafts
from sovfed.server.rounds.checkpoint import KEPT
from sovfed.server.rounds.checkpoint import NAME as CHECKPOINT
from sovfed.server.runs.folders import STATE, is_held, read_state

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def prune(home: Path, before: float) -> int:
    """Delete what runs that finished before that time (Unix seconds) need no more; the bytes that it took."""
    freed = 0
    for path in _unneeded(home, before):
        freed += path.stat().st_size
        path.unlink()
    return freed


def _unneeded(home: Path, before: float) -> Iterator[Path]:
    for state in sorted((home / "runs").glob(f"*/{STATE}")):
        folder = state.parent
        try:
            said = read_state(home, folder.name)
        except ConfigError:  # damaged: nothing of it is deleted
            continue
        if said["status"] == "finished" and said["at"] < before and not is_held(folder):
            yield from (*folder.glob(CHECKPOINT), *drafts(folder))
            yield from (*(folder / KEPT).glob("*.safetensors"), *drafts(folder / KEPT))
    for log in sorted((home / "logs").glob("coordinator-*.log")):
        if log.stat().st_mtime < before:
            yield log
