"""`join --service`: systemd takes the unit that it writes, and what cannot be kept up is said before anybody waits."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from tests.deploy.conftest import wait_for
from tests.federation.host.test_units import analyze

from sovfed.clients.cli.institution import cli
from sovfed.clients.cli.join_service import command, keep_up, unit_for
from sovfed.federation.errors import ConfigError, ServiceError
from sovfed.federation.host import units
from sovfed.federation.host.processes import Process, Supervisor
from sovfed.federation.host.status import read_status
from sovfed.federation.host.units import Unit

SYSTEMCTL = '#!/bin/sh\necho "$@" >> {log}\n'


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An institution's home, on a machine with a systemctl that writes down what it is asked."""
    monkeypatch.setattr(units, "_SHARED", ())  # where pytest's folders are
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "systemctl").write_text(SYSTEMCTL.format(log=tmp_path / "asked"))
    (programs / "systemctl").chmod(0o755)
    monkeypatch.setenv("PATH", str(programs), prepend=os.pathsep)
    made = tmp_path / "home"
    made.mkdir(mode=0o700)
    return made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "units"
    made.mkdir()
    return made


@pytest.fixture
def supervised(home: Path) -> Iterator[Path]:
    """The home, with a process that nobody but the test keeps up."""
    supervisor = Supervisor(home, [Process("sleeper", ["/bin/sleep", "60"], {})])
    supervisor.start()
    yield home
    supervisor.stop()


def test_root_has_systemd_start_it_and_systemd_takes_the_unit(home: Path, folder: Path, tmp_path: Path) -> None:
    keep_up(home, unit_for(home, folder, "hospital-1"), folder, 5)
    written = folder / "sovfed-client.service"
    assert f" client up --plain --no-look --home {home}\n" in written.read_text()
    asked = (tmp_path / "asked").read_text().splitlines()
    assert asked == ["daemon-reload", "enable sovfed-client.service", "restart sovfed-client.service"]
    done = analyze("verify", str(written))
    assert (done.returncode, [line for line in done.stderr.splitlines() if "sovfed-" in line]) == (0, [])


def test_a_second_home_on_a_machine_has_a_unit_of_its_own(home: Path, folder: Path) -> None:
    first = unit_for(home, folder, "hospital-1")
    (folder / first.name).write_text(first.text)
    assert unit_for(home, folder, "hospital-1") == first, "the same home again"
    other = home.parent / "other"
    other.mkdir()
    second = unit_for(other, folder, "hospital-2")
    assert second.name == "sovfed-client-hospital-2.service" and f"\nWorkingDirectory={other}\n" in second.text
    assert command(other, second).endswith(f"client install-service --home {other} --name sovfed-client-hospital-2")


def test_who_is_not_root_is_told_the_one_command_and_waited_for(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unit, nowhere = unit_for(home, tmp_path / "units", "hospital-1"), tmp_path / "not" / "writable"
    with pytest.raises(ServiceError, match=r"within 0\.2 s; the same command goes on"):
        keep_up(home, unit, nowhere, 0.2)
    assert f"  sudo {command(home, unit)}\n" in capsys.readouterr().out
    waiting = threading.Thread(target=keep_up, args=(home, unit, nowhere, 30))
    waiting.start()
    wait_for(lambda: "for root" in capsys.readouterr().out, "the command")
    supervisor = Supervisor(home, [Process("sleeper", ["/bin/sleep", "60"], {})])
    supervisor.start()
    wait_for(lambda: (status := read_status(home)) is not None and status.ready, "the process")
    waiting.join(10)
    assert not waiting.is_alive()
    supervisor.stop()


def test_what_runs_without_a_service_is_not_started_a_second_time(supervised: Path, folder: Path) -> None:
    with pytest.raises(ServiceError, match="without a service"):
        keep_up(supervised, Unit("sovfed-client.service", ""), folder, 5)
    assert not list(folder.iterdir())


def test_what_systemd_could_not_start_is_said_at_once(
    home: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = home.parent / "a b"
    odd.mkdir()
    with pytest.raises(ConfigError, match="no spaces"):
        unit_for(odd, folder, "hospital-1")
    if os.geteuid() == 0:
        os.chown(home, 4711, 4711)
        with pytest.raises(ConfigError, match="who is to join"):
            unit_for(home, folder, "hospital-1")
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ServiceError, match="no systemctl"):
        unit_for(home, folder, "hospital-1")
    assert "one of the two" in CliRunner().invoke(cli, ["join", "--service", "--foreground"]).output
