"""An enrolled institution that turns against the others, at a real superlink with a run on: what it gets through."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import secrets
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from flwr.app.message import remove_content_from_message
from flwr.app.message.arraychunk import ArrayChunk
from flwr.common.serde import message_to_proto
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    PullMessagesRequest,
    PullMessagesResponse,
    PushMessagesRequest,
    PushMessagesResponse,
)
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, ObjectTree, PullObjectRequest, PushObjectRequest
from flwr.proto.node_pb2 import Node
from flwr.supercore.inflatable.inflatable_object import get_object_tree, no_object_id_recompute
from tests.clients.institution import claimed_run
from tests.server.agency import (
    Authority,
    Institution,
    make_home,
    make_institution,
    network_client,
    post,
    server_config,
    superlink,
)

from sovfed.federation.messages import ProfileRequest
from sovfed.federation.wire.flower import new_message, to_records
from sovfed.federation.wire.grids import FlowerGrid
from sovfed.server.network.flower_app import STATE_FILE

pytestmark = pytest.mark.deploy
MIB = 2**20


@dataclasses.dataclass
class Fleet:
    """One institution's fleet calls, made by hand."""

    client: httpx.Client
    institution: Institution
    node_id: int

    def call(self, name: str, request: object) -> httpx.Response:
        return post(self.client, f"/v1/fleet/{name}", request, self.institution.headers())  # type: ignore[arg-type]

    def inbox(self) -> PullMessagesResponse:
        response = self.call("pull-messages", PullMessagesRequest(node=Node(node_id=self.node_id)))
        return PullMessagesResponse.FromString(response.content)


@dataclasses.dataclass
class Scene:
    grid: FlowerGrid
    insider: Fleet
    victim: Fleet
    database: Path

    def message(self, to: int, reply_to: str = "", src: int = 1, dst: int = 0) -> tuple[PushMessagesRequest, str]:
        """A message with everything that Flower asks of one, and its id."""
        content = to_records(ProfileRequest(run="r1", task="digits"))
        message = new_message(content, run_id=self.grid.run.run_id, node_id=to, kind="query.profile", group="1")
        message.metadata.__dict__["_src_node_id"] = src
        message.metadata.__dict__["_dst_node_id"] = dst or to
        message.metadata.__dict__["_reply_to_message_id"] = reply_to
        message.metadata.__dict__["_ttl"] = 3600.0  # a reply may not outlive its question
        message_id = message.metadata.__dict__["_message_id"] = message.object_id
        proto = message_to_proto(remove_content_from_message(message))
        with no_object_id_recompute():
            tree = get_object_tree(message)
        own = Node(node_id=self.insider.node_id)
        return PushMessagesRequest(node=own, messages_list=[proto], message_object_trees=[tree]), message_id

    def ask(self, node_id: int) -> str:
        """A real message of the coordinator to `node_id`; its id."""
        content = to_records(ProfileRequest(run="r1", task="digits"))
        message = new_message(content, run_id=self.grid.run.run_id, node_id=node_id, kind="query.profile", group="1")
        return str(next(iter(self.grid.push_messages([message]))))


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    folder, authority = tmp_path_factory.mktemp("insider"), Authority()
    home = make_home(authority, folder / "agency")
    config = server_config(home, max_message_bytes=2 * MIB)
    with superlink(home, config) as (_, control), contextlib.ExitStack() as clients:
        fleets = []
        for name in ("hospital-1", "hospital-6"):
            institution = make_institution(authority, folder / name, name)
            node_id = control.register_node(institution.public_key, name)
            client = clients.enter_context(network_client(config.fleet_port, institution.folder))
            fleets.append(Fleet(client, institution, node_id))
            request = ActivateNodeRequest(public_key=institution.public_key, heartbeat_interval=60)
            assert fleets[-1].call("activate-node", request).status_code == 200
        control.start_run({"do": "nothing"})
        with claimed_run(home, config.control_port) as grid:
            yield Scene(grid, fleets[1], fleets[0], home / STATE_FILE)
        for fleet in fleets:
            fleet.client.close()


def test_no_message_in_the_agencys_name_reaches_another_institution(scene: Scene) -> None:
    victim, insider = scene.victim.node_id, scene.insider.node_id
    for src in (1, insider, victim):
        request, _ = scene.message(victim, src=src)
        assert scene.insider.call("push-messages", request).status_code == 403
    assert not scene.victim.inbox().messages_list


