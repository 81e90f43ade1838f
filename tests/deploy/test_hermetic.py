"""A federation started from a folder in which, and with an environment in which, other people's modules lie."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tests.deploy.conftest import finished, make_config, make_federation
from tests.deploy.test_isolation import children_of
from tests.federation.host.test_quiet import plant

from sovfed.clients.node.up import supervise_detached
from sovfed.federation.host.status import read_status, stop_supervisor
from sovfed.server.up import supervise

pytestmark = pytest.mark.deploy


def test_no_process_imports_what_lies_about_or_inherits_what_is_set(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path_factory.mktemp("h")
    monkeypatch.chdir(plant(folder / "here"))
    monkeypatch.setenv("PYTHONPATH", str(plant(folder / "path")))
    monkeypatch.setenv("LD_BIND_NOW", "canary")
    monkeypatch.setenv("ANY_SECRET", "canary")
    with make_federation(folder / "f", make_config("rounds=2")) as federation:
        federation.start_run("hermetic")
        names: set[bytes] = set()
        while federation.control is not None and len(names) < 7:
            for pid in children_of(os.getpid()):
                try:
                    line = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                    environment = Path(f"/proc/{pid}/environ").read_bytes()
                    working_folder = Path(f"/proc/{pid}/cwd").readlink()
                except OSError:
                    continue
                if b"-m" not in line:
                    continue
                assert line[1] == b"-I", line
                assert b"canary" not in environment
                assert b"PYTHONPATH" not in environment
                assert folder / "f" in working_folder.parents
                module = line[line.index(b"-m") + 1]
                names.add(line[line.index(b"-m") + 2] if module.endswith(b".sandbox") else module)
        assert {name.decode().rpartition(".")[2] for name in names} == {
            "superlink", "service", "executor", "app", "trainer", "supernode", "gateway",
        }  # fmt: skip
        finished(federation, "hermetic")
        federation.stop()
        client_home = federation.client_home(federation.institutions[0].name)
        supervise(federation.home, detach=True)
        supervise_detached(client_home)
        for home in (client_home, federation.home):
            status = read_status(home)
            assert status is not None
            assert Path(f"/proc/{status.pid}/cwd").readlink() == home
            assert b"canary" not in Path(f"/proc/{status.pid}/environ").read_bytes()
            assert stop_supervisor(home)
    assert list(folder.rglob("*.imported")) == []
    assert {path.name for path in Path().iterdir()} == {
        path.name for path in (folder / "path").iterdir()
    }  # and wrote nothing there
