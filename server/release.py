"""The model of a finished run, checked against the digest that the run wrote down when it ended."""

from __future__ import annotations

import hashlib
import hmac
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy.typing as npt

from sovfed.federation.errors import DataError

if TYPE_CHECKING:
    from mlflow import MlflowClient

MODEL: Final = "model.safetensors"
SUMMARY: Final = "summary.json"
DIGEST: Final = "model_sha256"  # in the summary
TRACKED: Final = "mlflow_run_id"  # a file in the run's folder
TAG: Final = "sovfed.sha256"  # of a registered version


def digest(path: Path) -> str:
    """The file's SHA-256, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_model(folder: Path) -> dict[str, npt.NDArray[Any]]:
    """`model` (shape [d]) and `scale` of the run in `folder`. DataError unless it is the file that the run made."""
    from safetensors.numpy import load

    content = (folder / MODEL).read_bytes()  # read once: what is checked is what is loaded
    expected = str(json.loads((folder / SUMMARY).read_text()).get(DIGEST))
    found = hashlib.sha256(content).hexdigest()
    if not hmac.compare_digest(found, expected):
        raise DataError(f"{folder / MODEL}: SHA-256 {found}, the run's summary says {expected}")
    return dict(load(content))


def check_copies(folder: Path, client: MlflowClient) -> list[str]:
    """What was found of the run's model: here, among MLflow's artefacts and in its registry; DataError if one differs.

    The run's summary says what is right: MLflow's own tags stand in a database that its API writes to.
    """
    read_model(folder)
    summary = json.loads((folder / SUMMARY).read_text())
    expected, marker = str(summary[DIGEST]), folder / TRACKED
    found = [f"{folder / MODEL}: SHA-256 {expected}, as the run made it"]
    if not marker.exists():
        return found
    run_id = marker.read_text().strip()
    with tempfile.TemporaryDirectory() as place:
        copy = Path(client.download_artifacts(run_id, MODEL, place))
        if not hmac.compare_digest(other := digest(copy), expected):
            raise DataError(f"MLflow's copy of {MODEL}: SHA-256 {other}, the run's summary says {expected}")
    found.append(f"MLflow run {run_id}: the same")
    for version in client.search_model_versions(f"run_id='{run_id}'"):
        where = f"{version.name} version {version.version}"
        told = (version.source, version.tags.get(TAG))
        if told != (f"{client.get_run(run_id).info.artifact_uri}/{MODEL}", expected):
            raise DataError(f"MLflow's {where}: source and digest {told}, the run's summary says {expected}")
        found.append(f"{where}: the same")
    return found
