"""The model of a finished run: written with all that is said of it, and checked against the run's own digest."""

from __future__ import annotations

import hashlib
import hmac
import json
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sovfed.federation.errors import DataError
from sovfed.federation.messages import OWN

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from sovfed.federation.messages import Sums, Vector
    from sovfed.federation.models.saved import LoadedModel
    from sovfed.federation.tasks import Task

MODEL: Final = "model.safetensors"
FILES: Final = (MODEL, "model.json", "model.html")  # as `federation/models/stored.py` names them
FOLDER: Final = "model"  # of a run's artefacts in MLflow: these files, and what MLflow needs to load them
SUMMARY: Final = "summary.json"
DIGEST: Final = "model_sha256"  # in the summary
TRACKED: Final = "mlflow_run_id"  # a file in the run's folder
TAG: Final = "sovfed.sha256"  # of a registered version


def digest(path: Path) -> str:
    """The file's SHA-256, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def publish(folder: Path, task: Task, model: Vector, scale: Sums, summary: dict[str, Any]) -> str:
    """Write the run's model [d] into its folder as `FILES`, with what `summary` says of it; the digest of `MODEL`."""
    from sovfed.federation.models.facts import Privacy, RunFacts
    from sovfed.federation.models.saved import save_model

    privacy = None
    if summary.get("epsilon") is not None:
        privacy = Privacy(summary["privacy"]["mechanism"], summary["epsilon"], summary["delta"])
    run = RunFacts(
        name=folder.name[:200], rounds=summary["rounds"], strategy=summary["strategy"],
        date=datetime.now(UTC).date().isoformat(), institutions=tuple(map(str, summary["institutions"])),
        simulated=summary["transport"] == "in-memory", metrics=dict(summary["metrics"]), privacy=privacy,
    )  # fmt: skip
    return save_model(folder, task, model, scale, run, summary["config"]["task"].get("normalisation", OWN))


def read_model(folder: Path) -> LoadedModel:
    """The model of the run in `folder`. Raises DataError unless it is the file that the run made."""
    from sovfed.federation.models.saved import load_model

    said = json.loads((folder / SUMMARY).read_text())
    return load_model(folder, sha256=str(said.get(DIGEST)))


def check_copies(folder: Path, client: MlflowClient) -> list[str]:
    """What was found of the run's model: here, among MLflow's artefacts and in its registry; DataError if one differs.

    The run's summary says what is right: MLflow's own tags stand in a database that its API writes to.
    """
    from sovfed.federation.models.pyfunc import MLMODEL, check_flavor

    expected, marker = read_model(folder).sha256, folder / TRACKED
    found = [f"{folder / MODEL}: SHA-256 {expected}, as the run made it"]
    if not marker.exists():
        return found
    run_id = marker.read_text().strip()
    with tempfile.TemporaryDirectory() as place:
        copy = Path(client.download_artifacts(run_id, f"{FOLDER}/{MODEL}", place))
        if not hmac.compare_digest(other := digest(copy), expected):
            raise DataError(f"MLflow's copy of {MODEL}: SHA-256 {other}, the run's summary says {expected}")
        check_flavor(Path(client.download_artifacts(run_id, f"{FOLDER}/{MLMODEL}", place)))
    found.append(f"MLflow run {run_id}: the same")
    for version in client.search_model_versions(f"run_id='{run_id}'"):
        where = f"{version.name} version {version.version}"
        told = (version.source, version.tags.get(TAG))
        if told != (f"{client.get_run(run_id).info.artifact_uri}/{FOLDER}", expected):
            raise DataError(f"MLflow's {where}: source and digest {told}, the run's summary says {expected}")
        found.append(f"{where}: the same")
    return found
