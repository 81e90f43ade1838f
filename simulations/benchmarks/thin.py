"""Institutions without processes of their own: many in this one, at the agency's real ports, to put load on it.

To the agency they are as any other: own certificate and node key, Flower's fleet calls over mutual TLS, a stream of
the lane for each run, real masks. There is no SuperNode, gateway or sandbox, so what they cost says nothing.
"""

from __future__ import annotations

import logging
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final, Self, cast

from flwr.app import Context, Message, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree, iterate_object_tree
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents, pull_objects
from flwr.supernode.fleet_http_connection import http_request_response

from sovfed.clients.data import load_records
from sovfed.clients.home.folder import load_node_key
from sovfed.clients.node.app import make_client_app
from sovfed.clients.node.enrol import load_institution
from sovfed.clients.node.lane import LaneClient
from sovfed.clients.node.supernode import pull_bounded
from sovfed.clients.trainer.loaded import RecordSource, Runtime
from sovfed.clients.trainer.masking import Masking
from sovfed.clients.trainer.rules import Rules
from sovfed.clients.trainer.service import TrainerService
from sovfed.federation.config import DataConfig
from sovfed.federation.messages import LaneReply
from sovfed.federation.secagg.files import MemoryStore, load_identity
from sovfed.federation.secagg.terms import Terms
from sovfed.federation.wire.flower import from_records
from sovfed.federation.wire.flower_http import Presented, use_client_certificate

MOST_BYTES: Final = 2**20  # of a message that does not come over the lane
PAUSE_S: Final = 0.05  # after a look that was not kept waiting
log = logging.getLogger(__name__)


class ThinInstitution:
    """The institution enrolled at `home`, until `close`: signs on, joins the lane of each run, answers in this process.

    Made one after another: Flower's clients are given their certificate by this process.
    """

    def __init__(self, home: Path, terms: Terms, max_message_bytes: int) -> None:
        identity, store = load_identity(home / "identity"), MemoryStore()
        trainer = TrainerService(
            RecordSource(lambda task: load_records(task, DataConfig()), ""), Runtime("cpu"), Rules(reproducible=True),
            masking=Masking(lambda: identity, lambda: store, terms),
        )  # fmt: skip
        app = make_client_app(trainer)
        self._lane = LaneClient(home, app, max_message_bytes)
        self._app = make_client_app(trainer, join=self._lane.open)
        self._open, self._over = ExitStack(), threading.Event()
        self._calls = self._open.enter_context(_connect(home))
        self._thread = threading.Thread(target=self._work, name=f"thin-{home.name}", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        node_id, receive, *_ = self._calls
        while not self._over.is_set():
            try:
                received = receive()
                if received is not None:
                    self._answer(node_id, *received)
            except Exception:  # as a gateway: the next message is served
                if not self._over.is_set():
                    log.exception("a message was not answered")
            self._over.wait(PAUSE_S)

    def _answer(self, node_id: int, head: Message, tree: Any) -> None:
        """Fetch a message, confirm it, answer it: the requests of a SuperNode that has the app bundle."""
        _, _, send, get_run, _, pull_object, push_object, confirm = self._calls
        run_id, message_id = head.metadata.run_id, head.metadata.message_id
        get_run(run_id)
        ids = [node.object_id for node in iterate_object_tree(tree)]
        contents = pull_bounded(pull_objects, MOST_BYTES, ids, lambda name: pull_object(run_id, name))
        confirm(run_id, message_id)
        message = cast("Message", inflate_object_from_contents(message_id, contents))
        message.metadata.__dict__["_message_id"] = message_id
        reply = self._app(message, Context(run_id, node_id, {}, RecordDict(), {}))
        if self._joined(reply):
            return
        reply.metadata.__dict__["_message_id"] = reply.object_id
        wanted, session = send(reply, get_object_tree(reply), 0.0)
        objects = get_all_nested_objects(reply)
        for name in wanted:
            push_object(run_id, session, name, objects[name].deflate())

    @staticmethod
    def _joined(reply: Message) -> bool:
        """Whether it says that a lane is joined, which a SuperNode of ours does not send."""
        answer = from_records(reply.content)
        return isinstance(answer, LaneReply) and answer.accepted

    def close(self) -> None:
        """Leave the lanes; sign off."""
        self._over.set()
        self._lane.close()
        self._open.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _connect(home: Path) -> Any:
    """Flower's own fleet connection under the certificate of `home`; signed on once it is entered."""
    identity = home / "identity"
    use_client_certificate(Presented(identity / "cert.pem", identity / "key.pem", identity / "root.pem"))
    key, root = load_node_key(identity / "node_key"), (identity / "root.pem").read_bytes()
    return http_request_response(load_institution(home).fleet_address, False, root, (key, key.public_key()))
