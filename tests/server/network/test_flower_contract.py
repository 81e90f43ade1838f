"""What we use of Flower beyond its public API. A failure names the file to adapt; the version is pinned for it."""

from __future__ import annotations

import dataclasses
import inspect
import warnings
from importlib.metadata import version
from typing import Any

import pytest


def parameters(function: Any) -> list[str]:
    return [name for name in inspect.signature(function).parameters if name != "self"]


def test_the_pinned_version() -> None:
    assert version("flwr").startswith("1.42."), "read Flower's changes, then every file named in this module"


# server/network/gate.py ---------------------------------------------------------------------------------------------


def test_every_fleet_route_is_either_let_through_or_known() -> None:
    from flwr.superlink.routers.fleet.router import router

    from sovfed.server.network.gate import FLEET_PATHS

    routes = {getattr(route, "path", "") for route in router.routes}
    refused = {"/v1/fleet/register-node", "/v1/fleet/unregister-node"}
    assert routes == FLEET_PATHS | refused, "server/network/gate.py: FLEET_PATHS"


def test_the_gate_reads_each_call_as_flower_does() -> None:
    from flwr.supercore.protobuf.translation import PROTOBUF_REQUEST_TYPES

    from sovfed.server.network.fleet_calls import CALLS

    theirs = {path: kind for (_, path), kind in PROTOBUF_REQUEST_TYPES.items() if path in CALLS}
    assert theirs == CALLS, "server/network/fleet_calls.py: CALLS"


def test_flower_ties_a_reply_to_the_node_that_was_asked_and_nothing_else_to_anybody() -> None:
    from flwr.server.superlink.linkstate.sql_linkstate import SqlLinkState
    from flwr.superlink.servicer.fleet import fleet_handlers

    store = inspect.getsource(SqlLinkState.store_message_res)
    assert 'int64_to_uint64(msg_ins["dst_node_id"]) != res_metadata.src_node_id' in store, (
        "server/network/fleet_calls.py"
    )
    push = inspect.getsource(fleet_handlers.push_messages)
    assert "messages_list[0]" in push, "server/network/fleet_calls.py: does it take more than one message now?"
    assert "message_object_trees[0]" in push, "server/network/fleet_calls.py"


def test_the_node_key_header() -> None:
    from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER
    from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

    from sovfed.server.network.gate import PUBLIC_KEY_HEADER

    assert FLEET_HTTP_PUBLIC_KEY_HEADER.encode() == PUBLIC_KEY_HEADER, "server/network/gate.py: PUBLIC_KEY_HEADER"
    assert "b64encode(self._public_key_bytes)" in inspect.getsource(NodeAuthHttpInterceptor), "server/network/gate.py"


def test_the_node_key_is_serialised_as_the_certificate_binds_it() -> None:
    from flwr.supercore.primitives.asymmetric import generate_key_pairs, public_key_to_bytes

    from sovfed.federation.identity import node_key_bytes

    public = generate_key_pairs()[1]
    assert public_key_to_bytes(public) == node_key_bytes(public), "federation/identity.py: node_key_bytes"


def test_an_object_chunk_fits_a_request() -> None:
    from flwr.app.message.array import Array
    from flwr.supercore import inflatable  # noqa: F401  # the package that chunks

    from sovfed.server.network.fleet_calls import MAX_REQUEST_BYTES

    big = Array(dtype="float32", shape=(8 * 2**20,), stype="raw", data=bytes(32 * 2**20))
    chunks = [child.deflate() for child in (big.children or {}).values()]
    assert len(chunks) > 1, "server/network/gate.py: Flower no longer cuts arrays into chunks"
    assert max(map(len, chunks)) < MAX_REQUEST_BYTES / 2, "server/network/fleet_calls.py: MAX_REQUEST_BYTES"


def test_uvicorn_protocols_take_the_app_from_an_attribute() -> None:
    import uvicorn
    from uvicorn.protocols.http.h11_impl import H11Protocol

    assert "self.app = config.loaded_app" in inspect.getsource(H11Protocol.__init__), "server/network/gate.py"
    assert parameters(H11Protocol.connection_made) == ["transport"], "server/network/gate.py: CertificateProtocol"
    assert "self.cycle: RequestResponseCycle = None" in inspect.getsource(H11Protocol.__init__), (
        "server/network/door.py"
    )
    assert "loop.create_server(create_protocol, sock=sock" in inspect.getsource(uvicorn.Server.startup), (
        "server/network/door.py"
    )


# server/network/superlink.py, server/network/flower_app.py ----------------------------------------------------------


def test_uvicorns_server_leaves_signals_to_one_method() -> None:
    import uvicorn

    assert parameters(uvicorn.Server.capture_signals) == [], "server/network/superlink.py: _Server"
    assert "with self.capture_signals()" in inspect.getsource(uvicorn.Server.serve), (
        "server/network/superlink.py: _Server"
    )
    assert "ssl_context_factory" in parameters(uvicorn.Config), "server/network/superlink.py: _public_server"


