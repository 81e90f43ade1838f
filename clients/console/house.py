"""What left this house, run by run: read from the ledger, the allowance, the journal and the models that came back."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from sovfed.clients.home.folder import load_config
from sovfed.clients.home.policy import load_policy
from sovfed.clients.home.studies import listed
from sovfed.clients.ledger.book import replay
from sovfed.clients.ledger.entries import YEAR_S, History, merged
from sovfed.clients.ledger.file import ledgers, read_ledger, read_mark
from sovfed.clients.models.received import FOLDER, ReceivedModels
from sovfed.clients.node.sandbox import RUN
from sovfed.clients.orders.book import OrderBook
from sovfed.clients.orders.naming import consented, officer_lines
from sovfed.clients.orders.purge import unpurged
from sovfed.clients.trainer.allowance import Tally, read_state
from sovfed.federation.errors import SovfedError
from sovfed.federation.evidence.witness import problems
from sovfed.federation.host.sandbox import read_isolation
from sovfed.federation.host.status import read_status
from sovfed.federation.identity import load_certificate
from sovfed.federation.orders.answers import WITHDRAWN
from sovfed.federation.orders.shown import word
from sovfed.federation.privacy.accounting import epsilon
from sovfed.federation.secagg.files import near_sums

if TYPE_CHECKING:
    from pathlib import Path

    from sovfed.federation.orders.answers import Answer
    from sovfed.federation.orders.order import RunOrder


@dataclass(frozen=True)
class ProcessView:
    """A process of the node, and what it can reach by its own trial."""

    name: str
    state: str
    since: float
    restarts: int
    reach: str


@dataclass(frozen=True)
class OrderView:
    """What a run asked, and the institution's word on it."""

    run: str
    purpose: str
    task: str
    epsilon: str
    expires: float
    word: str
    digest: str
    withdrawn: str = ""  # the whole digest of an order that this institution has withdrawn from


@dataclass(frozen=True)
class PrivateRun:
    """What a run was granted by the ledger, and what of it left: noised sums alone."""

    run: str
    purpose: str
    population: str
    at: float
    steps: int
    granted: int
    state: str
    epsilon: float


@dataclass(frozen=True)
class OpenRun:
    """A run without privacy that was answered: what it learns has no bound."""

    run: str
    purpose: str
    task: str
    population: str
    at: float


@dataclass(frozen=True)
class Account:
    """What a population's budget is spent to, with open grants."""

    population: str
    ever: float
    limit: float
    year: float
    annual_limit: float
    rolled_back: str


@dataclass(frozen=True)
class Ledgers:
    """All that the home's ledgers say, the newest first; `wrong` is what is wrong with them."""

    accounts: list[Account] = field(default_factory=list)
    private: list[PrivateRun] = field(default_factory=list)
    opened: list[OpenRun] = field(default_factory=list)
    refusals: list[tuple[float, str, str]] = field(default_factory=list)  # when, run, why
    wrong: list[str] = field(default_factory=list)


