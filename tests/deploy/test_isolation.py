"""What must not leave, and what must not get in, watched from outside the processes."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from tests.deploy.conftest import finished, make_config, wait_for_run
from tests.real_data import published

from sovfed.server.runs import folders
from sovfed.server.runs.control import log_path
from sovfed.simulations.deployment import POLICY, Institution, LocalFederation

pytestmark = pytest.mark.deploy
SECRET_FILES = ("secrets/*", "identity/key.pem", "identity/node_key", "superlink/*", "mlflow.db", "run.json")


def children_of(pid: int) -> set[int]:
    """All living descendants of process `pid`."""
    descendants: set[int] = set()
    frontier = {pid}
    parents: dict[int, int] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(entry.parent.name)] = int(entry.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    while frontier:
        frontier = {child for child, parent in parents.items() if parent in frontier} - descendants
        descendants |= frontier
    return descendants


def test_no_secret_is_in_any_command_line(federation: LocalFederation) -> None:
    federation.start_run("argv", make_config("rounds=3"))
    secrets = {path.read_text().strip() for path in federation.home.glob("secrets/*")}
    for member in federation.institutions:
        secrets |= {path.read_text().strip() for path in federation.client_home(member.name).glob("secrets/*")}
    seen = 0
    while folders.read_run(federation.home, "argv")["status"] in folders.ACTIVE:
        for pid in children_of(os.getpid()):
            try:
                line = Path(f"/proc/{pid}/cmdline").read_text()
            except OSError:
                continue
            seen += "sovfed.server.runs.app" in line
            assert not any(secret in line for secret in secrets)
            assert "--token" not in line
            assert '"data"' not in line, "settings name the data's folder and site"
    finished(federation, "argv")
    assert seen, "the coordinator was never seen running"


def test_state_and_keys_are_readable_by_their_owner_only(federation: LocalFederation) -> None:
    homes = [
        federation.home,
        federation.authority_home,
        *map(federation.client_home, (i.name for i in federation.institutions)),
    ]
    for home in homes:
        assert home.stat().st_mode & 0o077 == 0, home
        for pattern in SECRET_FILES:
            for path in home.rglob(pattern):
                assert path.stat().st_mode & 0o077 == 0, path


def test_a_patients_name_in_an_error_stays_in_the_institution(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The records of one hospital hold a name where a number belongs; only a code reaches the agency."""
    tmp_path = tmp_path_factory.mktemp("leak")  # a Unix socket's path may have 107 bytes
    source = published("heart_disease")
    config = make_config(
        "task=heart", "rounds=1", "server.node_wait_s=5", "server.start_cohort=0", "server.min_cohort=2", "secagg=none"
    )
    institutions = []
    for site in ("cleveland", "hungarian"):
        folder = tmp_path / "data" / site
        folder.mkdir(parents=True)
        name = f"processed.{site}.data"
        rows = (source / name).read_text().splitlines()
        if site == "hungarian":
            rows[3] = "Erika-Mustermann," + rows[3].partition(",")[2]
        (folder / name).write_text("\n".join(rows) + "\n")
        data = make_config(f"data={'heart'}", f"data.path={folder}", f"data.site={site}").data
        institutions.append(Institution(site, data))
    policy = dataclasses.replace(POLICY, allow_plain_updates=True)
    with LocalFederation(tmp_path / "f", institutions, config, policy) as federation:
        federation.start_run("leak", config)
        run = wait_for_run(federation, "leak")
        assert run["status"] == "failed"
        log = log_path(federation.home, run["flower_run_id"]).read_text()
        assert set(re.findall(r"\b\d+: '([a-z]+)'", log)) == {"failed", "policy"}  # `policy`: too much has failed
        own = "".join(path.read_text() for path in (federation.client_home("hungarian") / "logs").glob("*.log"))
        assert "DataError" in own
    for path in federation.home.rglob("*"):
        if path.is_file():
            assert b"Mustermann" not in path.read_bytes(), path


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_the_whole_demo_connects_to_nothing_but_itself(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    with tempfile.TemporaryDirectory(prefix="demo-") as short:  # a socket's path has 107 bytes
        done = subprocess.run(
            ["strace", "-f", "--seccomp-bpf", "-qq", "-e", "trace=connect,sendto,sendmsg", "-e", "signal=none",
             "-o", trace, sys.executable, "-m", "sovfed", "demo", "--json", "--folder", f"{short}/demo", "rounds=3"],
            capture_output=True, text=True, timeout=400, check=False,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    assert json.loads(done.stdout)["rounds"] == 3
    text = trace.read_text(errors="replace")
    addresses = set(re.findall(r'sin_addr=inet_addr\("([^"]+)"\)', text)) | set(
        re.findall(r'inet_pton\(AF_INET6, "([^"]+)"', text)
    )
    assert any(address.startswith("127.") for address in addresses), "strace saw no connection at all"
    outside = {a for a in addresses if not a.startswith(("127.", "::ffff:127.")) and a not in ("::1", "0.0.0.0", "::")}
    assert outside == set()
