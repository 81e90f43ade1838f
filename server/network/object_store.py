"""Flower's store of message objects, in which the coordinator's word on what an object is made of is the last.

Flower learns an object's children from whoever announces it first, before its content comes, and refuses any other
list later. So an institution that knows the hash of what the coordinator will send next, as of a request without a
vector, could announce it with children of its own, and the coordinator's message would fail.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from contextvars import ContextVar
from typing import Any, Final, TypeAlias

from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
from flwr.supercore.object_store import object_store_factory
from flwr.supercore.object_store.sql_object_store import SqlObjectStore
from flwr.supercore.state.schema.objectstore_models import ObjectChild, StoredObject
from sqlalchemy import delete, insert, select, update

App: TypeAlias = Callable[[MutableMapping[str, Any], Any, Any], Awaitable[None]]
_trusted: Final[ContextVar[bool]] = ContextVar("trusted", default=False)


def trusted(app: App) -> App:
    """`app` for the coordinator's own side: what is announced through it replaces what others announced."""

    async def marked(scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        token = _trusted.set(True)
        try:
            await app(scope, receive, send)
        finally:
            _trusted.reset(token)

    return marked


class AgencyObjectStore(SqlObjectStore):
    """Flower's, but for announcements of the coordinator."""

    def preregister(self, run_id: int, object_tree: ObjectTree) -> list[str]:
        """As Flower's; the coordinator's children of an object take the place of those it was announced with."""
        if not _trusted.get():
            return super().preregister(run_id, object_tree)
        with self._mutation_session():
            for node in iterate_object_tree(object_tree):  # children first
                self._correct(run_id, node)
            return super().preregister(run_id, object_tree)

    def _correct(self, run_id: int, node: ObjectTree) -> None:
        announced = {child.object_id for child in node.children}
        with self._mutation_session() as session:
            if session.scalar(select(StoredObject.object_id).where(StoredObject.object_id == node.object_id)) is None:
                return
            of_node = ObjectChild.parent_id == node.object_id
            stored = set(session.scalars(select(ObjectChild.child_id).where(of_node)))
            if stored == announced:
                return
            for child in node.children:
                super().preregister(run_id, child)
            session.execute(delete(ObjectChild).where(of_node))
            for children, change in ((stored, -1), (announced, 1)):
                count = StoredObject.ref_count + change
                session.execute(
                    update(StoredObject).where(StoredObject.object_id.in_(children)).values(ref_count=count)
                )
            for child_id in announced:
                session.execute(insert(ObjectChild).values(parent_id=node.object_id, child_id=child_id))


def use_agency_object_store() -> None:
    """Have Flower's factory make this store; held by `tests/server/network/test_insider.py`."""
    vars(object_store_factory)["SqlObjectStore"] = AgencyObjectStore
