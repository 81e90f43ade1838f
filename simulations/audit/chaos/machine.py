"""A federation on this machine as a machine's own init system keeps it: `server up` and `client up`, started again.

Nobody else starts anything: what a person would have to type is never typed.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from sovfed.federation.errors import ServiceError
from sovfed.federation.host.quiet import TRACKING, python_command, quiet_environment
from sovfed.federation.host.status import read_status
from sovfed.server.runs.coordinators import COORDINATOR
from sovfed.server.runs.spare import is_spare

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from sovfed.simulations.deployment import LocalFederation

AGENCY: Final = "agency"
SUPERVISOR: Final = "supervisor"
COORDINATOR_NAME: Final = "coordinator"
RESTART_S: Final = 1.0  # systemd: RestartSec
STOP_S: Final = 30.0  # and TimeoutStopSec
WATCHDOG_S: Final = 25.0  # and WatchdogSec, which is 120 in the units; the supervisor tells every ten
LOOK_S: Final = 0.002
LISTEN_S: Final = 0.2


class Service:
    """One supervisor, started again `RESTART_S` after whatever ended it, until `stop`."""

    def __init__(self, home: Path, role: str) -> None:
        arguments = ["--plain", "--no-look"] if role == "client" else []
        self.home, self._command = home, python_command("sovfed", role, "up", *arguments, "--home", str(home))
        self.starts = 0
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._keep, daemon=True)
        self._popen: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._thread.start()

    @property
    def pid(self) -> int | None:
        """The supervisor's process id; None between two starts."""
        return None if self._popen is None or self._popen.poll() is not None else self._popen.pid

    def stop(self) -> None:
        """SIGTERM, SIGKILL after `STOP_S`, and no start any more."""
        self._ending.set()
        deadline = time.monotonic() + STOP_S
        while self._thread.is_alive():  # it may be starting one at this moment
            if (pid := self.pid) is not None:
                send(pid, signal.SIGCONT)
                send(pid, signal.SIGTERM if time.monotonic() < deadline else signal.SIGKILL)
            self._thread.join(0.5)

    def _keep(self) -> None:
        logs = self.home / "logs"
        logs.mkdir(mode=0o700, exist_ok=True)
        address = f"sovfed-{os.getpid()}-{id(self)}"  # an abstract one: no file
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard:
            heard.bind(f"\0{address}")
            heard.settimeout(LISTEN_S)
            told = {"NOTIFY_SOCKET": f"@{address}", "WATCHDOG_USEC": f"{WATCHDOG_S * 1e6:.0f}"}
            while not self._ending.is_set():
                with (logs / "supervisor.log").open("ab") as output:
                    self._popen = subprocess.Popen(
                        self._command, env=quiet_environment(also=TRACKING) | told, stdin=subprocess.DEVNULL,
                        stdout=output, stderr=output, start_new_session=True, cwd=self.home,
                    )  # fmt: skip
                self.starts += 1
                _watch(self._popen, heard)
                self._ending.wait(RESTART_S)


def _watch(process: subprocess.Popen[bytes], heard: socket.socket) -> None:
    """Returns when the process has ended; kills it, as systemd's watchdog does, when it is not heard of any more."""
    deadline = time.monotonic() + WATCHDOG_S
    while process.poll() is None:
        try:
            words = heard.recv(64)
        except TimeoutError:
            if time.monotonic() > deadline:
                process.kill()
        else:
            deadline = time.monotonic() + (STOP_S if words == b"STOPPING=1" else WATCHDOG_S)


