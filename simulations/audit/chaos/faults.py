"""`sovfed audit faults`: disks, clocks, certificates, networks, MLflow and institutions that fail while a run is on.

Each fault comes, stays for some seconds and goes; the run must come to its end by itself with each round once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import tempfile
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cryptography.x509 import SubjectAlternativeName

from sovfed.federation.certificates import create_csr, key_from_pem, read_names, to_pem
from sovfed.federation.errors import ConfigError
from sovfed.federation.files import read_private, write_atomic
from sovfed.federation.identity import load_certificate
from sovfed.federation.schema import nearest
from sovfed.server.registry import authority
from sovfed.server.runs.folders import UNSENT, run_folder
from sovfed.simulations.audit.chaos import clocks, disks, stores
from sovfed.simulations.audit.chaos.field import ENDLESS, Field, require, tried_field
from sovfed.simulations.audit.chaos.machine import AGENCY, SUPERVISOR, Service, exit_when_told, send
from sovfed.simulations.audit.chaos.pace import Pace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from sovfed.simulations.audit.chaos.record import Record
    from sovfed.simulations.audit.chaos.weather import Mode

STAY_S: Final = 8.0  # that a fault stays
EXPIRES_S: Final = 12  # from the start of an institution to the end of its certificate
TEN: Final = 10


class ImpossibleError(Exception):
    """This machine cannot play the fault."""


@dataclass(frozen=True)
class Tried:
    """How a fault went; `possible` is false where this machine cannot play it."""

    fault: str
    good: bool
    possible: bool
    seconds: float
    problem: str = ""
    began: str = ""  # when, as YYYY-MM-DDThh:mm:ss+00:00

    @property
    def name(self) -> str:
        return self.fault

    def sentence(self) -> str:
        """One line on how it came out."""
        if not self.possible:
            return f"{self.fault}: not played here, {self.problem}"
        return f"{self.fault}: {self.problem or 'the run came to its end by itself'}, {self.seconds:.0f} s"


def ratios(results: Iterable[Tried]) -> dict[str, float]:
    """How many faults were tried, how many of them failed, and how many this machine cannot play."""
    tried = list(results)
    return {
        "faults": float(len(tried)),
        "failed": float(sum(not result.good for result in tried)),
        "not_played": float(sum(not result.possible for result in tried)),
    }


def disk_full(side: str, moment: str) -> Callable[[Field], None]:
    """No byte is left on the disk of one side for a while: in mid-round, as a process dies, or as the side starts."""

    def play(field: Field) -> None:
        if not disks.have_own_mounts():
            raise ImpossibleError("no mounts of its own (unshare)")
        home, owner = (field.agency, AGENCY) if side == AGENCY else (field.home, field.member)
        name, watch = field.begun()
        disks.fill(home)
        try:
            if moment == "a process dies":
                process = "registry" if side == AGENCY else "trainer"
                send(field.machine.await_pid(owner, process, STAY_S), signal.SIGKILL)
            elif moment == "it starts":
                send(field.machine.await_pid(owner, SUPERVISOR, STAY_S), signal.SIGKILL)
            time.sleep(STAY_S)
        finally:
            disks.free(home)
        field.require_finished(name, watch)
        field.machine.settle(180.0)

    return play


def weather(mode: Mode) -> Callable[[Field], None]:
    """All roads have bad weather for a while."""

    def play(field: Field) -> None:
        name, watch = field.begun()
        try:
            field.fleet.become(mode)
            field.lane.become(mode)
            time.sleep(STAY_S)
        finally:
            field.fleet.become("fair")
            field.lane.become("fair")
        if mode == "silent":
            field.lane.cut()  # as a firewall that forgot the connection
            field.fleet.cut()
        field.require_finished(name, watch)

    return play


def late(field: Field) -> None:
    """An institution starts in the middle of a run, and joins it."""
    with _down(field, "hospital-4"):
        name, _ = field.begun(config=dataclasses.replace(field.changed(start_cohort=0), rounds=ENDLESS))
    field.await_member(name, "hospital-4", present=True)
    field.require_stopped(name)


def leaving(field: Field) -> None:
    """An institution ends in the middle of a run, which goes on with the others."""
    name, watch = field.begun(config=dataclasses.replace(field.config, rounds=ENDLESS))
    with _down(field, "hospital-4"):
        field.await_member(name, "hospital-4", present=False)
        watch.await_rounds(watch.rounds() + 2)
        field.require_stopped(name)


def refusing(field: Field) -> None:
    """An institution's policy forbids the task; the run goes on with the others, and says who refuses."""
    policy = field.machine.federation.client_home("hospital-4") / "policy.yaml"
    before = policy.read_bytes()
    without = before.replace(b'"breast_cancer", ', b"", 1)
    require(without != before, f"{policy} does not name the task as expected")
    try:
        with _down(field, "hospital-4"):
            write_atomic(policy, without, 0o600)
        field.machine.settle(180.0)
        name, watch = field.runs.begin(field.config)
        field.require_finished(name, watch)
    finally:
        with _down(field, "hospital-4"):
            write_atomic(policy, before, 0o600)
    refused = {member for line in field.rounds(name) for member in line["refused"]}
    require(refused == {"hospital-4"}, f"refused by {sorted(refused)}, expected hospital-4 alone")
    require(not field.took_part(name, "hospital-4"), "hospital-4 took part")


