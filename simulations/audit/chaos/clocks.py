"""One side of a federation by another clock (libfaketime), until it is started again by the right one."""

from __future__ import annotations

import dataclasses
import os
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sovfed.clients.home.folder import load_config
from sovfed.clients.node import up as client_up
from sovfed.federation.host.processes import Process, Supervisor
from sovfed.federation.host.status import read_status
from sovfed.server import up as server_up
from sovfed.server.home import load_settings
from sovfed.simulations.audit.chaos.field import SETTLE_S, require, wait_until
from sovfed.simulations.audit.chaos.machine import AGENCY, Service
from sovfed.simulations.ports import free_ports

if TYPE_CHECKING:
    from sovfed.simulations.audit.chaos.field import Field

LIBRARIES: Final = tuple(
    Path("/usr/lib") / folder / "faketime" / "libfaketimeMT.so.1"
    for folder in ("x86_64-linux-gnu", "aarch64-linux-gnu", "")
)  # Debian's package libfaketime
NAMED: Final = "SOVFED_FAKETIME"  # where it lies otherwise
WORDS: Final = "clock says"
SAID_S: Final = 90.0


def library() -> Path | None:
    """Where libfaketime is; None if it is not installed."""
    named = [Path(os.environ[NAMED])] if NAMED in os.environ else []
    return next((path for path in (*named, *LIBRARIES) if path.exists()), None)


def play(field: Field, owner: str, offset: str, faketime: Path) -> None:
    """Start `owner` by a clock that is `offset` wrong, see both sides name the clock, and set it right."""
    home = field.machine.home(owner)
    stamp = home / "identity" / "faketime"  # which each of its processes may read
    stamp.write_text(offset)
    field.machine.services[owner].stop()
    started = time.time()
    supervisor = Supervisor(home, [_by(process, stamp, faketime) for process in _processes(home, owner)])
    thread = threading.Thread(target=supervisor.start, daemon=True)
    thread.start()
    try:
        wait_until(lambda: _named(home, started), f"{owner} names the clock", SAID_S)
        if owner != AGENCY:
            if not offset.startswith("-"):  # yesterday its certificate did not hold yet, so it does not call
                wait_until(lambda: _named(field.agency, started), "the agency names the clock", SAID_S)
            name, watch = field.runs.begin(field.changed(start_cohort=0))
            field.require_finished(name, watch)
            require(not field.took_part(name, owner), f"{owner} took part by a wrong clock")
    finally:
        supervisor.stop()
        thread.join()
        stamp.unlink()
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
        return server_up.processes(home, settings.server, settings.tracking)
    config = dataclasses.replace(load_config(home), home=str(home), runtime_port=free_ports(1)[0])
    return client_up.processes(home, config)


def _by(process: Process, stamp: Path, faketime: Path) -> Process:
    return dataclasses.replace(process, env={**process.env, **environment(stamp, faketime)})


def environment(stamp: Path, faketime: Path) -> dict[str, str]:
    """What has a process go by the clock whose offset ("+1d") the file `stamp` says.

    A wrong clock moves no monotonic one, and a process that were told so would wait for a day in each lock.
    """
    return {
        "LD_PRELOAD": str(faketime), "FAKETIME_TIMESTAMP_FILE": str(stamp), "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }  # fmt: skip


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
