"""The gateway: takes messages from the agency, by Flower's SuperNode or by the lane, to the trainer's socket and back.

`python -m sovfed.clients.node.gateway --home H --config JSON`. It runs the installed ClientApp (`app.py`) and nothing
that a message or an app bundle brings; it imports no torch and opens no data file.
"""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sovfed.clients.home.folder import RUNTIME_SECRET, TASK_SECRET
from sovfed.federation.config import ClientConfig
from sovfed.federation.errors import ConfigError, SovfedError
from sovfed.federation.host.begin import begin
from sovfed.federation.host.leaving import leave
from sovfed.federation.host.processes import exit_code
from sovfed.federation.host.pulse import Pulse, pulse_file
from sovfed.federation.host.settings import passed_settings
from sovfed.federation.schema import bind
from sovfed.federation.wire.loopback import SECRET_HEADER, ensure_secret

if TYPE_CHECKING:
    from sovfed.clients.node.app import Trainer
    from sovfed.clients.trainer.socket import TrainerStub
    from sovfed.clients.trainer.spool import SpoolStub
    from sovfed.federation.messages import Reply, Request

LOOK_S: Final = 45.0  # without a look for tasks; the SuperNode keeps it waiting for 15 s
log = logging.getLogger("sovfed.gateway")


def run(home: Path, config: ClientConfig, stop: threading.Event, beat: Callable[[], None] = lambda: None) -> None:
    """Serve until `stop`; whoever looks for tasks calls `beat`. Raises ConfigError without a Runtime port."""
    if config.runtime_port == 0:
        raise ConfigError("runtime_port is 0; the gateway must be told the SuperNode's Runtime port")
    from sovfed.clients.node.app import make_client_app
    from sovfed.clients.node.enrol import lane_of
    from sovfed.clients.node.executor import run_executor
    from sovfed.clients.node.heads import keep_exchanging
    from sovfed.clients.node.lane import LaneClient
    from sovfed.clients.node.renewal import keep_fresh
    from sovfed.federation.wire.flower_http import add_client_header

    address = f"127.0.0.1:{config.runtime_port}"
    add_client_header(SECRET_HEADER, ensure_secret(home / RUNTIME_SECRET), address)
    trainer, rounds = _stub(home, config), threading.Event()
    lane = LaneClient(
        home,
        make_client_app(Telling(trainer, rounds)),
        max_message_bytes=config.max_message_bytes,
        address=lane_of(home, config.lane_address),  # a run cannot send us elsewhere
        proxy=config.proxy,
    )
    app = make_client_app(Telling(trainer, rounds), join=lane.open)
    keeping = (home, config.crl_refresh_s, stop, config.proxy, config.lane_address)
    fresh = threading.Thread(target=keep_fresh, args=keeping, name="fresh", daemon=True)
    fresh.start()
    exchanging = (home, config.heads_every_s, stop, rounds, config.proxy, config.lane_address)
    threading.Thread(target=keep_exchanging, args=exchanging, name="heads", daemon=True).start()
    log.info("taking tasks at %s for the trainer of %s", address, home)
    try:
        run_executor(address, ensure_secret(home / TASK_SECRET).encode("ascii"), app, stop, beat)
    finally:
        lane.close()
        trainer.close()


@dataclass(frozen=True)
class Telling:
    """A trainer, and what is set whenever it has answered."""

    trainer: Trainer
    answered: threading.Event

    def answer(self, request: Request) -> Reply:
        """The trainer's answer."""
        try:
            return self.trainer.answer(request)
        finally:
            self.answered.set()


def _stub(home: Path, config: ClientConfig) -> TrainerStub | SpoolStub:
    """The trainer behind its socket, or, where it is a cluster's job, behind the spool."""
    if config.cluster.scheduler == "none":
        from sovfed.clients.trainer.socket import NAME, TrainerStub

        return TrainerStub(home / NAME, config.max_message_bytes)
    from sovfed.clients.trainer.spool import SpoolStub

    return SpoolStub(home, config.max_message_bytes, config.cluster.patience_s)


def main(arguments: list[str] | None = None) -> int:
    """Entry point. Exit codes 2 (configuration) and 3 (identity) are final, 1 is worth another start."""
    home, settings = begin("The resident executor of Flower's ClientApp", arguments)
    from sovfed.clients.node.executor import Stop  # Flower, which must find this process quiet

    loop = Pulse(pulse_file(home, "gateway")).start().watch("looking for tasks", LOOK_S)
    stop = Stop()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        run(home, bind(ClientConfig, passed_settings(settings)), stop, loop)
    except SovfedError as error:
        log.critical("%s", error)
        return exit_code(error)
    return 0


if __name__ == "__main__":
    leave(main)