@contextlib.contextmanager
def _down(field: Field, owner: str) -> Iterator[None]:
    """Meanwhile the institution is shut down by its operator, and afterwards up again."""
    field.machine.services[owner].stop()
    try:
        yield
    finally:
        field.machine.services[owner] = Service(field.machine.home(owner), "client")
        field.machine.services[owner].start()


def two_at_once(field: Field) -> None:
    """Two runs at the same time."""
    _several(field, 2)


def ten_queued(field: Field) -> None:
    """Ten runs are asked for one after the other, before the first is over."""
    _several(field, TEN)


def _several(field: Field, count: int) -> None:
    config = dataclasses.replace(field.config, rounds=3)
    begun = [field.runs.begin(config) for _ in range(count)]
    for name, watch in begun:
        field.require_finished(name, watch, 3)


def expired_certificate(field: Field) -> None:
    """An institution's certificate ends in mid-run: the others go on; it is back with a new one, without a restart."""
    identity = field.home / "identity"
    whole = (identity / "cert.pem").read_bytes()
    certificate, key = load_certificate(identity / "cert.pem"), key_from_pem(read_private(identity / "key.pem"), "key")
    names = read_names(certificate.extensions.get_extension_for_class(SubjectAlternativeName).value)
    made = datetime.now(UTC) + timedelta(seconds=EXPIRES_S) - timedelta(days=1)
    request = to_pem(create_csr(key, names))
    short = authority.sign(field.machine.federation.authority_home, request, days=1, now=made)
    write_atomic(identity / "cert.pem", short)
    name, _ = field.begun(config=dataclasses.replace(field.config, rounds=ENDLESS))
    field.await_member(name, field.member, present=False)
    field.require_stopped(name)
    write_atomic(identity / "cert.pem", whole)
    field.machine.settle(180.0)
    name, watch = field.runs.begin(field.config)
    field.require_finished(name, watch)
    require(bool(field.took_part(name, field.member)), f"{field.member} is not back with its new certificate")


def mlflow(mode: Mode) -> Callable[[Field], None]:
    """MLflow is away, slow or broken all run long: no round waits, and it gets everything when it is there again."""

    def play(field: Field) -> None:
        server = field.kept(stores.mlflow_server)
        tracking = dataclasses.replace(field.config.tracking, uri=server.uri)
        config = dataclasses.replace(field.config, tracking=tracking)
        server.weather.become(mode)
        try:
            name, watch = field.runs.begin(config)
            field.require_finished(name, watch)
        finally:
            server.weather.become("fair")
        stores.send_again(field.agency, config, name)
        require(not (run_folder(field.agency, name) / UNSENT).exists(), "MLflow lacks something still")
        lacking = stores.lacking(field.agency, config, name)
        require(not lacking, "; ".join(lacking))

    return play


