"""Runs our ServerApp in its own process: what `flwr-serverapp` does, without the app bundle.

Flower's runner would unpack the bundle, import its code and send an exception's text to the superlink. Here the
installed package is the app, nothing is unpacked, and a failure is reported as one fixed sentence. The heartbeat is
ours too: Flower's thread dies of one HTTP 500, and the run with it.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar

from sovfed.federation.errors import AwayError, ConfigError, ServiceError
from sovfed.federation.host.processes import die_with_parent
from sovfed.federation.wire.flower_http import add_client_header
from sovfed.federation.wire.loopback import SECRET_HEADER, read_secret
from sovfed.server.network.state_db import LEASE_S
from sovfed.server.runs.control import CONFIG_KEY, LOOPBACK_SECRET
from sovfed.server.runs.coordinators import TOLD

if TYPE_CHECKING:
    from flwr.app import Context
    from flwr.serverapp import Grid
    from flwr.supercore.protobuf.client import ProtobufClientInterceptor
    from flwr.supercore.runtime import RuntimeHttpClient
    from flwr.superlink.grid import HttpGrid

App: TypeAlias = "Callable[[Grid, Context, dict[str, Any]], None]"
T = TypeVar("T")
FAILED: Final = "The coordinator failed; its log on the server says why."
STOPPED: Final = "The coordinator was stopped."
DROPPED: Final = "the superlink dropped its task"
AWAY_S: Final = 60.0  # longest wait for the superlink where there is nothing to do without it
HEARTBEAT_S: Final = 2.0  # also the longest that a stopped run goes unnoticed
GRACE_S: Final = 10.0  # from the request to stop to the kill
MAX_RETRY_S: Final = 2  # longest pause between two tries to reach a superlink that is away
PULL_S: Final = (0.05, 1.0)  # first and longest pause before an object that is still being uploaded is asked for again
_log = logging.getLogger("sovfed.coordinator")


class Stopped(BaseException):
    """The run was stopped, or this process was told to end. Not an Exception, so that no app swallows it."""


def run(home: Path, port: int, token: str, app: App) -> int:
    """Run `app` as the task that `token` stands for and report how it ended; returns the process's exit code.

    Survives a superlink that is away for less than `LEASE_S`; rounds over the lane do not pause meanwhile. Ends when
    the run is stopped.
    """
    from flwr.common.constant import SubStatus
    from flwr.proto.runtime_pb2 import PullTaskInputRequest, PushTaskOutputRequest
    from flwr.supercore.run import RunNotRunningException  # a BaseException: the superlink answered 403

    die_with_parent()
    address = f"127.0.0.1:{port}"
    add_client_header(SECRET_HEADER, read_secret(home / LOOPBACK_SECRET), address)
    client = runtime_client(address, token)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _raise_stopped)
    signal.signal(signal.SIGUSR1, _raise_dropped)
    over = threading.Event()
    threading.Thread(target=_heartbeats, args=(runtime_client(address, token), over), daemon=True).start()
    status, details = SubStatus.FAILED, FAILED
    try:
        task = patiently(lambda: client.PullTaskInput(PullTaskInputRequest()))
        grid, context, config = _enter(address, token, task)
        try:
            app(grid, context, config)
        finally:
            grid.close()
        status, details = SubStatus.COMPLETED, ""
    except (Stopped, RunNotRunningException):
        _log.warning("the run was stopped")
        details = STOPPED
    except Exception:
        _log.exception("the run failed")
    _ignore_signals()
    request = PushTaskOutputRequest(sub_status=status, details=details)
    try:
        patiently(lambda: client.PushTaskOutput(request), AWAY_S if details != STOPPED else 0.0)
    except ServiceError as error:
        _log.warning("the result could not be reported: %s", error)
    over.set()
    return 0 if status == SubStatus.COMPLETED else TOLD


def runtime_client(address: str, token: str) -> RuntimeHttpClient:
    """A client of the superlink's Runtime API for the task of `token`, without Flower's endless retries."""
    from flwr.supercore.interceptors import RuntimeTokenHttpInterceptor, RuntimeVersionHttpInterceptor
    from flwr.supercore.runtime import RuntimeHttpClient

    interceptors: list[ProtobufClientInterceptor] = [
        RuntimeVersionHttpInterceptor(component_name="flwr-serverapp"),
        RuntimeTokenHttpInterceptor(token),
    ]
    return RuntimeHttpClient.from_server_address(address, True, None, interceptors)


def patiently(call: Callable[[], T], timeout_s: float = AWAY_S) -> T:
    """The result of `call`, tried again while the superlink is away or busy; AwayError after `timeout_s`."""
    import httpx

    deadline, pause = time.monotonic() + timeout_s, 0.1
    while True:
        try:
            return call()
        except httpx.HTTPStatusError as error:
            if error.response.status_code < 500 or time.monotonic() >= deadline:
                raise AwayError(f"superlink: {error}") from error
        except httpx.TransportError as error:
            if time.monotonic() >= deadline:
                raise AwayError(f"superlink: {error}") from error
        time.sleep(pause)
        pause = min(2 * pause, MAX_RETRY_S)


def _enter(address: str, token: str, task: Any) -> tuple[HttpGrid, Context, dict[str, Any]]:
    """Flower's Grid, Context and our configuration for the task that was pulled."""
    from flwr.common.serde import context_from_proto, run_from_proto
    from flwr.supercore.retry import exponential
    from flwr.supercore.task_identity import TaskIdentity
    from flwr.superlink.grid import HttpGrid

    run_info, context = run_from_proto(task.run), context_from_proto(task.context)
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = task.task_id, run_info.run_id, context.node_id
    _pull_briskly()
    grid = HttpGrid(address, insecure=True, token=token)
    grid._retry_invoker.wait_gen_factory = lambda: exponential(base_delay=0.2, max_delay=MAX_RETRY_S)
    grid.set_run(run_info)
    context.run_config = dict(run_info.override_config)
    try:
        config = json.loads(str(run_info.override_config.get(CONFIG_KEY)))
    except ValueError as error:
        raise ConfigError(f"run {run_info.run_id}: not a run of sovfed") from error
    return grid, context, config


