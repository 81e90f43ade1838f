"""An enrolled institution's home and processes against a real superlink, for the tests of its Flower edge."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from flwr.app import Context, Message
from flwr.proto.runtime_pb2 import AcquireTaskRequest, PullTaskInputRequest
from flwr.supercore.constant import TaskType
from tests.server.agency import Authority, free_port, make_institution, process, wait_until

from sovfed.clients.home.folder import RUNTIME_SECRET, TASK_SECRET
from sovfed.clients.node.executor import ACQUIRE, run_executor
from sovfed.federation.config import ClientConfig, DataConfig, ServerConfig
from sovfed.federation.files import private_directory, write_atomic, write_private
from sovfed.federation.host.settings import settings_file
from sovfed.federation.wire.flower_http import add_client_header
from sovfed.federation.wire.grids import FlowerGrid
from sovfed.federation.wire.loopback import SECRET_HEADER, ensure_secret
from sovfed.server.network.flower_app import SUPEREXEC_SECRET_FILE
from sovfed.server.runs.control import ControlClient

App = Callable[[Message, Context], Message]


@dataclasses.dataclass(frozen=True)
class Node:
    """An institution's home, its settings, and its id at the superlink."""

    home: Path
    config: ClientConfig
    node_id: int

    @property
    def runtime(self) -> str:
        return f"127.0.0.1:{self.config.runtime_port}"

    def argv(self, name: str) -> list[str]:
        settings = settings_file(self.home, self.config)
        return [
            sys.executable,
            "-m",
            f"sovfed.clients.node.{name}",
            "--home",
            str(self.home),
            "--config",
            str(settings),
        ]

    def log(self, name: str = "supernode") -> str:
        return (self.home / "logs" / f"{name}.log").read_text()


def enrolled_home(home: Path, authority: Authority, server: ServerConfig, name: str = "hospital-1") -> bytes:
    """Fill `home` as enrolment does; the node's public key."""
    for folder in ("", "secrets", "logs", "state"):
        private_directory(home / folder)
    institution = make_institution(authority, home / "identity", name)
    node_key = institution.node_key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    write_private(home / "identity" / "node_key", node_key)
    addresses = {"fleet_address": f"127.0.0.1:{server.fleet_port}", "lane_address": f"127.0.0.1:{server.lane_port}"}
    write_atomic(home / "identity" / "institution.json", json.dumps({"name": name, **addresses}).encode())
    return institution.public_key


def make_node(
    home: Path, authority: Authority, server: ServerConfig, control: ControlClient, **changes: object
) -> Node:
    """An enrolled institution, registered at the superlink; none of its processes runs."""
    public_key = enrolled_home(home, authority, server)
    node_id = control.register_node(public_key, "hospital-1")
    config = ClientConfig(home=str(home), runtime_port=free_port(), device="cpu", data=DataConfig(source="none"))
    return Node(home, dataclasses.replace(config, **changes), node_id)  # type: ignore[arg-type]


@contextlib.contextmanager
def running(
    node: Node, name: str = "supernode", env: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """One of the institution's processes, ended with the block."""
    with process(node.argv(name), node.home, node.home / "logs" / f"{name}.log", env) as child:
        yield child


@contextlib.contextmanager
def executing(node: Node, app: App) -> Iterator[threading.Thread]:
    """The resident executor with `app`, in a thread of the test."""
    stop = threading.Event()
    add_client_header(SECRET_HEADER, ensure_secret(node.home / RUNTIME_SECRET), node.runtime)
    secret = ensure_secret(node.home / TASK_SECRET).encode()
    thread = threading.Thread(target=run_executor, args=(node.runtime, secret, app, stop))
    thread.start()
    try:
        yield thread
    finally:
        stop.set()
        thread.join(20)
        assert not thread.is_alive()


def start_task(node: Node, token: str) -> None:
    """Do what a gateway does with a claimed task up to its message, and nothing after."""
    from flwr.proto.runtime_pb2 import PullAppMessagesRequest

    from sovfed.server.runs.serverapp_runner import runtime_client

    with runtime_client(node.runtime, token) as client:
        client.PullTaskInput(PullTaskInputRequest())
        while not client.PullMessages(PullAppMessagesRequest()).messages_list:
            pass


def is_online(control: ControlClient, node_id: int) -> bool:
    return any(node.node_id == node_id and node.status == "online" for node in control.list_nodes())


def wait_online(control: ControlClient, node: Node, timeout_s: float = 40.0) -> None:
    try:
        wait_until(lambda: is_online(control, node.node_id), timeout_s, "the node's status 'online'")
    except AssertionError as error:
        raise AssertionError(node.log()) from error


@contextlib.contextmanager
def claimed_run(home: Path | None, port: int) -> Iterator[FlowerGrid]:
    """Play the coordinator of the run that was just started: claim its ServerApp task at the superlink of `home`.

    Without `home` there is no secret to show, which is all that a stock superlink wants.
    """
    from flwr.common.serde import run_from_proto
    from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor, SuperExecAuthHttpInterceptor
    from flwr.supercore.protobuf.client import ProtobufClientInterceptor
    from flwr.supercore.runtime import RuntimeHttpClient
    from flwr.superlink.grid import HttpGrid

    from sovfed.server.runs.serverapp_runner import runtime_client

    address = f"127.0.0.1:{port}"
    interceptors: list[ProtobufClientInterceptor] = [RuntimeVersionHttpInterceptor("SuperExec")]
    if home is not None:
        secret = ensure_secret(home / SUPEREXEC_SECRET_FILE).encode()
        interceptors.append(SuperExecAuthHttpInterceptor(master_secret=secret, protected_methods={ACQUIRE}))
    with RuntimeHttpClient.from_server_address(address, True, None, interceptors) as client:
        token = ""
        while not token:
            token = client.AcquireTask(AcquireTaskRequest(supported_task_types=[TaskType.SERVER_APP])).token
    with runtime_client(address, token) as client:
        run = run_from_proto(client.PullTaskInput(PullTaskInputRequest()).run)
    grid = HttpGrid(address, insecure=True, token=token)
    grid.set_run(run)
    try:
        yield FlowerGrid(grid)
    finally:
        grid.close()


def armed_bundle(trace: Path) -> bytes:
    """An app bundle whose ClientApp module creates the file `trace` when it is imported."""
    files = {
        "armed/__init__.py": b"",
        "armed/client.py": f"""
from pathlib import Path
from flwr.app import Message
from flwr.clientapp import ClientApp
Path({str(trace)!r}).touch()
app = ClientApp()
@app.query("echo")
def echo(message, context):
    return Message(message.content, reply_to=message)
""".encode(),
        "armed/server.py": b"from flwr.serverapp import ServerApp\napp = ServerApp()\n",
        "pyproject.toml": b"""
[project]
name = "armed"
version = "1.0.0"
[tool.flwr.app]
publisher = "stranger"
[tool.flwr.app.components]
serverapp = "armed.server:app"
clientapp = "armed.client:app"
[tool.flwr.app.config]
""",
    }
    lines = [
        f"{name},{hashlib.sha256(content).hexdigest()},{len(content) * 8}" for name, content in sorted(files.items())
    ]
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as bundle:
        for name, content in (*files.items(), (".info/CONTENT", "\n".join(lines).encode())):
            bundle.writestr(name, content)
    return buffer.getvalue()
