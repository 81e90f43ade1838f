"""The model of a finished run: written with all that is said of it, and checked against the run's own digest."""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import tempfile
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from sovfed.federation.errors import DataError
from sovfed.federation.messages import OWN

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from sovfed.federation.messages import ReleaseRequest, Sums, Vector
    from sovfed.federation.models.facts import RunFacts
    from sovfed.federation.models.saved import LoadedModel
    from sovfed.federation.tasks import Task
    from sovfed.federation.wire.grids import StreamingGrid

log = logging.getLogger(__name__)
SIMULATED: Final = ("in-memory", "ray")  # transports of a simulation, which has no institutions
MODEL: Final = "model.safetensors"
FILES: Final = (MODEL, "model.json", "model.html")  # as `federation/models/stored.py` names them
TABLE: Final = "table.json"  # of a run that counted or scored, in the place of a model
FOLDER: Final = "model"  # of a run's artefacts in MLflow: these files, and what MLflow needs to load them
SUMMARY: Final = "summary.json"
DIGEST: Final = "model_sha256"  # in the summary
DELIVERY_S: Final = 60.0  # longest wait for institutions to take the model of a run that is over
TRACKED: Final = "mlflow_run_id"  # a file in the run's folder
TAG: Final = "sovfed.sha256"  # of a registered version


