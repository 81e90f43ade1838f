"""Nodes and runs through the real superlink, with our executor and a small coordinator process."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from flwr.proto.fleet_pb2 import ActivateNodeRequest
from flwr.proto.node_pb2 import Node
from tests.server.agency import (
    Authority,
    Institution,
    free_port,
    make_home,
    make_institution,
    network_client,
    post,
    server_config,
    superlink,
    wait_until,
)

from sovfed.federation.compose import compose
from sovfed.federation.config import ServerConfig
from sovfed.federation.errors import ConfigError, ServiceError
from sovfed.server.runs import folders, spare
from sovfed.server.runs.control import MAX_SPEC_BYTES, ControlClient, build_bundle, log_path
from sovfed.server.runs.executor import Executor
from sovfed.server.runs.serverapp_runner import FAILED

COORDINATOR = Path(__file__).with_name("sample_coordinator.py")
pytestmark = pytest.mark.deploy


@contextlib.contextmanager
def executor(home: Path, port: int, spare: Sequence[str] = ()) -> Iterator[Executor]:
    command = [sys.executable, str(COORDINATOR), "--home", str(home), "--port", str(port)]
    worker = Executor(home, port, command, spare=spare)
    thread = threading.Thread(target=worker.work)
    thread.start()
    try:
        yield worker
    finally:
        worker.stop()
        thread.join(30)


class Agency:
    """A running superlink that can be killed and started again, its executor and a control client."""

    institution: Institution

    def __init__(self, home: Path, config: ServerConfig, stack: contextlib.ExitStack) -> None:
        self.home, self.config = home, config
        self._stack = stack
        self.process, self.control = self.start()
        stack.enter_context(executor(home, config.control_port))

    def start(self) -> tuple[subprocess.Popen[bytes], ControlClient]:
        return self._stack.enter_context(superlink(self.home, self.config))

    def ended(self, run_id: int, timeout_s: float = 40.0) -> str:
        wait_until(lambda: self.control.get_run(run_id).finished, timeout_s, f"the end of run {run_id}")
        return self.control.get_run(run_id).status

    def log(self, run_id: int) -> str:
        path = log_path(self.home, run_id)
        return path.read_text() if path.exists() else ""


@pytest.fixture(scope="module")
def agency(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agency]:
    authority, folder = Authority(), tmp_path_factory.mktemp("control")
    home = make_home(authority, folder / "agency")
    with contextlib.ExitStack() as stack:
        agency = Agency(home, server_config(home), stack)
        agency.institution = make_institution(authority, folder / "hospital-1", "hospital-1")
        yield agency


def test_a_node_is_registered_listed_and_forgotten(agency: Agency, tmp_path: Path) -> None:
    hospital = make_institution(Authority(), tmp_path / "hospital", "hospital-1")
    node_id = agency.control.register_node(hospital.public_key, "hospital-1")
    (node,) = [node for node in agency.control.list_nodes() if node.node_id == node_id]
    assert (node.name, node.status, node.public_key) == ("hospital-1", "registered", hospital.public_key)
    with pytest.raises(ServiceError, match="already in use"):
        agency.control.register_node(hospital.public_key, "hospital-1")
    agency.control.unregister_node(node_id)
    assert node_id not in [node.node_id for node in agency.control.list_nodes() if node.status != "unregistered"]


def test_a_run_gets_what_it_carries_and_completes(agency: Agency) -> None:
    spec = {"do": "count", "filler": "x" * (MAX_SPEC_BYTES - 100)}
    run_id = agency.control.start_run(spec)
    assert agency.ended(run_id) == "finished:completed"
    assert "config of 4" in agency.log(run_id)
    assert agency.control.get_run(run_id).config == spec
    assert agency.control.is_over(run_id) and agency.control.is_over(run_id ^ 1)  # one that Flower's database has lost


@pytest.mark.parametrize("value", ["/home/agency", "sqlite:///x", "user:pw@host", "a b", "", {"a": "b"}, ["a"], None])
def test_a_path_an_address_or_a_group_never_travels(agency: Agency, value: object) -> None:
    with pytest.raises(ConfigError, match="travels to institutions"):
        agency.control.start_run({"name": "a-run", "config": value})


def test_more_than_names_is_refused(agency: Agency) -> None:
    with pytest.raises(ConfigError, match="at most 512"):
        agency.control.start_run({"filler": "x" * MAX_SPEC_BYTES})


def test_what_an_institution_reads_of_a_run_is_its_name(agency: Agency) -> None:
    """Flower hands a run's whole override_config to every SuperNode that asks."""
    from flwr.proto.run_pb2 import GetRunRequest, GetRunResponse

    overrides = ["tracking.uri=postgresql://mlflow:s3cret-pw@db.agency.internal/mlflow?password=more-s3cret"]
    config = compose([*overrides, "data.path=/srv/agency/secret", "server.fleet_port=21443"]).config
    run_id = folders.start_run(agency.control, agency.home, "study-1", config, resume=False)
    wait_until(lambda: "config of" in agency.log(run_id), what="the coordinator's start")
    hospital = agency.institution
    node_id = agency.control.register_node(hospital.public_key, "hospital-1")
    with network_client(agency.config.fleet_port, hospital.folder) as client:
        request = ActivateNodeRequest(public_key=hospital.public_key, heartbeat_interval=30)
        assert post(client, "/v1/fleet/activate-node", request, hospital.headers()).status_code == 200
        asked = GetRunRequest(node=Node(node_id=node_id), run_id=run_id)
        answer = post(client, "/v1/fleet/get-run", asked, hospital.headers())
    folders.stop_run(agency.control, agency.home, "study-1")  # or it would be taken up again
    assert answer.status_code == 200
    run = GetRunResponse.FromString(answer.content).run
    assert json.loads(run.override_config["sovfed"].string) == {"name": "study-1", "resume": False}
    assert set(run.override_config) == {"sovfed"}
    for secret in (b"s3cret", b"mlflow", b"agency", b"21443", str(agency.home).encode(), b"/srv"):
        assert secret not in answer.content
    assert folders.stored_config(agency.home, "study-1", run_id) == config  # the coordinator has it whole
    with pytest.raises(ConfigError, match=f"as Flower's run {run_id}, not 7"):
        folders.stored_config(agency.home, "study-1", 7)
    holding = [path for path in agency.home.rglob("*") if path.is_file() and b"s3cret" in path.read_bytes()]
    assert holding == [agency.home / "runs" / "study-1" / "tracking.uri"]
    assert holding[0].stat().st_mode & 0o077 == 0