def test_the_superlinks_configuration() -> None:
    from flwr.superlink.config_loader import SuperLinkLifespanConfig

    assert [field.name for field in dataclasses.fields(SuperLinkLifespanConfig)] == [
        "control_address", "health_server_address", "host", "port", "insecure", "certificates", "superexec_auth_secret",
        "authn_plugin", "event_log_plugin", "fleet_event_log_plugin", "enable_event_log", "artifact_provider",
        "enable_supernode_auth", "fleet_api_type", "fleet_api_address", "simulation", "ssl_ca_certfile", "ssl_certfile",
        "ssl_keyfile", "database", "isolation", "runtime_dependency_install",
    ], "server/network/flower_app.py: flower_config and check_flower: what does the new switch open?"  # fmt: skip


def test_the_app_opens_a_port_only_for_these_two_variables() -> None:
    from flwr.superlink.cli.flower_superlink import SuperLinkLifespan

    from sovfed.server.network.flower_app import REOPENED_BY

    source = inspect.getsource(SuperLinkLifespan.startup)
    assert all(name in source for name in REOPENED_BY), "server/network/flower_app.py: REOPENED_BY"
    assert source.count("os.getenv") == len(REOPENED_BY), "server/network/flower_app.py: a new door of Flower's"
    starts = [line.strip() for line in source.splitlines() if "self._start" in line and "()" in line]
    assert starts == [
        "self._start_control_api()", "self._start_fleet_api()", "self._start_superexec_if_needed()",
        "self._start_health_server_if_needed()",
    ], "server/network/flower_app.py: check_flower"  # fmt: skip


def test_create_app_takes_the_configuration_and_exposes_the_state() -> None:
    from flwr.superlink.main import create_app

    assert parameters(create_app) == ["config", "superlink_lifespan_class"], (
        "server/network/flower_app.py: create_flower_app"
    )
    assert "state.linkstate_factory = linkstate_factory" in inspect.getsource(create_app), (
        "server/network/flower_app.py: clean_up"
    )


def test_the_state_cleans_up_finished_runs() -> None:
    from flwr.server.superlink.linkstate import LinkState

    assert parameters(LinkState.cleanup_run) == ["run_id"], "server/network/flower_app.py: clean_up"
    wanted = {"statuses", "order_by", "ascending", "limit"}
    assert wanted <= set(parameters(LinkState.get_run_info)), "server/network/flower_app.py: clean_up"


def test_the_pragmas_are_read_where_we_set_them() -> None:
    from flwr.supercore import sql_mixin

    assert {"busy_timeout", "journal_mode"} <= set(dict(vars(sql_mixin)["SQLITE_PRAGMAS"])), (
        "server/network/state_db.py"
    )
    assert "in SQLITE_PRAGMAS" in inspect.getsource(sql_mixin._set_sqlite_pragmas), "server/network/state_db.py"


def test_flowers_clients_retry_what_a_busy_database_answers() -> None:
    from flwr.supercore.retry import http_retry

    assert 503 in http_retry._RETRYABLE_STATUS_CODES, "server/network/flower_app.py: _answer_busy"
    assert 500 not in http_retry._RETRYABLE_STATUS_CODES, (
        "server/network/flower_app.py: _answer_busy is no longer needed"
    )


# server/runs/control.py ---------------------------------------------------------------------------------------------


def test_control_calls_and_their_messages() -> None:
    from flwr.proto import control_pb2, run_pb2
    from flwr.supercore.control.control_http_client import ControlHttpClient

    for name in ("RegisterNode", "UnregisterNode", "ListNodes", "StartRun", "ListRuns", "StopRun"):
        assert parameters(getattr(ControlHttpClient, name)) == ["request"], f"server/runs/control.py: {name}"
        assert hasattr(control_pb2, f"{name}Request"), f"server/runs/control.py: {name}Request"
    fields = {field.name for field in run_pb2.Run.DESCRIPTOR.fields}
    assert {"status", "override_config"} <= fields, "server/runs/control.py: _run_record"


def test_clients_are_made_from_an_address() -> None:
    from flwr.supercore.protobuf.client import ProtobufClient

    expected = ["server_address", "insecure", "root_certificates", "interceptors", "retry_invoker"]
    assert parameters(ProtobufClient.from_server_address) == expected, "server/runs/control.py, server/runs/executor.py"


def test_our_bundle_is_what_flower_would_build() -> None:
    from flwr.cli.build import build_fab_from_files
    from flwr.common.config import get_fab_config

    from sovfed.server.runs.control import _PYPROJECT, CONFIG_KEY, build_bundle

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Flower's own use of pathspec
        theirs, _ = build_fab_from_files({"pyproject.toml": _PYPROJECT})
    ours = get_fab_config(build_bundle())
    assert ours == get_fab_config(theirs), "server/runs/control.py: build_bundle"
    assert ours["tool"]["flwr"]["app"]["config"] == {CONFIG_KEY: ""}, (
        "server/runs/control.py: the key must exist to be set"
    )


