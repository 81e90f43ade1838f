"""The systemd units: systemd itself takes them, and a path cannot say more than a path."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from sovfed.clients.cli.institution import cli as client
from sovfed.federation.errors import ConfigError
from sovfed.federation.host.units import unit
from sovfed.server.cli.server import cli as server


@pytest.mark.parametrize("role", ["client", "server"])
def test_systemd_takes_the_unit_without_a_complaint(role: str, tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd is not installed")
    printed = CliRunner().invoke(client if role == "client" else server, ["unit", "--home", str(tmp_path)])
    assert printed.exit_code == 0, printed.output
    path = tmp_path / f"sovfed-{role}.service"
    path.write_text(printed.stdout)
    done = subprocess.run([analyze, "verify", str(path)], capture_output=True, text=True, check=False)
    said = [line for line in done.stderr.splitlines() if "sovfed-" in line]
    assert (done.returncode, said) == (0, [])


def test_a_unit_starts_isolated_python_and_leaves_the_trainer_its_namespace(tmp_path: Path) -> None:
    text = unit("client", tmp_path, "--plain", namespaces="user net")
    assert " -I -u -m sovfed client up --plain --home " in text
    assert "RestrictNamespaces=user net" in text
    assert "RestrictNamespaces=yes" in unit("server", tmp_path)


@pytest.mark.parametrize("name", ["a b", "a\nExecStartPre=/bin/sh", "%h", "$HOME", 'a"b', "a;b"])
def test_a_path_that_systemd_would_read_otherwise_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unit file"):
        unit("client", tmp_path / name)
