"""MLflow: one parent run per training run, a step per round, curves and model as artefacts, a registered version.

MLflow takes seconds to import and milliseconds per call, so it works on a thread of its own and never holds up a round.
A tracker that fails is reported and the training goes on: `rounds.jsonl` in the run's folder holds the same figures.
"""

from __future__ import annotations

import json
import logging
import math
import os
import queue
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sovfed.federation.config import Config, stored
from sovfed.federation.errors import DataError, ServiceError
from sovfed.federation.files import write_private
from sovfed.federation.text import ARCHIVE, conceal, visible
from sovfed.server.runs.curves import read_rounds
from sovfed.server.runs.folders import UNSENT, run_folder, stored_config
from sovfed.server.runs.release import FILES, FOLDER, MODEL, TAG, TRACKED, digest

if TYPE_CHECKING:
    from mlflow import MlflowClient

log = logging.getLogger(__name__)
PARENT: Final = "mlflow.parentRunId"
CLOSE_TIMEOUT_S: Final = 120.0  # for artefacts; a server that is known to be away is not waited for
TOGETHER_S: Final = 1.0  # rounds of so long are logged in one call
MOST_POINTS: Final = 1_000  # that MLflow takes in one
DATABASE: Final = "mlflow.db"  # in the agency's home, where no tracking server is configured
RETRY_S: Final = 30.0  # between two tries to reach a server that is away
CANDIDATE: Final = "candidate"  # MLflow's alias of the newest model of a task that a run ended with
APPROVED: Final = "approved"  # and of the newest that was released
EVERY_ROUND: Final = "seconds"  # a figure that each round has


def tracking_uri(config: Config, home: Path) -> str:
    """The configured tracking URI, or the agency's own SQLite file."""
    return config.tracking.uri or f"sqlite:///{home / DATABASE}"


