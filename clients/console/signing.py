"""An officer's word on the institution's own page: what the command says and does, where policy.yaml lets it.

The passphrase is that of one request: it is kept, logged and shown nowhere. A key without one is not used here, since
then whoever opens the page could sign.
"""

from __future__ import annotations

import hashlib
import logging
import math
import shlex
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sovfed.clients.home.policy import load_policy
from sovfed.clients.orders.answering import Shown, answer_order, explained, stands
from sovfed.clients.orders.book import OrderBook
from sovfed.federation.errors import IdentityError, OrderError, SovfedError, TooManyTriesError
from sovfed.federation.host.forms import Forms, Throttle
from sovfed.federation.orders.answers import REFUSED, SIGNED, is_sealed, load_officer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from sovfed.clients.orders.rules import OrderRules
    from sovfed.federation.orders.answers import Answer

log = logging.getLogger(__name__)
COST: Final = {"n": 2**15, "r": 8, "p": 1}  # 32 MiB and some 0.1 s a guess: to open the file takes less than 1 ms


@dataclass(frozen=True)
class Officer:
    """An officer of the policy: `key` is their sealed key here; None, and `why`, where they cannot sign on the page."""

    name: str
    key: Path | None
    why: str = ""


@dataclass(frozen=True)
class Waiting:
    """An order that awaits an officer, in words, and what is typed where the page cannot do it."""

    run: str
    digest: str
    lines: tuple[str, ...]
    commands: tuple[str, ...]


@dataclass(frozen=True)
class Desk:
    """The orders that wait, the officers, and the token of the forms; no form without an officer who can sign here."""

    waiting: tuple[Waiting, ...] = ()
    officers: tuple[Officer, ...] = ()
    token: str = ""

    @property
    def signers(self) -> list[str]:
        """Who can sign on the page."""
        return [officer.name for officer in self.officers if officer.key]


class Signing:
    """The forms of one institution's page, and what comes back by them."""

    def __init__(self, home: Path, clock: Callable[[], float] = time.time) -> None:
        self._home, self._clock = home, clock
        self._forms, self._throttle = Forms[dict[str, Shown]](), Throttle()
        self._one = threading.Lock()  # a guess takes 32 MiB

    def desk(self) -> Desk:
        """What waits now, shown to one reader. Raises SovfedError where orders or policy cannot be read."""
        book, now = OrderBook(self._home), self._clock()
        policy = load_policy(self._home)
        rules = policy.orders
        officers = tuple(_officers(rules))
        shown = {
            proposal.order.digest: Shown(proposal, said)
            for proposal, said in book.words()
            if not stands(said, rules.keys) and now < proposal.order.expires
        }
        waiting = tuple(
            Waiting(each.order.run, digest, tuple(explained(book, each, policy)), self._commands(digest))
            for digest, each in shown.items()
        )
        able = waiting and any(officer.key for officer in officers)
        return Desk(waiting, officers, self._forms.hand_out(shown) if able else "")

    def answer(self, form: Mapping[str, str]) -> Answer:
        """The word that `form` gives, signed and written. Raises SovfedError, and nothing is written."""
        shown = self._forms.take(form.get("csrf", ""))
        if shown is None:
            raise OrderError("the form was answered already, or is too old: nothing was written; read the order again")
        if (order := shown.get(form.get("order", ""))) is None:
            raise OrderError("that order was not on the page: nothing was written")
        decision, reason = form.get("decision", ""), form.get("reason", "")
        if decision not in (SIGNED, REFUSED):
            raise OrderError("neither signed nor refused was chosen: nothing was written")
        if decision == SIGNED and reason:
            raise OrderError("a reason is for a refusal, and the order was to be signed: nothing was written")
        officer = self._officer(form.get("officer", ""))
        passphrase = form.get("passphrase", "").encode()
        with self._one:
            return answer_order(
                OrderBook(self._home).make(), order, decision, lambda: self._open(officer, passphrase),
                officer=officer.name, reason=reason, now=self._clock(),
            )  # fmt: skip

    def _open(self, officer: Officer, passphrase: bytes) -> tuple[str, Callable[[bytes], bytes]]:
        """The officer's public key and signer. A try counts from its beginning on, and a right one no more."""
        if officer.key is None or not is_sealed(officer.key):
            raise IdentityError(f"{officer.name} cannot sign here")
        if (wait_s := self._throttle.begin(officer.name)) > 0:
            raise TooManyTriesError(
                f"too many wrong passphrases for {officer.name}: nothing was written; wait {math.ceil(wait_s / 60)} "
                "minutes, or type `sovfed client orders`"
            )
        hashlib.scrypt(passphrase, salt=officer.name.encode(), maxmem=2 * 128 * COST["n"] * COST["r"], **COST)
        try:
            opened = load_officer(officer.key, lambda: passphrase)
        except IdentityError:
            log.warning("a wrong passphrase for the key of officer %s", officer.name)
            raise
        self._throttle.right(officer.name)
        return opened

    def _officer(self, name: str) -> Officer:
        for officer in _officers(load_policy(self._home).orders):
            if officer.name == name and officer.key:
                return officer
        raise IdentityError(f"no officer {name[:64]!r} can sign on this page: nothing was written")

    def _commands(self, digest: str) -> tuple[str, ...]:
        words, home = f"sovfed client orders {{}} {digest[:12]}", shlex.quote(str(self._home.absolute()))
        return tuple(f"{words.format(verb)} --key KEY --home {home}" for verb in ("sign", "refuse"))


def _officers(rules: OrderRules) -> list[Officer]:
    return [_officer(name, rules.console_keys.get(name)) for name in rules.keys]


def _officer(name: str, key: Path | None) -> Officer:
    if key is None:
        return Officer(name, None, "policy.yaml does not let this page use their key (orders.sign_in_console)")
    try:
        sealed = is_sealed(key)
    except SovfedError as error:
        return Officer(name, None, f"their key is not here: {error}")
    return Officer(name, key if sealed else None, "" if sealed else f"{key} has no passphrase")
