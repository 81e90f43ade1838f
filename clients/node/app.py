"""Our ClientApp: checks each Flower message, hands the typed request to the trainer, wraps the typed reply.

The same object serves a deployment (the gateway calls it with a stub of the trainer's socket) and a simulation
(the in-memory Grid calls it with the trainer itself). Whatever goes wrong, the reply is a `Refusal`: a code and a fixed
sentence; the exception's text goes to the local log only.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Final, Protocol, TypeVar

from flwr.app import Context
from flwr.app import Message as FlowerMessage
from flwr.clientapp import ClientApp

from sovfed.federation.errors import ProtocolError, wire_code
from sovfed.federation.messages import (
    EvaluateRequest,
    LaneOffer,
    LaneReply,
    LedgerRequest,
    Message,
    PrivateRequest,
    ProfileRequest,
    Refusal,
    ReleaseRequest,
    Reply,
    Request,
    RunRequest,
    SecaggRequest,
    TrainRequest,
)
from sovfed.federation.wire.flower import from_records, to_records

log = logging.getLogger(__name__)
M = TypeVar("M", bound=Message)
QUERIES: Final[Mapping[str, type[Request]]] = {
    "profile": ProfileRequest, "secagg": SecaggRequest, "run": RunRequest, "ledger": LedgerRequest,
    "release": ReleaseRequest,
}  # fmt: skip


class Trainer(Protocol):
    """The one thing a ClientApp needs of a trainer, in-process or behind its socket."""

    def answer(self, request: Request) -> Reply: ...


def make_client_app(trainer: Trainer, join: Callable[[LaneOffer, Context], bool] | None = None) -> ClientApp:
    """The ClientApp that forwards requests to `trainer`; `join` opens the run's lane, None means there is none."""
    app = ClientApp()

    def answering(kind: type[Request]) -> Callable[[FlowerMessage, Context], FlowerMessage]:
        return lambda message, _context: _reply(message, lambda: trainer.answer(_expect(message, kind)))

    app.train()(answering(TrainRequest))
    app.train("private")(answering(PrivateRequest))
    app.evaluate()(answering(EvaluateRequest))
    for action, kind in QUERIES.items():
        app.query(action)(answering(kind))

    @app.query("lane")
    def lane(message: FlowerMessage, context: Context) -> FlowerMessage:
        return _reply(
            message, lambda: LaneReply(accepted=join is not None and join(_expect(message, LaneOffer), context))
        )

    return app


def _expect(message: FlowerMessage, kind: type[M]) -> M:
    received = from_records(message.content, judged=False)  # by the trainer, which uses the values
    if not isinstance(received, kind):
        raise ProtocolError(f"{message.metadata.message_type}: got {type(received).__name__}, expected {kind.__name__}")
    return received


def _reply(message: FlowerMessage, work: Callable[[], Message]) -> FlowerMessage:
    try:
        reply = work()
    except Exception as error:  # every failure becomes a code; the detail stays in this log
        log.exception("%s refused", message.metadata.message_type)
        reply = Refusal(reason=wire_code(error))
    return FlowerMessage(to_records(reply), reply_to=message)
