"""The institution's processes as they are installed: what the running ones hold, and what one of each cannot open."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from tests.clients.institution import enrolled_home
from tests.clients.node.test_up import POLICY, institution_up
from tests.server.agency import Authority, make_home, server_config, superlink, wait_until

from sovfed.clients.cli.institution import cli
from sovfed.clients.console.app import PASSWORD
from sovfed.clients.home.folder import create, load_config
from sovfed.clients.node.sandbox import Places, _passed_places
from sovfed.clients.node.up import processes
from sovfed.clients.trainer.socket import NAME, TrainerStub
from sovfed.federation.config import ClientConfig, DataConfig
from sovfed.federation.evidence.store import record
from sovfed.federation.files import write_private
from sovfed.federation.host import landlock, seccomp
from sovfed.federation.host.quiet import quiet_environment
from sovfed.federation.host.settings import settings_file
from sovfed.federation.host.status import read_status
from sovfed.federation.secagg.files import create_journal
from sovfed.federation.wire.loopback import ensure_secret

pytestmark = pytest.mark.skipif(seccomp.this_machine() is None, reason="no seccomp on this machine")
needs_landlock = pytest.mark.skipif(landlock.version() == 0, reason="this kernel has no Landlock")
ATTEMPTS = """
import json, sys
from pathlib import Path
from sovfed.clients.node.sandbox import enter

name, home, records, *paths = sys.argv[1:]
held = enter(name, Path(home), *map(Path, records.split(":")))
def tried(path):
    place = Path(path)
    try:
        if place.is_dir() or path.endswith("/"):
            (place / "new").write_text("x")
        else:
            place.read_bytes()
    except OSError:
        return False
    return True
print(json.dumps({"held": vars(held), "opened": {path: tried(path) for path in paths}}))
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder whose path is short enough for a Unix socket."""
    made = Path(tempfile.mkdtemp(prefix="sovfed-"))
    yield made
    shutil.rmtree(made)


@pytest.fixture
def home(folder: Path) -> Path:
    """An enrolled institution's home, its records beside it, and somebody else's file."""
    (folder / "records").mkdir()
    (folder / "records" / "table.csv").write_text("a,b\n1,2\n")
    (folder / "other").write_text("x")
    home = folder / "h"
    data = DataConfig(source="csv", path=str(folder / "records" / "table.csv"))
    create(home, ClientConfig(device="cpu", data=data), POLICY)
    authority = Authority()
    enrolled_home(home, authority, server_config(make_home(authority, folder / "agency")))
    create_journal(home)
    record(home, "policy", policy="00")
    (home / "secrets" / "loopback.secret").write_text("s")
    ensure_secret(home / PASSWORD)
    for name in ("privacy", "personal", "run", "run/trainer", "run/gateway"):
        (home / name).mkdir(mode=0o700, exist_ok=True)
    for name in ("privacy/a-file", "run/trainer/file", "run/gateway/file"):
        (home / name).write_text("x")
    return home


def opened(name: str, home: Path) -> set[str]:
    """The parts, of the home and beside it, that process `name` can read, or write into where they end in '/'."""
    parts = [
        "h/policy.yaml", "h/identity/key.pem", "h/identity/node_key", "h/secrets/loopback.secret", "h/secagg/journal",
        "h/privacy/a-file", "h/run/trainer/file", "h/run/gateway/file", "h/state/", "h/identity/", "h/secagg/",
        "h/privacy/", "h/", "records/table.csv", "records/", "other", "", "h/audit/log.db", "h/audit/",
        "h/audit-key/log.pem", "h/witness/witness.pem", "h/witness/", f"h/{PASSWORD}",
    ]  # fmt: skip
    base = home.parent
    paths = [f"{base / part}/" if part.endswith("/") or not part else str(base / part) for part in parts]
    command = [sys.executable, "-c", ATTEMPTS, name, str(home), str(base / "records" / "table.csv"), *paths]
    path = os.pathsep.join(entry for entry in sys.path if entry)
    done = subprocess.run(
        command, env={**quiet_environment(home), "PYTHONPATH": path}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["opened"]
    return {part for part, place in zip(parts, paths, strict=True) if found[place]}


@needs_landlock
def test_the_trainer_opens_records_and_its_own_state_only(home: Path) -> None:
    assert opened("trainer", home) == {
        "h/policy.yaml", "h/identity/key.pem", "h/identity/node_key", "h/secagg/journal", "h/privacy/a-file",
        "h/run/trainer/file", "h/secagg/", "h/privacy/", "records/table.csv", "h/audit/log.db", "h/audit/",
        "h/audit-key/log.pem", "h/witness/witness.pem",
    }  # fmt: skip


@needs_landlock
def test_gateway_and_supernode_cannot_open_the_records_nor_what_the_trainer_keeps(home: Path) -> None:
    common = {"h/identity/key.pem", "h/identity/node_key", "h/secrets/loopback.secret", "h/state/"}
    seen = {"h/audit/log.db", "h/witness/witness.pem", "h/witness/"}  # it reads the log, and cannot write or sign it
    assert opened("gateway", home) == {*common, *seen, "h/run/gateway/file", "h/identity/"}
    assert opened("supernode", home) == common


@needs_landlock
@pytest.mark.parametrize("place", ["other", "h/table.csv", "not/mounted/yet.csv"])
def test_records_near_the_home_bring_no_secrets_with_them(home: Path, place: str) -> None:
    """The folder of the records is readable, unless the home lies in it."""
    (home / "table.csv").write_text("a,b\n")
    records, secret = home.parent / place, home / "secrets" / "loopback.secret"
    path = os.pathsep.join(entry for entry in sys.path if entry)
    done = subprocess.run(
        [sys.executable, "-c", ATTEMPTS, "trainer", str(home), str(records), str(records), str(secret)],
        env={**quiet_environment(home), "PYTHONPATH": path}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert json.loads(done.stdout)["opened"] == {str(records): records.exists(), str(secret): False}


@needs_landlock
def test_the_trainer_opens_the_records_of_every_study_and_no_other_process_does(home: Path) -> None:
    second, third = (home.parent / name for name in ("births", "stays"))
    for folder in (second, third):
        folder.mkdir()
        (folder / "table.csv").write_text("a,b\n")
    places = [str(folder / "table.csv") for folder in (home.parent / "records", second, third)]
    path = os.pathsep.join(entry for entry in sys.path if entry)
    for name, readable in (("trainer", {places[0], places[1]}), ("gateway", set()), ("supernode", set())):
        done = subprocess.run(
            [sys.executable, "-c", ATTEMPTS, name, str(home), ":".join(places[:2]), *places],
            env={**quiet_environment(home), "PYTHONPATH": path}, capture_output=True, text=True, check=True,
        )  # fmt: skip
        told = json.loads(done.stdout)
        assert {place for place, opened in told["opened"].items() if opened} == readable, name
        assert told["held"]["records"] == ""


def test_records_beside_the_keys_are_told_to_be_within_reach(home: Path) -> None:
    """A gateway that can open them all the same says so, rather than that it is sealed."""
    inside = home / "identity" / "table.csv"
    inside.write_text("a,b\n")
    path = os.pathsep.join(entry for entry in sys.path if entry)
    done = subprocess.run(
        [sys.executable, "-c", ATTEMPTS, "gateway", str(home), str(inside)],
        env={**quiet_environment(home), "PYTHONPATH": path}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "table.csv" in json.loads(done.stdout)["held"]["records"]


def test_a_trainer_whose_network_is_open_is_refused_unless_the_policy_says_so(home: Path) -> None:
    """Played with a kernel that has neither: both steps fail."""
    program = """