def _pull_briskly() -> None:
    """Shorten the pauses (1 s, doubling to 10 s) after which Flower's Grid asks again for an object of a reply."""
    from flwr.supercore.inflatable.inflatable_utils import pull_objects

    defaults = {"initial_backoff": PULL_S[0], "backoff_cap": PULL_S[1], "max_tries_per_object": None}
    pull_objects.__kwdefaults__ = (pull_objects.__kwdefaults__ or {}) | defaults


def _heartbeats(client: RuntimeHttpClient, over: threading.Event) -> None:
    """Renew the task's lease until `over`; when the task is gone, end this process."""
    import httpx
    from flwr.proto.runtime_pb2 import SendTaskHeartbeatRequest

    renewed = time.monotonic()
    while not over.wait(HEARTBEAT_S):
        try:
            alive = client.SendTaskHeartbeat(SendTaskHeartbeatRequest()).success
            renewed = time.monotonic()
        except httpx.HTTPStatusError as error:
            alive = error.response.status_code >= 500
        except httpx.TransportError:
            alive = True
        if not alive or time.monotonic() - renewed > LEASE_S:
            _log.warning("the superlink no longer holds this run's task")
            os.kill(os.getpid(), signal.SIGUSR1)
            if not over.wait(GRACE_S):
                os._exit(1)
            return


def _ignore_signals() -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


def _raise_stopped(number: int, _: FrameType | None) -> None:
    _ignore_signals()  # once is enough: Flower's retries send SIGINT on top
    raise Stopped(f"its process was told to end ({signal.Signals(number).name})")


def _raise_dropped(_number: int, _frame: FrameType | None) -> None:
    _ignore_signals()
    raise Stopped(DROPPED)
