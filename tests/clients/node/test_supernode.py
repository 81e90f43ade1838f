"""The SuperNode's launcher: who may use its Runtime port, what it survives, what it refuses."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.proto.runtime_pb2 import AcquireTaskRequest
from flwr.supercore.constant import TaskType
from tests.clients.institution import (
    Node,
    claimed_run,
    enrolled_home,
    executing,
    is_online,
    make_node,
    running,
    start_task,
    wait_online,
)
from tests.server.agency import Authority, free_port, make_home, post, server_config, superlink, wait_until

from sovfed.clients.home.folder import NODE_ID, RUNTIME_SECRET
from sovfed.clients.node.supernode import (
    MAX_OBJECTS,
    PullPace,
    in_words,
    node_state,
    pull_bounded,
    pull_or_push,
    push_or_join,
)
from sovfed.federation.config import ServerConfig
from sovfed.federation.errors import ProtocolError, ServiceError
from sovfed.federation.files import private_directory, write_private
from sovfed.federation.messages import LaneReply, Refusal
from sovfed.federation.wire.flower import new_message, to_records
from sovfed.federation.wire.grids import FlowerGrid
from sovfed.federation.wire.loopback import SECRET_HEADER, read_secret
from sovfed.federation.wire.patience import STALL_S, patient
from sovfed.server.runs.control import ControlClient
from sovfed.simulations.audit.chaos import clocks

ACQUIRE = "/v1/runtime/acquire-task"
CLAIM = AcquireTaskRequest(supported_task_types=[TaskType.CLIENT_APP])


def test_pull_pace_slows_down_without_messages_and_recovers() -> None:
    pace = PullPace()
    idle = [pace.idle_s() for _ in range(40)]
    assert idle[0] == 0.2
    assert idle == sorted(idle)
    assert idle[-1] == 1.0
    assert pace.busy_s() == 0.05
    assert pace.idle_s() == 0.2


def test_message_that_grows_too_large_is_stopped_on_the_way() -> None:
    from flwr.supercore.inflatable.inflatable_utils import pull_objects

    pulled: list[str] = []

    def pull(object_id: str) -> bytes:
        pulled.append(object_id)
        return bytes(100)

    ids = [str(number) for number in range(100)]
    assert len(pull_bounded(pull_objects, 1000, ids[:10], pull)) == 10
    pulled.clear()
    with pytest.raises(ProtocolError, match="more than 1000 bytes"):
        pull_bounded(pull_objects, 1000, ids, pull)
    assert len(pulled) < 20
    with pytest.raises(ProtocolError, match="objects, at most"):
        pull_bounded(pull_objects, 1000, ["x"] * (MAX_OBJECTS + 1), pull)


def test_a_message_whose_objects_stop_coming_is_given_up() -> None:
    """Pieces may take as long as they like one after another; what does not come at all is not waited for."""
    from flwr.supercore.inflatable.inflatable_utils import ObjectUnavailableError, pull_objects

    now, seen = [0.0], list[str]()

    def pull(object_id: str) -> bytes:
        now[0] += 20.0
        if object_id == "never" or seen.count(object_id) < 2:  # each comes 60 s after it is first asked for
            seen.append(object_id)
            raise ObjectUnavailableError(object_id)
        return b"x"

    def fetch(ids: list[str]) -> dict[str, bytes]:
        fetching = patient(pull, limit_s=60.0, clock=lambda: now[0])
        return pull_objects(ids, fetching, initial_backoff=0.001, backoff_cap=0.001, max_concurrent_pulls=1)

    assert len(fetch([str(number) for number in range(10)])) == 10
    assert now[0] == 600.0
    with pytest.raises(ProtocolError, match="no object of the message has come for 60 s"):
        fetch(["never"])
    assert now[0] <= 700.0
    assert STALL_S <= 60.0


def test_a_message_whose_run_ends_while_it_is_fetched_is_dropped_with_its_task() -> None:
    """Flower drops both for an Exception; its own, of a run that is over, is none."""
    from flwr.supercore.inflatable.inflatable_utils import pull_objects
    from flwr.supercore.run import RunNotRunningException

    assert not issubclass(RunNotRunningException, Exception)

    def pull(object_id: str) -> bytes:
        raise RunNotRunningException

    with pytest.raises(ProtocolError, match="run is over"):
        pull_bounded(pull_objects, 1000, ["x"], pull)


def test_a_reply_that_waits_is_sent_though_no_message_comes_once_it_is_whole(tmp_path: Path) -> None:
    from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree

    (tmp_path / "state").mkdir(mode=0o700)
    state = node_state(tmp_path).state()
    asked = new_message(RecordDict(), run_id=1, node_id=2, kind="query.echo", group="1")
    asked.metadata.__dict__["_message_id"] = "asked"
    reply = Message(RecordDict(), reply_to=asked)
    reply.metadata.__dict__["_message_id"] = reply.object_id
    objects = get_all_nested_objects(reply)
    state.object_store.preregister(1, get_object_tree(reply))
    nothing = dict.fromkeys(("state",), state)
    state.store_message(asked)
    assert pull_or_push(lambda **_: None, **nothing) is None
    state.store_message(reply)
    assert pull_or_push(lambda **_: None, **nothing) is None  # it is announced, and not here whole
    assert not state.get_messages_legacy(is_reply=True)
    for object_id, part in objects.items():
        state.object_store.put(object_id, part.deflate())
    assert pull_or_push(lambda **_: None, **nothing) == 0
    assert pull_or_push(lambda **_: 7, **nothing) == 7
    assert [one.metadata.message_id for one in state.get_messages_legacy(is_reply=True)] == [reply.object_id]
    assert pull_or_push(lambda **_: None, **nothing) is None


@pytest.mark.parametrize(
    ("kind", "content", "sent"),
    [
        ("query.lane", to_records(LaneReply(accepted=True)), False),
        ("query.lane", to_records(LaneReply(accepted=False)), True),
        ("query.lane", to_records(Refusal(reason="failed")), True),
        ("query.lane", RecordDict({"header": ConfigRecord({"kind": "x"})}), True),
        ("query.echo", to_records(LaneReply(accepted=True)), True),
    ],
)
def test_of_all_replies_only_that_a_lane_is_joined_is_not_sent(kind: str, content: RecordDict, sent: bool) -> None:
    from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
    from flwr.supercore.object_store import ObjectStoreFactory

    asked = new_message(RecordDict(), run_id=1, node_id=2, kind=kind, group="lane")
    asked.metadata.__dict__["_message_id"] = "asked"
    reply = Message(content, reply_to=asked)
    reply.metadata.__dict__["_message_id"] = reply.object_id
    tree, store = get_object_tree(reply), ObjectStoreFactory().store()
    store.preregister(1, tree)
    for object_id, part in get_all_nested_objects(reply).items():
        store.put(object_id, part.deflate())
    calls = list[str]()

    def push(send: Callable[..., tuple[set[str], str]], **_: object) -> None:
        assert send(reply, tree, 0.0) == (({"x"}, "session") if sent else (set(), ""))

    def send(head: Message, *_: object) -> tuple[set[str], str]:
        calls.append(head.metadata.message_id)
        return {"x"}, "session"

    push_or_join(push, object_store=store, send=send)
    assert calls == [reply.object_id] * sent


def test_a_message_that_nobody_waits_for_is_given_up_at_once() -> None:
    from flwr.supercore.inflatable.inflatable_utils import ObjectUnavailableError

    def pull(object_id: str) -> bytes:
        raise ObjectUnavailableError(object_id)

    over = threading.Event()
    fetching = patient(pull, over=over.is_set)
    with pytest.raises(ObjectUnavailableError):
        fetching("x")
    over.set()
    with pytest.raises(ProtocolError, match="not waited for"):
        fetching("x")


def test_process_ends_when_one_of_its_threads_does() -> None:
    program = """
