"""What a stranger gets from stock Flower 1.42 with TLS and `--enable-supernode-auth`, and from our superlink.

The stranger knows the address and the public root certificate, and has no credential. Each attack is one function,
run against both servers as real processes.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.common.serde import user_config_to_proto
from flwr.proto.control_pb2 import ListRunsRequest, RegisterNodeRequest, StartRunRequest
from flwr.proto.fab_pb2 import Fab
from flwr.proto.runtime_pb2 import AcquireTaskRequest, AcquireTaskResponse, PullTaskInputRequest
from flwr.supercore.control.control_http_client import ControlHttpClient
from flwr.supercore.interceptors import RuntimeTokenHttpInterceptor, RuntimeVersionHttpInterceptor
from flwr.supercore.protobuf.client import ProtobufClientInterceptor
from flwr.supercore.runtime import RuntimeHttpClient
from google.protobuf.message import Message
from tests.server.agency import (
    Authority,
    Institution,
    free_port,
    make_home,
    make_institution,
    network_client,
    post,
    process,
    server_config,
    superlink,
    wait_until,
)

from sovfed.federation.identity import node_key_bytes
from sovfed.server.runs.control import CONFIG_KEY, ControlClient, build_bundle

pytestmark = pytest.mark.deploy


@dataclass(frozen=True)
class Target:
    """The address of a SuperLink's network port and the root certificate that anybody may have."""

    port: int
    root: Path

    def control(self) -> ControlHttpClient:
        return ControlHttpClient.from_server_address(f"127.0.0.1:{self.port}", False, self.root.read_bytes(), ())

    def runtime(self, token: str | None = None) -> RuntimeHttpClient:
        interceptors: list[ProtobufClientInterceptor] = [RuntimeVersionHttpInterceptor(component_name="SuperExec")]
        interceptors += [RuntimeTokenHttpInterceptor(token)] if token else []
        return RuntimeHttpClient.from_server_address(
            f"127.0.0.1:{self.port}", False, self.root.read_bytes(), interceptors
        )


def register_a_rogue_node(target: Target) -> int:
    """The id of a node whose key the stranger has just made."""
    key = node_key_bytes(ec.generate_private_key(ec.SECP384R1()).public_key())
    with target.control() as control:
        return int(control.RegisterNode(RegisterNodeRequest(public_key=key, name="rogue")).node_id)


def start_a_run(target: Target) -> int:
    """The id of a run of the stranger's app: on stock Flower, code on every node."""
    override = user_config_to_proto({CONFIG_KEY: "{}"})
    with target.control() as control:
        return int(control.StartRun(StartRunRequest(fab=Fab(content=build_bundle()), override_config=override)).run_id)


def claim_a_task(target: Target) -> AcquireTaskResponse:
    """What the stranger gets by asking for a ServerApp's task."""
    with target.runtime() as runtime:
        return runtime.AcquireTask(AcquireTaskRequest(supported_task_types=["flwr-serverapp"]))


@contextlib.contextmanager
def stock_superlink(folder: Path) -> Iterator[Target]:
    """`flower-superlink` as its documentation recommends: TLS and SuperNode authentication."""
    identity = make_home(Authority(), folder / "stock") / "identity"
    port = free_port()
    command = [
        str(Path(sys.executable).with_name("flower-superlink")),
        "--ssl-ca-certfile", str(identity / "root.pem"), "--ssl-certfile", str(identity / "cert.pem"),
        "--ssl-keyfile", str(identity / "key.pem"), "--enable-supernode-auth", "--database", str(folder / "state.db"),
        "--host", "127.0.0.1", "--port", str(port), "--disable-runtime-dependency-installation",
        "--isolation", "process",  # the real executor would be this test's rival for the task
    ]  # fmt: skip
    with (
        process(command, folder, folder / "stock.log"),
        network_client(port, identity, with_certificate=False) as client,
    ):

        def answers() -> bool:
            with contextlib.suppress(httpx.TransportError):
                return client.get("/health").is_success
            return False

        wait_until(answers, what="stock Flower's health")
        yield Target(port, identity / "root.pem")


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    with stock_superlink(tmp_path_factory.mktemp("stock")) as target:
        yield target


@dataclass(frozen=True)
class Ours:
    """Our superlink, and an institution that is enrolled with it."""

    target: Target
    insider: Institution
    control: ControlClient


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ours]:
    folder, authority = tmp_path_factory.mktemp("ours"), Authority()
    home = make_home(authority, folder / "agency")
    insider = make_institution(authority, folder / "insider", "hospital-1")
    config = server_config(home)
    with superlink(home, config) as (_, control):
        yield Ours(Target(config.fleet_port, home / "identity" / "root.pem"), insider, control)


def test_stock_flower_lets_a_stranger_register_a_node(stock: Target) -> None:
    assert register_a_rogue_node(stock) > 0


def test_stock_flower_lets_a_stranger_start_a_run_and_take_its_task(stock: Target) -> None:
    run_id = start_a_run(stock)
    claimed = claim_a_task(stock)
    assert claimed.task.run_id == run_id
    with stock.runtime(claimed.token) as runtime:  # the token opens the run: context, bundle, and every node's inbox
        assert runtime.PullTaskInput(PullTaskInputRequest()).run.run_id == run_id


def test_stock_flower_shows_its_pages(stock: Target) -> None:
    with network_client(stock.port, stock.root.parent, with_certificate=False) as client:
        assert client.get("/openapi.json").is_success


@pytest.mark.parametrize("attack", [register_a_rogue_node, start_a_run, claim_a_task])
def test_ours_refuses_the_stranger_in_the_handshake(ours: Ours, attack: Callable[[Target], object]) -> None:
    with pytest.raises(httpx.TransportError):
        attack(ours.target)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/v1/control/register-node", RegisterNodeRequest(public_key=b"key")),
        ("/v1/control/start-run", StartRunRequest(fab=Fab(content=b"bundle"))),
        ("/v1/runtime/acquire-task", AcquireTaskRequest(supported_task_types=["flwr-serverapp"])),
    ],
)
def test_ours_refuses_even_an_enrolled_institution(ours: Ours, path: str, message: Message) -> None:
    with network_client(ours.target.port, ours.insider.folder) as client:
        assert post(client, path, message, ours.insider.headers()).status_code == 404
    assert ours.control.list_nodes() == []
    assert not ours.control._client.ListRuns(ListRunsRequest(limit=100)).run_dict
