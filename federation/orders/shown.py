"""An order in plain words: what it asks, what would leave this house, what it would cost, what did leave."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sovfed.federation.archive.signing import certified
from sovfed.federation.orders.answers import UNREADABLE, WITHDRAWN
from sovfed.federation.text import day

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from sovfed.federation.orders.answers import Answer
    from sovfed.federation.orders.order import Proposal, RunOrder

WORDS: Final = {
    "signed": "signed",
    "refused": "refused",
    "standing": "standing consent, signed by this node",
    "withdrawn": "withdrawn",
}


def approvals(proposal: Proposal) -> Iterator[str]:
    """Who of the agency has approved it, a line each; whether that counts is for its reader's rules."""
    for approval in proposal.approvals:
        yield "approved by {} of {}".format(*certified(approval, "approval"))


def asked(order: RunOrder) -> Iterator[str]:
    """What the order says, a line each."""
    yield f"order      {order.digest}"
    yield f"run        {order.run}"
    yield f"purpose    {order.purpose}"
    counts = bool(order.statistics or order.candidates)  # and trains nothing
    yield f"asked by   {order.proposer}; the {'table' if counts else 'model'} goes to {order.recipients}"
    how = "" if counts else f", strategy {order.strategy}, {order.parameters} parameters"
    yield f"task       {order.task}@{order.task_digest[:32]}{how}"
    if order.population:
        yield f"people     {order.population}"
    who = ", ".join(order.cohort) or "any institution that the authority has certified"
    if order.start:
        after = f", after round {order.start_round}" if order.start_round else ""
        yield f"begins     with {order.begins.words}; SHA-256 of its parameters {order.start}{after}"
    if work := "" if counts else _work(order):
        yield f"work       {order.rounds} rounds of {work}"
    yield f"with       {who}; at least {order.min_cohort} in each sum"
    if order.keys:
        keys = (f"{name} {key[:16]}" for name, key in zip(order.cohort, order.keys, strict=True))
        yield f"keys       {', '.join(keys)}"
    if order.permit:
        yield f"permit     {order.permit}"
    yield f"valid      {day(order.proposed)} to {day(order.expires)}; sovfed {order.version}"


def _work(order: RunOrder) -> str:
    """What is trained in a round, as far as the order's own settings say; "" if nothing is."""
    names = ("optimizer", "learning_rate", "batch_size", "local_epochs", "local_steps")
    said = [f"{name} {order.settings[name]}" for name in names if order.settings.get(name)]
    return ", ".join(said)


def leaves(order: RunOrder) -> Iterator[str]:
    """What would leave this house, and at what cost to a person in its records."""
    if order.statistics:
        yield f"statistics: {order.statistics}"
        if "sites" in order.statistics:
            yield "with them, of each column, how this institution's persons are spread over the cells, as one number"
        yield (
            f"would leave: once, {order.parameters} masked counts of persons, each of weight 1 however many rows they "
            f"have; only a sum over at least {order.min_cohort} institutions opens, with noise"
        )
    elif order.kind == "private" and order.candidates:
        yield from (f"model      {digest}" for digest in order.candidates)
        yield (
            f"would leave: for each of these models {order.parameters} masked sums of scores of held-out persons, each "
            f"of weight 1; only a sum over at least {order.min_cohort} institutions opens, with noise"
        )
    elif order.kind == "private":
        yield (
            f"would leave: in each of {order.rounds} rounds one masked contribution, which only a sum over at least "
            f"{order.min_cohort} institutions opens, with noise; no count, no metric"
        )
    elif order.kind == "evaluate":
        yield from (f"model      {digest}" for digest in order.candidates)
        secret = (
            f"masked: only sums over at least {order.min_cohort} institutions open" if order.masked else "IN THE CLEAR"
        )
        yield f"would leave: for each of these models, sums of its metrics over the held-out records, {secret}"
    if order.kind == "private":
        yield f"would cost a person: ε {order.epsilon:g} at δ {order.delta:g}, charged to the ledger as it is spent"
        return
    if order.kind == "evaluate":
        pass
    elif order.masked:
        yield (
            f"would leave: up to {order.sums} masked contributions (the columns' totals, each round's update, "
            f"count and metrics, {order.evaluations} evaluations); only sums over at least {order.min_cohort} "
            "institutions open"
        )
    else:
        yield (
            f"would leave: up to {order.sums} answers IN THE CLEAR: this institution's own update, record count and "
            "metrics of each round, for whoever runs the server"
        )
    yield f"where rounds are repeated: up to {order.most_answers} answers in all, each to a model that the agency sends"
    yield "would cost a person: no bound can be told, the run is without differential privacy"


def left(answered: Mapping[str, int], order: RunOrder) -> Iterator[str]:
    """What has left under the order: counts by kind of message, at most."""
    kind = "masked" if order.masked else "in the clear"
    counts = ", ".join(f"{count} {name}" for name, count in sorted(answered.items()) if count)
    yield f"has left: at most {counts}, {kind}" if counts else "has left: nothing yet"


def word(answer: Answer | None, *, ended: bool = False) -> str:
    """What the institution has said, and whose word it is; of an order that has `ended`, that nobody is awaited."""
    if answer is None:
        return "ended unanswered" if ended else "waits for an officer"
    if answer.decision == UNREADABLE:
        return "its answer cannot be read, and holds as none: waits for an officer to answer again"
    whose = f" by {answer.officer}" if answer.officer else ""
    reason = f": {answer.reason}" if answer.reason else ""
    return f"{WORDS[answer.decision]}{whose} on {day(answer.at)}{reason}"


def word_lines(answer: Answer) -> Iterator[str]:
    """A word whose origin holds, as whoever verifies it by itself is told of it, a line each."""
    by = f"its officer {answer.officer}" if answer.officer else "its node"
    yield f"✓ signed by {answer.institution}, as the authority certified it: {WORDS[answer.decision]}, by {by}"
    yield f"  order    {answer.order}"
    yield f"  on       {day(answer.at)}, by its own clock"
    yield from [f"  reason   {answer.reason}"] if answer.reason else []
    if answer.decision == WITHDRAWN:
        yield "  next     the agency records it: `sovfed run withdraw RUN INSTITUTION --statement FILE`"
