"""A whole federation of real processes on this machine: authority, agency and institutions, with real keys and TLS.

The demo, the fault tests and the benchmarks stand on it. Everything listens on free loopback ports and lives in one
folder; `stop` ends what was started.
"""

from __future__ import annotations

import dataclasses
import signal
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NoReturn, Self

from sovfed.clients.home import folder as client_home
from sovfed.clients.home.own_tasks import keep_task, known_task
from sovfed.clients.home.policy import Policy
from sovfed.clients.ledger.entries import Budget
from sovfed.clients.node import enrol as institution
from sovfed.clients.node import up as client_up
from sovfed.federation.config import Config, DataConfig, StudyConfig
from sovfed.federation.errors import ServiceError
from sovfed.federation.host.processes import Supervisor
from sovfed.federation.plan import BUILT_IN
from sovfed.federation.secagg.terms import LEAST_COHORT, RECORD, Terms
from sovfed.federation.tasks.registry import names
from sovfed.server import home as agency
from sovfed.server import up as server_up
from sovfed.server.registry import authority, enrolment
from sovfed.server.runs import folders
from sovfed.server.runs.control import ControlClient
from sovfed.simulations.ports import free_ports

ENROLMENT_TIMEOUT_S: Final = 60.0
ENDING: Final = (signal.SIGTERM, signal.SIGHUP)
AT_ONCE: Final = 8  # institutions that enrol at the same time: the agency takes ten requests a second from one address
TERMS: Final = Terms(min_cohort=LEAST_COHORT, colluders=0, differencing=RECORD)
POLICY: Final = Policy(
    allowed_tasks=names(), require_privacy=False, secure_aggregation=TERMS, privacy=Budget(max_share_per_run=1.0),
    reproducible=True,
)  # fmt: skip
WHY: Final = """\
This is a demonstration with four institutions, so min_cohort is 3 and colluders 0: with 5 and 1, the defaults, they
could never form a sum. One institution that sides with the agency then learns the sum of two others. Institutions come
and go, so differencing is "record": what one of them held can be told from two sums; and reproducible is true, so that
the figures are the same again. Its records are published already, so require_privacy is false: runs without
differential privacy are answered too. Keep the defaults where that matters."""


@dataclass(frozen=True)
class Institution:
    """A name and where its records come from: those of single tasks in its studies."""

    name: str
    data: DataConfig
    studies: dict[str, StudyConfig] = field(default_factory=dict)


