"""An institution withdraws from a run: no later round takes it, and what had been made with it is written down."""

from __future__ import annotations

import hashlib
import time
from typing import TYPE_CHECKING

from sovfed.federation.errors import ConfigError, IdentityError
from sovfed.federation.evidence.entries import canonical
from sovfed.federation.evidence.store import LogReader, has_log, record
from sovfed.federation.identity import load_roots
from sovfed.federation.orders.answers import WITHDRAWN, read_answer
from sovfed.server.orders.making import read_answers, read_order
from sovfed.server.orders.withdrawn import Withdrawal, add_withdrawal
from sovfed.server.runs.curves import read_rounds
from sovfed.server.runs.folders import read_state, run_folder

if TYPE_CHECKING:
    from pathlib import Path

    from sovfed.federation.orders.answers import Answer


def withdraw(home: Path, run: str, institution: str, statement: bytes | None) -> Withdrawal:
    """Take `institution` out of `run` for good by its signed `statement`, or by what it has answered to the run itself.

    Raises ConfigError where it has said no such thing, IdentityError where that is not its own word.
    """
    read_state(home, run)  # says so if there is no such run
    folder = run_folder(home, run)
    answer = _statement(home, folder, institution, statement)
    numbers = [line["round"] for line in read_rounds(folder) if institution in line["participants"]]
    withdrawal = Withdrawal(
        institution, int(time.time()), hashlib.sha256(answer.to_bytes()).hexdigest(), len(numbers),
        min(numbers, default=0), tuple(_models(home, run)) if numbers else (),
    )  # fmt: skip
    add_withdrawal(folder, withdrawal)
    record(
        home, "withdrawal", name=run, institution=institution, order=answer.order, answer=withdrawal.answer,
        rounds=withdrawal.rounds, first=withdrawal.first, models=list(withdrawal.models),
    )  # fmt: skip
    return withdrawal


def _statement(home: Path, folder: Path, institution: str, statement: bytes | None) -> Answer:
    if statement is None:
        answers = read_answers(folder)
        if institution not in answers:
            raise ConfigError(
                f"run '{folder.name}' has no answer of '{institution}'; name the file of `client orders withdraw`"
            )
        statement = canonical(answers[institution])
    answer = read_answer(statement, "withdrawal")
    if answer.institution != institution or answer.decision != WITHDRAWN:
        raise ConfigError(
            f"the statement is '{answer.decision}' of {answer.institution}, not that {institution} withdraws"
        )
    if answer.order not in _orders(home, folder):
        raise IdentityError(
            f"the withdrawal is from order {answer.order[:12]}, which run '{folder.name}' was not under"
        )
    answer.check_origin(load_roots(home / "identity" / "root.pem"))
    return answer


def _orders(home: Path, folder: Path) -> set[str]:
    """The orders that the run was ever under."""
    proposal = read_order(folder)
    entries = LogReader(home).newest() if has_log(home) else ()
    logged = {str(entry["order"]) for entry in entries if entry["kind"] == "order" and entry["name"] == folder.name}
    return logged | ({proposal.order.digest} if proposal else set())


def _models(home: Path, run: str) -> list[str]:
    """The models that were made, or released, of the run, as the log has them."""
    if not has_log(home):
        return []
    entries = [entry for entry in LogReader(home).newest() if entry["kind"] in ("model", "release")]
    return sorted({str(entry["sha256"]) for entry in entries if entry["name"] == run})
