"""The superlink as a real process: what it refuses to start with, and what a stranger and a local user get from it."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import signal
import socket
import sqlite3
import stat
import time
from collections.abc import Iterator
from datetime import timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from flwr.proto.control_pb2 import RegisterNodeRequest, StartRunRequest
from flwr.proto.fleet_pb2 import ActivateNodeRequest, ActivateNodeResponse, RegisterNodeFleetRequest
from flwr.proto.runtime_pb2 import AcquireTaskRequest
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

from sovfed.federation.certificates import (
    ServerNames,
    create_csr,
    create_key,
    key_from_pem,
    key_to_pem,
    sign_csr,
    to_pem,
)
from sovfed.federation.config import ServerConfig
from sovfed.federation.errors import IdentityError, NotValidNowError, ServiceError
from sovfed.federation.files import write_atomic, write_private
from sovfed.federation.wire.loopback import SECRET_HEADER, read_secret
from sovfed.server.network import state_db
from sovfed.server.network.door import Door
from sovfed.server.network.flower_app import STATE_FILE, _OfControl, check_flower, create_flower_app, flower_config
from sovfed.server.network.superlink import check_home, check_loopback, listen
from sovfed.server.runs.control import ControlClient

DAY = timedelta(days=1)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return make_home(Authority(), tmp_path / "agency")


def test_a_home_that_others_may_enter_is_refused(home: Path) -> None:
    home.chmod(0o750)
    with pytest.raises(ServiceError, match="mode 0700"):
        check_home(home)


def test_a_key_that_others_may_read_is_refused(home: Path) -> None:
    (home / "identity" / "key.pem").chmod(0o640)
    with pytest.raises(ServiceError, match=r"key\.pem: mode 0640"):
        check_home(home)


@pytest.mark.parametrize("name", ["root.pem", "crl.pem", "cert.pem", "key.pem"])
def test_a_missing_tls_file_is_refused(home: Path, name: str) -> None:
    (home / "identity" / name).unlink()
    with pytest.raises(ServiceError, match=f"no {name}"):
        check_home(home)


def test_a_stale_revocation_list_is_refused(home: Path) -> None:
    authority = Authority()
    make_home(authority, home)
    write_atomic(home / "identity" / "crl.pem", authority.crl(days=1, now=authority.now - 3 * DAY))
    with pytest.raises(NotValidNowError, match="stale"):  # it is waited for: a fresh list may come
        check_home(home)


def test_a_certificate_that_ended_while_all_was_off_is_told_with_what_to_type(home: Path) -> None:
    authority = Authority()
    make_home(authority, home)
    key = key_from_pem((home / "identity" / "key.pem").read_bytes(), "key")
    request = to_pem(create_csr(key, ServerNames(("localhost",))))
    past = sign_csr(authority.key, authority.root, request, authority.now - 40 * DAY, 30)
    write_atomic(home / "identity" / "cert.pem", to_pem(past))
    with pytest.raises(NotValidNowError, match=r"`sovfed authority sign .*server\.csr --server"):
        check_home(home)


def test_a_revocation_list_of_another_authority_is_refused(home: Path) -> None:
    write_atomic(home / "identity" / "crl.pem", Authority().crl())
    with pytest.raises(ServiceError, match="revocation list"):
        check_home(home)


def test_an_institution_certificate_does_not_serve(home: Path, tmp_path: Path) -> None:
    authority = Authority()
    make_home(authority, home)
    hospital = make_institution(authority, tmp_path / "hospital", "hospital-1")
    write_atomic(home / "identity" / "cert.pem", (hospital.folder / "cert.pem").read_bytes())
    with pytest.raises(ServiceError, match="not safe to serve with"):
        check_home(home)


def test_a_key_of_another_certificate_is_refused(home: Path) -> None:
    write_private(home / "identity" / "key.pem", key_to_pem(create_key()))
    with pytest.raises(ServiceError, match="not safe to serve with"):
        check_home(home)


def test_a_good_home_is_accepted(home: Path) -> None:
    check_home(home)


@pytest.mark.parametrize("address", ["0.0.0.0", "::"])
def test_control_on_an_address_that_strangers_reach_is_refused(address: str) -> None:
    with listen(address, 0, Door(1)) as listener, pytest.raises(ServiceError, match=r"expected 127\.0\.0\.1"):
        check_loopback(listener)


def test_control_on_the_loopback_is_accepted() -> None:
    with listen("127.0.0.1", 0, Door(1)) as listener:
        check_loopback(listener)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"enable_supernode_auth": False}, "SuperNode authentication is off"),
        ({"isolation": "subprocess"}, "isolation is 'subprocess'"),
        ({"superexec_auth_secret": None}, "no SuperExec secret"),
        ({"runtime_dependency_install": True}, "dependency installation is on"),
        ({"simulation": True}, "simulation"),
        ({"health_server_address": "0.0.0.0:1"}, "health server"),
        ({"event_log_plugin": object()}, "event log or tracing is on"),
        ({"fleet_event_log_plugin": object()}, "event log or tracing is on"),
    ],
)
def test_an_unsafe_flower_configuration_is_refused(home: Path, change: dict[str, object], named: str) -> None:
    config = flower_config(home, "127.0.0.1", 1)
    check_flower(config)
    with pytest.raises(ServiceError, match=named):
        check_flower(dataclasses.replace(config, **change))  # type: ignore[arg-type]


def test_middlewares_that_hand_requests_on_are_left_out_and_those_that_judge_are_not(home: Path) -> None:
    app = create_flower_app(flower_config(home, "127.0.0.1", 1))
    kept = [entry.kwargs.get("middleware", entry.cls) for entry in app.user_middleware]
    assert [getattr(middleware, "__name__", "") for middleware in kept] == [
        "ControlSensitiveResponseMiddleware", "BaseHTTPMiddleware", "ControlAuthenticationMiddleware",
        "ControlLicenseMiddleware", "ProtobufTranslationMiddleware", "NodeAuthMiddleware",
    ]  # fmt: skip
    past = [entry.cls is not entry.kwargs.get("middleware", entry.cls) for entry in app.user_middleware]
    assert past == [True, False, True, True, False, False], "for the Control API alone"


@pytest.mark.parametrize(("path", "seen"), [("/v1/control/list-runs", True), ("/v1/fleet/pull-messages", False)])
def test_a_middleware_of_control_is_met_on_its_way_only(path: str, seen: bool) -> None:
    met = list[str]()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        met.append("app")

    def middleware(inner: Any) -> Any:
        async def marked(scope: Any, receive: Any, send: Any) -> None:
            met.append("middleware")
            await inner(scope, receive, send)

        return marked

    asyncio.run(_OfControl(app, middleware)({"type": "http", "path": path}, None, None))  # type: ignore[arg-type]
    assert met == ["middleware"] * seen + ["app"]


@pytest.mark.parametrize("name", ["FLWR_INTERNAL_GRPC_CONTROL_API", "FLWR_INTERNAL_GRPC_FLEET_API"])
def test_flowers_second_doors_are_refused(home: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "1")
    with pytest.raises(ServiceError, match=name):
        check_flower(flower_config(home, "127.0.0.1", 1))


def test_a_loopback_secret_that_others_may_read_is_refused(home: Path) -> None:
    flower_config(home, "127.0.0.1", 1)  # makes the secret
    (home / "secrets" / "superexec.secret").chmod(0o644)
    with pytest.raises(IdentityError, match="mode 0644"):
        flower_config(home, "127.0.0.1", 1)


def test_a_taken_port_is_a_clear_error() -> None:
    with listen("127.0.0.1", 0, Door(1)) as taken:
        taken.listen()
        with pytest.raises(ServiceError, match=r"cannot listen on 127\.0\.0\.1"):
            listen("127.0.0.1", taken.getsockname()[1], Door(1))


@pytest.mark.filterwarnings("ignore:No path_separator found:DeprecationWarning")  # Flower's use of alembic
def test_a_locked_database_is_answered_503_which_flowers_clients_retry(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flwr.supercore import sql_mixin

    monkeypatch.setattr(state_db, "BUSY_TIMEOUT_MS", 50)
    monkeypatch.setattr(sql_mixin, "SQLITE_PRAGMAS", vars(sql_mixin)["SQLITE_PRAGMAS"])  # restored afterwards
    config = flower_config(home, "127.0.0.1", 1)
    app = create_flower_app(config)
    hospital = make_institution(Authority(), tmp_path / "hospital", "hospital-1")
    content = RegisterNodeRequest(public_key=hospital.public_key).SerializeToString()

    async def register() -> int:
        headers = {"content-type": "application/protobuf"}
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://superlink") as client:
            return (await client.post("/v1/control/register-node", content=content, headers=headers)).status_code

    with contextlib.closing(sqlite3.connect(config.database, isolation_level=None)) as writer:
        writer.execute("BEGIN IMMEDIATE")
        assert asyncio.run(register()) == 503
        writer.execute("ROLLBACK")
    assert asyncio.run(register()) == 200


@pytest.mark.deploy
def test_the_process_refuses_to_start_and_says_why(home: Path) -> None:
    import subprocess

    from tests.server.agency import superlink_argv

    from sovfed.federation.host.quiet import quiet_environment

    home.chmod(0o755)
    done = subprocess.run(
        superlink_argv(home, server_config(home)),
        env=quiet_environment(home),
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1  # tried again: it may be put right meanwhile
    assert done.stderr.strip().splitlines()[-1] == f"superlink: {home}: must be a directory of this user with mode 0700"


@dataclasses.dataclass(frozen=True)
class Served:
    """A running superlink and two enrolled institutions, of which the first is registered."""

    authority: Authority
    home: Path
    config: ServerConfig
    control: ControlClient
    hospital: Institution
    other: Institution
    node_id: int
    pid: int


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    authority = Authority()
    home = make_home(authority, folder / "agency")
    hospital = make_institution(authority, folder / "hospital", "hospital-1")
    other = make_institution(authority, folder / "other", "hospital-2")
    config = server_config(home)
    with superlink(home, config) as (process, control):
        node_id = control.register_node(hospital.public_key, "hospital-1")
        yield Served(authority, home, config, control, hospital, other, node_id, process.pid)


def activate(served: Served, client: httpx.Client, node: Institution) -> httpx.Response:
    request = ActivateNodeRequest(public_key=node.public_key, heartbeat_interval=30)
    return post(client, "/v1/fleet/activate-node", request, node.headers())


@pytest.mark.deploy
def test_an_enrolled_institution_activates_its_node(served: Served) -> None:
    with network_client(served.config.fleet_port, served.hospital.folder) as client:
        response = activate(served, client, served.hospital)
    assert response.status_code == 200
    assert ActivateNodeResponse.FromString(response.content).node_id == served.node_id


@pytest.mark.deploy
def test_an_agency_that_stood_still_answers_with_the_time_of_now(served: Served) -> None:
    """Seen: the answer bore the time of when it stopped, and institutions said that a clock was wrong."""
    with network_client(served.config.fleet_port, served.hospital.folder) as client:
        activate(served, client, served.hospital)
        os.kill(served.pid, signal.SIGSTOP)
        try:
            time.sleep(3.5)  # nothing tells when a clock has gone on
        finally:
            os.kill(served.pid, signal.SIGCONT)
        response = activate(served, client, served.hospital)
    (date,) = response.headers.get_list("date")
    assert abs(parsedate_to_datetime(date).timestamp() - time.time()) < 2.5


@pytest.mark.deploy
def test_no_certificate_no_connection(served: Served) -> None:
    stranger = network_client(served.config.fleet_port, served.hospital.folder, with_certificate=False)
    with stranger as client, pytest.raises(httpx.TransportError):
        activate(served, client, served.hospital)


@pytest.mark.deploy
def test_a_certificate_of_another_authority_gets_no_connection(served: Served, tmp_path: Path) -> None:
    stranger = make_institution(Authority(), tmp_path / "stranger", "hospital-1")
    write_atomic(stranger.folder / "root.pem", (served.hospital.folder / "root.pem").read_bytes())
    with network_client(served.config.fleet_port, stranger.folder) as client, pytest.raises(httpx.TransportError):
        activate(served, client, stranger)


@pytest.mark.deploy
def test_a_stolen_node_key_is_useless_without_its_certificate(served: Served) -> None:
    with network_client(served.config.fleet_port, served.other.folder) as client:
        assert activate(served, client, served.hospital).status_code == 403


@pytest.mark.deploy
@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/v1/control/start-run", StartRunRequest()),
        ("/v1/control/register-node", RegisterNodeRequest(public_key=b"x")),
        ("/v1/runtime/acquire-task", AcquireTaskRequest(supported_task_types=["flwr-serverapp"])),
        ("/v1/fleet/register-node", RegisterNodeFleetRequest(public_key=b"x")),
        ("/v1/fleet/unregister-node", RegisterNodeFleetRequest(public_key=b"x")),
        ("/v1/fleet//../control/list-runs", AcquireTaskRequest()),
        ("/v1/fleet/activate-node/", ActivateNodeRequest()),
    ],
)
def test_the_network_side_knows_fleet_calls_only(served: Served, path: str, message: object) -> None:
    with network_client(served.config.fleet_port, served.hospital.folder) as client:
        response = post(client, path, message, served.hospital.headers())  # type: ignore[arg-type]
    assert (response.status_code, response.json()) == (404, {"detail": "Not Found"})


@pytest.mark.deploy
@pytest.mark.parametrize("path", ["/docs", "/openapi.json", "/health"])
def test_the_network_side_shows_no_pages(served: Served, path: str) -> None:
    with network_client(served.config.fleet_port, served.hospital.folder) as client:
        assert client.get(path).status_code == 404


@pytest.mark.deploy
@pytest.mark.parametrize("secret", [None, "", "0" * 64])
def test_a_local_user_without_the_secret_is_refused(served: Served, secret: str | None) -> None:
    headers = {} if secret is None else {SECRET_HEADER: secret}
    with httpx.Client(base_url=f"http://127.0.0.1:{served.config.control_port}", trust_env=False) as client:
        claim = post(
            client, "/v1/runtime/acquire-task", AcquireTaskRequest(supported_task_types=["flwr-serverapp"]), headers
        )
        start = post(client, "/v1/control/start-run", StartRunRequest(), headers)
        pages = client.get("/openapi.json", headers=headers)
    assert {claim.status_code, start.status_code, pages.status_code} == {403}


@pytest.mark.deploy
def test_the_secret_alone_claims_no_task(served: Served) -> None:
    headers = {SECRET_HEADER: read_secret(served.home / "secrets" / "loopback.secret")}
    with httpx.Client(base_url=f"http://127.0.0.1:{served.config.control_port}", trust_env=False) as client:
        response = post(client, "/v1/runtime/acquire-task", AcquireTaskRequest(), headers)
    assert response.status_code != 200


@pytest.mark.deploy
def test_control_is_not_served_on_other_addresses(served: Served) -> None:
    with socket.socket() as probe:
        probe.settimeout(2)
        assert probe.connect_ex(("127.0.0.2", served.config.control_port)) != 0  # an address of this machine, not bound


@pytest.mark.deploy
def test_the_state_is_ours_alone(served: Served) -> None:
    database = served.home / STATE_FILE
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in database.parent.iterdir()}
    assert stat.S_IMODE(database.parent.stat().st_mode) == 0o700
    assert set(modes.values()) == {0o600}, modes


@pytest.mark.deploy
def test_a_revoked_institution_is_refused_at_once(tmp_path: Path) -> None:
    authority = Authority()
    home = make_home(authority, tmp_path / "agency")
    hospital = make_institution(authority, tmp_path / "hospital", "hospital-1")
    config = server_config(home)
    with superlink(home, config) as (_, control), network_client(config.fleet_port, hospital.folder) as client:
        control.register_node(hospital.public_key, "hospital-1")
        request = ActivateNodeRequest(public_key=hospital.public_key, heartbeat_interval=30)
        before = post(client, "/v1/fleet/activate-node", request, hospital.headers())
        authority.revoked.append((hospital.serial, authority.now))
        write_atomic(home / "identity" / "crl.pem", authority.crl())
        after = post(client, "/v1/fleet/activate-node", request, hospital.headers())  # the same connection
    assert (before.status_code, after.status_code) == (200, 403)