def postgresql(field: Field) -> None:
    """MLflow's store is a real PostgreSQL, which dies in mid-run and comes back."""
    with stores.postgresql_server() as server:
        if server is None:
            raise ImpossibleError("PostgreSQL is not installed")
        tracking = dataclasses.replace(field.config.tracking, uri=server.uri)
        config = dataclasses.replace(field.config, tracking=tracking)
        name, watch = field.begun(config=config)
        server.stop()
        time.sleep(STAY_S / 2)
        server.start()
        field.require_finished(name, watch)
        stores.send_again(field.agency, config, name)
        lacking = stores.lacking(field.agency, config, name)
        require(not lacking, "; ".join(lacking))


def clock(owner: str, days: int) -> Callable[[Field], None]:
    """The clock of one side is a day wrong: its log and the other side's name the clock; it heals with the clock."""

    def play(field: Field) -> None:
        library = clocks.library()
        if library is None:
            raise ImpossibleError("no C compiler, which builds the other clock")
        clocks.play(field, AGENCY if owner == AGENCY else field.member, days * clocks.DAY_S, library)

    return play


FAULTS: Final[dict[str, Callable[[Field], None]]] = {
    "network, drops": weather("refuse"),
    "network, delays 300 ms": weather("delay"),
    "network, throttled to 1 MB/s": weather("throttle"),
    "network, half-open": weather("silent"),
    "network, 5 % resets": weather("resets"),
    "institution comes late": late,
    "institution leaves": leaving,
    "institution refuses": refusing,
    "two runs at once": two_at_once,
    "certificate expires": expired_certificate,
    **{f"clock, {side}, {days:+d}d": clock(side, days) for side in (AGENCY, "institution") for days in (1, -1)},
    "MLflow dead": mlflow("refuse"),
    "MLflow slow": mlflow("delay"),
    "MLflow answers 500": mlflow("error"),
    "PostgreSQL as MLflow's store dies": postgresql,
    "ten runs queued": ten_queued,
    **{f"disk full, {side}, {moment}": disk_full(side, moment)
       for side in (AGENCY, "institution") for moment in ("mid-round", "a process dies", "it starts")},
}  # fmt: skip


def chosen_faults(only: Sequence[str]) -> list[str]:
    """The names of the faults that begin so; all, of none. Raises ConfigError for what no fault begins with."""
    for name in only:
        if not any(fault.startswith(name) for fault in FAULTS):
            raise ConfigError(f"there is no fault '{name}'{nearest(name, list(FAULTS))}")
    return [fault for fault in FAULTS if not only or any(fault.startswith(name) for name in only)]


def run_faults(
    names: Sequence[str], record: Record[Tried], told: Callable[[Tried, str], None], minutes: float | None
) -> None:
    """Try those of `names` that are not in `record` yet, each taken into it, at one federation that is whole again
    after each; none is begun after so many `minutes`. `told` gets each result and how much is left.
    """
    exit_when_told()
    pace, remaining = Pace(minutes), record.remaining(names)
    if not remaining:
        return
    with tempfile.TemporaryDirectory(prefix="sovfed-") as folder, tried_field(Path(folder) / "f") as field:
        for left in range(len(remaining), 0, -1):
            if not pace.may_begin():
                return
            record.add(tried := _try(remaining[-left], field))
            told(tried, pace.left(left - 1))


def _try(name: str, field: Field) -> Tried:
    started, began = time.monotonic(), datetime.now(UTC).isoformat(timespec="seconds")
    try:
        field.machine.settle(180.0)
        FAULTS[name](field)
    except ImpossibleError as error:
        return Tried(name, True, False, 0.0, str(error), began)
    except Exception as error:  # whatever it is, MLflow's too: the others are tried all the same
        return Tried(name, False, True, time.monotonic() - started, f"{type(error).__name__}: {error}", began)
    return Tried(name, True, True, time.monotonic() - started, began=began)
