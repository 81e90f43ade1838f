"""What a SuperNode holds between the agency and its gateway: messages and replies, passed on when they are here whole.

Flower gives a task away before its message has come, and waits without end for a reply that it was only told of.
Either makes an institution deaf when the other side goes away in between.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from flwr.app import Message
from flwr.common.constant import Status, SubStatus
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
from flwr.supercore.object_store import ObjectStore
from flwr.supernode.nodestate.in_memory_nodestate import InMemoryNodeState, MessageEntry

from sovfed.federation.files import write_private
from sovfed.federation.wire.held import Bell

REPLY_STALL_S: Final = 15.0  # without an object of a reply that the gateway has announced
GATEWAY: Final = 0  # who asks for tasks


class WholeMessages(InMemoryNodeState):
    """Flower's state; its node id is also written to `node_id`.

    A task is given away once its message is here whole; `bell` rings then. A gateway that asks again, since the answer
    was lost on its way, is told the same again.
    """

    def __init__(self, store: ObjectStore, node_id: Path, bell: Bell) -> None:
        super().__init__(store)
        self._node_id_file, self._bell = node_id, bell
        self._fetching: int | None = None  # the task whose message is not here whole
        self._partial: dict[str, tuple[int, float]] = {}  # replies: how many objects are here, and since when

    def set_node_id(self, node_id: int | None) -> None:
        super().set_node_id(node_id)
        write_private(self._node_id_file, str(node_id).encode("ascii"))

    def create_task(self, *arguments: Any, **named: Any) -> int | None:
        self._fetching = super().create_task(*arguments, **named)
        return self._fetching

    def claim_task(self, task_id: int) -> str | None:
        return None if task_id == self._fetching else super().claim_task(task_id)

    def settle(self, whole: bool) -> None:
        """The message that was being received is here, or will not come: it is dropped then, and its task."""
        task_id, self._fetching = self._fetching, None
        if task_id is not None and whole:
            self._bell.ring([GATEWAY])
        elif task_id is not None:
            self.finish_task(task_id, SubStatus.FAILED, "its message has not come whole")
            self._drop_untaken()

    def _drop_untaken(self) -> None:
        with self.lock_msg_store:
            entries = dict(self.msg_store)
        lost = [name for name, entry in entries.items() if not (entry.is_retrieved or is_reply(entry.message))]
        self.delete_messages(message_ids=lost)
        for message_id in lost:
            self.object_store.delete(message_id)

    def _cleanup_expired_task_tokens_locked(self) -> None:
        """As Flower's: a task whose gateway has not begun it in time is to be had again, and the bell rings for it."""
        held = len(self.task_token_store)
        super()._cleanup_expired_task_tokens_locked()
        if len(self.task_token_store) < held:
            self._bell.ring([GATEWAY])

    def activate_task(self, task_id: int) -> bool:
        """Whether the task runs now: also where it did already, and the gateway was not told."""
        if super().activate_task(task_id):
            return True
        tasks = self.get_tasks(task_ids=[task_id])
        return bool(tasks) and tasks[0].status.status == Status.RUNNING

    def get_messages_legacy(
        self, *, run_ids: Sequence[int] | None = None, is_reply: bool | None = None, limit: int | None = None
    ) -> Sequence[Message]:
        """As Flower's; a message of `run_ids` that was given away and not answered is given again, a reply when whole.

        A reply that stops coming is dropped; the lease of its task, or the same gateway, brings another.
        """
        if is_reply:
            with self.lock_task_store:
                self._cleanup_expired_task_tokens_locked()
            return self._take_whole_replies()[:limit]
        messages = super().get_messages_legacy(run_ids=run_ids, is_reply=is_reply, limit=limit)
        return messages if messages or is_reply is None else self._unanswered(run_ids or ())[:limit]

    def _take_whole_replies(self) -> list[Message]:
        whole, now = [], time.monotonic()
        with self.lock_msg_store:
            waiting = {name: entry for name, entry in self.msg_store.items() if self._is_waiting_reply(entry)}
            self._partial = {name: seen for name, seen in self._partial.items() if name in waiting}
            for message_id, entry in waiting.items():
                here, of = self._objects_here(message_id)
                if here == of:
                    entry.is_retrieved = True
                    whole.append(entry.message)
                elif self._partial.setdefault(message_id, (here, now))[0] != here:
                    self._partial[message_id] = (here, now)
                elif now - self._partial[message_id][1] > REPLY_STALL_S:
                    del self.msg_store[message_id]
                    self.object_store.delete(message_id)
        return whole

    @staticmethod
    def _is_waiting_reply(entry: MessageEntry) -> bool:
        return is_reply(entry.message) and not entry.is_retrieved

    def _objects_here(self, message_id: str) -> tuple[int, int]:
        """How many of the message's objects are here, and how many there are."""
        ids = {node.object_id for node in iterate_object_tree(self.object_store.get_object_tree(message_id))}
        return sum(bool(self.object_store.get(object_id)) for object_id in ids), len(ids)

    def _unanswered(self, run_ids: Sequence[int]) -> list[Message]:
        with self.lock_msg_store:
            held = [entry.message for entry in self.msg_store.values()]
        answered = {message.metadata.reply_to_message_id for message in held}
        unanswered = [message for message in held if message.metadata.message_id not in answered]
        return [message for message in unanswered if message.metadata.run_id in run_ids and not is_reply(message)]

    def holds_reply(self) -> bool:
        """Whether a reply waits to be sent."""
        with self.lock_msg_store:
            waiting = [name for name, entry in self.msg_store.items() if self._is_waiting_reply(entry)]
            return any(here == of for here, of in map(self._objects_here, waiting))


def is_reply(message: Message) -> bool:
    """Whether `message` answers another."""
    return bool(message.metadata.reply_to_message_id)
