"""Stock Flower 1.42 on this machine, as its documentation recommends it: the peer that sovfed is measured against.

TLS, SuperNode authentication, SQLite, subprocess isolation (Flower's default), FedAvg's own loop, started by
`flwr run`. Nothing is patched and no default is changed, but that reports home, update checks and `uv sync` are off.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from signal import SIGKILL
from typing import TYPE_CHECKING, Any, Final, Self

from sovfed.federation import certificates
from sovfed.federation.errors import ServiceError
from sovfed.federation.files import private_directory, write_atomic, write_private
from sovfed.federation.host.processes import Process, Supervisor, listening
from sovfed.federation.host.quiet import quiet_environment
from sovfed.simulations.benchmarks import process_tree
from sovfed.simulations.ports import free_ports

if TYPE_CHECKING:
    from flwr.supercore.control.control_http_client import ControlHttpClient

APP: Final = Path(__file__).parent / "stock"
CONNECTION: Final = "stock"
ONLINE_TIMEOUT_S: Final = 120.0
DEAF_S: Final = 45.0  # after which a SuperNode that was heard of before is given up
# Flower's commands know nothing of our supervisor; this has the kernel end them with it all the same.
LAUNCH: Final = (
    sys.executable, "-c",
    "import os, sys; from sovfed.federation.host.processes import die_with_parent; "
    "die_with_parent(); os.execv(sys.argv[1], sys.argv[1:])",
)  # fmt: skip


@dataclass(frozen=True)
class Node:
    """A SuperNode: its name, its private key's file and its local port."""

    name: str
    key: Path
    runtime_port: int


