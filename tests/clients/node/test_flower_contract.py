"""What the institution uses of Flower beyond its public API. When one of these fails, read Flower's change first."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from datetime import timedelta
from importlib.metadata import version

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.supercore.constant import TaskType
from flwr.supercore.inflatable.inflatable_utils import pull_objects
from flwr.supercore.protobuf.client import ProtobufClient
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supernode import fleet_http_connection, start_client_internal
from flwr.supernode.fleet_http_client import FleetHttpClient

from sovfed.clients.node.executor import ACQUIRE
from sovfed.federation.wire.flower import SERVER_NODE_ID, new_message


def test_version_is_the_one_that_was_read() -> None:
    assert version("flwr").startswith("1.42.")


def test_every_client_is_a_protobuf_client_with_one_httpx_client() -> None:
    parameters = inspect.signature(ProtobufClient.__init__).parameters
    assert next(name for name in parameters if name not in ("self", "options")) == "base_url"
    assert "verify" in parameters
    for kind in (FleetHttpClient, RuntimeHttpClient):
        assert issubclass(kind, ProtobufClient)
        assert "__init__" not in vars(kind)
    with RuntimeHttpClient("http://127.0.0.1:1") as client:
        assert type(client._client).__module__.startswith("httpx")


def test_supernode_sleeps_are_those_that_we_shorten() -> None:
    sleeps = re.findall(r"time\.sleep\(([\d.]+)\)", inspect.getsource(start_client_internal))
    assert sorted(sleeps) == ["0.5", "0.5", "3"]


def test_supernode_fetches_objects_through_the_name_that_we_bound() -> None:
    source = inspect.getsource(start_client_internal._pull_and_store_message)
    assert re.search(r"pull_objects\(\s*obj_ids_to_pull,\s*pull_object_fn=", source)


def test_supernode_needs_no_sqlalchemy_for_a_state_in_memory() -> None:
    """In a process of its own, as the SuperNode is."""
    script = """
import sys
from sovfed.clients.node.supernode import leave_out_databases
leave_out_databases()
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supernode import main, start_client_internal
from sovfed.clients.node import whole_messages
assert ObjectStoreFactory().store().get("x") is None
print([name for name in ("sqlalchemy", "alembic", "mako", "torch") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_supernode_sends_a_reply_by_the_names_that_we_bound() -> None:
    """And brings those of its objects that `send` has asked for: none."""
    loop = inspect.getsource(start_client_internal)
    assert re.search(r"_push_messages\(\s*state=state,\s*object_store=store,\s*send=send,", loop)
    source = inspect.getsource(start_client_internal._push_messages)
    assert re.search(r"ids_obj_to_send, session_id = send\(message, object_tree, clientapp_runtime\)", source)
    assert "yield_object_contents(object_tree, ids_obj_to_send)" in source
    assert "max_concurrent_pulls" in inspect.signature(pull_objects).parameters


def test_supernode_makes_a_task_before_its_message_is_there() -> None:
    """Why the executor waits for the message of a task that it has claimed."""
    source = inspect.getsource(start_client_internal._pull_and_store_message)
    assert source.index("state.create_task(") < source.index("state.store_message(message)")


def test_supernode_ends_its_loop_by_returning_after_an_error() -> None:
    """Why `serve` counts a return as a failure."""
    source = inspect.getsource(fleet_http_connection.http_request_response)
    assert re.search(r"log\(ERROR, exc\)\s+finally:", source)


def test_task_lease_follows_the_constant_that_we_change() -> None:
    from flwr.supercore.corestate import in_memory_corestate
    from flwr.supercore.object_store import ObjectStoreFactory
    from flwr.supernode.nodestate import NodeStateFactory

    state = NodeStateFactory(ObjectStoreFactory()).state()
    before = vars(in_memory_corestate)["HEARTBEAT_DEFAULT_INTERVAL"]
    vars(in_memory_corestate)["HEARTBEAT_DEFAULT_INTERVAL"] = -1
    try:
        task_id = state.create_task(task_type=TaskType.CLIENT_APP, run_id=1, fab_hash="")
        assert task_id is not None
        token = state.claim_task(task_id)
        assert token
        assert state.get_task_by_token(token) is None  # a lease of -1 s has run out
    finally:
        vars(in_memory_corestate)["HEARTBEAT_DEFAULT_INTERVAL"] = before
    assert timedelta(seconds=before) == timedelta(seconds=30)


def test_claims_are_signed_under_this_name() -> None:
    from flwr.supercore.superexec import run_superexec

    assert {ACQUIRE} == run_superexec._SUPEREXEC_AUTH_METHODS


def test_reply_takes_its_addresses_from_the_message_and_not_from_the_process() -> None:
    """Why one process may answer several runs at once: Flower's TaskIdentity is not asked."""
    asked = new_message(RecordDict({"c": ConfigRecord()}), run_id=7, node_id=9, kind="query.echo", group="3")
    asked.metadata.__dict__["_message_id"] = "m"
    reply = Message(asked.content, reply_to=asked)
    found = reply.metadata
    assert (found.run_id, found.src_node_id, found.dst_node_id) == (7, 9, SERVER_NODE_ID)
    assert (found.reply_to_message_id, found.group_id) == ("m", "3")
