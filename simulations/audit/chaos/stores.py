"""MLflow as another machine has it: a server behind the weather, and a PostgreSQL that can be stopped."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sovfed.federation.host.processes import listening
from sovfed.federation.host.quiet import TRACKING, python_command, quiet_environment
from sovfed.server.runs.folders import UNSENT, run_folder
from sovfed.server.runs.tracking import send
from sovfed.simulations.audit.chaos.checks import lacking_in_mlflow
from sovfed.simulations.audit.chaos.field import wait_until
from sovfed.simulations.audit.chaos.weather import Weather
from sovfed.simulations.ports import free_ports

if TYPE_CHECKING:
    from sovfed.federation.config import Config

USER: Final = "sovfed"


@dataclass(frozen=True)
class TrackingServer:
    """An MLflow server's address, on the way to which is the weather."""

    uri: str
    weather: Weather


@contextlib.contextmanager
def mlflow_server(folder: Path) -> Iterator[TrackingServer]:
    """MLflow's own server, its files in `folder`."""
    folder.mkdir(exist_ok=True)
    (port,) = free_ports(1)
    command = python_command(
        "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
        "--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}", "--artifacts-destination", str(folder / "files"),
    )  # fmt: skip
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(
            command, env=quiet_environment(also=TRACKING), cwd=folder, stdout=log, stderr=log, start_new_session=True
        )
    weather = Weather(port)
    try:
        wait_until(listening(("127.0.0.1", port)), "MLflow's server listens")
        yield TrackingServer(f"http://127.0.0.1:{weather.port}", weather)
    finally:
        weather.close()
        os.killpg(server.pid, 15)
        server.wait()


class PostgreSQL:
    """A server of its own in `folder`, reached by its socket there; `uri` is its database for MLflow."""

    def __init__(self, folder: Path, programs: dict[str, str], user: dict[str, str]) -> None:
        self._folder, self._programs, self._user = folder, programs, user
        self.uri = f"postgresql+psycopg://{USER}@/postgres?host={folder}"
        self._call("initdb", "-D", "data", "-A", "trust", "-U", USER, "--no-sync", "-E", "UTF8")

    def start(self) -> None:
        options = f"-c listen_addresses='' -c unix_socket_directories='{self._folder}' -c fsync=off"
        self._call("pg_ctl", "-D", "data", "-w", "-l", "log", "-o", options, "start")

    def stop(self) -> None:
        self._call("pg_ctl", "-D", "data", "-m", "immediate", "stop")

    def _call(self, program: str, *arguments: str) -> None:
        options: dict[str, Any] = self._user
        subprocess.run(
            [self._programs[program], *arguments], check=True, capture_output=True, cwd=self._folder, timeout=60,
            **options,
        )  # fmt: skip


@contextlib.contextmanager
def postgresql_server() -> Iterator[PostgreSQL | None]:
    """A running PostgreSQL, as an unprivileged user, which it demands; None if it is not installed."""
    folders = [str(path) for path in Path("/usr/lib/postgresql").glob("*/bin")]
    search = os.pathsep.join([os.environ.get("PATH", ""), *folders])
    programs = {name: path for name in ("initdb", "pg_ctl") if (path := shutil.which(name, path=search))}
    user: dict[str, str] = {}
    if os.geteuid() == 0:
        with contextlib.suppress(KeyError):
            user = {"user": pwd.getpwnam("nobody").pw_name, "group": "nogroup"}
    if len(programs) < 2 or (os.geteuid() == 0 and not user):
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="pg") as name:
        if user:
            shutil.chown(name, user["user"])
        server = PostgreSQL(Path(name), programs, user)
        server.start()
        _make_tables(server.uri)
        try:
            yield server
        finally:
            server.stop()


def _make_tables(uri: str) -> None:
    """MLflow's, which stand where it is in use: a server that dies as they are made leaves what MLflow refuses."""
    from mlflow import MlflowClient

    MlflowClient(uri).search_experiments()


def send_again(agency: Path, config: Config, name: str) -> None:
    """What the executor does every ten minutes: send MLflow what it lacks of the ended run."""
    folder = run_folder(agency, name)
    if (folder / UNSENT).exists():
        send(config, agency, folder)


def lacking(agency: Path, config: Config, name: str) -> list[str]:
    """What MLflow lacks of the run."""
    return lacking_in_mlflow(agency, config, name)
