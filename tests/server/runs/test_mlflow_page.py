"""MLflow's page answers who has the password, takes no upload, and a model that was changed is noticed."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from safetensors.numpy import save
from tests.server.agency import free_port, process, wait_until

from sovfed.federation.compose import compose
from sovfed.federation.errors import DataError
from sovfed.federation.files import private_directory, write_private
from sovfed.federation.tasks.registry import get_task
from sovfed.federation.wire.loopback import behind_password
from sovfed.server.runs.mlflow_page import PASSWORD, USER
from sovfed.server.runs.release import DIGEST, FILES, FOLDER, MODEL, SUMMARY, check_copies, publish, read_model
from sovfed.server.runs.tracking import Tracker, tracking_uri

CONFIG = compose([]).config
TASK = get_task(CONFIG.task.name)
VECTOR = np.linspace(-1, 1, TASK.parameters, dtype=np.float32)
SAID: dict[str, Any] = {
    "rounds": 1, "strategy": "fedavg", "institutions": ["north", "south"], "transport": "stream",
    "metrics": {"auc": 0.5}, "epsilon": 2.0, "delta": 1e-6, "privacy": {"mechanism": "distributed"},
    "config": {"task": {"normalisation": "own"}},
}  # fmt: skip
UPLOAD = "/api/2.0/mlflow-artifacts/artifacts/{run}/artifacts/model/model.safetensors"
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")  # MLflow's own


@dataclass(frozen=True)
class Finished:
    """An agency's home with one tracked and registered run."""

    home: Path
    folder: Path
    run_id: str


def finish_run(home: Path) -> Finished:
    folder = private_directory(private_directory(home) / "runs" / "study")
    found = publish(folder, TASK, VECTOR, TASK.transform.public_scale, SAID)
    tracker = Tracker(CONFIG, home, folder, "study")
    tracker.note({"transport": "stream"})
    tracker.round(1, {"loss": 0.5})
    tracker.finish("FINISHED", [folder / name for name in FILES], register=True)
    write_private(folder / SUMMARY, json.dumps({DIGEST: found}).encode())
    return Finished(home, folder, tracker.run_id)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Finished, str]]:
    """The finished run and the address of the page over it, a real process."""
    finished, port = finish_run(tmp_path_factory.mktemp("page") / "agency"), free_port()
    argv = [sys.executable, "-m", "sovfed.server.runs.mlflow_page", "--home", str(finished.home), "--port", str(port)]
    log = finished.home / "page.log"
    with process(argv, finished.home, log) as child:
        address = f"http://127.0.0.1:{port}"

        def answers() -> bool:
            try:
                return httpx.get(f"{address}/health", trust_env=False).status_code == 401
            except httpx.TransportError:
                assert child.poll() is None, log.read_text()
                return False

        wait_until(answers, 90, "the page")
        yield finished, address


@pytest.fixture
def operator(page: tuple[Finished, str]) -> Iterator[httpx.Client]:
    finished, address = page
    assert (finished.home / PASSWORD).stat().st_mode & 0o777 == 0o600
    login = (USER, (finished.home / PASSWORD).read_text())
    with httpx.Client(base_url=address, auth=login, trust_env=False, timeout=30) as client:
        yield client


@pytest.mark.parametrize("login", [None, ("agency", ""), ("admin", "password1234"), ("agency", "0" * 64)])
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/"),
        ("GET", "/health"),
        ("GET", "/version"),
        ("GET", "/api/2.0/mlflow/experiments/search?max_results=5"),
        ("POST", "/api/2.0/mlflow/runs/delete"),
        ("POST", "/ajax-api/2.0/mlflow/registered-models/create"),
        ("PUT", UPLOAD),
        ("GET", "/get-artifact?path=model/model.safetensors&run_uuid={run}"),
        ("POST", "/v1/traces"),
        ("POST", "/graphql"),
        ("POST", "/gateway/x/mlflow/invocations"),
        ("GET", "/ajax-api/3.0/mlflow/assistant/config"),
        ("GET", "/signup"),
    ],
)
def test_a_local_user_gets_nothing(
    page: tuple[Finished, str], method: str, path: str, login: tuple[str, str] | None
) -> None:
    finished, address = page
    url = address + path.format(run=finished.run_id)
    response = httpx.request(method, url, auth=login, content=b"{}", trust_env=False, timeout=30)
    assert (response.status_code, response.text) == (401, "The password is in the home's secrets.\n")
    assert "www-authenticate" in response.headers


def test_the_operator_sees_runs_and_models(page: tuple[Finished, str], operator: httpx.Client) -> None:
    finished, _ = page
    found = operator.get("/api/2.0/mlflow/runs/get", params={"run_id": finished.run_id}).json()
    assert found["run"]["info"]["status"] == "FINISHED"
    shown = operator.get("/get-artifact", params={"path": f"{FOLDER}/{MODEL}", "run_uuid": finished.run_id})
    assert (shown.status_code, shown.content) == (200, (finished.folder / MODEL).read_bytes())
    assert operator.get("/").status_code == 200


