"""One side of a federation by another clock, until it is started again by the right one."""

from __future__ import annotations

import atexit
import dataclasses
import shutil
import subprocess
import tempfile
import threading
import time
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sovfed.clients.home.folder import load_config
from sovfed.clients.node import up as client_up
from sovfed.federation.host.processes import Process, Supervisor
from sovfed.federation.host.settings import settings_file
from sovfed.federation.host.status import read_status
from sovfed.server import up as server_up
from sovfed.server.home import load_settings
from sovfed.simulations.audit.chaos.field import SETTLE_S, require, wait_until
from sovfed.simulations.audit.chaos.machine import AGENCY, Service
from sovfed.simulations.ports import free_ports

if TYPE_CHECKING:
    from sovfed.simulations.audit.chaos.field import Field

SOURCE: Final = Path(__file__).with_name("clock.c")
DAY_S: Final = 86_400
WORDS: Final = "clock says"


@cache
def library() -> Path | None:
    """What moves a process's wall clock and no other, built by this machine's C compiler; None if it has none.

    libfaketime moves the monotonic clock too, by which locks wait, or lets sleeps fail where it does not.
    """
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        return None
    folder = Path(tempfile.mkdtemp(prefix="sovfed-clock-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    built = folder / "clock.so"
    subprocess.run([compiler, "-O1", "-shared", "-fPIC", "-o", str(built), str(SOURCE)], check=True)
    built.chmod(0o644)
    folder.chmod(0o755)  # processes in rooms of their own read it
    return built


def play(field: Field, owner: str, offset_s: int, moves: Path) -> None:
    """Start `owner` by a clock that is `offset_s` wrong, see both sides name the clock, and set it right."""
    home = field.machine.home(owner)
    field.machine.services[owner].stop()
    started = time.time()
    supervisor = Supervisor(home, [_by(process, offset_s, moves) for process in _processes(home, owner)])
    thread = threading.Thread(target=supervisor.start, daemon=True)
    thread.start()
    try:
        wait_until(lambda: _named(home, started), f"{owner} names the clock")
        if owner != AGENCY:
            if offset_s > 0:  # yesterday its certificate did not hold yet, so it does not call
                wait_until(lambda: _named(field.agency, started), "the agency names the clock")
            name, watch = field.runs.begin(field.changed(start_cohort=0))
            field.require_finished(name, watch)
            require(not field.took_part(name, owner), f"{owner} took part by a wrong clock")
    finally:
        supervisor.stop()
        thread.join()
        service = field.machine.services[owner] = Service(home, "server" if owner == AGENCY else "client")
        service.start()
    field.machine.settle(SETTLE_S)
    name, watch = field.runs.begin(field.config)
    field.require_finished(name, watch)
    if owner != AGENCY:
        require(bool(field.took_part(name, owner)), f"{owner} is not back, by a clock that is right again")


def _processes(home: Path, owner: str) -> list[Process]:
    if owner == AGENCY:
        settings = load_settings(home)
        settings_file(home, settings.server)
        return server_up.processes(home, settings.server, settings.tracking)
    config = dataclasses.replace(load_config(home), home=str(home), runtime_port=free_ports(1)[0])
    settings_file(home, config)
    return client_up.processes(home, config)


def _by(process: Process, offset_s: int, moves: Path) -> Process:
    return dataclasses.replace(process, env={**process.env, **environment(offset_s, moves)})


def environment(offset_s: int, moves: Path) -> dict[str, str]:
    """What has a process go by a clock that is `offset_s` ahead; `moves` is the `library`."""
    return {"LD_PRELOAD": str(moves), "SOVFED_CLOCK_S": str(offset_s)}


def _named(home: Path, since: float) -> bool:
    """Whether a log or the status of `home` says since then what a clock says."""
    status = read_status(home)
    if status is not None and any(WORDS in line for line in status.complaints):
        return True
    logs = [path for path in (home / "logs").glob("*.log") if path.stat().st_mtime >= since]
    return any(WORDS in line and _at(line) >= since for path in logs for line in path.read_text().splitlines())


def _at(line: str) -> float:
    """When the supervisor wrote the line; it goes by the right clock."""
    from datetime import datetime

    try:
        return datetime.fromisoformat(line.split(" ", 1)[0]).timestamp()
    except ValueError:
        return 0.0
