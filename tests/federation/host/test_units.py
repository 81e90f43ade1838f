"""The systemd units: systemd itself takes them, finds little exposed, and a path cannot say more than a path."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from sovfed.clients.cli.institution import cli as client
from sovfed.federation.errors import ConfigError, ServiceError
from sovfed.federation.host.notify import Notifier
from sovfed.federation.host.processes import Process, Supervisor
from sovfed.federation.host.units import Unit, install, kept_up_by, service
from sovfed.server.cli.authority import cli as authority
from sovfed.server.cli.server import cli as server

ROLES = {"client": client, "server": server, "authority": authority}
EXPOSED = {"client": 2.1, "server": 1.6, "authority": 0.7}  # of 10, by systemd's own measure; only ever lowered
HOME = "/srv/sovfed"
USER = "games"  # of every Debian and Fedora; systemd complains about users that it does not know


def installed(role: str, folder: Path, *arguments: str) -> list[Path]:
    asked = ["install-service", "--home", HOME, "--user", USER, "--folder", str(folder), "--no-start", *arguments]
    done = CliRunner().invoke(ROLES[role], asked)
    assert done.exit_code == 0, done.output
    return sorted(folder.iterdir())


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("systemd is not installed")
    return subprocess.run([program, *arguments], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("role", ROLES)
def test_systemd_takes_the_units_without_a_complaint(role: str, tmp_path: Path) -> None:
    units = installed(role, tmp_path)
    done = analyze("verify", *map(str, units))
    said = [line for line in done.stderr.splitlines() if "sovfed-" in line]
    assert (done.returncode, said) == (0, [])


@pytest.mark.parametrize("role", ROLES)
def test_systemd_finds_little_of_the_machine_exposed_to_them(role: str, tmp_path: Path) -> None:
    unit = next(path for path in installed(role, tmp_path) if path.suffix == ".service")
    done = analyze("security", "--offline=yes", "--no-pager", str(unit))
    level = re.search(r"Overall exposure level for \S+: ([0-9.]+)", done.stdout)
    if level is None:
        pytest.skip(f"this systemd measures no file: {done.stderr[:200]}")
    assert float(level[1]) <= EXPOSED[role], done.stdout


@pytest.mark.parametrize("role", ["client", "server"])
def test_a_service_is_tried_again_for_ever(role: str, tmp_path: Path) -> None:
    (unit,) = installed(role, tmp_path)
    lines = unit.read_text().splitlines()
    assert "Restart=always" in lines
    assert "StartLimitIntervalSec=0" in lines
    assert not [line for line in lines if line.startswith(("RestartPreventExitStatus", "Requires", "BindsTo"))]


def test_a_unit_starts_isolated_python_and_leaves_the_trainer_its_namespace() -> None:
    text = service("client", Path(HOME), "--plain", user=USER).text
    assert " -I -u -m sovfed client up --plain --home " in text
    assert "RestrictNamespaces=user net" in text
    assert "RestrictNamespaces=yes" in service("server", Path(HOME), user=USER).text


@pytest.mark.parametrize("name", ["a b", "a\nExecStartPre=/bin/sh", "%h", "$HOME", 'a"b', "a;b"])
def test_a_path_that_systemd_would_read_otherwise_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="unit file"):
        service("client", Path(HOME) / name, user=USER)


def test_a_home_that_a_service_would_not_see_is_refused() -> None:
    with pytest.raises(ConfigError, match="of its own"):
        service("client", Path("/tmp/home"), user=USER)  # noqa: S108


def test_without_a_user_it_runs_as_the_owner_of_the_home() -> None:
    assert "\nUser=root\n" in service("server", Path("/usr")).text
    with pytest.raises(ConfigError, match="--user"):
        service("server", Path("/no/such/home"))


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    with pytest.raises(ServiceError, match="are you root"):
        install([Unit("sovfed-client.service", "")], tmp_path / "missing", start=False)


def test_the_authority_signs_daily_and_may_write_where_the_list_is_published(tmp_path: Path) -> None:
    arguments = ("--out", "/srv/lists/crl.pem", "--passphrase-file", "/etc/sovfed/passphrase")
    unit, timer = installed("authority", tmp_path, *arguments)
    text = unit.read_text()
    assert " authority crl --days 30 --home /srv/sovfed --out /srv/lists/crl.pem\n" in text
    assert "\nReadWritePaths=/srv/lists\n" in text
    assert "\nLoadCredential=passphrase:/etc/sovfed/passphrase\n" in text
    assert "\nPersistent=yes\n" in timer.read_text()


def test_renewals_that_wait_at_the_agency_are_signed_before_the_list(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    agency = tmp_path_factory.mktemp("agency")
    (agency / "registry").mkdir(parents=True)
    unit, _ = installed("authority", tmp_path, "--agency", str(agency))
    starts = [line for line in unit.read_text().splitlines() if line.startswith("ExecStart=")]
    assert f" authority tend {agency} --home " in starts[0] and " authority crl " in starts[1]
    assert f"\nReadWritePaths={agency}/registry\n" in unit.read_text()


def test_the_root_key_s_passphrase_comes_from_systemd(tmp_path: Path) -> None:
    home, credentials = tmp_path / "authority", tmp_path / "credentials"
    credentials.mkdir()
    (credentials / "passphrase").write_text("a long one\n")
    runner = CliRunner(env={"SOVFED_AUTHORITY_PASSPHRASE": "a long one", "CREDENTIALS_DIRECTORY": None})
    runner.invoke(authority, ["init", str(home), "--name", "Ministry"], catch_exceptions=False)
    out, asked = tmp_path / "crl.pem", ["crl", "--home", str(home), "--out", str(tmp_path / "crl.pem")]
    environment = {"SOVFED_AUTHORITY_PASSPHRASE": None, "CREDENTIALS_DIRECTORY": str(credentials)}
    done = CliRunner(env=environment).invoke(authority, asked, catch_exceptions=False)
    assert done.exit_code == 0
    assert out.read_bytes() == (home / "crl.pem").read_bytes()
    assert out.stat().st_mode & 0o777 == 0o644


def test_systemd_hears_that_all_are_ready_and_that_the_supervisor_lives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(30.0)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "120000000")
        home = tmp_path / "home"
        home.mkdir(mode=0o700)
        supervisor = Supervisor(home, [Process("sleeper", ["/bin/sleep", "60"], {})])
        supervisor.start()
        assert {manager.recv(100), manager.recv(100)} == {b"READY=1", b"WATCHDOG=1"}
        supervisor.stop()
        assert manager.recv(100) == b"STOPPING=1"


def test_without_systemd_nobody_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "/no/such/socket")
    Notifier().ready()
    monkeypatch.delenv("NOTIFY_SOCKET")
    Notifier().ready()


def test_a_process_that_no_service_keeps_up_may_be_stopped_by_hand() -> None:
    assert kept_up_by(os.getpid()) == ""
    assert kept_up_by(2**22) == ""
