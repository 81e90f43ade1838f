"""An officer's word on the institution's own page: what the command says and does, where policy.yaml lets it.

The passphrase is that of one request: it is kept, logged and shown nowhere. A key without one is not used here, since
then whoever opens the page could sign.
"""

from __future__ import annotations

import hashlib
import logging
import math
import re
import shlex
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sovfed.clients.home.policy import load_policy
from sovfed.clients.orders.answering import Shown, answer_order, explained, stands
from sovfed.clients.orders.book import OrderBook
from sovfed.clients.orders.leaving import statement_of, withdraw
from sovfed.federation.errors import IdentityError, OrderError, SovfedError, TooManyTriesError
from sovfed.federation.host.forms import Forms, Throttle
from sovfed.federation.orders.answers import REFUSED, SIGNED, WITHDRAWN, is_sealed, load_officer
from sovfed.federation.orders.shown import word

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from sovfed.clients.home.policy import Policy
    from sovfed.clients.orders.rules import OrderRules
    from sovfed.federation.orders.answers import Answer

log = logging.getLogger(__name__)
SHOWN: Final = 25  # answered orders, the newest: to older ones the commands answer
ORDER: Final = re.compile(r"[0-9a-f]{64}")
VERBS: Final = {SIGNED: "sign", REFUSED: "refuse", WITHDRAWN: "withdraw"}
COST: Final = {"n": 2**15, "r": 8, "p": 1}  # 32 MiB and some 0.1 s a guess: to open the file takes less than 1 ms


@dataclass(frozen=True)
class Officer:
    """An officer of the policy: `key` is their sealed key here; None, and `why`, where they cannot sign on the page."""

    name: str
    key: Path | None
    why: str = ""


@dataclass(frozen=True)
class Offered:
    """An order in words, what an officer may say to it here, and what is typed where the page cannot do it."""

    run: str
    digest: str
    word: str
    lines: tuple[str, ...]
    choices: tuple[str, ...]
    commands: tuple[str, ...]


@dataclass(frozen=True)
class Desk:
    """The orders that wait, those that were answered, the officers, and the token of the forms.

    No form without an officer who can sign here.
    """

    waiting: tuple[Offered, ...] = ()
    given: tuple[Offered, ...] = ()
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
        """What waits and was answered by now, shown to one reader. Raises SovfedError where that cannot be read."""
        book, now, policy = OrderBook(self._home), self._clock(), load_policy(self._home)
        officers = tuple(_officers(policy.orders))
        choices = [(each, _choices(each, policy.orders)) for each in (Shown(*pair) for pair in book.words())]
        open_ = [(each, said) for each, said in choices if SIGNED in said and now < each.order.expires]
        given = [(each, said) for each, said in choices if WITHDRAWN in said][:SHOWN]
        able = (open_ or given) and any(officer.key for officer in officers)
        shown = {each.order.digest: each for each, _ in (*open_, *given)}

        def offered(pairs: list[tuple[Shown, tuple[str, ...]]]) -> tuple[Offered, ...]:
            return tuple(self._offered(book, each, policy, said) for each, said in pairs)

        return Desk(offered(open_), offered(given), officers, self._forms.hand_out(shown) if able else "")

    def _offered(self, book: OrderBook, shown: Shown, policy: Policy, choices: tuple[str, ...]) -> Offered:
        order = shown.order
        lines, commands = tuple(explained(book, shown, policy)), self._commands(order.digest, choices)
        return Offered(order.run, order.digest, word(shown.word), lines, choices, commands)

    def answer(self, form: Mapping[str, str]) -> Answer:
        """The word that `form` gives, signed and written. Raises SovfedError, and nothing is written."""
        shown = self._forms.take(form.get("csrf", ""))
        if shown is None:
            raise OrderError("the form was answered already, or is too old: nothing was written; read the order again")
        if (order := shown.get(form.get("order", ""))) is None:
            raise OrderError("that order was not on the page: nothing was written")
        decision, reason = form.get("decision", ""), form.get("reason", "")
        choices = _choices(order, load_policy(self._home).orders)
        if decision not in choices:
            raise OrderError(f"neither {' nor '.join(choices)} was chosen: nothing was written")
        if decision == SIGNED and reason:
            raise OrderError("a reason is for a refusal, and the order was to be signed: nothing was written")
        officer = self._officer(form.get("officer", ""))
        passphrase = form.get("passphrase", "").encode()
        book = OrderBook(self._home).make()

        def opened() -> tuple[str, Callable[[bytes], bytes]]:
            return self._open(officer, passphrase)

        with self._one:
            if decision == WITHDRAWN:
                return withdraw(book, order.order, opened, officer.name, reason, int(self._clock()))
            return answer_order(
                book, order, decision, opened, officer=officer.name, reason=reason, now=self._clock()
            )  # fmt: skip

    def statement(self, digest: str) -> tuple[str, bytes]:
        """The name of a file, and in it this institution's withdrawal from the order of `digest`, for the agency.

        Raises OrderError where it has not withdrawn from it.
        """
        book = OrderBook(self._home)
        said = statement_of(book, digest) if ORDER.fullmatch(digest) else None
        kept = book.proposal(digest) if said is not None else None
        if said is None or kept is None:
            raise OrderError("this institution has not withdrawn from that order")
        return f"{kept.order.run}.withdrawal", said.to_bytes()

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

    def _commands(self, digest: str, choices: tuple[str, ...]) -> tuple[str, ...]:
        words, home = f"sovfed client orders {{}} {digest[:12]}", shlex.quote(str(self._home.absolute()))
        return tuple(f"{words.format(VERBS[choice])} --key KEY --home {home}" for choice in choices)


def _choices(shown: Shown, rules: OrderRules) -> tuple[str, ...]:
    """What can be said to the order that was `shown`: to one that waits, or to one that was answered."""
    if not stands(shown.word, rules.keys):
        return SIGNED, REFUSED
    said = shown.word.decision if shown.word is not None else ""
    if said == WITHDRAWN:
        return ()
    return (WITHDRAWN,) if said == REFUSED else (REFUSED, WITHDRAWN)


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