class House:
    """The institution in `home`, as its files tell now. Nothing here reads a record."""

    def __init__(self, home: Path) -> None:
        self._home = home

    def name(self) -> str:
        """The institution's name in its certificate, "" before it has one."""
        from cryptography import x509

        from sovfed.federation.certificates import InstitutionNames, read_names

        with contextlib.suppress(SovfedError, OSError):
            certificate = load_certificate(self._home / "identity" / "cert.pem")
            names = read_names(certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
            return names.institution if isinstance(names, InstitutionNames) else ""
        return ""

    def certificate_end(self) -> datetime | None:
        with contextlib.suppress(SovfedError, OSError):
            return load_certificate(self._home / "identity" / "cert.pem").not_valid_after_utc.astimezone(UTC)
        return None

    def processes(self) -> list[ProcessView]:
        status = read_status(self._home)
        views = []
        for process in status.processes if status else ():
            isolation = read_isolation(self._home / RUN / process.name, process.pid)
            reach = isolation.sentence() if isolation else "unknown"
            views.append(ProcessView(process.name, process.state, process.since, process.restarts, reach))
        return views

    def studies(self) -> list[str]:
        """A line for each study. What cannot be read is told as that."""
        try:
            return list(listed(load_config(self._home), load_policy(self._home)))
        except SovfedError as error:
            return [str(error)]

    def policy(self) -> dict[str, Any]:
        """What runs may ask, as `policy.yaml` has it; {} if it cannot be read."""
        try:
            policy = load_policy(self._home)
        except SovfedError:
            return {}
        shown = ("allowed_tasks", "require_privacy", "allow_plain_updates", "max_rounds")
        values = dataclasses.asdict(policy)
        return {name: values[name] for name in shown} | {
            "min_cohort": policy.secure_aggregation.min_cohort, "differencing": policy.secure_aggregation.differencing,
        }  # fmt: skip

    def orders(self) -> tuple[list[OrderView], str]:
        """What runs asked and what was said to it, the newest first; and why that cannot be told."""
        try:
            return [_order_view(proposal.order, answer) for proposal, answer in OrderBook(self._home).words()], ""
        except SovfedError as error:
            return [], str(error)

    def consent(self) -> list[str]:
        """What is signed without a person, in words."""
        try:
            withdrawn = OrderBook(self._home).withdrawn_tasks()
            return [line.strip() for line in consented(load_policy(self._home), withdrawn)]
        except SovfedError:
            return ["policy.yaml, or orders/withdrawn.json, cannot be read: nothing is answered"]

    def to_do(self) -> list[str]:
        """What waits for this house's own people: officers who are not in force, permits that ended unpurged."""
        try:
            policy, book = load_policy(self._home), OrderBook(self._home)
            return [*officer_lines(book, policy.orders), *unpurged(book, policy.permits, time.time())]
        except SovfedError as error:
            return [str(error)]

    def ledgers(self) -> Ledgers:
        """What the ledgers say; one that is damaged says nothing but that."""
        told = Ledgers()
        for name in ledgers(self._home):
            try:
                lines, _ = read_ledger(self._home, name)
                history, mark = replay(lines), read_mark(self._home, name)
            except SovfedError as error:
                told.wrong.append(f"{name}: {error}")
            else:
                _tell(told, name, history, str(mark) if mark else "")
        told.private.sort(key=lambda run: -run.at)
        told.opened.sort(key=lambda run: -run.at)
        told.refusals.sort(reverse=True)
        return told

    def asked(self) -> tuple[dict[str, Tally], Tally, str]:
        """Sums that left by run, those of today, and the last failure's own code, which stays here."""
        try:
            state = read_state(self._home)
        except SovfedError as error:
            return {}, Tally(), str(error)
        return dict(reversed(state.runs.items())), state.today, state.reason

    def logs(self) -> list[str]:
        """Why which logs of others are not cosigned any more."""
        try:
            return list(problems(self._home).values())
        except SovfedError as error:
            return [str(error)]

    def near(self) -> list[str]:
        """Sums that could be differenced with an earlier one, the newest first."""
        try:
            return near_sums(self._home)[::-1]
        except SovfedError as error:
            return [str(error)]

    def received(self) -> list[Any]:
        """Models that came back."""
        folder = self._home / FOLDER
        if not folder.is_dir():
            return []
        with contextlib.suppress(SovfedError, OSError):
            return list(ReceivedModels(folder).list())
        return []


def _tell(told: Ledgers, name: str, history: History, rolled_back: str) -> None:
    """Add to `told` what the ledger `name` says."""
    for population in history.populations():
        label = population or name
        told.accounts.extend(_account(history, population, label, rolled_back))
        told.private.extend(_private_runs(history, population, label))
        told.opened.extend(
            OpenRun(entry.run, entry.purpose, entry.task, label, at) for at, entry in history.no_bound(population)
        )
    told.refusals.extend((at, entry.run, entry.reason) for at, entry in history.refusals)


def _account(history: History, population: str, label: str, rolled_back: str) -> list[Account]:
    budget = history.budgets.get(population)
    if budget is None:
        return []
    reserved = history.reserved(population)
    ever = merged([*history.spent(population=population), *reserved])
    year = merged([*history.spent(after=time.time() - YEAR_S, population=population), *reserved])
    spent = [epsilon(events, budget.delta) for events in (ever, year)]
    return [Account(label, spent[0], budget.epsilon, spent[1], budget.annual_epsilon, rolled_back)]


def _private_runs(history: History, population: str, label: str) -> list[PrivateRun]:
    runs = []
    for (run, purpose), granted in history.grants.items():
        plan = granted.grant.plan
        if granted.grant.population != population:
            continue
        state = "closed" if granted.closed else f"{granted.reserved} reserved" if granted.reserved else "used up"
        event = dataclasses.replace(plan.event, count=granted.charged)
        spent = epsilon([event], plan.delta) if granted.charged else 0.0
        runs.append(PrivateRun(run, purpose, label, granted.at, granted.charged, plan.event.count, state, spent))
    return runs


def _order_view(order: RunOrder, answer: Answer | None) -> OrderView:
    epsilon_told = f"{order.epsilon:g}" if order.kind == "private" else "no bound"
    return OrderView(
        order.run, order.purpose, order.task, epsilon_told, order.expires,
        word(answer, ended=time.time() >= order.expires), order.digest[:12],
        order.digest if answer is not None and answer.decision == WITHDRAWN else "",
    )  # fmt: skip
