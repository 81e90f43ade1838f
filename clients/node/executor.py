"""The resident executor of Flower's ClientApp: takes tasks from the SuperNode and answers them in this process.

Stock Flower starts a process for each message, unpacks the app bundle that the server sent and imports it. Here the
bundle's bytes are dropped unread: what runs is the ClientApp that `run_executor` was given. One task at a time.

A call that fails on its way is made again (`PATIENCE_S`), which the SuperNode takes for what it is (`supernode.py`).
A task that is not answered for all that, because the SuperNode is gone or the message stops coming, ends with its
lease; the next one is taken.
"""

from __future__ import annotations

import logging
import threading
import time
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Final

import httpx
from flwr.app import Context, Error, Message
from flwr.app.message import remove_content_from_message
from flwr.common.constant import ErrorCode, SubStatus
from flwr.common.serde import context_from_proto, message_from_proto, message_to_proto
from flwr.proto.node_pb2 import Node
from flwr.proto.runtime_pb2 import (
    AcquireTaskRequest,
    PullAppMessagesRequest,
    PullTaskInputRequest,
    PushAppMessagesRequest,
    PushTaskOutputRequest,
    SendTaskHeartbeatRequest,
)
from flwr.supercore.constant import TaskType
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_protobuf_utils import (
    make_confirm_message_received_fn_protobuf,
    make_pull_object_fn_protobuf,
    make_push_object_fn_protobuf,
)
from flwr.supercore.inflatable.inflatable_utils import (
    ObjectPushError,
    pull_and_inflate_object_from_tree,
    push_objects,
)
from flwr.supercore.interceptors import (
    RuntimeTokenHttpInterceptor,
    RuntimeVersionHttpInterceptor,
    SuperExecAuthHttpInterceptor,
)
from flwr.supercore.retry import RetryInvoker, exponential
from flwr.supercore.runtime import RuntimeHttpClient

from sovfed.federation.errors import WIRE_SENTENCES, ProtocolError
from sovfed.federation.wire.patience import patient

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from flwr.proto.message_pb2 import ObjectTree
    from flwr.supercore.inflatable.inflatable_object import InflatableObject
    from flwr.supercore.protobuf.client import ProtobufClientInterceptor

POLL_S: Final = (0.05, 0.5)  # between looks for a task: the first, and the longest while none comes
RETRY_S: Final = (0.1, 1.0)  # between attempts to reach a SuperNode that is away
HEARTBEAT_S: Final = 3.0
ARRIVAL_S: Final = 10.0  # the SuperNode makes a message's task shortly before the message
OBJECT_WAIT_S: Final = (0.02, 0.5)  # Flower: 1 to 10; while the SuperNode is still fetching the message's objects
PATIENCE_S: Final = 10.0  # for a call that fails on its way, and for a SuperNode that restarts
HELD_S: Final = 1.0  # a request for a task that took so long was kept waiting, and need not be spaced
ACQUIRE: Final = "/flwr.proto.Runtime/AcquireTask"
log = logging.getLogger("sovfed.executor")


class Stop(threading.Event):
    """An event that ends the thread's own wait for a task too, where a signal sets it in the midst of that."""

    def __init__(self) -> None:
        super().__init__()
        self._asking: int | None = None

    def set(self) -> None:
        super().set()
        if self._asking == threading.get_ident():
            raise _StoppedError

    @contextmanager
    def asking(self) -> Iterator[None]:
        """What may be cut short."""
        self._asking = threading.get_ident()
        try:
            yield
        finally:
            self._asking = None


class _StoppedError(Exception):
    """Told to end while a task was waited for."""


def run_executor(
    address: str,
    secret: bytes,
    client_app: Callable[[Message, Context], Message],
    stop: threading.Event,
    beat: Callable[[], None] = lambda: None,
) -> None:
    """Answer tasks of the SuperNode at `address` (host:port) until `stop`.

    `secret` is the SuperNode's superexec secret. A SuperNode that is away or restarts is waited for; a task that it has
    forgotten meanwhile is dropped. `beat` is called as often as the loop comes round, and while a task is worked on.
    """
    auth = SuperExecAuthHttpInterceptor(master_secret=secret, protected_methods={ACQUIRE})
    poll_s, retry_s = POLL_S[0], RETRY_S[0]
    with _connect(address, auth) as client:
        while not stop.is_set():
            beat()
            started = time.monotonic()
            try:
                token = _acquire(client, stop)
                if token:
                    with _connect(address, RuntimeTokenHttpInterceptor(token), _insistent()) as task:
                        _answer(task, client_app, beat)
            except _StoppedError:
                return
            except Exception as error:  # whatever befalls one task, the next one is served
                log.warning("SuperNode at %s: %r; next try in %.1f s", address, error, retry_s)
                stop.wait(retry_s)
                retry_s = min(2 * retry_s, RETRY_S[1])
                continue
            retry_s = RETRY_S[0]
            held = time.monotonic() - started > HELD_S
            poll_s = POLL_S[0] if token or held else min(1.2 * poll_s, POLL_S[1])
            stop.wait(poll_s)


def _acquire(client: RuntimeHttpClient, stop: threading.Event) -> str:
    """The token of a task; "" where there is none."""
    with stop.asking() if isinstance(stop, Stop) else nullcontext():
        return str(client.AcquireTask(AcquireTaskRequest(supported_task_types=[TaskType.CLIENT_APP])).token)


