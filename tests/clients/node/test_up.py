"""`sovfed client`: what `up` refuses, and the three processes together."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import socket
import stat
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner
from tests.clients.institution import Node, claimed_run, enrolled_home, wait_online
from tests.server.agency import Authority, make_home, server_config, superlink, wait_until

from sovfed.clients.cli.institution import cli
from sovfed.clients.home.folder import create
from sovfed.clients.home.policy import Policy
from sovfed.clients.node.up import make_supervisor
from sovfed.federation.compose import compose
from sovfed.federation.config import ClientConfig, DataConfig, ServerConfig
from sovfed.federation.errors import ConfigError, EvidenceError, IdentityError, PolicyError, ServiceError
from sovfed.federation.evidence.checking import check_log
from sovfed.federation.evidence.noting import Noting
from sovfed.federation.files import private_directory, write_atomic
from sovfed.federation.host.processes import read_status
from sovfed.federation.host.settings import settings_file
from sovfed.federation.host.status import supervising
from sovfed.federation.messages import Message, ProfileReply, ProfileRequest, Refusal, RunReply
from sovfed.federation.secagg.files import load_identity
from sovfed.federation.tasks.registry import get_task
from sovfed.federation.wire.flower import from_records, new_message, to_records
from sovfed.federation.wire.grids import FlowerGrid
from sovfed.server.orders.making import Ordering
from sovfed.server.rounds.loop import whole_run

POLICY = Policy(allowed_tasks=("echo",), allow_plain_updates=True, require_privacy=False)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """An enrolled institution with settings and policy."""
    home = tmp_path / "hospital"
    create(home, ClientConfig(device="cpu", data=DataConfig(source="none")), POLICY)
    enrolled_home(home, Authority(), ServerConfig())
    return home


def test_enrolled_home_with_a_policy_may_start(home: Path) -> None:
    supervisor = make_supervisor(home)
    assert [process.name for process in supervisor.status().processes] == ["trainer", "supernode", "gateway"]
    assert {stat.S_IMODE(path.stat().st_mode) for path in (home / "secrets").iterdir()} == {0o600}


def test_who_starts_what_cannot_write_its_log_is_told_the_command_that_helps(home: Path) -> None:
    make_supervisor(home)
    ahead = home / "audit" / "ahead"
    with ahead.open("ab") as file:
        file.write(b"what nobody\nhas written\n")
    with pytest.raises(EvidenceError, match=r"`sovfed client log mend`"):
        make_supervisor(home)
    Noting.mend(home)
    make_supervisor(home)
    with ahead.open("ab") as file:
        file.write(b"as a power cut leaves it\n")
    make_supervisor(home)
    assert len(check_log(home).damage) == 2


def test_a_taken_port_is_named_with_the_setting_that_changes_it(home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        settings = home / "client.yaml"
        settings.write_text(settings.read_text().replace("runtime_port: 0", f"runtime_port: {port}"))
        with pytest.raises(ServiceError, match=rf"runtime_port = {port}: cannot listen .*client\.yaml"):
            make_supervisor(home)


def test_home_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ServiceError, match="client init"):
        make_supervisor(tmp_path / "nowhere")


def test_institution_that_is_not_enrolled_is_refused(home: Path) -> None:
    (home / "identity" / "cert.pem").unlink()
    with pytest.raises(IdentityError, match=r"not enrolled; run `sovfed client enrol"):
        make_supervisor(home)


def test_missing_policy_is_refused(home: Path) -> None:
    (home / "policy.yaml").unlink()
    with pytest.raises(PolicyError, match="nothing is allowed"):
        make_supervisor(home)


def test_missing_settings_are_refused(home: Path) -> None:
    (home / "client.yaml").unlink()
    with pytest.raises(ConfigError, match=r"client\.yaml is missing"):
        make_supervisor(home)


@pytest.mark.parametrize("name", ["key.pem", "node_key"])
def test_key_that_others_can_read_is_refused(home: Path, name: str) -> None:
    (home / "identity" / name).chmod(0o640)
    with pytest.raises(IdentityError, match=f"{name}: mode 0640"):
        make_supervisor(home)


@pytest.mark.parametrize("folder", [".", "identity"])
def test_folder_that_others_may_enter_is_refused(home: Path, folder: str) -> None:
    (home / folder).chmod(0o750)
    with pytest.raises(ServiceError, match="0750, expected 0700"):
        make_supervisor(home)


def test_expired_certificate_is_refused(home: Path) -> None:
    from sovfed.clients.home.folder import check_enrolled

    authority = Authority()
    enrolled_home(home, authority, ServerConfig())  # good for 30 days
    check_enrolled(home, authority.now + timedelta(days=29))
    with pytest.raises(IdentityError, match=r"set the clock, or, .* `sovfed client join` with a new invitation"):
        check_enrolled(home, authority.now + timedelta(days=31))


def test_certificate_of_another_key_is_refused(home: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    enrolled_home(other, Authority(), ServerConfig())
    for name, words in (("key.pem", "another key"), ("node_key", "not bound to the node key")):
        mine = (home / "identity" / name).read_bytes()
        (home / "identity" / name).write_bytes((other / "identity" / name).read_bytes())
        with pytest.raises(IdentityError, match=words):
            make_supervisor(home)
        (home / "identity" / name).write_bytes(mine)


def test_status_and_down_of_what_is_not_running(home: Path) -> None:
    runner = CliRunner()
    result = runner.invoke(cli, ["status", "--home", str(home)])
    assert result.exit_code == 4
    assert "not running" in result.output
    result = runner.invoke(cli, ["status", "--json", "--home", str(home)])
    found = json.loads(result.stdout)
    assert (result.exit_code, found["processes"], found["requests"]["failures"]) == (4, [], 0)
    assert "not running" in runner.invoke(cli, ["down", "--home", str(home)]).output


def test_init_writes_a_policy_without_consent_and_says_so(tmp_path: Path) -> None:
    home = tmp_path / "new"
    result = CliRunner().invoke(cli, ["init", "--home", str(home), "client.device=cpu"])
    assert result.exit_code == 0, result.output
    assert "only secure aggregation is answered" in result.output
    assert "only private runs are answered" in result.output
    assert "allow_plain_updates: false" in (home / "policy.yaml").read_text()
    assert "require_privacy: true" in (home / "policy.yaml").read_text()
    assert 'device: "cpu"' in (home / "client.yaml").read_text()


@pytest.mark.parametrize(("person", "told"), [("null", "nothing says whose a row is"), ("patient", ""), ("row", "")])
def test_init_says_when_every_run_would_be_refused_for_the_settings_of_the_records(
    tmp_path: Path, person: str, told: str
) -> None:
    """Of a task whose schema leaves it to the institution who is a person."""
    schema = get_task("breast_cancer").schema
    columns = [*(column.name for column in schema.columns), "patient"]
    (tmp_path / "table.csv").write_text(",".join(columns) + "\n")
    words = ["--task", "breast_cancer", "data=csv", f"data.path={tmp_path / 'table.csv'}", f"data.person={person}"]
    result = CliRunner().invoke(cli, ["init", "--home", str(tmp_path / "new"), *words])
    assert result.exit_code == 0, result.output
    assert ("will be refused" in result.output) == bool(told)
    assert told in result.output


@contextlib.contextmanager
def institution_up(home: Path) -> Iterator[None]:
    """`sovfed client up --detach`, and `down` at the end."""
    result = CliRunner().invoke(cli, ["up", "--detach", "--home", str(home)])
    assert result.exit_code == 0, (result.output, result.exception)
    try:
        yield
    finally:
        result = CliRunner().invoke(cli, ["down", "--home", str(home)])
        assert "stopped" in result.output


@pytest.mark.deploy
def test_institution_answers_and_outlives_the_death_of_each_process(tmp_path: Path) -> None:
    authority = Authority()
    agency = make_home(authority, tmp_path / "agency")
    server = server_config(agency)
    home = tmp_path / "hospital"
    create(home, ClientConfig(device="cpu", data=DataConfig(source="none")), POLICY)
    public_key = enrolled_home(home, authority, server)
    write_atomic(home / "identity" / "crl.pem", authority.crl())  # without it no agency is trusted, and no order of it
    with superlink(agency, server) as (_, control):
        node = Node(home, ClientConfig(home=str(home)), control.register_node(public_key, "hospital-1"))
        with institution_up(home):
            wait_online(control, node)
            control.start_run({"do": "nothing"})
            with claimed_run(agency, server.control_port) as grid:
                assert profile(grid, node, "echo") == Refusal(reason="order")  # it has shown none
                assert show_order(grid, node, agency) == "standing"
                assert isinstance(profile(grid, node, "echo"), ProfileReply)
                refusal = profile(grid, node, "digits")  # the policy does not allow it
                assert refusal == Refusal(reason="bound")
                for name in ("trainer", "supernode", "gateway"):
                    kill(home, name)
                wait_online(control, node)
                assert isinstance(profile(grid, node, "echo"), ProfileReply)
        assert read_status(home) is None


def profile(grid: FlowerGrid, node: Node, task: str) -> object:
    """The institution's answer to a request for the totals of `task`."""
    return answer(grid, node, "query.profile", ProfileRequest(run="r", task=task, digest=get_task(task).digest))


