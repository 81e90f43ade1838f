"""`sovfed server up`: a port that is taken is told by name before anything starts."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner
from tests.server.agency import wait_until

from sovfed.federation.compose import compose
from sovfed.federation.errors import ServiceError
from sovfed.federation.host.processes import read_status, stop_supervisor
from sovfed.server.cli.server import cli as server
from sovfed.server.home import SETTINGS, init
from sovfed.server.registry import authority
from sovfed.simulations.deployment import LocalFederation


@pytest.mark.parametrize("port", ["fleet_port", "enrolment_port", "lane_port", "control_port"])
@pytest.mark.parametrize("detach", [[], ["--detach"]])
def test_a_taken_port_is_named_with_the_setting_that_changes_it(tmp_path: Path, port: str, detach: list[str]) -> None:
    agency = LocalFederation(tmp_path, [], compose([]).config)
    agency.build_agency()
    number = json.loads((agency.home / SETTINGS).read_text())["server"][port]
    with socket.create_server(("127.0.0.1", number)):
        done = subprocess.run(
            [sys.executable, "-m", "sovfed", "server", "up", *detach, "--home", agency.home],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
    assert done.returncode == 4  # tried again: it may be free a moment later
    assert f"server.{port} = {number}: cannot listen on 127.0.0.1:{number} (Address already in use)" in done.stderr
    assert str(agency.home / SETTINGS) in done.stderr
    assert "Traceback" not in done.stderr
    assert read_status(agency.home) is None


def test_nothing_outlives_a_supervisor_that_is_killed(tmp_path: Path) -> None:
    """What stays would hold the ports and the registry's lock, and the next `sovfed server up` would fail."""
    agency = LocalFederation(tmp_path, [], compose([]).config)
    agency.build_agency()
    with subprocess.Popen(
        [sys.executable, "-m", "sovfed", "server", "up", "--home", agency.home], stdout=subprocess.DEVNULL
    ) as supervisor:
        try:
            wait_until(lambda: (status := read_status(agency.home)) is not None and status.ready, timeout_s=90)
            status = read_status(agency.home)
        finally:
            supervisor.kill()
    assert status is not None
    pids = [process.pid for process in status.processes]
    assert len(pids) == 3
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), timeout_s=10)


@pytest.mark.deploy
def test_a_list_that_went_stale_is_waited_for_and_its_successor_is_taken_in(tmp_path: Path) -> None:
    """Seen: the superlink ended for good, before the registry could read the fresh list that lay there."""
    agency = LocalFederation(tmp_path, [], compose([]).config)
    agency.build_agency()
    source = agency.authority_home / "crl.pem"
    stale = authority.refresh_crl(agency.authority_home, days=1, now=datetime.now(UTC) - timedelta(days=2))
    (agency.home / "identity" / "crl.pem").write_bytes(stale)
    source.unlink()
    done = subprocess.run(
        [sys.executable, "-m", "sovfed", "server", "up", "--detach", "--home", agency.home],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    try:
        assert done.returncode == 0 and "superlink does not run" in done.stderr
        shown = CliRunner().invoke(server, ["status", "--home", str(agency.home)])
        assert "stale since" in shown.output and "clock" in shown.output
        source.write_bytes(authority.refresh_crl(agency.authority_home))
        wait_until(lambda: (status := read_status(agency.home)) is not None and status.ready, timeout_s=120)
    finally:
        stop_supervisor(agency.home)


def test_an_agency_without_a_certificate_admits_nobody_and_says_what_is_first(tmp_path: Path) -> None:
    """Seen: "cert.pem: missing or not readable"."""
    home = tmp_path / "agency"
    init(home, compose([]).config)
    done = CliRunner().invoke(server, ["admit", "north", "--no-wait", "--home", str(home)])
    assert isinstance(done.exception, ServiceError) and "have the authority sign" in str(done.exception)