import sys
from sovfed.federation.host import sandbox, seccomp
from sovfed.federation.errors import ServiceError
def fail(**_):
    raise ServiceError("not here")
sandbox.leave_network = lambda: ""
seccomp.install = fail
from sovfed.clients.node.sandbox import main
sys.exit(main(sys.argv[1:]))
"""
    settings = str(settings_file(home, load_config(home)))
    path = os.pathsep.join(entry for entry in sys.path if entry)
    command = [sys.executable, "-c", program, "trainer", "--home", str(home), "--config", settings]
    env = {**quiet_environment(home), "PYTHONPATH": path}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 3, done.stderr
    assert "allow_open_network is false in policy.yaml" in done.stderr
    policy = home / "policy.yaml"
    policy.write_text(policy.read_text().replace("allow_open_network: false", "allow_open_network: true"))
    with subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True) as open_trainer:
        try:
            stub = TrainerStub(home / NAME, 1 << 20)
            for _ in range(200):
                if (home / NAME).exists():
                    break
                open_trainer.poll()
                assert open_trainer.returncode is None
                time.sleep(0.1)
            assert stub.health().isolation.startswith("network, ")
            stub.close()
        finally:
            open_trainer.terminate()


def test_the_place_of_the_records_is_found_and_what_is_wrong_left_to_the_process(tmp_path: Path) -> None:
    passed = tmp_path / "processes.json"
    write_private(passed, json.dumps({"data": {"source": "csv", "path": "/srv/t.csv"}}).encode())
    assert _passed_places(passed) == Places((Path("/srv/t.csv"),))
    studies = {
        "births": {"task": "birth", "data": {"path": "/srv/births.csv", "mapping": "/etc/births.yaml"}},
        "stays": {"task": "stay", "data": {"url_file": "/etc/stays.url", "path": None}},
        "wrong": {"task": "wrong", "data": 7},
    }
    write_private(passed, json.dumps({"data": {"path": "/srv/t.csv"}, "studies": studies}).encode())
    assert _passed_places(passed) == Places(
        (Path("/srv/t.csv"), Path("/srv/births.csv")), (Path("/etc/births.yaml"), Path("/etc/stays.url"))
    )
    for wrong in ("{", "{}", "[]", '{"data": 7}', '{"studies": 7}', '{"studies": {"a": 7}}'):
        write_private(passed, wrong.encode())
        assert _passed_places(passed) == Places()
    assert _passed_places(tmp_path / "missing") == Places()


def test_relative_and_home_paths_of_records_are_whole_before_the_folder_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    create(tmp_path / "a", ClientConfig(data=DataConfig(source="csv", path="t.csv")), POLICY)
    assert load_config(tmp_path / "a").data.path == str(tmp_path / "t.csv")
    text = (tmp_path / "a" / "client.yaml").read_text()
    (tmp_path / "a" / "client.yaml").write_text(text.replace(str(tmp_path / "t.csv"), "t.csv"))
    assert load_config(tmp_path / "a").data.path == str(tmp_path / "a" / "t.csv")
    (tmp_path / "a" / "client.yaml").write_text(text.replace(str(tmp_path / "t.csv"), "~/t.csv"))
    assert load_config(tmp_path / "a").data.path == str(Path.home() / "t.csv")


def test_every_process_of_an_institution_is_started_sealed_and_isolated(tmp_path: Path) -> None:
    for process in processes(tmp_path, ClientConfig(runtime_port=1)):
        assert list(process.argv[1:6]) == ["-I", "-u", "-m", "sovfed.clients.node.sandbox", process.name]


def _status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, value in (line.split(":", 1) for line in lines)}


def told(home: Path) -> dict[str, str]:
    """What `sovfed client status` says of each process's isolation."""
    shown = CliRunner().invoke(cli, ["status", "--json", "--home", str(home)]).stdout
    return {process["name"]: process["isolation"] for process in json.loads(shown)["processes"]}


