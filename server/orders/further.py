"""Which runs of this agency begin with the model of another: whoever is in that one is in theirs."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from sovfed.federation.errors import SovfedError
from sovfed.server.orders.making import read_order
from sovfed.server.orders.unlearning import read_unlearning
from sovfed.server.orders.withdrawn import read_withdrawn
from sovfed.server.runs.folders import read_summary, run_folder
from sovfed.server.runs.release import DIGEST

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def trained_further(home: Path, name: str) -> list[str]:
    """The runs that began, or are proposed to begin, with a model of run `name`, at any remove, sorted.

    A run whose records are damaged is left out.
    """
    runs = {path.name: path for path in run_folder(home, name).parent.iterdir() if path.is_dir()}
    begun = {run: _begun_with(home, folder) for run, folder in runs.items()}
    models, known = _models_of(home, run_folder(home, name)), {name}
    while new := {run for run, start in begun.items() if start & models} - known:
        known |= new
        models = models.union(*(_models_of(home, runs[run]) for run in new))
    return sorted(known - {name})


def after_lines(home: Path, name: str) -> Iterator[str]:
    """What became of the model of run `name` in other runs, a line each; of whom it should not hold any more, too."""
    gone = ", ".join(sorted(entry.institution for entry in read_withdrawn(run_folder(home, name)) if entry.models))
    for run in trained_further(home, name):
        what = f": what {gone} gave is in it, and it is no longer released" if gone else ""
        yield f"run {run} is trained further from this one's model{what}"
    for folder in sorted((home / "runs").iterdir()):
        with contextlib.suppress(SovfedError, OSError, ValueError):
            made = read_unlearning(folder)
            if made is not None and made.of == name:
                yield f"run {folder.name} makes it anew, without {', '.join(made.withdrawn)}"


def _models_of(home: Path, folder: Path) -> set[str]:
    """The models (SHA-256) that the run in `folder` ended with, as its summary and whoever withdrew have them."""
    with contextlib.suppress(SovfedError, OSError, ValueError):
        made = str((read_summary(home, folder.name) or {}).get(DIGEST, ""))
        return {made, *(model for entry in read_withdrawn(folder) for model in entry.models)} - {""}
    return set()


def _begun_with(home: Path, folder: Path) -> set[str]:
    """The model (SHA-256 of its file) that the run in `folder` begins with, by its order and its summary."""
    with contextlib.suppress(SovfedError, OSError, ValueError):
        proposal = read_order(folder)
        summary = read_summary(home, folder.name) or {}
        ordered = proposal.order.begins.file if proposal is not None else ""
        return {ordered, str(summary.get("started_from_sha256", ""))} - {""}
    return set()
