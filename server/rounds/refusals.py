"""What institutions' refusals mean to whoever runs the agency: which come again, and whom to ask."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sovfed.federation.errors import WIRE_SENTENCES
from sovfed.federation.sums import FORM

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

TOLD: Final = 32  # institutions named in a reason
FINAL: Final = ("needs-privacy", "wrong-task", "config", "bound", "order")  # refusals that no repetition changes
APPROVERS: Final = "orders.min_approvers"  # the setting that an institution names
_LOG: Final = "ask their operators, whose `sovfed client logs trainer` names the rule"
ADVICE: Final = {
    "wrong-task": (
        "they have no task of that name and digest: `sovfed client task add` and `study add` there; of one that they "
        "have, compare `sovfed task show` on both sides"
    ),
    "policy": _LOG,
    "bound": f"{_LOG} and the setting",
    "order": "ask their data officers, who see it in `sovfed client orders list`",
    "privacy": f"{_LOG} and `sovfed client ledger show` says what is left and which run reserves it",
    "needs-privacy": "start it with privacy=distributed, or ask their operators, who set require_privacy",
    "failed": "ask their operators, whose `sovfed client logs trainer` says why",
    "accused": "several others complain that it does not hold the keys that it agreed on, or it complains of several",
    "classical": "they have no ML-KEM-768, and others take no less: update sovfed there",
    "protocol": "they cannot read the run's order: update the older side's sovfed",
    APPROVERS: "people of the agency have to approve it first: `sovfed run propose`, `approve`, `start --proposed`",
    FORM: "what they add up has another form than here: update the older side's sovfed",
}


def told(refused: Iterable[tuple[int, str]], names: Mapping[int, str]) -> str:
    """The codes in `refused` (node, code), in the order they came: of whom, its sentence and what to do.

    An institution says no more to the agency.
    """
    by_code: dict[str, set[str]] = {}
    for node, code in refused:
        by_code.setdefault(code, set()).add(names.get(node, str(node)))
    return "; ".join(_sentence(code, sorted(of)) for code, of in by_code.items()) or "none"


def listed(names: Sequence[str]) -> str:
    """The first names, and that there are more."""
    return ", ".join(names[:TOLD]) + (", …" if len(names) > TOLD else "")


def _sentence(code: str, names: Sequence[str]) -> str:
    sentence = WIRE_SENTENCES.get(code, "").rstrip(".")
    return ": ".join(filter(None, (f"{code} ({listed(names)})", sentence, ADVICE.get(code))))