@pytest.mark.deploy
def test_the_running_processes_hold_what_status_says(tmp_path: Path) -> None:
    authority = Authority()
    agency = make_home(authority, tmp_path / "agency")
    server = server_config(agency)
    home = tmp_path / "h"
    create(home, ClientConfig(device="cpu", data=DataConfig(source="breast_cancer")), POLICY)
    key = enrolled_home(home, authority, server)
    create_journal(home)
    with superlink(agency, server) as (_, control):
        control.register_node(key, "hospital-1")
        with institution_up(home):
            status = read_status(home)
            assert status is not None
            pids = {process.name: process.pid for process in status.processes}
            wait_until(lambda: "unknown" not in told(home).values(), 30, "the gateway to be sealed")
            for name, pid in pids.items():
                assert pid is not None
                held = _status(pid)
                assert (held["NoNewPrivs"], held["Seccomp"], int(held["CapEff"], 16) & ~0xF) == ("1", "2", 0), name
                limits = Path(f"/proc/{pid}/limits").read_text()
                assert re.search(r"Max core file size +0 +0 ", limits), name
                assert Path(f"/proc/{pid}/cwd").readlink() == home
                environment = Path(f"/proc/{pid}/environ").read_bytes()
                assert b"PYTEST" not in environment
                for thread in Path(f"/proc/{pid}/task").iterdir():
                    assert "Seccomp:\t2" in (thread / "status").read_text()
            trainer = pids["trainer"]
            if os.geteuid() == 0:
                assert Path(f"/proc/{trainer}/ns/net").readlink() != Path("/proc/self/ns/net").readlink()
            tables = Path(f"/proc/{trainer}/net/tcp").read_text().splitlines()[1:]
            assert tables == []  # its namespace: nothing listens, nothing is connected
            assert told(home)["trainer"].startswith("no network (")
            stub = TrainerStub(home / NAME, 1 << 20)
            assert stub.health().isolation == told(home)["trainer"]
            stub.close()
            if landlock.version():
                assert all("own files only" in one and "can read" not in one for one in told(home).values())


@pytest.mark.deploy
def test_sealed_processes_die_with_their_supervisor(home: Path) -> None:
    """A namespace and lost privileges must not cost the kernel's signal at the parent's death."""
    config = dataclasses.replace(load_config(home), runtime_port=1)
    settings_file(home, config)
    child = processes(home, config)[0]
    program = """
import subprocess, sys, time
from sovfed.federation.host.child import child_environment
from sovfed.federation.host.quiet import quiet_environment
child = subprocess.Popen(sys.argv[1:], env=child_environment(quiet_environment()))
print(child.pid, flush=True)
time.sleep(600)
"""
    path = os.pathsep.join(entry for entry in sys.path if entry)
    parent = subprocess.Popen(
        [sys.executable, "-c", program, *child.argv], stdout=subprocess.PIPE, text=True,
        env={**quiet_environment(home), "PYTHONPATH": path},
    )  # fmt: skip
    with parent:
        assert parent.stdout is not None
        trainer = Path(f"/proc/{int(parent.stdout.readline())}")
        wait_until((home / NAME).exists, 60, "the trainer's socket")
        parent.kill()
    wait_until(lambda: not trainer.exists(), 10, "the trainer's end")