class StockFlower:
    """Use as a context: `with StockFlower(folder, 4) as stock: stock.run_rounds(3, 2_500, timeout_s=120)`."""

    def __init__(self, folder: Path, nodes: int) -> None:
        ports = free_ports(nodes + 1)
        self.folder, self.port = folder, ports[0]
        self.nodes = [
            Node(f"hospital-{n}", folder / "keys" / str(n), port) for n, port in enumerate(ports[1:], start=1)
        ]
        self._supervisors: list[Supervisor] = []
        self._runs = 0

    @property
    def database(self) -> Path:
        return self.folder / "state.db"

    def start(self) -> Self:
        """Start the SuperLink, register the nodes' keys, start the SuperNodes; returns when all are online."""
        try:
            public_keys = self._prepare()
            self._supervise("superlink", [self._superlink()])
            self._register(public_keys)
            self._supervise("supernodes", [self._supernode(node) for node in self.nodes])
            self.wait_online()
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """End everything that was started; Flower's own children sit in sessions of their own."""
        members = process_tree.tree(self.roots())
        for supervisor in reversed(self._supervisors):
            supervisor.stop()
        process_tree.send(members, SIGKILL)
        self._supervisors.clear()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def roots(self) -> list[int]:
        """The process ids of SuperLink and SuperNodes."""
        pids = [process.pid for supervisor in self._supervisors for process in supervisor.status().processes]
        return [pid for pid in pids if pid is not None]

    def run_rounds(self, rounds: int, parameters: int, timeout_s: float) -> list[dict[str, Any]]:
        """Run FedAvg for `rounds` rounds with `flwr run`; the lines of `stock/server_app.py`.

        Raises ServiceError, with the place of the logs, if the run fails, a node does not answer, or time is out.
        """
        deadline = time.monotonic() + timeout_s
        self.wait_online()
        self._runs += 1
        output = self.folder / f"rounds-{self._runs}.jsonl"
        chosen = {"nodes": len(self.nodes), "rounds": rounds, "parameters": parameters, "output": str(output)}
        override = " ".join(f"{key}={json.dumps(value)}" for key, value in chosen.items())
        reply = self._flwr("run", str(self.folder / "app"), CONNECTION, "--run-config", override, "--format", "json")
        run_id = int(json.loads(reply)["run-id"])
        while not (status := self._status(run_id)).startswith("finished"):
            if time.monotonic() > deadline:
                raise ServiceError(f"stock Flower: {rounds} rounds not within {timeout_s:g} s; logs in {self.folder}")
            time.sleep(1.0)
        lines = [json.loads(line) for line in output.read_text().splitlines()] if output.exists() else []
        complete = [line for line in lines if line["replies"] == len(self.nodes)]
        if status != "finished:completed" or len(complete) != rounds:
            raise ServiceError(
                f"stock Flower: run {run_id} is {status}, {len(complete)} rounds with all nodes; logs in {self.folder}"
            )
        return lines

    def wait_online(self) -> None:
        """Return when the SuperLink counts every node as online.

        A SuperNode whose connection breaks while it is held goes deaf for good, alive: all are then started anew, once.
        """
        from flwr.proto.control_pb2 import ListNodesRequest

        deadline = time.monotonic() + ONLINE_TIMEOUT_S
        anew = time.monotonic() + DEAF_S
        with self._control() as control:
            while True:
                nodes = control.ListNodes(ListNodesRequest()).nodes_info
                if sum(node.status == "online" for node in nodes) == len(self.nodes):
                    return
                if time.monotonic() > deadline:
                    raise ServiceError(f"stock Flower: not all nodes are online; logs in {self.folder}")
                if time.monotonic() > anew:
                    anew = deadline
                    process_tree.send(process_tree.tree(self.roots()[1:]), SIGKILL)  # their supervisor goes on
                time.sleep(0.5)

    def _prepare(self) -> list[bytes]:
        """Certificates, keys, Flower's configuration and a copy of the app; the nodes' public keys."""
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ec
        from flwr.supercore.primitives.asymmetric import public_key_to_bytes

        now = datetime.now(UTC)
        private_directory(self.folder)
        root_key, root = certificates.create_root("Stock Flower's benchmark", now)
        key = certificates.create_key()
        request = certificates.create_csr(key, certificates.ServerNames(("127.0.0.1",)))
        signed = certificates.sign_csr(root_key, root, certificates.to_pem(request), now, 30)
        write_atomic(self.folder / "ca.pem", certificates.to_pem(root))
        write_atomic(self.folder / "server.pem", certificates.to_pem(signed))
        write_private(self.folder / "server.key", certificates.key_to_pem(key))
        (self.folder / "keys").mkdir()
        form, plain = serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
        keys = [ec.generate_private_key(ec.SECP384R1()) for _ in self.nodes]
        for node, node_key in zip(self.nodes, keys, strict=True):
            write_private(node.key, node_key.private_bytes(serialization.Encoding.PEM, form, plain))
        connection = f'address = "127.0.0.1:{self.port}"\nroot-certificates = "{self.folder / "ca.pem"}"\n'
        home = self.folder / "flwr"
        home.mkdir()
        (home / "config.toml").write_text(
            f'[superlink]\ndefault = "{CONNECTION}"\n\n[superlink.{CONNECTION}]\n{connection}'
        )
        shutil.copytree(APP, self.folder / "app", ignore=shutil.ignore_patterns("__pycache__"))
        return [public_key_to_bytes(node_key.public_key()) for node_key in keys]

    def _superlink(self) -> Process:
        arguments = [
            "--ssl-ca-certfile", "ca.pem", "--ssl-certfile", "server.pem", "--ssl-keyfile", "server.key",
            "--database", "state.db",
        ]  # fmt: skip
        files = [argument if argument.startswith("--") else str(self.folder / argument) for argument in arguments]
        argv = [
            *LAUNCH, _command("flower-superlink"), *files, "--enable-supernode-auth",
            "--host", "127.0.0.1", "--port", str(self.port), "--disable-runtime-dependency-installation",
        ]  # fmt: skip
        return Process("superlink", argv, self._environment(), ready=listening(("127.0.0.1", self.port)))

    def _supernode(self, node: Node) -> Process:
        argv = [
            *LAUNCH, _command("flower-supernode"), "--root-certificates", str(self.folder / "ca.pem"),
            "--superlink", f"127.0.0.1:{self.port}", "--auth-supernode-private-key", str(node.key),
            "--port", str(node.runtime_port),
        ]  # fmt: skip
        return Process(node.name, argv, self._environment())

    def _supervise(self, name: str, processes: list[Process]) -> None:
        supervisor = Supervisor(private_directory(self.folder / name), processes)
        self._supervisors.append(supervisor)
        supervisor.start()

    def _register(self, public_keys: list[bytes]) -> None:
        """What `flwr supernode register` does, without its start-up time for each key."""
        from flwr.proto.control_pb2 import RegisterNodeRequest

        with self._control() as control:
            for node, key in zip(self.nodes, public_keys, strict=True):
                control.RegisterNode(RegisterNodeRequest(public_key=key, name=node.name))

    def _status(self, run_id: int) -> str:
        from flwr.proto.control_pb2 import ListRunsRequest

        with self._control() as control:
            status = control.ListRuns(ListRunsRequest(run_id=run_id)).run_dict[run_id].status
        return ":".join(filter(None, (status.status, status.sub_status)))

    def _control(self) -> ControlHttpClient:
        from flwr.supercore.control.control_http_client import ControlHttpClient

        root = (self.folder / "ca.pem").read_bytes()
        return ControlHttpClient.from_server_address(f"127.0.0.1:{self.port}", False, root, ())

    def _flwr(self, *arguments: str) -> str:
        completed = subprocess.run(
            [_command("flwr"), *arguments], env=self._environment(), capture_output=True, text=True, check=False
        )
        if completed.returncode:
            raise ServiceError(f"flwr {arguments[0]} failed: {(completed.stdout + completed.stderr)[-1000:]}")
        return completed.stdout

    def _environment(self) -> dict[str, str]:
        """Flower starts its children by bare name, so this Python's commands come first on the PATH."""
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        return quiet_environment() | {"FLWR_HOME": str(self.folder / "flwr"), "PATH": path}


def _command(name: str) -> str:
    return str(Path(sys.executable).with_name(name))