def digest(path: Path) -> str:
    """The file's SHA-256, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def publish(folder: Path, task: Task, model: Vector, scale: Sums, summary: dict[str, Any]) -> str:
    """Write the run's model [d] into its folder as `FILES`, with what `summary` says of it; the digest of `MODEL`.

    Of a run that counted, its table as `TABLE`, and that one's digest.
    """
    asked = summary["config"]["task"]
    if asked.get("statistics") or asked.get("candidates"):
        return _publish_table(folder, task, model, scale, summary)
    from sovfed.federation.models.saved import save_model

    run = run_facts(folder.name, summary)
    how = summary["config"]["task"].get("normalisation", OWN)
    return save_model(folder, task, model, scale, run, how, summary.get("intervals"))


def _publish_table(folder: Path, task: Task, sums: Vector, scale: Sums, summary: dict[str, Any]) -> str:
    """Write the table of what the run counted or scored into its folder as `TABLE`; its digest.

    Of a count `sums` are the noised sums and `scale` is [the noise's deviation].

    The table stands in `summary` too.
    """
    from sovfed.federation.files import write_private
    from sovfed.federation.statistics.question import read_question
    from sovfed.federation.statistics.table import table_of
    from sovfed.server.runs.curves import read_rounds

    asked = summary["config"]["task"]["statistics"]
    if asked:
        question, most = read_question(asked, task.schema), summary["privacy"].get("most_counted")
        summary["table"] = table_of(question, sums, float(scale[0]), most=most)
    else:
        told = ("model", "records", "metrics", "intervals", "noise_deviation")
        models = [{name: line[name] for name in told if name in line} for line in read_rounds(folder)]
        summary["table"] = {"models": models, **_compared(task, private=summary.get("epsilon") is not None)}
    content = {
        "run": asdict(run_facts(folder.name, summary)), "task": {"name": task.name, "digest": task.digest},
        "question": asked, "table": summary["table"],
    }  # fmt: skip
    write_private(folder / TABLE, json.dumps(content, indent=1, ensure_ascii=False).encode())
    return digest(folder / TABLE)


def _compared(task: Task, *, private: bool) -> dict[str, Any]:
    """Which metric models are compared by first, and which are better when they are smaller."""
    from sovfed.federation.metrics.bounded import LOSS, bounded_names

    names = bounded_names(task.metrics) if private else task.metrics.names
    smaller = task.metrics.smaller | {LOSS}
    headline = task.headline if not private or task.headline in names else names[0]
    return {"headline": headline, "smaller": sorted(smaller & set(names))}


def run_facts(name: str, summary: dict[str, Any]) -> RunFacts:
    """What may be told of the run called `name`, which `summary` is of."""
    from sovfed.federation.models.facts import Privacy, RunFacts

    privacy = None
    if summary.get("epsilon") is not None:
        privacy = Privacy(summary["privacy"]["mechanism"], summary["epsilon"], summary["delta"])
    return RunFacts(
        name=name[:200], rounds=summary["rounds"], strategy=summary["strategy"],
        date=datetime.now(UTC).date().isoformat(), institutions=tuple(map(str, summary["institutions"])),
        simulated=summary["transport"] in SIMULATED, metrics=dict(summary["metrics"]), privacy=privacy,
        started_from=summary.get("started_from_sha256", ""),
    )  # fmt: skip


def release_of(
    folder: Path,
    task: Task,
    model: Vector,
    scale: Sums,
    *,
    run: str,
    number: int,
    normalisation: str,
    statistics: str = "",
    table: bytes = b"",
) -> ReleaseRequest:
    """The message that brings the model of round `number`, or the table, in `folder` to the institutions of `run`.

    `table` is that as it was signed.
    """
    from sovfed.federation.messages import ReleaseRequest
    from sovfed.federation.models.facts import RunFacts, Told, told
    from sovfed.federation.models.saved import read_facts
    from sovfed.federation.schema import bind

    told_table = bool(statistics or table)
    if told_table:
        facts = told(Told(bind(RunFacts, json.loads((folder / TABLE).read_bytes())["run"])))
    else:
        facts = told(read_facts(folder))
    return ReleaseRequest(
        run=run, round=number, task=task.name, model=model, scale=scale,
        sha256=digest(folder / (TABLE if told_table else MODEL)), facts=np.frombuffer(facts, np.uint8),
        normalisation=normalisation, digest=task.digest, statistics=statistics, table=np.frombuffer(table, np.uint8),
    )  # fmt: skip


def deliver(grid: StreamingGrid, request: ReleaseRequest, timeout_s: float) -> list[str]:
    """Send the model to every institution that is connected; the names of those that say it has arrived, sorted.

    One that refuses, or does not answer in time, is left out with a warning. Raises nothing: the run is over, and no
    institution can make it fail.
    """
    from sovfed.federation.messages import ReleaseReply
    from sovfed.server.rounds.aggregation import ask
    from sovfed.server.rounds.ledger_heads import names_of

    arrived, why = set[int](), dict[int, str]()
    names = dict[int, str]()
    try:
        names = names_of(grid)
        for answer in ask(grid, dict.fromkeys(names, request), ReleaseReply, min(timeout_s, DELIVERY_S)):
            if answer.reply is None:
                why[answer.node_id] = answer.refusal
            else:
                arrived.add(answer.node_id)
    except Exception:
        log.exception("the model could not be sent to every institution")
    for node in sorted(names.keys() - arrived):
        log.warning("%s: has not taken the model: %s", names[node], why.get(node, "no answer in time"))
    return sorted(names[node] for node in arrived)


def read_model(folder: Path) -> LoadedModel:
    """The model of the run in `folder`. Raises DataError unless it is the file that the run made."""
    from sovfed.federation.models.saved import load_model

    summary = json.loads((folder / SUMMARY).read_text())
    return load_model(folder, sha256=str(summary.get(DIGEST)))


def made_by(folder: Path) -> tuple[str, str]:
    """The file that the run in `folder` made, its model or its table, and its SHA-256. Raises DataError if another."""
    summary = json.loads((folder / SUMMARY).read_text())
    if "table" not in summary:
        return MODEL, read_model(folder).sha256
    if not (folder / TABLE).is_file() or digest(folder / TABLE) != summary.get(DIGEST):
        raise DataError(f"{folder / TABLE}: not the table that the run's summary names")
    return TABLE, str(summary[DIGEST])


def check_copies(folder: Path, client: MlflowClient) -> list[str]:
    """What was found of the run's model or table: here, among MLflow's artefacts, in its registry; DataError if other.

    The run's summary says what is right: MLflow's own tags stand in a database that its API writes to.
    """
    from sovfed.federation.models.pyfunc import MLMODEL, check_flavor

    (name, expected), marker = made_by(folder), folder / TRACKED
    results = [f"{folder / name}: SHA-256 {expected}, as the run made it"]
    if not marker.exists():
        return results
    run_id = marker.read_text().strip()
    with tempfile.TemporaryDirectory() as download_folder:
        among = f"{FOLDER}/{name}" if name == MODEL else name
        copy = Path(client.download_artifacts(run_id, among, download_folder))
        if not hmac.compare_digest(copy_digest := digest(copy), expected):
            raise DataError(f"MLflow's copy of {name}: SHA-256 {copy_digest}, the run's summary says {expected}")
        if name == MODEL:
            check_flavor(Path(client.download_artifacts(run_id, f"{FOLDER}/{MLMODEL}", download_folder)))
    results.append(f"MLflow run {run_id}: the same")
    for version in client.search_model_versions(f"run_id='{run_id}'"):
        where = f"{version.name} version {version.version}"
        registered = (version.source, version.tags.get(TAG))
        if registered != (f"{client.get_run(run_id).info.artifact_uri}/{FOLDER}", expected):
            raise DataError(f"MLflow's {where}: source and digest {registered}, the run's summary says {expected}")
        results.append(f"{where}: the same")
    return results
