"""The officers in an institution's policy: entered there, and found by their keys."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Final

from sovfed.clients.home.policy import POLICY, load_policy
from sovfed.clients.orders.rules import STANDING
from sovfed.federation.errors import ConfigError, IdentityError, PolicyError
from sovfed.federation.files import write_private
from sovfed.federation.host.status import read_status
from sovfed.federation.text import NAME, NAME_IN_WORDS

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from pathlib import Path

    from sovfed.clients.home.policy import Policy
    from sovfed.clients.orders.book import OrderBook
    from sovfed.clients.orders.rules import OrderRules

LONGEST: Final = 63  # letters of an officer's name
_OFFICERS: Final = re.compile(r"^( +officers:) *\[.*\] *$", re.MULTILINE)


def check_officer(home: Path, name: str) -> None:
    """Raise SovfedError, before there is a key, unless an officer of this `name` can be entered in the policy."""
    if not NAME.fullmatch(name) or len(name) > LONGEST:
        raise ConfigError(f"an officer's name must be {NAME_IN_WORDS}, at most {LONGEST} letters, got {name[:80]!a}")
    load_policy(home)
    if len(_OFFICERS.findall((home / POLICY).read_text(encoding="utf-8"))) != 1:
        raise PolicyError(f"{home / POLICY}: no single line 'officers: [...]'; write one, or the officers by hand")


def allow_officer(home: Path, name: str, public: str) -> None:
    """Enter officer `name` with the `public` key (base64) in the policy. Raises PolicyError if it is written anew."""
    check_officer(home, name)
    rules = load_policy(home).orders
    entries = [*(entry for entry in rules.officers if not entry.startswith(f"{name}=")), f"{name}={public}"]
    text = (home / POLICY).read_text(encoding="utf-8")
    changed, count = _OFFICERS.subn(rf"\1 {json.dumps(entries)}", text)
    if count != 1:
        raise PolicyError(f"{home / POLICY}: no single line 'officers: [...]'; add {name}={public} to it by hand")
    write_private(home / POLICY, changed.encode())
    load_policy(home)


def officer_of(home: Path, public: str, name: str = "") -> str:
    """The officer in the policy whose key `public` is. Raises IdentityError if none has it, or not `name`."""
    keys = load_policy(home).orders.keys
    names = [known for known, key in keys.items() if key == public and name in ("", known)]
    if not names:
        raise IdentityError(
            f"this key is that of no officer in {home / POLICY} ({', '.join(keys) or 'none is named'}); "
            "`sovfed client orders officer NAME` makes one"
        )
    return names[0]


def check_in_force(book: OrderBook, name: str, public: str) -> None:
    """Raise PolicyError where a trainer runs that read the policy before officer `name` had this `public` key in it.

    It reads the policy once, as it starts, so that nobody who writes into the home later becomes an officer unseen.
    """
    if read_status(book.home) is not None and book.officers_in_force().get(name) != public:
        raise PolicyError(
            f"the node was started before {name} was in {POLICY} with this key, and would not take the word: nothing "
            f"was written; {restart(book.home)}, then this command again"
        )


def restart(home: Path) -> str:
    """The commands by which a changed policy holds."""
    return f"`sovfed client down --home {home}`, `sovfed client up --detach --home {home}`"


def from_when(home: Path) -> str:
    """From when on an officer holds who was entered just now."""
    if read_status(home) is None:
        return "it holds from the next `sovfed client up`"
    return f"the node that runs does not know it yet; next: {restart(home)}"


def not_in_force(book: OrderBook, rules: OrderRules) -> str:
    """Which officers are otherwise in the policy's `rules` than for the trainer that runs, and how they come to hold.

    "" where they are the same, or none runs.
    """
    there, now = book.officers_in_force(), rules.keys
    if read_status(book.home) is None or there == now:
        return ""
    new = [f"{name}, whose key is new there" if name in there else name for name in now if there.get(name) != now[name]]
    gone = [f"{name}, who is no longer in it and still holds" for name in there.keys() - now.keys()]
    return (
        f"officers: the node was started before {POLICY} was changed, so not in force yet: "
        f"{'; '.join([*new, *sorted(gone)])}; next: {restart(book.home)}"
    )


def officer_lines(book: OrderBook, rules: OrderRules) -> list[str]:
    """What keeps an officer's word from being given, or from holding, a line each."""
    return [line for line in (nobody(book.home, rules), not_in_force(book, rules)) if line]


def nobody(home: Path, rules: OrderRules) -> str:
    """What waits for an officer while the policy's `rules` name none, and how one is made; "" where nothing does."""
    if rules.officers or (rules.mode == STANDING and rules.standing.statistics):
        return ""
    waits = "statistics wait" if rules.mode == STANDING else "every run waits"
    command = f"`sovfed client orders officer NAME --home {home}`"
    return f"no officer yet, and {waits} for one: {command}" + (
        "" if read_status(home) is None else f", {restart(home)}"
    )


def consented(policy: Policy, withdrawn: Collection[str] = ()) -> Iterator[str]:
    """What the institution signs in advance, in plain words; `withdrawn` are digests of tasks that it has left."""
    rules, standing = policy.orders, policy.orders.standing
    if rules.mode != STANDING:
        officers = ", ".join(rules.keys) or "nobody yet: no run is answered"
        yield f"none: each order waits for an officer ({officers})"
        yield from _approvers(rules)
        return
    yield "orders within these bounds are signed by this node, without a person; any other waits for an officer:"
    yield f"  asked by     {_any(standing.proposers, 'anybody')}"
    yield f"  for          {_any(standing.purposes, 'any purpose')}"
    yield f"  tasks        {_any(standing.tasks or policy.allowed_tasks, 'none')}"
    tables = ", tables of statistics" if standing.statistics else "; a table of statistics waits for an officer"
    yield f"  to do        training, scoring of models that others have trained{tables}"
    yield f"  at most      ε {standing.max_epsilon:g} and {standing.max_rounds} rounds a run"
    yield f"  until        {standing.until or 'policy.yaml is changed'}"
    if not policy.require_privacy:
        yield "  also without differential privacy: require_privacy is false"
    if withdrawn:
        tasks = ", ".join(digest[:32] for digest in sorted(withdrawn))
        yield f"  but no task of a run that this institution has withdrawn from: {tasks}"
    yield from _approvers(rules)


def _approvers(rules: OrderRules) -> Iterator[str]:
    if rules.min_approvers:
        yield f"  approved by  {rules.min_approvers} of {', '.join(rules.approvers)}"


def _any(names: tuple[str, ...], otherwise: str) -> str:
    return ", ".join(names) or otherwise
