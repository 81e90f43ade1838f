"""An invitation's token is a secret from the moment that it is written."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from tests.server.agency import Authority, make_home, server_config

from sovfed.federation.config import TrackingConfig
from sovfed.federation.wire.enrolment import Invitation
from sovfed.server.home import Settings
from sovfed.server.registry import enrolment


@pytest.fixture
def home(tmp_path: Path) -> Path:
    from dataclasses import asdict

    made = make_home(Authority(), tmp_path / "agency")
    (made / "server.json").write_text(json.dumps(asdict(Settings(server_config(made), TrackingConfig()))))
    return made


def invite(home: Path, *words: object) -> subprocess.CompletedProcess[str]:
    """`sovfed server invite` under the umask of a careless operator."""
    command = [sys.executable, "-m", "sovfed", "server", "invite", "--home", str(home), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, umask=0)


def test_the_file_is_the_operators_alone_and_the_token_is_not_printed(home: Path, tmp_path: Path) -> None:
    out = tmp_path / "hospital-1.invitation"
    done = invite(home, "hospital-1", "--out", out)
    assert (done.returncode, done.stderr) == (0, "")
    assert out.stat().st_mode & 0o777 == 0o600
    assert Invitation.from_json(out.read_text()).institution == "hospital-1"
    assert str(out) in done.stdout and "token" not in done.stdout


@pytest.mark.parametrize("kind", ["file", "link", "folder"])
def test_what_is_there_is_not_written_over(home: Path, tmp_path: Path, kind: str) -> None:
    out, other = tmp_path / "out", tmp_path / "other"
    if kind == "file":
        out.write_text("mine")
        out.chmod(0o666)
    elif kind == "link":
        out.symlink_to(other)
    else:
        out.mkdir()
    assert invite(home, "hospital-1", "--out", out).returncode == 2
    assert not other.exists() and (kind != "file" or out.read_text() == "mine")
    assert enrolment.invite(home, "hospital-1").institution == "hospital-1"  # no token was made meanwhile


def test_a_failed_invitation_leaves_no_file(home: Path, tmp_path: Path) -> None:
    assert invite(home, "Hospital 1", "--out", tmp_path / "out").returncode == 3
    assert list(tmp_path.iterdir()) == [home]


def test_of_two_who_admit_at_once_the_invitation_that_was_written_holds(home: Path, tmp_path: Path) -> None:
    """One invitation voids the other: whoever comes second finds the first one's file."""
    out = tmp_path / "hospital-1.invitation"
    command = [sys.executable, "-m", "sovfed", "server", "admit", "hospital-1", "--no-wait", "--home", str(home)]
    both = [subprocess.Popen([*command, "--out", str(out)], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    told = sorted(process.communicate(timeout=100)[0].splitlines()[0] for process in both)
    assert "was written before" in told[0] and told[1].startswith(f"wrote {out}")
    token = Invitation.from_json(out.read_text()).token
    with sqlite3.connect(home / "registry" / "enrolment.db") as db:
        assert db.execute("SELECT token FROM institutions").fetchall() == [(enrolment._sha256(token),)]