def _connect(
    address: str, interceptor: ProtobufClientInterceptor, invoker: RetryInvoker | None = None
) -> RuntimeHttpClient:
    versions = RuntimeVersionHttpInterceptor(component_name="SuperExec")
    return RuntimeHttpClient.from_server_address(address, True, None, [versions, interceptor], retry_invoker=invoker)


def _insistent() -> RetryInvoker:
    """Makes a call that failed on its way again, for `PATIENCE_S`."""
    return RetryInvoker(
        wait_gen_factory=lambda: exponential(base_delay=RETRY_S[0], max_delay=1),
        recoverable_exceptions=httpx.TransportError,
        max_tries=None,
        max_time=PATIENCE_S,
    )


def _answer(
    client: RuntimeHttpClient, client_app: Callable[[Message, Context], Message], beat: Callable[[], None]
) -> None:
    """Pull the task's message, have it answered, push the reply and close the task."""
    answered, lost = threading.Event(), threading.Event()
    heart = threading.Thread(target=_beat, args=(client, answered, lost, beat), name="task-heartbeat", daemon=True)
    heart.start()
    try:
        task = client.PullTaskInput(PullTaskInputRequest())  # its app bundle, task.fab, is never looked at
        context = context_from_proto(task.context)
        head, tree = _pull(client)
        try:
            reply = client_app(_inflate(client, tree, context, lost), context)
        except httpx.HTTPError:
            raise  # the SuperNode is gone, and the task with it
        except Exception:
            log.exception("%s failed", head.metadata.message_type)  # the text stays in this log
            reply = Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, WIRE_SENTENCES["failed"]), reply_to=head)
        _push(client, reply, context)
        client.PushTaskOutput(PushTaskOutputRequest(sub_status=SubStatus.COMPLETED))
    finally:
        answered.set()
        heart.join()


def _pull(client: RuntimeHttpClient) -> tuple[Message, ObjectTree]:
    """The task's message without its content, and the tree of objects that make it up."""
    deadline = time.monotonic() + ARRIVAL_S
    while not (pulled := client.PullMessages(PullAppMessagesRequest())).messages_list:
        if time.monotonic() > deadline:
            raise ProtocolError("a task without a message")
        time.sleep(OBJECT_WAIT_S[0])
    return message_from_proto(pulled.messages_list[0]), pulled.message_object_trees[0]


def _inflate(client: RuntimeHttpClient, tree: ObjectTree, context: Context, lost: threading.Event) -> Message:
    """The task's whole message. Raises ProtocolError if it belongs to another run, or stops coming.

    It stops when the task is `lost`: the SuperNode has given up the message, most often because its run is over.
    """
    node = Node(node_id=context.node_id)
    message = pull_and_inflate_object_from_tree(
        tree,
        patient(make_pull_object_fn_protobuf(client.PullObject, node, context.run_id), over=lost.is_set),
        make_confirm_message_received_fn_protobuf(client.ConfirmMessageReceived, node, context.run_id),
        return_type=Message,
        max_tries_per_object=None,
        max_time=None,
        initial_backoff=OBJECT_WAIT_S[0],
        backoff_cap=OBJECT_WAIT_S[1],
    )
    if message.metadata.run_id != context.run_id:
        raise ProtocolError(f"a message of run {message.metadata.run_id} in a task of run {context.run_id}")
    message.metadata.__dict__["_message_id"] = tree.object_id  # the message as sent cannot hold its own hash
    return message


def _push(client: RuntimeHttpClient, reply: Message, context: Context) -> None:
    """Announce `reply` and bring its objects; once more from the start where the SuperNode has one of them already."""
    reply.metadata.__dict__["_message_id"] = reply.object_id
    head = message_to_proto(remove_content_from_message(reply))
    with no_object_id_recompute():
        request = PushAppMessagesRequest(messages_list=[head], message_object_trees=[get_object_tree(reply)])
        objects = get_all_nested_objects(reply)
        try:
            _bring(client, request, objects, context)
        except ObjectPushError:  # one came, and the answer to that did not
            _bring(client, request, objects, context)


def _bring(
    client: RuntimeHttpClient, request: PushAppMessagesRequest, objects: dict[str, InflatableObject], context: Context
) -> None:
    """Announce the reply and push those of its `objects` that the SuperNode has not."""
    pushed = client.PushMessages(request)
    push = make_push_object_fn_protobuf(
        client.PushObject, Node(node_id=context.node_id), context.run_id, pushed.session_id
    )
    push_objects(objects, push, object_ids_to_push=set(pushed.objects_to_push), keep_objects=True)


def _beat(
    client: RuntimeHttpClient, answered: threading.Event, lost: threading.Event, beat: Callable[[], None]
) -> None:
    """Keep the task's lease; `lost` is set once the SuperNode does not know the task any more."""
    while not answered.wait(HEARTBEAT_S):
        beat()
        try:
            if not client.SendTaskHeartbeat(SendTaskHeartbeatRequest()).success:
                lost.set()
        except httpx.HTTPError as error:
            if isinstance(error, httpx.HTTPStatusError) and error.response.is_client_error:
                lost.set()
            log.warning("heartbeat: %s", error)