def test_nobody_uploads_over_a_model(page: tuple[Finished, str], operator: httpx.Client) -> None:
    """Seen: PUT answered 200 and the registered model's hash was another."""
    finished, _ = page
    answered = operator.put(UPLOAD.format(run=finished.run_id), content=b"evil")
    assert answered.status_code >= 400
    from mlflow import MlflowClient

    assert len(check_copies(finished.folder, MlflowClient(tracking_uri(CONFIG, finished.home)))) == 3


def test_a_websocket_is_closed_and_two_headers_are_not_one() -> None:
    import asyncio

    sent: list[dict[str, object]] = []

    async def app(*_: object) -> None:
        sent.append({"type": "reached"})

    async def send(message: object) -> None:
        sent.append(message)  # type: ignore[arg-type]

    async def receive() -> dict[str, object]:
        return {}

    guarded = behind_password(app, USER, "right")

    async def ask(scope: dict[str, Any]) -> None:
        await guarded(scope, receive, send)

    right = (b"authorization", b"Basic YWdlbmN5OnJpZ2h0")
    refused: list[dict[str, Any]] = [
        {"type": "websocket", "headers": [right]},
        {"type": "http", "headers": [(b"authorization", b"Basic x"), right]},
        {"type": "http", "headers": [(b"authorization", b"Basic YWdlbmN5Ondyb25n")]},
        {"type": "http", "headers": []},
    ]
    for scope in refused:
        asyncio.run(ask(scope))
    assert [one["type"] for one in sent if "status" in one or one["type"] != "http.response.body"] == [
        "websocket.close", "http.response.start", "http.response.start", "http.response.start",
    ]  # fmt: skip
    asyncio.run(ask({"type": "http", "headers": [right]}))
    assert sent[-1] == {"type": "reached"}


def test_a_model_that_was_changed_is_not_loaded(tmp_path: Path) -> None:
    from mlflow import MlflowClient

    finished = finish_run(tmp_path / "agency")
    client = MlflowClient(tracking_uri(CONFIG, finished.home))
    right = (finished.folder / MODEL).read_bytes()
    assert read_model(finished.folder).vector.tolist() == VECTOR.tolist()
    assert [line.rpartition(":")[2].strip() for line in check_copies(finished.folder, client)][1:] == ["the same"] * 2
    evil = save({"model": np.zeros(5, np.float32), "scale": np.ones(4)})
    write_private(finished.folder / MODEL, evil)
    with pytest.raises(DataError, match="SHA-256"):
        read_model(finished.folder)
    write_private(finished.folder / MODEL, right)
    (copy,) = (finished.home / "mlartifacts").rglob(MODEL)
    copy.write_bytes(evil)
    with pytest.raises(DataError, match="MLflow's copy"):
        check_copies(finished.folder, client)
    copy.write_bytes(right)
    name = f"sovfed-{CONFIG.task.name}"
    client.create_model_version(name, "file:///tmp/evil.pkl", run_id=finished.run_id)
    with pytest.raises(DataError, match="version 2"):
        check_copies(finished.folder, client)
    client.delete_model_version(name, "2")
    client.set_model_version_tag(name, "1", "sovfed.sha256", "0" * 64)
    with pytest.raises(DataError, match="version 1"):
        check_copies(finished.folder, client)
    (described,) = (finished.home / "mlartifacts").rglob("MLmodel")
    described.write_text(described.read_text().replace("sovfed.federation.models.pyfunc", "mlflow.sklearn"))
    with pytest.raises(DataError, match="another module"):
        check_copies(finished.folder, client)


@pytest.mark.filterwarnings("ignore:.*Any type hint:UserWarning")  # MLflow's own
def test_the_registered_version_is_loaded_by_mlflow_and_predicts(page: tuple[Finished, str]) -> None:
    import mlflow
    import pandas

    finished, _ = page
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(tracking_uri(CONFIG, finished.home))
    try:
        model = mlflow.pyfunc.load_model(f"models:/sovfed-{CONFIG.task.name}/1")
    finally:
        mlflow.set_tracking_uri(before)
    frame = model.input_example
    assert isinstance(frame, pandas.DataFrame) and list(frame) == [column.name for column in TASK.schema.inputs]
    found = model.predict(frame)
    rows = {name: frame[name].tolist() for name in frame}
    expected = read_model(finished.folder).predict_rows(rows)
    names = ["malignant", "probability_benign", "probability_malignant"]
    assert list(found) == names == model.metadata.signature.outputs.input_names()
    assert found["probability_malignant"].tolist() == expected["probability_malignant"].tolist()
