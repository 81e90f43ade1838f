"""What stock Flower 1.42 lets happen at an institution: why the launcher, the secret and the executor are there.

The same attacks against ours: test_supernode.py and test_executor.py.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from flwr.app import ConfigRecord, RecordDict
from flwr.proto.control_pb2 import StartRunRequest
from flwr.proto.fab_pb2 import Fab
from flwr.proto.runtime_pb2 import AcquireTaskRequest
from flwr.supercore.constant import TaskType
from flwr.supercore.control.control_http_client import ControlHttpClient
from tests.clients.institution import armed_bundle, claimed_run
from tests.server.agency import free_port, post, wait_until

from sovfed.federation.host.quiet import quiet_environment
from sovfed.federation.wire.flower import new_message

pytestmark = pytest.mark.deploy


@contextlib.contextmanager
def stock(command: str, home: Path, port: int, *options: str) -> Iterator[httpx.Client]:
    """A command of Flower's, listening on `port`; ended with its children."""
    scripts = Path(sys.executable).parent
    env = quiet_environment(home) | {"PATH": f"{scripts}:{os.environ['PATH']}"}
    argv = [str(scripts / command), "--insecure", "--host", "127.0.0.1", "--port", str(port), *options]
    with (home / f"{command}.log").open("wb") as log:
        child = subprocess.Popen(argv, env=env, stdout=log, stderr=log, start_new_session=True)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
            wait_until(lambda: _answers(client), what=command)
            yield client
    finally:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def _answers(client: httpx.Client) -> bool:
    try:
        return client.get("/health").is_success
    except httpx.TransportError:
        return False


def test_stock_supernode_gives_its_tasks_to_any_local_user(tmp_path: Path) -> None:
    superlink = f"127.0.0.1:{free_port()}"
    with stock("flower-supernode", tmp_path, free_port(), "--superlink", superlink) as client:
        claim = AcquireTaskRequest(supported_task_types=[TaskType.CLIENT_APP])
        assert post(client, "/v1/runtime/acquire-task", claim).status_code == 200


def test_stock_supernode_runs_the_code_in_an_app_bundle(tmp_path: Path) -> None:
    trace, port = tmp_path / "the-bundle-ran", free_port()
    with (
        stock("flower-superlink", tmp_path, port, "--isolation", "process"),
        stock("flower-supernode", tmp_path, free_port(), "--superlink", f"127.0.0.1:{port}"),
    ):
        with ControlHttpClient.from_server_address(f"127.0.0.1:{port}", True, None, ()) as control:
            control.StartRun(StartRunRequest(fab=Fab(content=armed_bundle(trace))))
        with claimed_run(None, port) as grid:
            wait_until(lambda: bool(list(grid.get_node_ids())), what="the node")
            (node_id,) = grid.get_node_ids()
            records = RecordDict({"bytes": ConfigRecord({"sent": b"x"})})
            grid.push_messages(
                [new_message(records, run_id=grid.run.run_id, node_id=node_id, kind="query.echo", group="1")]
            )
            wait_until(trace.exists, 60, "the bundle's code")
