"""`sovfed run start` says what a run will come to before anything is asked of an institution."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from tests.interrupts import INTERRUPTIBLE, told_at_its_end
from tests.server.seen_home import add_run, make_seen_home

from sovfed.federation.compose import compose
from sovfed.federation.config import stored
from sovfed.federation.errors import ServiceError
from sovfed.federation.files import private_directory
from sovfed.server import home as agency
from sovfed.server.cli.release import release
from sovfed.server.cli.run import cli
from sovfed.server.cli.server import cli as server
from sovfed.server.runs.folders import write_state

FEW = ("privacy=distributed", "privacy.population=10", "privacy.sampling_rate=0.1", "rounds=1")


@pytest.mark.parametrize(("overrides", "warned"), [(FEW, True), (("privacy=distributed",), False), ((), False)])
def test_a_run_that_noise_drowns_is_warned_of(tmp_path: Path, overrides: tuple[str, ...], warned: bool) -> None:
    """No server is up here, so nothing is started; the warning comes first."""
    agency.init(tmp_path / "agency", compose([]).config)
    arguments = ["start", "task=digits", *overrides, "--home", str(tmp_path / "agency")]
    done = CliRunner().invoke(cli, arguments)
    assert done.exit_code
    assert ("warning: hardly anything can be learnt" in done.stderr) is warned
    assert done.stderr.count("what to expect at ε = ") == bool(overrides)


@pytest.mark.parametrize("verb", ["start", "propose"])
def test_what_real_institutions_train_is_nobodys_default(tmp_path: Path, verb: str) -> None:
    agency.init(tmp_path / "agency", compose([]).config)
    done = CliRunner().invoke(cli, [verb, "rounds=2", "--home", str(tmp_path / "agency")])
    assert "which task?" in str(done.exception)


def test_a_release_with_signatures_is_not_written_over(tmp_path: Path) -> None:
    signed = tmp_path / "heart.release"
    signed.write_bytes(b"signed by two")
    done = CliRunner().invoke(release, ["heart", "--out", str(signed), "--home", str(tmp_path)])
    assert "exists" in str(done.exception) and "--force" in str(done.exception)
    assert signed.read_bytes() == b"signed by two"


def test_a_run_that_has_ended_is_not_said_to_be_stopped(tmp_path: Path) -> None:
    home = tmp_path / "agency"
    agency.init(home, compose([]).config)
    folder = private_directory(private_directory(home / "runs") / "hip")
    write_state(folder, {"name": "hip", "config": stored(compose([]).config), "flower_run_id": 7, "started": 0.0},
                "failed", "too few")  # fmt: skip
    done = CliRunner().invoke(cli, ["stop", "hip", "--home", str(home)])
    assert done.exit_code == 0 and "had ended already: failed" in done.output


def test_a_stopped_agency_is_told_as_that_whoever_holds_its_port(tmp_path: Path) -> None:
    """Seen: "status 403", the answer of another agency's server at the same port."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        agency.init(tmp_path / "agency", compose([f"server.control_port={other.getsockname()[1]}"]).config)
        done = CliRunner().invoke(server, ["status", "--home", str(tmp_path / "agency")])
    assert isinstance(done.exception, ServiceError) and "is not running" in str(done.exception)


def test_whoever_stops_watching_is_told_that_the_run_goes_on(tmp_path: Path) -> None:
    """A process of its own, which is sent what Ctrl-C sends."""
    home = make_seen_home(tmp_path)
    add_run(home, "hip", "running", 3)
    script = f"""
import click
from pathlib import Path
from sovfed import cli
from sovfed.server.cli.run import watch
cli.COMMANDS["watch"] = cli.Lazy("__main__", "watched", "")
watched = click.Command("watch", callback=lambda: watch(Path({str(home)!r}), "hip"))
raise SystemExit(cli.run(["watch"]))
"""
    command = [*INTERRUPTIBLE, sys.executable, "-u", "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()  # what it waits for: it watches
        process.send_signal(signal.SIGINT)
        told = told_at_its_end(process)
    assert process.returncode == 130, told
    assert "no longer watching; run 'hip' goes on at the agency. `sovfed run show hip --home" in told
    assert "`sovfed run stop hip --home" in told and "`sovfed run logs hip -f --home" in told
