"""MLflow: one parent run per training run, a step per round, curves and model as artefacts, a registered version.

MLflow takes seconds to import and milliseconds per call, so it works on a thread of its own and never holds up a round.
A tracker that fails is reported and the training goes on: `rounds.jsonl` in the run's folder holds the same figures.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sovfed.federation.config import Config, stored
from sovfed.federation.files import write_private
from sovfed.federation.text import conceal
from sovfed.server.runs.release import FILES, FOLDER, MODEL, TAG, TRACKED, digest

if TYPE_CHECKING:
    from mlflow import MlflowClient

log = logging.getLogger(__name__)
PARENT: Final = "mlflow.parentRunId"
CLOSE_TIMEOUT_S: Final = 120.0


def tracking_uri(config: Config, home: Path) -> str:
    """The configured tracking URI, or the agency's own SQLite file."""
    return config.tracking.uri or f"sqlite:///{home / 'mlflow.db'}"


class Tracker:
    """Logs a run; every method returns at once and the work happens in order on the tracker's thread."""

    def __init__(self, config: Config, home: Path, folder: Path, name: str, parent: str = "") -> None:
        """`parent` is the MLflow run that this one is nested in; "": none."""
        self._config, self._home, self._folder, self._name = config, home, folder, name
        self._parent = parent
        self._jobs: queue.Queue[Callable[[], None] | None] = queue.Queue()
        self._client: MlflowClient  # set by `_open`; jobs run only if that went well
        self.run_id = ""
        self._thread = threading.Thread(target=self._work, name="tracker", daemon=True)
        self._thread.start()

    def round(self, step: int, metrics: dict[str, float]) -> None:
        """Log `metrics` of round `step`."""
        self._jobs.put(lambda: self._log_metrics(step, metrics))

    def note(self, tags: dict[str, str]) -> None:
        """Set tags: cohort, lane, versions, outcome."""
        self._jobs.put(lambda: self._set_tags(tags))

    def finish(self, status: str, artefacts: list[Path], register: bool) -> None:
        """Upload `artefacts`, register the model version if asked, end the run and wait until all is written."""
        self._jobs.put(lambda: self._finish(status, artefacts, register))
        self._jobs.put(None)
        self._thread.join(CLOSE_TIMEOUT_S)
        if self._thread.is_alive():
            log.warning(
                "MLflow is still busy after %g s; the run's folder %s holds everything", CLOSE_TIMEOUT_S, self._folder
            )

    def _work(self) -> None:
        usable = self._try(self._open)
        while (job := self._jobs.get()) is not None:
            if usable:
                self._try(job)

    def _try(self, job: Callable[[], None]) -> bool:
        try:
            job()
        except Exception as error:  # tracking must never end a training run
            text = f"{type(error).__name__}: {error}"  # SQLAlchemy and requests name the whole URI
            concealed = conceal(text, self._config.tracking.uri or "")
            log.warning("MLflow tracking failed; the run goes on, its figures are in %s (%s)", self._folder, concealed)
            return False
        return True

    def _open(self) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Param

        logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)  # tells of tables at its first start
        if self._config.tracking.uri is None:
            make_database(self._home / "mlflow.db")
        client = MlflowClient(tracking_uri(self._config, self._home))
        marker = self._folder / TRACKED
        if marker.exists():  # a resumed run goes on in the same MLflow run
            self.run_id = marker.read_text().strip()
            client.update_run(self.run_id, status="RUNNING")
            self._client = client
            return
        tags = {PARENT: self._parent} if self._parent else {}
        run = client.create_run(experiment_id(client, self._config, self._home), run_name=self._name, tags=tags)
        self.run_id = run.info.run_id
        write_private(marker, self.run_id.encode())
        params = [Param(key, str(value)[:500]) for key, value in flatten(stored(self._config)).items()]
        client.log_batch(self.run_id, params=params)
        self._client = client

    def _log_metrics(self, step: int, metrics: dict[str, float]) -> None:
        from mlflow.entities import Metric

        stamp = int(time.time() * 1000)
        self._client.log_batch(
            self.run_id, metrics=[Metric(name, value, stamp, step) for name, value in metrics.items()]
        )

    def _set_tags(self, tags: dict[str, str]) -> None:
        from mlflow.entities import RunTag

        self._client.log_batch(self.run_id, tags=[RunTag(f"sovfed.{name}", value) for name, value in tags.items()])

    def _finish(self, status: str, artefacts: list[Path], register: bool) -> None:
        for path in artefacts:
            if path.exists():
                self._client.log_artifact(self.run_id, str(path), FOLDER if path.name in FILES else None)
                self._client.set_tag(self.run_id, f"{TAG}.{path.name}", digest(path))
        if register:
            self._register()
        self._client.set_terminated(self.run_id, status)

    def _register(self) -> None:
        from mlflow.exceptions import MlflowException

        self._describe_model()
        name = f"sovfed-{self._config.task.name}"
        try:
            self._client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        source = f"{self._client.get_run(self.run_id).info.artifact_uri}/{FOLDER}"
        tags = {TAG: digest(self._folder / MODEL)}
        self._client.create_model_version(name, source, run_id=self.run_id, tags=tags)

    def _describe_model(self) -> None:
        """Put beside the model's files what `mlflow.pyfunc.load_model` needs; a task without a model has none."""
        from sovfed.federation.models.pyfunc import write_flavor
        from sovfed.federation.models.saved import load_model

        model = load_model(self._folder)
        if model.network is None:
            return
        with tempfile.TemporaryDirectory() as folder:
            for path in write_flavor(Path(folder), model, self.run_id, FOLDER):
                self._client.log_artifact(self.run_id, str(path), FOLDER)


def make_database(path: Path) -> None:
    """Make MLflow's SQLite file if it is not there, whole or not at all: one half made is refused ever after."""
    if path.exists():
        return
    from mlflow import MlflowClient

    draft = path.with_name(f"{path.name}.{os.getpid()}.new")
    MlflowClient(f"sqlite:///{draft}")
    try:
        os.link(draft, path)
    except FileExistsError:  # another run was quicker
        pass
    finally:
        draft.unlink()


def experiment_id(client: MlflowClient, config: Config, home: Path) -> str:
    """The id of the configured experiment, which is made if it is not there."""
    name = config.tracking.experiment
    experiment = client.get_experiment_by_name(name)
    if experiment is not None:
        return str(experiment.experiment_id)
    root = None if config.tracking.uri else (home / "mlartifacts").as_uri()
    return client.create_experiment(name, artifact_location=root)


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted keys to leaves; lists become JSON text."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = json.dumps(value) if isinstance(value, (list, tuple)) else value
    return flat