def test_a_failure_is_reported_as_a_fixed_sentence(agency: Agency) -> None:
    run_id = agency.control.start_run({"do": "fail"})
    assert agency.ended(run_id) == "finished:failed"
    assert agency.control.get_run(run_id).details == FAILED
    assert "Musterfrau" in agency.log(run_id)  # the detail stays in the agency's own log
    assert "Musterfrau" not in (agency.home / "logs" / "superlink.log").read_text()


def test_the_token_is_not_in_the_process_list(agency: Agency) -> None:
    run_id = agency.control.start_run({"do": "poll", "seconds": 60})
    wait_until(lambda: "config of" in agency.log(run_id), what="the coordinator's start")
    lines = [line.split(b"\0") for line in _command_lines() if str(COORDINATOR).encode() in line]
    expected = [sys.executable, str(COORDINATOR), "--home", str(agency.home), "--port", str(agency.config.control_port)]
    assert [word.decode() for word in lines[0] if word] == expected
    agency.control.stop_run(run_id)


@pytest.mark.parametrize("do", ["poll", "hang"])
def test_a_stopped_run_ends_its_coordinator_soon(agency: Agency, do: str) -> None:
    run_id = agency.control.start_run({"do": do, "seconds": 300})
    wait_until(lambda: "config of" in agency.log(run_id), what="the coordinator's start")
    agency.control.stop_run(run_id)
    stopped = time.monotonic()
    wait_until(lambda: not _coordinators(agency.home), 10, "the coordinator's end")
    assert time.monotonic() - stopped < 8
    assert agency.control.get_run(run_id).status == "finished:stopped"
    with pytest.raises(ServiceError):
        agency.control.stop_run(run_id)


