"""`sovfed client up`: the institution's three processes under one supervisor.

trainer (records and GPU, no network), supernode (Flower's, outbound TLS) and gateway (between the two). Nothing starts
before the home is private, enrolled and has a policy.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import socket
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from sovfed import __version__
from sovfed.clients.home.folder import (
    NEXT_CERTIFICATE,
    RUNTIME_SECRET,
    SETTINGS,
    TASK_SECRET,
    check_enrolled,
    load_config,
)
from sovfed.clients.home.policy import POLICY, load_policy
from sovfed.federation.errors import SovfedError
from sovfed.federation.evidence.noting import Noting
from sovfed.federation.evidence.store import record_change
from sovfed.federation.files import private_directory
from sovfed.federation.host.ports import check_ports
from sovfed.federation.host.processes import Process, Supervisor, listening, read_status, start_detached
from sovfed.federation.host.pulse import pulse_file
from sovfed.federation.host.quiet import python_command, quiet_environment
from sovfed.federation.host.settings import FILE as SETTINGS_FILE
from sovfed.federation.host.settings import passing
from sovfed.federation.wire.loopback import ensure_secret

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from pathlib import Path

    from sovfed.clients.home.policy import Policy
    from sovfed.federation.config import ClientConfig

log = logging.getLogger(__name__)
SLURM: Final = ("SLURM_CONF", "SLURM_CLUSTERS")  # which cluster, where it is not the machine's own
START_TIMEOUT_S: Final = 120.0  # of one process: torch and CUDA load slowly from a cold disk


def processes(home: Path, config: ClientConfig) -> list[Process]:
    """The institution's processes in starting order; `config.runtime_port` must be chosen.

    They read `settings_file`, which must be written before the first one starts.
    """
    env, settings = quiet_environment(home), home / SETTINGS_FILE

    def process(name: str, ready: Callable[[], bool] | None, timeout_s: float = START_TIMEOUT_S) -> Process:
        argv = python_command("sovfed.clients.node.sandbox", name, "--home", str(home), "--config", str(settings))
        return Process(name, argv, env, ready, timeout_s, pulse=pulse_file(home, name), hang_s=config.hang_s)

    trainer = process("trainer", listening(home / "trainer.sock"))
    if config.cluster.scheduler == "slurm":  # the trainer's jobs are asked for by a process of their own
        argv = python_command("sovfed.clients.node.slurm", "--home", str(home), "--config", str(settings))
        trainer = Process("trainer", argv, quiet_environment(home, SLURM))
    return [
        trainer,
        process("supernode", listening(("127.0.0.1", config.runtime_port))),
        process("gateway", None),
    ]


def make_supervisor(home: Path, config: ClientConfig | None = None) -> Supervisor:
    """The supervisor of an institution that may start; `config` replaces what `home/client.yaml` says.

    Raises IdentityError if it is not enrolled, a key can be read by others or the certificate has expired, PolicyError
    if the policy is missing or wrong, ConfigError or ServiceError for settings, ports or folders that do not fit.
    """
    home = home.absolute()
    if (home / "identity" / NEXT_CERTIFICATE).exists():
        from sovfed.clients.node.renewal import complete  # and gRPC with it, which the supervisor would hold for years

        complete(home / "identity")
    check_enrolled(home, datetime.now(UTC))
    config = dataclasses.replace(config or load_config(home), home=str(home))
    purge_what_ended(home, load_policy(home))
    Noting.leave_nothing(home)  # what a trainer that died has left; or whoever starts it is told what to do
    digests = {name: hashlib.sha256((home / name).read_bytes()).hexdigest() for name in (POLICY, SETTINGS)}
    record_change(home, "policy", policy=digests[POLICY], settings=digests[SETTINGS], version=__version__)
    for name in ("logs", "state"):
        private_directory(home / name)
    for secret in (RUNTIME_SECRET, TASK_SECRET):
        ensure_secret(home / secret)
    ports = {"runtime_port": config.runtime_port, "watch_port": config.watch_port}
    check_ports(home, home / SETTINGS, {name: ("127.0.0.1", port) for name, port in ports.items() if port})
    if config.runtime_port == 0:
        config = dataclasses.replace(config, runtime_port=_free_port())
    beside = passing(home, config, watch(home, config))
    return Supervisor(home, processes(home, config), config.log_format, beside)


def purge_what_ended(home: Path, policy: Policy) -> None:
    """Erase what runs under permits that have ended left, where the `policy` says so and no node is up."""
    if not (policy.purge_ended_permits and policy.permits):
        return
    from sovfed.clients.orders.purge import purge_ended  # it reads arrays, which a supervisor does not hold otherwise

    try:
        for receipt in purge_ended(home, policy.permits, time.time()):
            log.warning("permit %s has ended: purged, receipt orders/receipts/%s.json", receipt.permit, receipt.permit)
    except (SovfedError, OSError, ValueError) as error:  # whatever it is, nothing under the permit is answered anyway
        log.warning("what a permit that has ended left here was not purged: %s", error)


def watch(home: Path, config: ClientConfig) -> AbstractContextManager[object] | None:
    """`/metrics` and `/health` of the institution, if `watch_port` asks for them."""
    if not config.watch_port:
        return None
    from sovfed.clients.node.metrics import institution_metrics
    from sovfed.federation.host.watch import Watch, health_of

    return Watch(config.watch_port, lambda: health_of(read_status(home)), lambda: institution_metrics(home))


def supervise_detached(home: Path) -> list[str]:
    """Start the supervisor in a session of its own and return once everything is ready, or waits for what comes.

    The lines say what is waited for.

    Raises what `make_supervisor` does, and ServiceError with the end of its log if it gives up.
    """
    home = home.absolute()
    make_supervisor(home)  # refuse here, where somebody reads it
    argv = python_command("sovfed", "client", "up", "--plain", "--no-look", "--home", str(home))
    return start_detached(argv, quiet_environment(), home)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