class Machine:
    """The agency and the institutions of `federation`, none of which is started yet; whatever is, is ended."""

    def __init__(self, federation: LocalFederation) -> None:
        self.federation = federation
        self.services = {AGENCY: Service(federation.home, "server")}
        for member in federation.institutions:
            self.services[member.name] = Service(federation.client_home(member.name), "client")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        closing = [threading.Thread(target=service.stop) for service in self.services.values()]
        for thread in closing:
            thread.start()
        for thread in closing:
            thread.join()

    def start(self, settle_s: float, enrolled: Callable[[], None] = lambda: None) -> None:
        """Start the agency, have it admit the institutions, do what `enrolled` does, and start them, too.

        Raises ServiceError if they are not all connected in time.
        """
        self.services[AGENCY].start()
        self._wait(lambda: self._unready([AGENCY]), settle_s)
        self.federation.enrol()
        enrolled()
        for member in self.federation.institutions:
            self.services[member.name].start()
        self.settle(settle_s)

    def home(self, owner: str) -> Path:
        return self.services[owner].home

    def pid(self, owner: str, process: str) -> int | None:
        """The id of `process` of `owner`; None while there is none."""
        if process == SUPERVISOR:
            return self.services[owner].pid
        if process == COORDINATOR_NAME:
            return next(self.coordinators(), None)
        status = read_status(self.home(owner))
        return None if status is None else {child.name: child.pid for child in status.processes}.get(process)

    def await_pid(self, owner: str, process: str, timeout_s: float, among: Sequence[int] = ()) -> int:
        """The id of `process` as soon as there is one that is not `among` those. ServiceError after `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        while (pid := self.pid(owner, process)) is None or pid in among:
            if time.monotonic() > deadline:
                raise ServiceError(f"{owner}: no {process} within {timeout_s:g} s")
            time.sleep(LOOK_S)
        return pid

    def coordinators(self) -> Iterator[int]:
        """The coordinators over the agency's home."""
        wanted = os.fsencode(self.home(AGENCY))
        for entry in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                words = entry.read_bytes().split(b"\0")
                pid = int(entry.parent.name)
                if COORDINATOR.encode() in words and wanted in words and not is_spare(pid):
                    yield pid

    def processes(self, owner: str) -> Iterator[int]:
        """All processes of one side, as the machine that holds them loses them: the supervisor first."""
        yield from filter(None, [self.services[owner].pid])
        status = read_status(self.home(owner))
        yield from (child.pid for child in (status.processes if status else ()) if child.pid is not None)
        if owner == AGENCY:
            yield from self.coordinators()

    def unready(self, but: str = "") -> list[str]:
        """What does not run as it should, by owner, all but one's; empty when every institution is connected, too."""
        lacking = self._unready([owner for owner in self.services if owner != but])
        return lacking or [f"{name}: not connected" for name in self._offline()]

    def _unready(self, owners: Iterable[str]) -> list[str]:
        lacking = []
        for owner in owners:
            status = read_status(self.home(owner))
            if status is None:
                lacking.append(f"{owner}: not running, started {self.services[owner].starts} times{self._last(owner)}")
            else:
                lacking += [f"{owner}: {child.name} is {child.state}" for child in status.processes
                            if child.state != "ready" and not child.optional]  # fmt: skip
        return lacking

    def _last(self, owner: str) -> str:
        """What the supervisor of `owner` said last, which is gone with the folder."""
        with contextlib.suppress(OSError):
            lines = (self.home(owner) / "logs" / "supervisor.log").read_text(errors="replace").splitlines()
            return "".join(f"; {line[:200]}" for line in lines[-3:])
        return ""

    def _offline(self) -> list[str]:
        try:
            online = {node.name for node in self.federation.control.list_nodes() if node.status == "online"}
        except ServiceError:
            online = set()
        return [member.name for member in self.federation.institutions if member.name not in online]

    def settle(self, timeout_s: float, but: str = "") -> None:
        """Wait until nothing is `unready`; `but` is kept up by somebody else.

        Raises ServiceError saying what is after `timeout_s`.
        """
        self._wait(lambda: self.unready(but), timeout_s)

    def _wait(self, unready: Callable[[], list[str]], timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while lacking := unready():
            if time.monotonic() > deadline:
                raise ServiceError(f"not ready within {timeout_s:g} s: {'; '.join(lacking)}")
            time.sleep(0.2)


def stopped(pid: int) -> bool:
    """Whether the process is there and stopped by a signal."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    except OSError:
        return False


def exit_when_told() -> None:
    """Have SIGTERM end this process and what it started, once: `timeout` sends two, and ending takes its time."""

    def leave(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        sys.exit(1)

    signal.signal(signal.SIGTERM, leave)


def send(pid: int, number: signal.Signals) -> None:
    """Send a signal to a process that may be gone."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


@contextlib.contextmanager
def whole(federation: LocalFederation, settle_s: float) -> Iterator[Machine]:
    """`federation`, enrolled, each side kept up by a supervisor of its own; whatever was started is ended."""
    federation.build_agency()
    with Machine(federation) as machine:
        machine.start(settle_s)
        try:
            yield machine
        finally:
            federation.stop()