# server/runs/executor.py, server/runs/serverapp_runner.py -----------------------------------------------------------


def test_the_executor_signs_this_method() -> None:
    from flwr.supercore.interceptors import SuperExecAuthHttpInterceptor
    from flwr.supercore.superexec.run_superexec import _SUPEREXEC_AUTH_METHODS

    from sovfed.server.runs.executor import ACQUIRE

    assert {ACQUIRE} == set(_SUPEREXEC_AUTH_METHODS), "server/runs/executor.py: ACQUIRE"
    assert parameters(SuperExecAuthHttpInterceptor) == ["master_secret", "protected_methods"], "server/runs/executor.py"


def test_runtime_calls_and_their_messages() -> None:
    from flwr.proto import runtime_pb2
    from flwr.supercore.runtime import RuntimeHttpClient

    for name in ("AcquireTask", "PullTaskInput", "PushTaskOutput", "SendTaskHeartbeat"):
        assert parameters(getattr(RuntimeHttpClient, name)) == ["request"], f"server/runs/serverapp_runner.py: {name}"
        assert hasattr(runtime_pb2, f"{name}Request"), f"server/runs/serverapp_runner.py: {name}Request"


def test_a_lease_lasts_as_long_as_we_think() -> None:
    """A coordinator's task outlives a superlink that hangs for minutes; nodes stay online as Flower says."""
    from flwr.server.superlink.linkstate import sql_linkstate
    from flwr.supercore.corestate import sql_corestate

    from sovfed.server.network.state_db import LEASE_S, use_long_leases

    source = inspect.getsource(sql_corestate.SqlCoreState.acknowledge_task_heartbeat)
    assert "HEARTBEAT_PATIENCE * HEARTBEAT_DEFAULT_INTERVAL" in source, "server/network/state_db.py: use_long_leases"
    use_long_leases()
    lease_s = vars(sql_corestate)["HEARTBEAT_PATIENCE"] * vars(sql_corestate)["HEARTBEAT_DEFAULT_INTERVAL"]
    assert (lease_s, vars(sql_linkstate)["HEARTBEAT_PATIENCE"]) == (LEASE_S, 2)


def test_the_grid_and_its_retries() -> None:
    from flwr.supercore.retry import exponential
    from flwr.superlink.grid import HttpGrid

    grid = HttpGrid("127.0.0.1:1", insecure=True, token="token")
    assert callable(grid._retry_invoker.wait_gen_factory), "server/runs/serverapp_runner.py: _enter"
    assert {"base_delay", "max_delay"} <= set(parameters(exponential)), "server/runs/serverapp_runner.py: _enter"


def test_the_pauses_between_pulls_are_defaults_of_one_function() -> None:
    from flwr.supercore.inflatable.inflatable_utils import pull_objects
    from flwr.superlink.grid import http_grid

    wanted = {"initial_backoff", "backoff_cap", "max_tries_per_object", "max_time"}
    assert wanted <= set(pull_objects.__kwdefaults__ or {}), "server/runs/serverapp_runner.py: _pull_briskly"
    assert vars(http_grid)["pull_objects"] is pull_objects, "server/runs/serverapp_runner.py: _pull_briskly"
    assert "backoff" not in inspect.getsource(http_grid.HttpGrid.pull_messages), "server/runs/serverapp_runner.py"


def test_a_403_ends_a_run_with_this_exception() -> None:
    from flwr.supercore.retry import http_retry
    from flwr.supercore.run import RunNotRunningException

    assert not issubclass(RunNotRunningException, Exception), "server/runs/serverapp_runner.py: run"
    assert "raise RunNotRunningException" in inspect.getsource(http_retry), "server/runs/serverapp_runner.py: run"


def test_the_task_identity_is_set_by_these_names() -> None:
    from flwr.superlink.runtime import run_serverapp

    source = inspect.getsource(run_serverapp)
    for name in ("task_id", "run_id", "node_id"):
        assert f"TaskIdentity.{name} = " in source, "server/runs/serverapp_runner.py: _enter"


@pytest.mark.parametrize("name", ["SERVER_APP", "CLIENT_APP"])
def test_the_task_types(name: str) -> None:
    from flwr.supercore.constant import TaskType

    assert TaskType[name].value == {"SERVER_APP": "flwr-serverapp", "CLIENT_APP": "flwr-clientapp"}[name]


# federation/wire/flower.py ------------------------------------------------------------------------------------------


def test_the_servers_node_id() -> None:
    from flwr.common.constant import SUPERLINK_NODE_ID

    from sovfed.federation.wire.flower import SERVER_NODE_ID

    assert SUPERLINK_NODE_ID == SERVER_NODE_ID, "federation/wire/flower.py: SERVER_NODE_ID"