import threading, time
from sovfed.clients.node.supernode import exit_with_any_thread
exit_with_any_thread()
threading.Thread(target=lambda: 1 / 0, name="heartbeat").start()
time.sleep(60)
"""
    source = str(Path(__file__).parents[3] / ".src")
    result = subprocess.run(
        [sys.executable, "-c", program],
        check=False,
        env={**os.environ, "PYTHONPATH": source},
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert result.returncode == 1
    assert "thread heartbeat failed" in result.stderr


@dataclasses.dataclass
class Federation:
    """A superlink and an institution that is registered but not running."""

    agency: Path
    authority: Authority
    server: ServerConfig
    control: ControlClient
    node: Node

    @contextlib.contextmanager
    def run(self) -> Iterator[FlowerGrid]:
        self.control.start_run({"do": "nothing"})
        with claimed_run(self.agency, self.server.control_port) as grid:
            yield grid

    def ask(self, grid: FlowerGrid, size: int = 1, timeout_s: float = 30.0) -> list[Message]:
        """The replies, at most one, to a message of `size` bytes."""
        records = RecordDict({"bytes": ConfigRecord({"sent": os.urandom(size)})})
        message = new_message(records, run_id=grid.run.run_id, node_id=self.node.node_id, kind="query.echo", group="1")
        return list(grid.replies([message], timeout_s))


def echo(message: Message, context: Context) -> Message:
    return Message(message.content, reply_to=message)


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    folder, authority = tmp_path_factory.mktemp("supernode"), Authority()
    agency = make_home(authority, folder / "agency")
    config = server_config(agency)
    with superlink(agency, config) as (_, control):
        node = make_node(folder / "hospital", authority, config, control, max_message_bytes=1_000_000)
        yield Federation(agency, authority, config, control, node)


@pytest.mark.deploy
def test_runtime_port_asks_a_local_user_for_the_secret(federation: Federation) -> None:
    node = federation.node
    with running(node):
        wait_online(federation.control, node)
        secret = read_secret(node.home / RUNTIME_SECRET)
        with httpx.Client(base_url=f"http://{node.runtime}", trust_env=False) as client:
            assert post(client, ACQUIRE, CLAIM).status_code == 403
            assert post(client, ACQUIRE, CLAIM, {SECRET_HEADER: "0" * 64}).status_code == 403
            assert client.get("/docs").status_code == client.get("/openapi.json").status_code == 403
            assert client.get("/health").status_code == 200
            assert post(client, ACQUIRE, CLAIM, {SECRET_HEADER: secret}).status_code == 401  # Flower's own, second lock
        listeners = _listeners(node.config.runtime_port)
    assert listeners == {"0100007F"}  # 127.0.0.1, in /proc/net/tcp's notation


def _listeners(port: int) -> set[str]:
    lines = [
        line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]
    ]
    return {line[1].split(":")[0] for line in lines if line[3] == "0A" and int(line[1].split(":")[1], 16) == port}


@pytest.mark.parametrize(("status", "kind"), [(401, ServiceError), (503, KeyboardInterrupt)])
def test_an_agency_that_has_removed_a_node_is_told_in_words(status: int, kind: type[BaseException]) -> None:
    """Seen: "supernode does not run: For more information check: https://developer.mozilla.org/…/401"."""
    request = httpx.Request("POST", "https://fed.example.org:8443/v1/fleet/deactivate-node")

    def interrupted() -> None:
        try:
            httpx.Response(status, request=request).raise_for_status()
        except httpx.HTTPStatusError:
            raise KeyboardInterrupt  # noqa: B904 - as Flower's retries do to their own process

    with pytest.raises(kind) as raised, in_words():
        interrupted()
    told = "fed.example.org:8443 does not know this institution's node"
    assert (told in str(raised.value)) is (kind is ServiceError)


@pytest.mark.deploy
def test_killed_supernode_is_back_at_once(federation: Federation) -> None:
    """Stock Flower refuses the restarted node for a minute as still online."""
    node = federation.node
    with running(node) as child:
        wait_online(federation.control, node)
        wait_until((node.home / NODE_ID).exists)  # written just after the node is online, once in its life
        child.kill()
        child.wait()
    assert is_online(federation.control, node.node_id)  # the superlink has not noticed
    with running(node), executing(node, echo), federation.run() as grid:
        start = time.monotonic()
        # Until it has signed on anew, the superlink answers for the node itself, that it is not there.
        wait_until(lambda: "signed off node" in node.log(), 25)
        wait_online(federation.control, node)
        (reply,) = federation.ask(grid)
        assert reply.has_content()
        assert time.monotonic() - start < 25


@pytest.mark.deploy
def test_a_number_of_a_node_that_is_another_keys_is_forgotten(federation: Federation) -> None:
    """A home that was enrolled anew, or put back from a copy, was told for ever that the agency does not know it."""
    node = federation.node
    write_private(private_directory(node.home / NODE_ID.parent) / NODE_ID.name, b"4711")
    with running(node) as child:
        assert child.wait(120) == 1  # its supervisor starts it again
    assert "does not know this institution's node" in node.log() and not (node.home / NODE_ID).exists()
    with running(node):
        wait_until(lambda: (node.home / NODE_ID).exists() and (node.home / NODE_ID).read_text() == str(node.node_id))


@pytest.mark.deploy
def test_oversized_message_is_dropped_and_the_node_goes_on(federation: Federation) -> None:
    with running(federation.node), executing(federation.node, echo), federation.run() as grid:
        wait_online(federation.control, federation.node)
        assert federation.ask(grid, 2_000_000, timeout_s=8) == []
        assert "a message of more than 1000000 bytes" in federation.node.log()
        (reply,) = federation.ask(grid, 500_000)
        assert reply.has_content()


@pytest.mark.deploy
def test_task_of_a_dead_gateway_fails_within_half_a_minute(federation: Federation) -> None:
    """Stock Flower notices after a minute; until then the node takes no other message."""
    claimed = threading.Event()
    node = federation.node

    def claim_and_die() -> None:
        from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor, SuperExecAuthHttpInterceptor
        from flwr.supercore.runtime import RuntimeHttpClient

        from sovfed.clients.home.folder import TASK_SECRET
        from sovfed.clients.node.executor import ACQUIRE as METHOD
        from sovfed.federation.wire.flower_http import add_client_header

        add_client_header(SECRET_HEADER, read_secret(node.home / RUNTIME_SECRET), node.runtime)
        auth = SuperExecAuthHttpInterceptor(
            master_secret=read_secret(node.home / TASK_SECRET).encode(), protected_methods={METHOD}
        )
        versions = RuntimeVersionHttpInterceptor("SuperExec")
        with RuntimeHttpClient.from_server_address(node.runtime, True, None, [versions, auth]) as client:
            while not (acquired := client.AcquireTask(CLAIM)).token:
                time.sleep(0.05)
        start_task(node, acquired.token)
        claimed.set()

    with running(node), federation.run() as grid:
        wait_online(federation.control, node)
        gateway = threading.Thread(target=claim_and_die)
        gateway.start()
        replies: list[Message] = []
        asking = threading.Thread(target=lambda: replies.extend(federation.ask(grid, timeout_s=60)))
        asking.start()
        assert claimed.wait(30)
        start = time.monotonic()
        with executing(node, echo):
            asking.join(60)
            assert time.monotonic() - start < 35
            assert replies[0].has_error()
            (reply,) = federation.ask(grid)
            assert reply.has_content()
        gateway.join()


@pytest.mark.deploy
def test_superlink_that_restarts_is_met_again(tmp_path: Path) -> None:
    authority = Authority()
    agency = make_home(authority, tmp_path / "agency")
    config = server_config(agency)
    with contextlib.ExitStack() as stack:
        with superlink(agency, config) as (child, control):
            node = make_node(tmp_path / "hospital", authority, config, control)
            supernode = stack.enter_context(running(node))
            stack.enter_context(executing(node, echo))
            wait_online(control, node)
            child.kill()
            child.wait()
        time.sleep(2)
        with superlink(agency, config) as (_, control):
            other = Federation(agency, authority, config, control, node)
            with other.run() as grid:
                (reply,) = other.ask(grid, timeout_s=60)
            assert reply.has_content(), node.log()
            assert supernode.poll() is None


@pytest.mark.deploy
@pytest.mark.parametrize("days", [1, -1])
def test_a_clock_that_is_a_day_wrong_is_named_and_heals(federation: Federation, days: int) -> None:
    library = clocks.library()
    if library is None:
        pytest.skip("no C compiler")
    node, agency_log = federation.node, federation.agency / "logs" / "superlink.log"
    before = len(node.log()) if (node.home / "logs" / "supernode.log").exists() else 0
    agency_before = len(agency_log.read_text())
    with running(node, env=clocks.environment(days * clocks.DAY_S, library)):
        wait_until(lambda: "this machine's clock says" in node.log()[before:], 60)
        if days > 0:  # yesterday its certificate did not hold yet, so it does not call
            wait_until(lambda: "hospital-1: its clock says" in agency_log.read_text()[agency_before:], 60)
    with running(node):  # as its supervisor starts it again
        wait_online(federation.control, node, 90)


@pytest.mark.deploy
@pytest.mark.parametrize("name", ["node_key", "key.pem"])
def test_key_that_others_can_read_is_refused_for_good(federation: Federation, name: str) -> None:
    path = federation.node.home / "identity" / name
    path.chmod(0o644)
    try:
        with running(federation.node) as child:
            assert child.wait(40) == 3
        assert f"{name}: mode 0644" in federation.node.log()
    finally:
        path.chmod(0o600)


@pytest.mark.deploy
def test_certified_node_whose_key_is_not_registered_is_not_let_in(federation: Federation, tmp_path: Path) -> None:
    """The process ends and is worth another try: the agency may register the key later."""
    home = tmp_path / "stranger"
    enrolled_home(home, federation.authority, federation.server, "hospital-2")
    config = dataclasses.replace(federation.node.config, home=str(home), runtime_port=free_port())
    stranger = Node(home, config, 0)
    with running(stranger) as child:
        assert child.wait(40) == 1
    assert "Failed to initialize the connection" in stranger.log()


@pytest.mark.deploy
def test_node_with_a_certificate_of_another_authority_stays_outside(federation: Federation, tmp_path: Path) -> None:
    home = tmp_path / "stranger"
    enrolled_home(home, Authority(), federation.server)
    root = (federation.node.home / "identity" / "root.pem").read_bytes()
    (home / "identity" / "root.pem").write_bytes(root)  # it trusts the server, but the server does not trust it
    stranger = Node(home, dataclasses.replace(federation.node.config, home=str(home), runtime_port=free_port()), 0)
    with running(stranger) as child:
        wait_until(lambda: child.poll() is not None or "retrying" in stranger.log())
    assert "SuperNode ID" not in stranger.log()
    online = {node.node_id for node in federation.control.list_nodes() if node.status == "online"}
    assert online <= {federation.node.node_id}  # the node of another test is online until its last pulse is old
