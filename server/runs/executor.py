"""The agency's executor: claims ServerApp tasks from the superlink and runs a coordinator process for each.

Stands for `flower-superexec`, which would show the task's token in the process list and start a process that unpacks
and imports the run's bundle. Here the child is our installed coordinator and reads its token from stdin. The executor
and its children outlive a restart of the superlink, coordinators also one of the executor; it takes up runs whose
coordinator died (`recovery.py`).
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final, cast

from sovfed.federation.config import ServerConfig
from sovfed.federation.errors import SovfedError
from sovfed.federation.host.begin import begin
from sovfed.federation.host.leaving import leave
from sovfed.federation.host.processes import exit_code
from sovfed.federation.host.pulse import HANG_S, Pulse, pulse_file
from sovfed.federation.host.quiet import TRACKING, python_command, quiet_environment
from sovfed.federation.host.settings import passed_settings
from sovfed.federation.schema import bind
from sovfed.federation.wire.flower_http import add_client_header
from sovfed.federation.wire.loopback import SECRET_HEADER, ensure_secret
from sovfed.server.network.flower_app import SUPEREXEC_SECRET_FILE
from sovfed.server.runs.control import LOOPBACK_SECRET, ControlClient, log_path
from sovfed.server.runs.coordinators import COORDINATOR, TOLD
from sovfed.server.runs.folders import ACTIVE, UNSENT, is_held, read_state
from sovfed.server.runs.recovery import Recovery, end_coordinators
from sovfed.server.runs.spare import Spare

if TYPE_CHECKING:
    from flwr.proto.runtime_pb2 import AcquireTaskResponse

POLL_IDLE_S: Final = 0.2
POLL_BUSY_S: Final = 1.0  # with a run on, leave the processor to it
RETRY_S: Final = (0.2, 2.0)  # first and longest pause while the superlink is away
SEND_S: Final = 600.0  # between two tries to send MLflow what it lacks of ended runs
STOP_S: Final = 10.0  # from SIGTERM to SIGKILL of a coordinator
ACQUIRE: Final = "/flwr.proto.Runtime/AcquireTask"
_log = logging.getLogger("sovfed.executor")


class Executor:
    """Claims tasks from the superlink at `127.0.0.1:port` and gives each to one child running `command`.

    With `spare`, arguments that make such a child wait for its task, one waits while no run starts.
    """

    def __init__(
        self, home: Path, port: int, command: Sequence[str], hang_s: float = HANG_S, spare: Sequence[str] = ()
    ) -> None:
        from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor, SuperExecAuthHttpInterceptor
        from flwr.supercore.runtime import RuntimeHttpClient

        self._home = home
        self._command = tuple(command)
        self._spare = Spare(partial(self._start, (*command, *spare))) if spare else None
        self._children: dict[int, subprocess.Popen[bytes]] = {}  # by Flower's run id
        self._control = ControlClient(home, port)
        self._recovery = Recovery(home, self._control, hang_s)
        self._sender: subprocess.Popen[bytes] | None = None
        self._send_at = 0.0
        self._ended = threading.Event()
        address = f"127.0.0.1:{port}"
        add_client_header(SECRET_HEADER, ensure_secret(home / LOOPBACK_SECRET), address)
        secret = ensure_secret(home / SUPEREXEC_SECRET_FILE).encode("ascii")
        self._client = RuntimeHttpClient.from_server_address(
            address,
            True,
            None,
            [
                RuntimeVersionHttpInterceptor(component_name="SuperExec"),
                SuperExecAuthHttpInterceptor(master_secret=secret, protected_methods={ACQUIRE}),
            ],
        )

    def stop(self) -> None:
        """Have `work` return soon."""
        self._ended.set()

    def work(self) -> None:
        """Claim and run tasks until `stop`, then end all coordinators: SIGTERM, SIGKILL after `STOP_S`."""
        import httpx

        pause, away = POLL_IDLE_S, False
        try:
            while not self._ended.wait(pause):
                self._reap()
                self._recovery.step()
                self._send_unsent()
                if self._spare is not None:
                    self._spare.keep()
                try:
                    claimed = self._claim()
                except httpx.HTTPError as error:  # refused, busy or away: the same to us, and never fatal
                    if not away:
                        _log.warning("the superlink gives no tasks (%s); trying on", error)
                    pause, away = (min(2 * pause, RETRY_S[1]) if away else RETRY_S[0]), True
                    continue
                if away:
                    _log.info("the superlink is back")
                pause, away = (POLL_BUSY_S if self._children else POLL_IDLE_S), False
                if claimed.HasField("task") and claimed.token:
                    try:
                        self._spawn(claimed.task.run_id, claimed.token)
                    except OSError:  # no memory, no disk: that run's lease runs out, the others go on
                        _log.exception("run %d: no coordinator could be started", claimed.task.run_id)
        finally:
            if self._spare is not None:
                self._spare.end()
            self._end_children()
            end_coordinators(self._home, COORDINATOR, STOP_S)
            self._client.close()
            self._control.close()

    def _claim(self) -> AcquireTaskResponse:
        from flwr.proto.runtime_pb2 import AcquireTaskRequest
        from flwr.supercore.constant import TaskType

        return self._client.AcquireTask(AcquireTaskRequest(supported_task_types=[TaskType.SERVER_APP]))

    def _spawn(self, run_id: int, token: str) -> None:
        log = log_path(self._home, run_id)
        log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        task = json.dumps({"token": token, "log": str(log)}).encode()
        child = self._spare.take() if self._spare is not None else None
        if child is None or not _tell(child, task):
            with os.fdopen(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "wb") as output:
                child = self._start(self._command, output)
            _tell(child, task)  # in vain where it died at once: `_reap` says so
        self._children[run_id] = child
        _log.info("run %d: coordinator started, process %d", run_id, child.pid)

    def _start(self, command: Sequence[str], output: IO[bytes] | None = None) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=None if output is None else subprocess.STDOUT,
            env=quiet_environment(self._home, TRACKING),
            cwd=self._home,
            start_new_session=True,  # it goes on when the executor dies, and the next executor finds it
        )

    def _reap(self) -> None:
        for run_id, child in list(self._children.items()):
            code = child.poll()
            if code is not None:
                del self._children[run_id]
                _log.log(logging.INFO if code == 0 else logging.WARNING, "run %d: coordinator ended, %d", run_id, code)
                if code not in (0, TOLD):
                    self._recovery.note_death(run_id, code)

    def _send_unsent(self) -> None:
        """Send MLflow, by a process of its own, what it lacks of a run that ended while it was away."""
        busy = self._sender is not None and self._sender.poll() is None
        if busy or time.monotonic() < self._send_at:
            return
        self._send_at = time.monotonic() + SEND_S
        try:
            name = next(self._unsent(), None)
            if name is not None:
                self._sender = subprocess.Popen(
                    python_command("sovfed", "run", "track", name, "--home", str(self._home)),
                    env=quiet_environment(self._home, TRACKING), cwd=self._home,
                    stdin=subprocess.DEVNULL,
                )  # fmt: skip
        except (SovfedError, OSError, ValueError, LookupError) as error:  # as in `Recovery.step`: runs go on
            _log.warning("MLflow is not sent what it lacks: %s", error)

    def _unsent(self) -> Iterator[str]:
        """Runs that have ended and whose coordinator is gone, but of which MLflow lacks something; the oldest first."""
        for path in sorted((self._home / "runs").glob(f"*/{UNSENT}"), key=lambda path: path.stat().st_mtime):
            folder = path.parent
            if read_state(self._home, folder.name)["status"] not in ACTIVE and not is_held(folder):
                yield folder.name

    def _end_children(self) -> None:
        if self._sender is not None:
            self._sender.terminate()
        for child in self._children.values():
            child.terminate()
        deadline = time.monotonic() + STOP_S
        for run_id, child in self._children.items():
            try:
                child.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                _log.warning("run %d: coordinator killed", run_id)
                child.kill()
                child.wait()


def _tell(child: subprocess.Popen[bytes], task: bytes) -> bool:
    """Give `child` its task; False if it is gone."""
    try:
        with cast("IO[bytes]", child.stdin) as stdin:
            stdin.write(task)
    except BrokenPipeError:
        return False
    return True


def coordinator_command(home: Path, port: int) -> list[str]:
    """The argument vector of a coordinator; its token goes over stdin."""
    return python_command(COORDINATOR, "--home", str(home), "--port", str(port))


def main(arguments: list[str] | None = None) -> int:
    """Entry point; its exit codes are `exit_code`'s."""
    home, settings = begin("Runs a coordinator for every run of the local superlink", arguments)
    Pulse(pulse_file(home, "executor")).start()
    try:
        config = bind(ServerConfig, passed_settings(settings))
        command = coordinator_command(home, config.control_port)
        executor = Executor(home, config.control_port, command, config.hang_s, spare=["--spare"])
    except SovfedError as error:
        sys.stderr.write(f"executor: {error}\n")
        return exit_code(error)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: executor.stop())
    executor.work()
    return 0


if __name__ == "__main__":
    leave(main)
