"""What candidates of an evaluation are worth on the own held-out records: kept here, and told to nobody else."""

from __future__ import annotations

import hashlib
import json
import logging
from typing import TYPE_CHECKING, Any, Final

from sovfed.federation.errors import DataError
from sovfed.federation.files import private_directory, write_private
from sovfed.federation.messages import EvaluateRequest
from sovfed.federation.secagg.request import whole_run
from sovfed.federation.tasks import summarise

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from sovfed.clients.models.received import ReceivedModels
    from sovfed.federation.messages import PrivateRequest, Sums
    from sovfed.federation.tasks import Task

log = logging.getLogger(__name__)
SUFFIX: Final = ".scores.json"
MAX_RUNS: Final = 256
MAX_BYTES: Final = 1 << 20


def keep_score(
    received: ReceivedModels | None, request: EvaluateRequest | PrivateRequest, task: Task, sums: Sums
) -> None:
    """Keep the own metrics of the candidate in `request`, or say in the own log why not."""
    if received is None:  # a simulation
        return
    try:
        _keep(received, request, task, sums)
    except Exception as error:  # whatever a package's own metrics raise: the sums leave whether or not they are kept
        log.warning("own scores of run %r are not kept: %s", _name(request), error)


def _name(request: EvaluateRequest | PrivateRequest) -> str:
    """The run's own name."""
    return request.keep if isinstance(request, EvaluateRequest) else request.grant


def _keep(received: ReceivedModels, request: EvaluateRequest | PrivateRequest, task: Task, sums: Sums) -> None:
    """Raises DataError where the file is damaged, OSError where it cannot be written."""
    digest = request.candidates.split(",")[request.round - 1]
    name = _name(request)
    path = scores_of(received.folder, name, whole_run(request.run))
    private_directory(received.folder)
    kept: dict[str, Any] = _read(path) if path.exists() else {"run": name, "task": task.name, "models": {}}
    if not path.exists() and len(list(received.folder.glob(f"*{SUFFIX}"))) >= MAX_RUNS:
        log.warning("own scores of run %r are not kept: there are %d runs' in %s", name, MAX_RUNS, path.parent)
        return
    kept["models"][digest] = {"records": int(sums[0]), **summarise(task, sums, request.scale)}
    write_private(path, json.dumps(kept).encode())


def scores_of(folder: Path, name: str, run: str) -> Path:
    """Where the own scores of the run called `name` are kept; `run` is Flower's number of it."""
    key = hashlib.sha256(f"{name}\0{run}".encode()).hexdigest()[:24]
    return folder / f"{key}{SUFFIX}"


def scores_in(folder: Path) -> Sequence[dict[str, Any]]:
    """The own scores by run, the newest first. Raises DataError naming what was damaged."""
    paths = sorted(folder.glob(f"*{SUFFIX}"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
    return [_read(path) for path in paths]


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            values = json.loads(file.read(MAX_BYTES))
        return {"run": str(values["run"]), "task": str(values["task"]), "models": dict(values["models"])}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{path}: no scores that were kept here") from error