class Tracker:
    """Logs a run; every method returns at once and the work happens in order on the tracker's thread.

    What a server that is away misses stands in the run's `rounds.jsonl`, and is sent when it is there again.
    """

    def __init__(self, config: Config, home: Path, folder: Path, name: str, parent: str = "") -> None:
        """`parent` is the MLflow run that this one is nested in; "": none."""
        self._config, self._home, self._folder, self._name = config, home, folder, name
        self._parent = parent
        self._jobs: queue.Queue[Callable[[], None] | None] = queue.Queue()
        self._client: MlflowClient | None = None  # None: to be opened, not before `_retry_at`
        self._retry_at = 0.0
        self._steps, self._tags = set[int](), dict[str, str]()  # rounds that MLflow has, tags that it must have
        self._waiting = deque[tuple[int, dict[str, float]]]()  # rounds that are to be logged
        self._logged_at, self._hurry = -math.inf, threading.Event()
        self._last = 0.0  # round up to which `rounds.jsonl` stays as it is
        self._finished = False
        self.run_id = ""
        self._thread = threading.Thread(target=self._work, name="tracker", daemon=True)
        self._thread.start()

    def round(self, step: int, metrics: dict[str, float]) -> None:
        """Log `metrics` of round `step`, which is not run again."""
        self._last = max(self._last, step)
        self._waiting.append((step, metrics))
        self._jobs.put(self._log_waiting)

    def catch_up(self, last: float = math.inf) -> None:
        """Log what MLflow lacks of the rounds up to `last`, none of which is run again; all of them by default."""
        self._last = max(self._last, last)
        self._jobs.put(self._send_rounds)

    def note(self, tags: dict[str, str]) -> None:
        """Set tags: cohort, lane, versions, outcome."""
        self._tags |= {f"sovfed.{name}": value for name, value in tags.items()}
        self._jobs.put(self._set_tags)

    def finish(self, status: str, artefacts: list[Path], register: bool) -> None:
        """Upload `artefacts`, register the model version if asked, end the run; returns when all is written.

        Where that cannot be done now, the run's folder keeps what is to be done, for `send`.
        """
        unsent = {"status": status, "artefacts": [path.name for path in artefacts], "register": register}
        try:
            write_private(self._folder / UNSENT, json.dumps(unsent).encode())  # first: this process may be killed
        except OSError as error:  # as all of tracking, nothing that a run may fail of
            log.warning("what MLflow lacks cannot be noted down: %s", error)
        self._jobs.put(lambda: self._finish(status, artefacts, register))
        self._jobs.put(None)
        self._hurry.set()
        self._thread.join(CLOSE_TIMEOUT_S)
        if self._finished:
            (self._folder / UNSENT).unlink(missing_ok=True)
            return
        log.warning("MLflow has not got all of the run; %s holds everything, and it is sent later", self._folder)

    def _work(self) -> None:
        self._try(self._open)
        while (job := self._jobs.get()) is not None:
            if self._client is None and time.monotonic() >= self._retry_at:
                self._try(self._open)
            if self._client is not None:
                self._try(job)

    def _try(self, job: Callable[[], None]) -> None:
        try:
            job()
        except Exception as error:  # tracking must never end a training run
            self._client, self._retry_at = None, time.monotonic() + RETRY_S
            text = f"{type(error).__name__}: {error}"  # SQLAlchemy and requests name the whole URI
            concealed = conceal(text, self._config.tracking.uri or "")
            log.warning("MLflow tracking failed; the run goes on, its figures are in %s (%s)", self._folder, concealed)

    def _open(self) -> None:
        """Find or make the run in MLflow, and bring it up to what the run's folder says."""
        from mlflow import MlflowClient

        logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)  # tells of tables at its first start
        if self._config.tracking.uri is None:
            make_database(self._home / DATABASE)
        client = MlflowClient(tracking_uri(self._config, self._home))
        marker = self._folder / TRACKED
        if marker.exists():  # a resumed run goes on in the same MLflow run
            self.run_id = marker.read_text().strip()
            client.update_run(self.run_id, status="RUNNING")
            self._steps = {point.step for point in client.get_metric_history(self.run_id, EVERY_ROUND)}
        else:
            self._create(client, marker)
        self._client = client
        self._send_rounds()
        self._set_tags()

    def _send_rounds(self) -> None:
        lines = (line for line in read_rounds(self._folder) if line["round"] <= self._last)
        rounds = deque((line["round"], figures(line)) for line in lines if line["round"] not in self._steps)
        while rounds:
            self._log_first(rounds)

    def _create(self, client: MlflowClient, marker: Path) -> None:
        from mlflow.entities import Param

        tags = {PARENT: self._parent} if self._parent else {}
        run = client.create_run(experiment_id(client, self._config, self._home), run_name=self._name, tags=tags)
        self.run_id = run.info.run_id
        write_private(marker, self.run_id.encode())
        params = [Param(key, str(value)[:500]) for key, value in flatten(stored(self._config)).items()]
        client.log_batch(self.run_id, params=params)

    def _log_waiting(self) -> None:
        """Log all rounds that wait, together: a call costs as much of the interpreter's lock as a short round has."""
        if self._waiting:
            self._hurry.wait(max(0.0, self._logged_at + TOGETHER_S - time.monotonic()))
        while self._waiting:
            self._log_first(self._waiting)
        self._logged_at = time.monotonic()

    def _log_first(self, waiting: deque[tuple[int, dict[str, float]]]) -> None:
        """Log as many of those that wait as a call takes; they wait no more."""
        rounds, points = list[tuple[int, dict[str, float]]](), 0
        for step, metrics in list(waiting):
            if rounds and points + len(metrics) > MOST_POINTS:
                break
            rounds.append((step, metrics))
            points += len(metrics)
        self._log_metrics(rounds)
        for _ in rounds:
            waiting.popleft()

    def _log_metrics(self, rounds: Sequence[tuple[int, dict[str, float]]]) -> None:
        from mlflow.entities import Metric

        lacking = [(step, metrics) for step, metrics in rounds if step not in self._steps]
        stamp = int(time.time() * 1000)
        points = [Metric(name, value, stamp, step) for step, metrics in lacking for name, value in metrics.items()]
        if points:
            self._opened.log_batch(self.run_id, metrics=points)
        self._steps.update(step for step, _ in lacking)

    def _set_tags(self) -> None:
        from mlflow.entities import RunTag

        self._opened.log_batch(self.run_id, tags=[RunTag(name, value) for name, value in self._tags.items()])

    @property
    def _opened(self) -> MlflowClient:
        if self._client is None:
            raise ServiceError("MLflow is not open")
        return self._client

    def _finish(self, status: str, artefacts: list[Path], register: bool) -> None:
        client = self._opened
        for path in artefacts:
            if path.exists():
                client.log_artifact(self.run_id, str(path), FOLDER if path.name in FILES else None)
                client.set_tag(self.run_id, f"{TAG}.{path.name}", digest(path))
        if register:
            self._register()
        client.set_terminated(self.run_id, status)
        self._finished = True

    def _register(self) -> None:
        from mlflow.exceptions import MlflowException

        self._describe_model()
        name = f"sovfed-{self._config.task.name}"
        try:
            self._opened.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        if made := self._opened.search_model_versions(f"run_id = '{self.run_id}'"):  # an earlier try came that far
            self._opened.set_registered_model_alias(name, CANDIDATE, str(made[0].version))
            return
        source = f"{self._opened.get_run(self.run_id).info.artifact_uri}/{FOLDER}"
        tags = {TAG: digest(self._folder / MODEL)}
        about = how_to_load(self._config, self._folder.name)
        version = self._opened.create_model_version(name, source, run_id=self.run_id, tags=tags, description=about)
        self._opened.set_registered_model_alias(name, CANDIDATE, str(version.version))

    def _describe_model(self) -> None:
        """Put beside the model's files what `mlflow.pyfunc.load_model` needs; a task without a model has none."""
        from sovfed.federation.models.pyfunc import write_flavor
        from sovfed.federation.models.saved import load_model

        model = load_model(self._folder)
        if model.network is None:
            return
        with tempfile.TemporaryDirectory() as folder:
            for path in write_flavor(Path(folder), model, self.run_id, FOLDER):
                self._opened.log_artifact(self.run_id, str(path), FOLDER)


