"""Each check of `sovfed doctor` sees what is wrong and says what to do about it."""

from __future__ import annotations

import json
import socket
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from sovfed.federation.certificates import create_root, make_crl, to_pem
from sovfed.federation.config import ServerConfig
from sovfed.federation.host import doctor
from sovfed.federation.host.quiet import QUIET, REMOVED


def test_a_clock_before_this_software_existed_fails() -> None:
    assert doctor.clock(0.0).state == "fail"
    assert doctor.clock(doctor.CLOCK_FLOOR + 1).state == "ok"


def test_a_port_in_use_is_seen_with_the_setting_that_changes_it() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        findings = {finding.name: finding for finding in doctor.ports(ServerConfig(fleet_port=port, lane_port=0))}
    assert findings["fleet_port"].state == "warn"
    assert "server.fleet_port=PORT" in findings["fleet_port"].fix
    assert findings["lane_port"].state == "ok"


@pytest.mark.parametrize("name", ["MLFLOW_DISABLE_TELEMETRY", *REMOVED])
def test_a_variable_against_us_is_named(name: str) -> None:
    finding = doctor.environment({name: "something else"})
    assert (finding.state, name in finding.found, name in finding.fix) == ("warn", True, True)


def test_our_own_environment_is_fine() -> None:
    assert doctor.environment(QUIET).state == "ok"
    assert doctor.environment({}).state == "ok"


def test_a_private_home_passes(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    (tmp_path / "identity").mkdir()
    (tmp_path / "identity" / "key.pem").touch(mode=0o600)
    assert [finding.state for finding in doctor.permissions(tmp_path)] == ["ok"]


@pytest.mark.parametrize("name", ["identity/key.pem", "root.key", "identity/node_key", "secrets/loopback.secret"])
def test_a_secret_that_others_can_read_fails(tmp_path: Path, name: str) -> None:
    tmp_path.chmod(0o700)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
    (tmp_path / name).chmod(0o644)
    findings = {finding.name: finding for finding in doctor.permissions(tmp_path)}
    assert findings["secret"].state == "fail"
    assert findings["secret"].fix == f"chmod 600 {tmp_path / name}"


def test_public_files_may_be_read_by_others(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    for name in ("cert.pem", "root.pem", "crl.pem", "node_key.pub"):
        (tmp_path / name).touch()
        (tmp_path / name).chmod(0o644)
    assert [finding.state for finding in doctor.permissions(tmp_path)] == ["ok"]


def test_a_home_that_is_not_there_fails(tmp_path: Path) -> None:
    assert [finding.state for finding in doctor.permissions(tmp_path / "none")] == ["fail"]


def test_this_machine_has_a_python_and_a_device() -> None:
    assert doctor.python().state == "ok"
    assert "torch" in doctor.device().found


def test_an_agencys_own_ports_are_looked_at(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        (tmp_path / "server.json").write_text(json.dumps({"server": {"fleet_port": port}}))
        found = {one.name: one for one in doctor.examine(tmp_path)}
    assert (found["fleet_port"].state, str(port) in found["fleet_port"].found) == ("warn", True)


@pytest.mark.parametrize(("days", "state"), [(8, "ok"), (6, "warn"), (-1, "fail")])
def test_a_revocation_list_that_ends_soon_is_told_before_it_stops_everything(
    tmp_path: Path, days: int, state: str
) -> None:
    now = datetime.now(UTC)
    key, root = create_root("test", now)
    (tmp_path / "crl.pem").write_bytes(to_pem(make_crl(key, root, [], 1, now - timedelta(days=30 - days), 30)))
    assert [(one.name, one.state) for one in doctor.expiries(tmp_path, now)] == [("crl.pem", state)]


@pytest.mark.parametrize(("least", "said"), [(0, "the server alone may begin a run"), (2, "before 2 people of agency")])
def test_an_agencys_home_is_told_whether_people_have_to_approve(tmp_path: Path, least: int, said: str) -> None:
    (tmp_path / "server.json").write_text(json.dumps({"server": {"min_approvers": least, "approvers": ["agency"]}}))
    found = {finding.name: finding for finding in doctor.examine(tmp_path)}
    assert found["approvals"].state == "ok" and said in found["approvals"].found
