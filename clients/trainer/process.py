"""The trainer as a process of its own: sealed, on a Unix socket, with the institution's policy, keys and ledger."""

from __future__ import annotations

import dataclasses
import logging
import signal
import sys
import threading
import time
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sovfed.clients.home.packages import make_packages_known
from sovfed.clients.home.policy import Policy, load_policy
from sovfed.clients.models.received import FOLDER as RECEIVED
from sovfed.clients.models.received import ReceivedModels
from sovfed.clients.node.sandbox import RUN, enter, places_of
from sovfed.clients.orders.book import OrderBook
from sovfed.clients.orders.gate import OrderGate
from sovfed.clients.orders.retained import terms_of
from sovfed.clients.statistics.sheets import KeptSheets
from sovfed.clients.trainer.allowance import Allowance
from sovfed.clients.trainer.books import Books
from sovfed.clients.trainer.evidence import Evidence
from sovfed.clients.trainer.frames import put_aside
from sovfed.clients.trainer.masking import Masking
from sovfed.clients.trainer.rules import Rules
from sovfed.clients.trainer.service import TrainerService, make_trainer
from sovfed.clients.trainer.socket import NAME, serve
from sovfed.clients.trainer.spool import SPOOL, SpoolServer
from sovfed.clients.training.personal import FOLDER, PersonalStates
from sovfed.federation.config import BAD_ROWS, ClientConfig
from sovfed.federation.errors import PolicyError, ServiceError, SovfedError
from sovfed.federation.evidence.retention import Retention
from sovfed.federation.files import private_directory
from sovfed.federation.host.begin import begin
from sovfed.federation.host.leaving import leave
from sovfed.federation.host.processes import exit_code
from sovfed.federation.host.pulse import Beat, Pulse, pulse_file
from sovfed.federation.host.sandbox import Isolation, reaches_network
from sovfed.federation.host.settings import passed_settings
from sovfed.federation.identity import Trust
from sovfed.federation.schema import bind
from sovfed.federation.secagg.files import FileStore, FreshIdentity
from sovfed.federation.stored import draft
from sovfed.federation.tasks.shelf import Shelf

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sovfed.clients.ledger.book import PrivacyLedger
    from sovfed.federation.config import DataConfig

log = logging.getLogger(__name__)
STOP_GRACE_S: Final = 5.0
PREPARED: Final = 4  # tasks whose records are read at the start; of more, when they are asked for
SIGNAL_S: Final = 0.5
BEAT_S: Final = 3600.0


def main(arguments: list[str] | None = None, isolation: Isolation | None = None) -> int:
    """Serve until SIGTERM; else the exit code is `exit_code`'s.

    `isolation` is what `clients/node/sandbox.py` has made sure of; a trainer that is started without it is sealed here,
    with less: threads that its libraries have started keep their files. Without any, the policy must allow it.

    Records that cannot be read do not end the process: requests are refused until they can.
    """
    folder, settings = begin("The institution's trainer, on a Unix socket", arguments)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        config = bind(ClientConfig, passed_settings(settings))
        home = private_directory(folder)
        policy = load_policy(home)
        config = with_bad_rows(config, home / RUN / "trainer")
        if isolation is None:
            places = places_of(dataclasses.asdict(config))
            isolation = enter("trainer", home, *places.records, files=places.files)
        work = Pulse(pulse_file(home, "trainer")).start().watch("local work", config.stall_s)
        _check_network(isolation, policy)
        identity = FreshIdentity(home / "identity")
        trust = lru_cache(maxsize=1)(partial(Trust, home / "identity"))
        orders = OrderGate(OrderBook(home).make(), policy.orders, policy.permits, identity, trust)
        masking = Masking(
            identity, lambda: FileStore(home), policy.secure_aggregation, narrowed=orders.narrowed, draft=draft
        )
        open_ledger = ledger_opener(home, policy)
        _open_early(open_ledger)
        evidence = Evidence(home, policy.on_split)
        retention = Retention(home, terms_of(home, policy.log_retention_days))
        states = PersonalStates(home / FOLDER)
        states.forget_drafts()
        books = Books(
            open_ledger, Allowance(home, policy), evidence, orders, ReceivedModels(home / RECEIVED),
            KeptSheets(home / RECEIVED, home / "identity" / "root.pem"),
        )  # fmt: skip
        rules = Rules.of(policy, config.max_message_bytes)
        trainer = make_trainer(config, rules, books, masking, states, home=home, put_aside=put_aside)
        Shelf(home).make_known(policy.allows_own)
        make_packages_known(home, policy)
        _prepare(trainer, policy.allowed_names)
        trainer.isolation = isolation
        serving = _serve(trainer, home, config)
    except SovfedError as error:
        sys.stderr.write(f"trainer: {error}\n")
        return exit_code(error)
    beat, look = _heart(open_ledger), _overseer(trainer, work)
    while not stop.wait(SIGNAL_S) and not serving.done():  # a signal that another thread took wakes nobody
        beat()
        look()
        _tell(trainer.settle)
        _tell(evidence.look)
        _tell(retention.look)
    serving.stop()
    _tell(evidence.close)
    masking.forget()  # of a sum that is still being computed: its masks need not be finished
    return 0