def send(config: Config, home: Path, folder: Path) -> bool:
    """Send MLflow what it lacks of the ended run in `folder`; whether it has all of it now."""
    unsent = json.loads((folder / UNSENT).read_bytes())
    if unsent["register"]:  # for which the model is loaded, and so its task's code
        from sovfed.federation.tasks.registry import configured_task
        from sovfed.server.own_tasks import require_reviewed

        require_reviewed(home, config)
        configured_task(config.task)
    tracker = Tracker(config, home, folder, folder.name)
    tracker.catch_up()
    tracker.finish(unsent["status"], [folder / name for name in unsent["artefacts"]], unsent["register"])
    return not (folder / UNSENT).exists()


def approve(home: Path, run: str) -> list[str]:
    """Give MLflow's version of the run's model the alias `APPROVED`, for it is released; lines about what was not done.

    The release is made by then: an MLflow that is away changes nothing of it. Raises DataError if MLflow's version is
    of another model.
    """
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    folder, config = run_folder(home, run), stored_config(home, run)
    if not (folder / TRACKED).exists():
        return [f"MLflow has nothing of this run, so no version of its model is called '{APPROVED}' there"]
    try:
        client = MlflowClient(tracking_uri(config, home))
        versions = client.search_model_versions(f"run_id = '{(folder / TRACKED).read_text().strip()}'")
        for version in versions:
            if version.tags.get(TAG) != digest(folder / MODEL):
                raise DataError(f"MLflow's version {version.version} of {version.name} is of another model")
            client.set_registered_model_alias(version.name, APPROVED, str(version.version))
    except (MlflowException, OSError) as error:
        why = visible(conceal(str(error).partition("\n")[0], config.tracking.uri or ""))
        return [f"MLflow does not answer, so no version of this model is called '{APPROVED}' there: {why}"]
    return [] if versions else [f"MLflow has no version of this model, so none is called '{APPROVED}' there"]


def how_to_load(config: Config, run: str) -> str | None:
    """What a registered version says of itself where `mlflow.pyfunc.load_model` alone does not do; else None."""
    if config.task.file is None or not config.task.file.endswith(ARCHIVE):
        return None
    return (
        f"Task '{config.task.name}' is code of an archive. `sovfed model predict {run} TABLE` at the agency, elsewhere "
        "with --task ARCHIVE, runs it in a sealed process. mlflow.pyfunc would import it into its own: it loads this "
        "version only after `sovfed.task.add_archive(ARCHIVE)` in the same process, of the run's own archive."
    )


def figures(line: dict[str, Any]) -> dict[str, float]:
    """The numbers of a round of `rounds.jsonl`, by the names that MLflow has them under."""
    numbers = {key: float(value) for key, value in line.items() if isinstance(value, (int, float)) and key != "round"}
    counts = {key: float(len(line.get(key, ()))) for key in ("participants", "refused", "late", "left_out")}
    return {**numbers, **counts, **line["metrics"]}


def make_database(path: Path) -> None:
    """Make MLflow's SQLite file if it is not there, whole or not at all: one half made is refused ever after."""
    if path.exists():
        return
    from mlflow import MlflowClient

    for left in path.parent.glob(f"{path.name}.*.new"):  # by a process that was killed in the middle
        if not Path("/proc", left.name.split(".")[-2]).exists():
            left.unlink(missing_ok=True)
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
