"""`sovfed server up`: the agency's processes under one supervisor.

superlink (Flower's server behind our gate), registry (enrolment and lane), executor (starts a coordinator per run) and,
where `tracking.serve` asks for it, MLflow's page on the loopback.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final

from sovfed import __version__
from sovfed.federation.addresses import host_port
from sovfed.federation.config import ServerConfig, TrackingConfig
from sovfed.federation.errors import ServiceError
from sovfed.federation.evidence.noting import Noting
from sovfed.federation.evidence.store import record_change
from sovfed.federation.host.ports import check_ports
from sovfed.federation.host.processes import Process, Supervisor, listening, read_status, start_detached
from sovfed.federation.host.pulse import pulse_file
from sovfed.federation.host.quiet import TRACKING, python_command, quiet_environment
from sovfed.federation.host.settings import FILE as SETTINGS_FILE
from sovfed.federation.host.settings import passing
from sovfed.server.home import SETTINGS, load_settings
from sovfed.server.runs.mlflow_page import PASSWORD, USER

START_TIMEOUT_S: Final = 90.0


def processes(home: Path, config: ServerConfig, tracking: TrackingConfig) -> list[Process]:
    """The agency's processes in starting order. They read `settings_file`, which must be written before that."""
    env = quiet_environment(home, TRACKING)
    settings = home / SETTINGS_FILE

    def process(name: str, module: str, ready: Callable[[], bool] | None) -> Process:
        argv = python_command(f"sovfed.server.{module}", "--home", str(home), "--config", str(settings))
        return Process(name, argv, env, ready, START_TIMEOUT_S, pulse=pulse_file(home, name), hang_s=config.hang_s)

    control, lane = listening(("127.0.0.1", config.control_port)), listening(home / "lane.sock")
    listed = [
        process("superlink", "network.superlink", control),
        process("registry", "registry.service", lane),
        process("executor", "runs.executor", None),
    ]
    if tracking.serve:
        port = tracking.serve_port
        page = listening(("127.0.0.1", port))
        listed.append(Process("mlflow", mlflow_command(home, port), env, page, START_TIMEOUT_S, optional=True))
    if config.console_port:
        command = python_command("sovfed.server.console.process", "--home", str(home))
        host = "127.0.0.1" if config.console_host == "0.0.0.0" else config.console_host  # noqa: S104
        page = listening((host, config.console_port))
        listed.append(Process("console", command, env, page, START_TIMEOUT_S, optional=True))
    return listed


def mlflow_command(home: Path, port: int) -> list[str]:
    """MLflow's own page over the agency's runs: on the loopback only, and behind a password."""
    return python_command("sovfed.server.runs.mlflow_page", "--home", str(home), "--port", str(port))


def make_supervisor(home: Path) -> Supervisor:
    """The supervisor of an agency that is set up and has its certificate and its ports.

    Raises ServiceError if something is missing or it runs already, ConfigError if a port is taken.
    """
    home = home.absolute()
    settings = load_settings(home)
    require_certified(home)
    check_ports(home, home / SETTINGS, _ports(settings.server))
    Noting.leave_nothing(home)  # what a coordinator that died has left; or whoever starts it is told what to do
    settled = hashlib.sha256((home / SETTINGS).read_bytes()).hexdigest()
    record_change(home, "policy", settings=settled, version=__version__)
    beside = passing(home, settings.server, watch(home, settings.server))
    return Supervisor(
        home, processes(home, settings.server, settings.tracking), settings.server.log_format, beside
    )  # fmt: skip


def require_certified(home: Path) -> None:
    """Raise ServiceError unless the agency has its certificate, the authority's root and a revocation list."""
    for name in ("cert.pem", "root.pem", "crl.pem"):
        if not (home / "identity" / name).exists():
            raise ServiceError(
                f"{home / 'identity' / name} is missing; have the authority sign {home / 'identity' / 'server.csr'}, "
                f"then `sovfed server certificate CERT ROOT CRL --home {home}`"
            )


def watch(home: Path, config: ServerConfig) -> AbstractContextManager[object] | None:
    """`/metrics` and `/health` of the agency, if `server.watch_port` asks for them."""
    if not config.watch_port:
        return None
    from sovfed.federation.host.watch import Watch, health_of
    from sovfed.server.metrics import agency_metrics

    return Watch(config.watch_port, lambda: health_of(read_status(home)), lambda: agency_metrics(home))


def _ports(config: ServerConfig) -> dict[str, tuple[str, int]]:
    """The setting of each port that must be had, and where; MLflow's page waits for its own."""
    ports = {
        f"server.{name}": (config.host, getattr(config, name)) for name in ("fleet_port", "enrolment_port", "lane_port")
    }
    ports["server.control_port"] = ("127.0.0.1", config.control_port)
    if config.watch_port:
        ports["server.watch_port"] = ("127.0.0.1", config.watch_port)
    return ports


def supervise(home: Path, detach: bool) -> None:
    """Run the agency's processes until SIGTERM or Ctrl-C, or detached in the background."""
    import click

    from sovfed.federation.slow import said_if_slow

    if detach:
        make_supervisor(home)  # refuse here, where somebody reads it
        argv = python_command("sovfed", "server", "up", "--home", str(home))
        with said_if_slow("starting superlink, registry and executor; on a busy machine that takes a minute"):
            complaints = start_detached(argv, quiet_environment(also=TRACKING), home)
        for line in complaints:
            click.echo(line, err=True)
        click.echo(f"running; `sovfed server status --home {home}`")
        return
    settings = load_settings(home)
    config, page = settings.server, ""
    if settings.tracking.serve:
        page = f"  MLflow http://127.0.0.1:{settings.tracking.serve_port} (user {USER}, password in {home / PASSWORD})"
    make_supervisor(home).run(
        on_ready=lambda: click.echo(
            f"ready: fleet {host_port(config.host, config.fleet_port)}  lane {host_port(config.host, config.lane_port)}"
            f"  enrolment {host_port(config.host, config.enrolment_port)}{page}  (Ctrl-C stops)"
        )
    )