@dataclasses.dataclass(frozen=True)
class Serving:
    """How requests come in: `done` says that none will, `stop` waits a little for those in work."""

    stop: Callable[[], object]
    done: Callable[[], bool] = lambda: False


def _serve(trainer: TrainerService, home: Path, config: ClientConfig) -> Serving:
    """Serve at the socket in `home`, or, as a cluster's job, from the spool until nobody asks any more."""
    if config.cluster.scheduler == "none":
        server = serve(trainer, home / NAME, config.max_message_bytes)
        log.info("listening on %s", home / NAME)
        return Serving(lambda: server.stop(STOP_GRACE_S))
    spool = SpoolServer(trainer, home, config.max_message_bytes)
    log.info("answering from %s", home / SPOOL)
    return Serving(lambda: spool.stop(STOP_GRACE_S), lambda: spool.idle_s() > config.cluster.idle_s)


def with_bad_rows(config: ClientConfig, folder: Path) -> ClientConfig:
    """`config` with a file in `folder`, where the sealed trainer may write, for the bad rows of each study."""

    def listed(study: str, data: DataConfig) -> DataConfig:
        return dataclasses.replace(data, bad_rows_file=data.bad_rows_file or str(folder / f"{study}{BAD_ROWS}"))

    return config.with_data(listed)


def _check_network(isolation: Isolation, policy: Policy) -> None:
    """Raises PolicyError where this process can reach the network, unless the policy allows it."""
    if isolation.network and not reaches_network():
        log.info("sealed: %s", isolation.sentence())
    elif policy.allow_open_network:
        log.warning("the trainer can reach the network, and policy.yaml says allow_open_network: true")
    else:
        raise PolicyError(
            "the trainer's network cannot be taken away here (no namespace, no seccomp; see `sovfed doctor`), and "
            "allow_open_network is false in policy.yaml"
        )


def ledger_opener(home: Path, policy: Policy) -> Callable[[], PrivacyLedger]:
    """Opens the ledger of the policy's populations, which is made when there is none."""
    opened: list[PrivacyLedger] = []

    def open_ledger() -> PrivacyLedger:
        from sovfed.clients.ledger.book import PrivacyLedger
        from sovfed.clients.ledger.file import create_ledger

        if not opened:
            create_ledger(home, policy.privacy.population_name, time.time())
            opened.append(PrivacyLedger(home, policy.privacy, others=policy.other_budgets))
        return opened[0]

    return open_ledger


def _open_early(open_ledger: Callable[[], PrivacyLedger]) -> None:
    """A ledger that is damaged, or another population's, is told at the start; one that is busy, with each request."""
    try:
        open_ledger()
    except ServiceError as error:
        log.warning("the privacy ledger cannot be opened yet: %s", error)


def _heart(open_ledger: Callable[[], PrivacyLedger]) -> Callable[[], None]:
    """Lets the ledger see time pass, looking at it once an hour. One that cannot be written refuses all by itself."""
    last = time.monotonic()

    def beat() -> None:
        nonlocal last
        if time.monotonic() - last < BEAT_S:
            return
        last = time.monotonic()
        try:
            open_ledger().beat()
        except SovfedError as error:
            log.warning("the privacy ledger did not see this day pass: %s", error)

    return beat


def _tell(write: Callable[[], None]) -> None:
    """Let the log write what it counted. One that cannot be written refuses what must be in it, all by itself."""
    try:
        write()
    except (SovfedError, OSError) as error:
        log.warning("%s", error)


def _overseer(trainer: TrainerService, beat: Beat) -> Callable[[], None]:
    """Lets the request in hand beat for as long as its steps go on, however long it takes.

    What has done no step for `client.stall_s` hangs (a share of the network, a GPU): the pulse stops, and the
    supervisor starts this process again.
    """
    from sovfed.clients.training.progress import PROGRESS

    last = (0, 0)

    def look() -> None:
        nonlocal last
        state = trainer.answering, PROGRESS.steps
        if not state[0]:
            beat.rest()
        elif state != last:
            beat()
        last = state

    return look


def _prepare(trainer: TrainerService, allowed: Sequence[str]) -> None:
    """Warm up the tasks that the policy allows; one whose records cannot be read is told in the log."""
    for task in allowed if len(allowed) <= PREPARED else ():
        try:
            trainer.prepare(task)
        except SovfedError as error:
            log.warning("task %s cannot be trained yet: %s", task, error)


if __name__ == "__main__":
    leave(main)