def test_a_run_outlives_the_kill_of_the_superlink(agency: Agency) -> None:
    run_id = agency.control.start_run({"do": "poll", "seconds": 12})
    assert not agency.control.is_over(run_id)
    wait_until(lambda: "config of" in agency.log(run_id), what="the coordinator's start")
    agency.process.send_signal(signal.SIGKILL)
    agency.process.wait()
    time.sleep(3)
    with pytest.raises(ServiceError, match="no superlink at"):
        agency.control.is_over(run_id)  # nobody knows
    agency.process, agency.control = agency.start()
    assert agency.ended(run_id, 60) == "finished:completed"
    assert agency.ended(agency.control.start_run({"do": "count"})) == "finished:completed"


def test_coordinators_end_with_their_executor(tmp_path: Path) -> None:
    home = make_home(Authority(), tmp_path / "agency")
    config = server_config(home)
    with superlink(home, config) as (_, control):
        with executor(home, config.control_port):
            run_id = control.start_run({"do": "hang", "seconds": 300})
            wait_until(lambda: log_path(home, run_id).exists() and bool(log_path(home, run_id).read_text()))
            assert _coordinators(home)
        assert not _coordinators(home)
        assert control.get_run(run_id).status == "finished:failed"


def test_the_coordinator_that_waits_is_the_next_runs_and_one_that_died_is_nobodys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spare, "QUIET_S", 0.0)
    monkeypatch.setattr(spare, "AGAIN_S", 3600.0)
    home = make_home(Authority(), tmp_path / "agency")
    config = server_config(home)
    with superlink(home, config) as (_, control):
        with executor(home, config.control_port, spare=["--spare"]) as worker:
            wait_until(lambda: any(map(spare.is_spare, _pids(home))), what="the one that waits")
            (waiting,) = _pids(home)
            run_id = control.start_run({"do": "count"})
            wait_until(lambda: control.get_run(run_id).finished, what="the run's end")
            assert control.get_run(run_id).status == "finished:completed"
            assert "config of" in log_path(home, run_id).read_text()
            wait_until(lambda: waiting not in _pids(home), what="the end of its process")
            wait_until(lambda: any(map(spare.is_spare, _pids(home))), what="another that waits")
            process = worker._spare._process  # type: ignore[union-attr]
            assert process is not None
            process.kill()
            process.wait()
            run_id = control.start_run({"do": "count"})
            wait_until(lambda: control.get_run(run_id).finished, what="the run's end")
            assert control.get_run(run_id).status == "finished:completed"
        assert not _pids(home)


def test_no_superlink_is_a_clear_error(tmp_path: Path) -> None:
    home = make_home(Authority(), tmp_path / "agency")
    from sovfed.federation.wire.loopback import ensure_secret

    ensure_secret(home / "secrets" / "loopback.secret")
    with ControlClient(home, free_port()) as control:
        assert not control.alive()
        with pytest.raises(ServiceError, match="sovfed server up"):
            control.list_nodes()


def test_the_bundle_holds_no_code() -> None:
    import io
    import zipfile

    with zipfile.ZipFile(io.BytesIO(build_bundle())) as bundle:
        assert sorted(bundle.namelist()) == [".info/CONTENT", "pyproject.toml"]


def _command_lines() -> list[bytes]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            found.append(path.read_bytes())
    return found


def _pids(home: Path) -> list[int]:
    """The coordinators of `home`, those that wait too."""
    marks, pids = (str(COORDINATOR).encode(), str(home).encode()), []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if all(mark in path.read_bytes().split(b"\0") for mark in marks):
                pids.append(int(path.parent.name))
    return pids


def _coordinators(home: Path) -> list[bytes]:
    marks = (str(COORDINATOR).encode(), str(home).encode())
    return [line for line in _command_lines() if all(mark in line.split(b"\0") for mark in marks)]
