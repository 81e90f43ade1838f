"""What Flower's database knows that the gate must ask: whose a node key, a message, an upload and an object are.

Read-only and never cached, so that a restart, a node that is registered anew and a run that ends change nothing here.
The tables are Flower's (held by `tests/server/network/test_flower_contract.py`); its ids are unsigned, SQLite's signed.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

_TIMEOUT_S: Final = 5.0
_NODE: Final = "SELECT node_id FROM node WHERE public_key = ? AND status <> 'unregistered'"
_ASKED: Final = "SELECT run_id, dst_node_id FROM message_ins WHERE message_id = ?"
_ANSWERED: Final = "SELECT message_id FROM message_res WHERE reply_to_message_id = ?"
_AUTHOR: Final = "SELECT src_node_id FROM message_res WHERE message_id = ?"
_SESSION: Final = """
SELECT run_id, root_object_id FROM object_push_session_roots JOIN object_push_sessions USING (session_id)
WHERE session_id = ?"""
_READABLE: Final = """
WITH RECURSIVE above(id) AS (
    SELECT ? UNION SELECT parent_id FROM object_children JOIN above ON child_id = above.id
) SELECT 1 FROM above JOIN message_ins ON message_id = above.id WHERE run_id = ? AND dst_node_id = ? LIMIT 1"""
_ROOTS: Final = """
SELECT object_id FROM objects WHERE object_id IN (SELECT value FROM json_each(:roots))
OR object_id IN (SELECT message_id FROM message_res WHERE run_id = :run AND src_node_id = :node)"""
_HELD: Final = """
WITH RECURSIVE below(id) AS (
    SELECT value FROM json_each(?) UNION SELECT child_id FROM object_children JOIN below ON parent_id = below.id
) SELECT count(*), coalesce(sum(length(content)), 0) FROM objects JOIN below ON object_id = below.id"""
_INSTRUCTIONS: Final = "SELECT 1 FROM message_ins WHERE message_id IN (SELECT value FROM json_each(?)) LIMIT 1"


@dataclass(frozen=True)
class Held:
    """What lies in the database of one node and run: replies (by id) that are not fetched yet, and their objects."""

    replies: frozenset[str]
    objects: int
    size_bytes: int


class FleetState:
    """Questions to the SuperLink's database at `database`. Raises sqlite3.Error if it cannot be read."""

    def __init__(self, database: Path) -> None:
        self._uri, self._opened = f"{database.resolve().as_uri()}?mode=ro", threading.local()

    def node_id(self, public_key: bytes) -> int | None:
        """The id of the registered node with this key."""
        row = self._row(_NODE, public_key)
        return None if row is None else _unsigned(row[0])

    def addressee(self, message_id: str) -> tuple[int, int] | None:
        """(run, node) of the coordinator's message `message_id`."""
        row = self._row(_ASKED, message_id)
        return None if row is None else (_unsigned(row[0]), _unsigned(row[1]))

    def reply_to(self, message_id: str) -> str | None:
        """The id of the reply to `message_id`, if there is one already."""
        row = self._row(_ANSWERED, message_id)
        return None if row is None else str(row[0])

    def author(self, reply_id: str) -> int | None:
        """The node that the reply `reply_id` is from."""
        row = self._row(_AUTHOR, reply_id)
        return None if row is None else _unsigned(row[0])

    def upload(self, session_id: str) -> tuple[int, str] | None:
        """(run, reply) that the upload `session_id` brings objects of."""
        row = self._row(_SESSION, session_id)
        return None if row is None else (_unsigned(row[0]), str(row[1]))

    def readable(self, object_id: str, run_id: int, node_id: int) -> bool:
        """Whether the object is part of a message to `node_id`."""
        return self._row(_READABLE, object_id, _signed(run_id), _signed(node_id)) is not None

    def held(self, run_id: int, node_id: int, replies: Iterable[str]) -> Held:
        """What is held of the node's replies in the run: those it knows itself, and those of `replies` still there.

        Flower forgets whose a reply is when the coordinator first sees it, which is before its objects have come.
        """
        bound = {"run": _signed(run_id), "node": _signed(node_id), "roots": json.dumps(list(replies))}
        roots = frozenset(str(row[0]) for row in self._rows(_ROOTS, bound))
        return Held(roots, *self._rows(_HELD, (json.dumps(list(roots)),))[0])

    def any_instruction(self, object_ids: Iterable[str]) -> bool:
        """Whether one of these ids is that of a message of the coordinator."""
        return self._row(_INSTRUCTIONS, json.dumps(list(object_ids))) is not None

    def _row(self, query: str, *values: Any) -> tuple[Any, ...] | None:
        return next(iter(self._rows(query, values)), None)

    def _rows(self, query: str, values: Any) -> list[tuple[Any, ...]]:
        return self._database().execute(query, values).fetchall()

    def _database(self) -> sqlite3.Connection:
        """This thread's connection: to open one costs more than to ask."""
        if (database := getattr(self._opened, "database", None)) is None:
            database = self._opened.database = sqlite3.connect(self._uri, uri=True, timeout=_TIMEOUT_S)
        return database


def _signed(number: int) -> int:
    return number - 2**64 if number >= 2**63 else number


def _unsigned(number: int) -> int:
    return number % 2**64