def show_order(grid: FlowerGrid, node: Node, agency: Path) -> str:
    """What the institution says to the order of run "r", as the agency's coordinator shows it."""
    config = compose(["task=echo", "secagg=none"]).config
    request = whole_run(config, get_task("echo"), "r", "study", None)
    folder = private_directory(agency / "runs" / "study")
    order = Ordering(config, "study", folder, load_identity(agency / "identity"))(request)
    reply = answer(grid, node, "query.run", dataclasses.replace(request, order=order))
    assert isinstance(reply, RunReply)
    return reply.order


def answer(grid: FlowerGrid, node: Node, kind: str, request: Message) -> object:
    """The institution's answer to `request`."""
    message = new_message(to_records(request), run_id=grid.run.run_id, node_id=node.node_id, kind=kind, group="0")
    (reply,) = grid.replies([message], 90)
    return from_records(reply.content)


def kill(home: Path, name: str) -> None:
    """kill -9, and wait until the process is back."""

    def found() -> tuple[int | None, str]:
        status = read_status(home)
        assert status is not None
        (process,) = [process for process in status.processes if process.name == name]
        return process.pid, process.state

    pid, _ = found()
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: found()[0] not in (None, pid) and found()[1] == "ready", 60, f"the return of {name}")


def test_a_second_start_of_a_home_changes_nothing_for_the_first(home: Path) -> None:
    """Two at the same moment, as by systemd and by hand: each chose a port, and wrote it down for both.

    Processes of the first that were started again then looked for each other on the port of the second.
    """
    second = make_supervisor(home)
    with supervising(home):
        before = settings_file(home, ClientConfig(home=str(home), runtime_port=4711)).read_bytes()
        with pytest.raises(ServiceError, match="is in use"):
            second.start()
        assert (home / "processes.json").read_bytes() == before