def test_no_institution_answers_for_another_and_each_answers_for_itself(scene: Scene) -> None:
    asked = scene.ask(scene.victim.node_id)
    for src in (scene.insider.node_id, scene.victim.node_id):
        forged, _ = scene.message(1, reply_to=asked, src=src)
        assert scene.insider.call("push-messages", forged).status_code == 403
    run_id = scene.grid.run.run_id
    confirm = ConfirmMessageReceivedRequest(
        node=Node(node_id=scene.insider.node_id), run_id=run_id, message_object_id=asked
    )
    assert scene.insider.call("confirm-message-received", confirm).status_code == 403
    pull = PullObjectRequest(node=Node(node_id=scene.insider.node_id), run_id=run_id, object_id=asked)
    assert scene.insider.call("pull-object", pull).status_code == 403
    assert [one.metadata.message_id for one in scene.victim.inbox().messages_list] == [asked]
    own = PullObjectRequest(node=Node(node_id=scene.victim.node_id), run_id=run_id, object_id=asked)
    assert scene.victim.call("pull-object", own).status_code == 200
    assert list(scene.grid.pull_messages([asked])) == []


def test_the_database_does_not_fill_up(scene: Scene) -> None:
    """Whole floods: heads of 14 MB, and a true reply whose objects never stop."""
    before = size_of(scene.database)
    for _ in range(5):
        request, _ = scene.message(scene.victim.node_id)
        request.messages_list[0].metadata.group_id = "x" * 14 * MIB
        with contextlib.suppress(httpx.TransportError):  # the connection may end while the body is still on its way
            assert scene.insider.call("push-messages", request).status_code == 413
    statuses = []
    for number in range(4):
        asked = scene.ask(scene.insider.node_id)
        scene.insider.inbox()
        request, _ = scene.message(1, reply_to=asked, src=scene.insider.node_id)
        chunks = [ArrayChunk(memoryview(secrets.token_bytes(4 * MIB))).deflate() for _ in range(8)]
        ids = [hashlib.sha256(chunk).hexdigest() for chunk in chunks]
        request.message_object_trees[0].children.extend(ObjectTree(object_id=one) for one in ids)
        pushed = scene.insider.call("push-messages", request)
        assert pushed.status_code in (200, 413), number
        session = PushMessagesResponse.FromString(pushed.content).session_id if pushed.status_code == 200 else "none"
        for one, chunk in zip(ids, chunks, strict=True):
            upload = PushObjectRequest(
                node=Node(node_id=scene.insider.node_id), run_id=scene.grid.run.run_id, session_id=session,
                object_id=one, object_content=chunk,
            )  # fmt: skip
            statuses.append(scene.insider.call("push-object", upload).status_code)
    assert statuses[:4] == [200] * 4
    assert set(statuses[8:]) == {413}
    assert size_of(scene.database) - before < 64 * MIB  # 128 MiB were sent; two messages and a request are allowed


def size_of(database: Path) -> int:
    return sum(path.stat().st_size for path in database.parent.iterdir())


def test_no_object_that_the_coordinator_will_send_is_spoilt_beforehand(scene: Scene) -> None:
    """Flower takes an object's children from whoever announces it first, and refuses the coordinator's own later."""
    asked = scene.ask(scene.insider.node_id)
    scene.insider.inbox()
    request, _ = scene.message(1, reply_to=asked, src=scene.insider.node_id)
    coming = to_records(ProfileRequest(run="r1", task="heart"))
    spoilt = ObjectTree(object_id=coming.object_id)
    spoilt.children.append(ObjectTree(object_id=hashlib.sha256(b"nothing").hexdigest()))
    request.message_object_trees[0].children.append(spoilt)
    assert scene.insider.call("push-messages", request).status_code == 200
    message = new_message(
        coming, run_id=scene.grid.run.run_id, node_id=scene.victim.node_id, kind="query.profile", group="1"
    )
    (sent,) = scene.grid.push_messages([message])
    for one in (message.object_id, *(child.object_id for child in get_object_tree(message).children)):
        pull = PullObjectRequest(node=Node(node_id=scene.victim.node_id), run_id=scene.grid.run.run_id, object_id=one)
        assert scene.victim.call("pull-object", pull).status_code == 200
    assert sent in {one.metadata.message_id for one in scene.victim.inbox().messages_list}
