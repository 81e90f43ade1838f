"""Flower's own database with nodes, a run, messages and objects in it, and the requests that a SuperNode makes."""

from __future__ import annotations

import hashlib
import sqlite3
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from flwr.proto.fleet_pb2 import PushMessagesRequest
from flwr.proto.message_pb2 import Message, Metadata, ObjectTree, PushObjectRequest
from flwr.proto.node_pb2 import Node
from flwr.proto.recorddict_pb2 import RecordDict

RUN = 2**63 + 5  # ids are unsigned 64-bit numbers
SERVER = 1


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def make_template(path: Path) -> Path:
    """A database with Flower's tables, made by Flower."""
    from flwr.server.superlink.linkstate import LinkStateFactory
    from flwr.supercore.object_store import ObjectStoreFactory
    from flwr.superlink.federation import NoOpFederationManager

    objects = ObjectStoreFactory(str(path))
    LinkStateFactory(str(path), NoOpFederationManager(), objects).state()
    return path


@dataclass(frozen=True)
class FleetDatabase:
    """What the SuperLink would hold; ids as Flower gives them out."""

    path: Path

    @classmethod
    def copy(cls, template: Path, path: Path) -> FleetDatabase:
        with closing(sqlite3.connect(template)) as source, closing(sqlite3.connect(path)) as target:
            source.backup(target)
        return cls(path)

    def add_node(self, node_id: int, public_key: bytes, status: str = "online") -> None:
        query = "INSERT INTO node (node_id, status, public_key) VALUES (?, ?, ?)"
        self._write(query, _signed(node_id), status, public_key)

    def ask(self, message_id: str, node_id: int, run_id: int = RUN) -> None:
        """A message of the coordinator to `node_id`, whose one object is its root."""
        self._write(
            "INSERT INTO message_ins (message_id, run_id, src_node_id, dst_node_id) VALUES (?, ?, ?, ?)",
            message_id, _signed(run_id), SERVER, _signed(node_id),
        )  # fmt: skip
        self.store(message_id, b"root")

    def reply(self, message_id: str, reply_to: str, node_id: int, session: str = "", run_id: int = RUN) -> None:
        """A reply as Flower stores it, with an upload `session` open."""
        self._write(
            "INSERT INTO message_res (message_id, run_id, src_node_id, dst_node_id, reply_to_message_id)"
            " VALUES (?, ?, ?, ?, ?)",
            message_id, _signed(run_id), _signed(node_id), SERVER, reply_to,
        )  # fmt: skip
        self.store(message_id, b"root")
        if session:
            self._write(
                "INSERT INTO object_push_sessions VALUES (?, ?, '2999-01-01 00:00:00', 1)", session, _signed(run_id)
            )
            self._write("INSERT INTO object_push_session_roots VALUES (?, ?)", session, message_id)

    def fetch(self, reply_to: str) -> None:
        """What the coordinator's first look at a reply does: its rows go, its objects stay."""
        self._write("DELETE FROM message_ins WHERE message_id = ?", reply_to)
        self._write("DELETE FROM message_res WHERE reply_to_message_id = ?", reply_to)

    def store(self, object_id: str, content: bytes, parent: str = "") -> None:
        self._write("INSERT INTO objects VALUES (?, ?, 1, 0)", object_id, content)
        if parent:
            self._write("INSERT INTO object_children VALUES (?, ?)", parent, object_id)

    def drop(self, object_id: str) -> None:
        self._write("DELETE FROM object_children WHERE parent_id = ?", object_id)
        self._write("DELETE FROM objects WHERE object_id = ?", object_id)

    def _write(self, query: str, *values: object) -> None:
        with closing(sqlite3.connect(self.path)) as database, database:
            database.execute(query, values)


def push(
    own: int,
    reply_to: str,
    *,
    message_id: str = sha256("reply"),
    src: int | None = None,
    dst: int = SERVER,
    run: int = RUN,
    children: Sequence[str] = (),
    root: str | None = None,
    copies: int = 1,
    group: str = "1",
) -> PushMessagesRequest:
    """The announcement of a reply, as Flower's SuperNode makes it; what differs from that is named."""
    head = Metadata(
        run_id=run, message_id=message_id, src_node_id=own if src is None else src, dst_node_id=dst,
        reply_to_message_id=reply_to, group_id=group, ttl=100.0, message_type="query.echo", created_at=time.time(),
    )  # fmt: skip
    tree = ObjectTree(object_id=message_id if root is None else root)
    tree.children.extend(ObjectTree(object_id=child) for child in children)
    return PushMessagesRequest(
        node=Node(node_id=own),
        messages_list=[Message(metadata=head, content=RecordDict())] * copies,
        message_object_trees=[tree] * copies,
        clientapp_runtime_list=[0.1],
    )


def upload(own: int, session: str, size_bytes: int, run: int = RUN) -> PushObjectRequest:
    return PushObjectRequest(
        node=Node(node_id=own), run_id=run, session_id=session, object_id=sha256("object"),
        object_content=bytes(size_bytes),
    )  # fmt: skip


def _signed(number: int) -> int:
    return number - 2**64 if number >= 2**63 else number