class LocalFederation:
    """Use as a context: `with LocalFederation(folder, institutions, config) as federation: federation.start_run(…)`.

    Institutions keep and allow the configuration's task.yaml and those in `tasks`, beside what `policy` allows.
    """

    def __init__(
        self, folder: Path, institutions: list[Institution], config: Config, policy: Policy = POLICY,
        tasks: Sequence[str] = (),
    ) -> None:  # fmt: skip
        self.folder, self.institutions, self.policy = folder, institutions, policy
        self._task_files = tuple(dict.fromkeys([*([] if config.task.file is None else [config.task.file]), *tasks]))
        if self._task_files:
            own = (*policy.allowed_tasks, *map(known_task, self._task_files))
            self.policy = dataclasses.replace(policy, allowed_tasks=own, allowed_optimizers=BUILT_IN)
        self.authority_home, self.home = folder / "authority", folder / "agency"
        ports = free_ports(4)
        server = dataclasses.replace(
            config.server, home=str(self.home), host="127.0.0.1", names=("127.0.0.1", "localhost"),
            fleet_port=ports[0], enrolment_port=ports[1], lane_port=ports[2], control_port=ports[3],
            crl_source=str(self.authority_home / "crl.pem"),
        )  # fmt: skip
        self.config = dataclasses.replace(config, server=server)
        self.supervisors: dict[str, Supervisor] = {}
        self._control: ControlClient | None = None

    def client_home(self, name: str) -> Path:
        return self.folder / "institutions" / name

    @property
    def control(self) -> ControlClient:
        """The agency's Control API; one connection, closed by `stop`."""
        if self._control is None:
            self._control = ControlClient(self.home, self.config.server.control_port)
        return self._control

    def build_agency(self) -> None:
        """The authority's root, the agency's home and its signed certificate."""
        authority.init(self.authority_home, "Demonstration authority")
        request = agency.init(self.home, self.config)
        certificate = authority.sign(self.authority_home, request.read_bytes(), server=True)
        root, crl = (self.authority_home / "root.pem").read_bytes(), (self.authority_home / "crl.pem").read_bytes()
        agency.install_certificate(self.home, certificate, root, crl)

    def start_agency(self) -> None:
        """Start superlink, registry and executor; returns when they are ready."""
        self._start("agency", server_up.make_supervisor(self.home))

    def enrol(self) -> None:
        """Enrol every institution: invitation, keys made on site, request, the authority's signature, certificate."""
        with ThreadPoolExecutor(min(len(self.institutions), AT_ONCE)) as pool:  # in the order in which they are signed
            waiting = [pool.submit(self._enrol_one, member) for member in self.institutions]
            for member, job in zip(self.institutions, waiting, strict=True):
                try:
                    request = enrolment.wait_for_request(self.home, member.name, ENROLMENT_TIMEOUT_S)
                except ServiceError:
                    if job.done():  # it says why there is none
                        job.result()
                    raise
                enrolment.accept_certificate(self.home, authority.sign(self.authority_home, request, server=False))
            for job in waiting:
                job.result()

    def _enrol_one(self, member: Institution) -> None:
        home = self.client_home(member.name)
        home.parent.mkdir(parents=True, exist_ok=True)
        config = dataclasses.replace(self.config.client, home=str(home), data=member.data, studies=member.studies)
        client_home.create(home, config, self.policy, WHY)
        for file in self._task_files:
            keep_task(home, file)
        institution.enrol(home, enrolment.invite(self.home, member.name), ENROLMENT_TIMEOUT_S)

    def start_institutions(self) -> None:
        """Start trainer, supernode and gateway of every institution, all institutions at the same time."""
        with ThreadPoolExecutor(len(self.institutions)) as pool:
            list(pool.map(lambda member: self.start_institution(member.name), self.institutions))

    def start_institution(self, name: str) -> None:
        self._start(name, client_up.make_supervisor(self.client_home(name)))

    def _start(self, name: str, supervisor: Supervisor) -> None:
        self.supervisors[name] = supervisor
        supervisor.start()

    def start_run(self, name: str, config: Config | None = None, *, resume: bool = False) -> None:
        """Start (or resume) run `name`; its server settings are this federation's."""
        chosen = config or self.config
        folders.start_run(
            self.control, self.home, name, dataclasses.replace(chosen, server=self.config.server), resume=resume
        )

    def pid(self, owner: str, process: str) -> int:
        """The process id of `process` ("superlink", "trainer", …) of the agency or an institution."""
        pid = {child.name: child.pid for child in self.supervisors[owner].status().processes}[process]
        if pid is None:
            raise ProcessLookupError(f"{owner}: {process} is not running")
        return pid

    def stop(self) -> None:
        """Stop institutions, then the agency."""
        if self._control is not None:
            self._control.close()
            self._control = None
        names = [name for name in self.supervisors if name != "agency"]
        if names:
            with ThreadPoolExecutor(len(names)) as pool:
                list(pool.map(lambda name: self.supervisors[name].stop(), names))
        if "agency" in self.supervisors:
            self.supervisors["agency"].stop()
        self.supervisors.clear()
        for number in ENDING if _is_main_thread() else ():
            if signal.getsignal(number) is _end:
                signal.signal(number, signal.SIG_DFL)

    def start(self) -> Self:
        """Everything in order: agency, enrolment, institutions. Stops what it started if a step fails.

        SIGTERM and SIGHUP, as of a session that is closed, end it like Ctrl-C from now on, unless they have another
        meaning: a coordinator outlives its executor, so that who were just killed would leave it behind.
        """
        for number in ENDING if _is_main_thread() else ():
            if signal.getsignal(number) is signal.SIG_DFL:
                signal.signal(number, _end)
        try:
            self.build_agency()
            self.start_agency()
            self.enrol()
            self.start_institutions()
        except BaseException:
            self.stop()
            raise
        return self

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()


def _is_main_thread() -> bool:
    """Whether signals can be handled here."""
    return threading.current_thread() is threading.main_thread()


def _end(number: int, _: object) -> NoReturn:
    """End this process with what it started, once: `timeout` sends two signals, and ending takes its time."""
    for each in ENDING:
        signal.signal(each, signal.SIG_IGN)
    sys.exit(128 + number)
