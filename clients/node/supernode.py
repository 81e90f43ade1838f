"""Flower's SuperNode in a process of ours: `python -m sovfed.clients.node.supernode --home H --config JSON`.

What differs from `flower-supernode`, all of it here and held by tests/clients/node/test_flower_contract.py:
  - process isolation with its secret, and the loopback secret on every request to the Runtime port;
  - our client certificate on the Fleet connection, the root pinned, TLS 1.3;
  - what one message may hold is bounded before it fills the memory, and how long its objects may fail to come;
  - the gateway gets a message when it is here whole, so that it never waits for one that does not come, and asks for it
    once: its request waits until there is one (`federation/wire/held.py`); asked again, it is told the same again;
  - a reply that is not here whole is given up, and the node goes on;
  - that a lane is joined is not told, since it is seen: a third of what an offer costs the agency;
  - the fixed sleeps are shortened (3 s and 0.5 s between looks), and so is the lease of a task whose executor died;
  - after a crash the node signs itself off first, or the SuperLink would refuse it for a minute as "still online";
  - Flower's SQL store is not imported;
  - whatever ends one of its threads ends the process, so that the supervisor starts a whole one.
The app bundle that the server sends lies in this process's memory; it is neither installed nor run (`executor.py`).
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
import time
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

from sovfed.clients.home.folder import NODE_ID, RUNTIME_SECRET, TASK_SECRET, check_enrolled, load_node_key
from sovfed.federation.config import ClientConfig
from sovfed.federation.errors import NotValidNowError, ProtocolError, ServiceError, SovfedError
from sovfed.federation.files import private_directory, read_bounded, read_private
from sovfed.federation.host.begin import begin
from sovfed.federation.host.leaving import leave
from sovfed.federation.host.processes import exit_code
from sovfed.federation.host.pulse import LOOP_S, Pulse, pulse_file
from sovfed.federation.host.settings import passed_settings
from sovfed.federation.schema import bind
from sovfed.federation.wire.flower_http import Presented, shorten_sleeps, use_client_certificate
from sovfed.federation.wire.held import Bell, Held
from sovfed.federation.wire.loopback import ensure_secret, require_secret
from sovfed.federation.wire.patience import patient
from sovfed.federation.wire.proxy import proxy_for

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import httpx
    import uvicorn
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from flwr.app import Message
    from flwr.proto.message_pb2 import ObjectTree
    from flwr.supercore.object_store import ObjectStore
    from flwr.supercore.protobuf.client import ProtobufClientInterceptor
    from flwr.supercore.retry import RetryInvoker, RetryState
    from flwr.supernode.nodestate import NodeStateFactory

LOOPBACK: Final = "127.0.0.1"
REPLY_SLEEP_S: Final = 0.05  # Flower: 0.5
PULL_SLEEPS_S: Final = (0.2, 1.0)  # Flower: 3; the pause grows while nothing comes
OBJECT_WAIT_S: Final = (0.05, 1.0)  # Flower: 1 to 10; while an object is still being uploaded to the SuperLink
TASK_LEASE_S: Final = 10  # Flower: 30; twice this without a heartbeat and the task counts as crashed
NOT_NOW: Final = ("certificate is not yet valid", "certificate has expired")  # OpenSSL's words
MAX_OBJECTS: Final = 100_000  # of one message
LANE: Final = "query.lane"  # Flower's type of an offer and of its answer
FEW: Final = 4  # objects, as of an offer: they are fetched over the connection that there is, one after the other
AT_ONCE: Final = 2  # objects of a larger message, as Flower
AWAY_S: Final = 5.0  # Flower: up to 20; longest pause between two tries to reach a SuperLink that is away
HELD_S: Final = 1.0  # a look that took so long was kept waiting by the SuperLink
ACQUIRE_TASK: Final = "/v1/runtime/acquire-task"
ACQUIRE_HOLD_S: Final = 15.0
UNKNOWN: Final = 401  # the SuperLink's answer to a node that is not registered
log = logging.getLogger("sovfed.supernode")


class PullPace:
    """How long to sleep between two looks for messages: briefly after one has come, longer when none does.

    `beat` is called with each pause, and tells who watches that the loop goes on.
    """

    def __init__(self, beat: Callable[[], None] = lambda: None) -> None:
        self._next_s, self._beat = PULL_SLEEPS_S[0], beat

    def idle_s(self) -> float:
        """The pause after a look that found nothing."""
        self._beat()
        pause, self._next_s = self._next_s, min(1.1 * self._next_s, PULL_SLEEPS_S[1])
        return pause

    def busy_s(self) -> float:
        """The pause while a reply is awaited, which also means that messages are coming."""
        self.soon()
        return REPLY_SLEEP_S

    def soon(self) -> None:
        """The next pause is the shortest."""
        self._beat()
        self._next_s = PULL_SLEEPS_S[0]


def adapt_flower(max_message_bytes: int, beat: Callable[[], None] = lambda: None) -> None:
    """Shorten the sleeps and the task lease, and bound every wait, in this process's Flower; its loop calls `beat`."""
    from flwr.supercore.corestate import in_memory_corestate
    from flwr.supernode import fleet_http_connection
    from flwr.supernode import start_client_internal as loop

    pace = PullPace(beat)
    shorten_sleeps(loop, {3: pace.idle_s, 0.5: pace.busy_s})
    vars(in_memory_corestate)["HEARTBEAT_DEFAULT_INTERVAL"] = TASK_LEASE_S
    vars(loop)["pull_objects"] = partial(pull_bounded, vars(loop)["pull_objects"], max_message_bytes)
    vars(loop)["_pull_and_store_message"] = partial(pull_or_push, vars(loop)["_pull_and_store_message"], pace)
    vars(loop)["_push_messages"] = partial(push_or_join, vars(loop)["_push_messages"])
    make_invoker = vars(fleet_http_connection)["make_simple_http_retry_invoker"]
    vars(fleet_http_connection)["make_simple_http_retry_invoker"] = partial(_beating, make_invoker, beat)


def leave_out_databases() -> None:
    """Have Flower's SQL store, and SQLAlchemy with it, not be imported: this node's state is in memory.

    Without effect where it is imported already. It would be a quarter of the process's memory.
    """
    unused = ModuleType("flwr.supercore.object_store.sql_object_store")
    vars(unused)["SqlObjectStore"] = None
    sys.modules.setdefault(unused.__name__, unused)


def _beating(make_invoker: Callable[[], RetryInvoker], beat: Callable[[], None]) -> RetryInvoker:
    """Flower's invoker of calls, which beats with each, also in vain; a SuperLink that is away is tried often."""

    def beating(told: Callable[[RetryState], None] | None) -> Callable[[RetryState], None]:
        def on_call(state: RetryState) -> None:
            beat()
            if told is not None:
                told(state)

        return on_call

    invoker = make_invoker()
    pauses = invoker.wait_gen_factory
    invoker.wait_gen_factory = lambda: (min(pause, AWAY_S) for pause in pauses())
    invoker.on_success, invoker.on_backoff = beating(invoker.on_success), beating(invoker.on_backoff)
    return invoker


def pull_or_push(
    pull_and_store: Callable[..., int | None], pace: PullPace | None = None, /, **parts: Any
) -> int | None:
    """Flower's `_pull_and_store_message`; 0 where no message came and a reply waits, so that Flower sends it now.

    Flower sends replies only after a message that it received whole. The reply to one whose run ended meanwhile is sent
    in the next one's place, and from then on every reply would wait for the message after it. What has not come whole
    is dropped, whatever Flower has left of it, and an app bundle that is here already is not fetched again.
    """
    state, started = parts["state"], time.monotonic()
    if (fetch := parts.get("get_fab")) is not None:
        parts["get_fab"] = lambda digest, run_id: state.get_fab(digest) or fetch(digest, run_id)
    pulled = pull_and_store(**parts)
    state.settle(whole=pulled is not None)
    if pace is not None and time.monotonic() - started > HELD_S:
        pace.soon()
    return 0 if pulled is None and state.holds_reply() else pulled


def push_or_join(push_messages: Callable[..., None], /, **parts: Any) -> None:
    """Flower's `_push_messages`, which takes replies from here; that a lane is joined is seen there, and not sent."""
    store, send = parts["object_store"], parts["send"]

    def send_or_join(reply: Message, tree: ObjectTree, seconds: float) -> tuple[set[str], str]:
        return (set(), "") if joins(store, reply, tree) else send(reply, tree, seconds)

    push_messages(**parts | {"send": send_or_join})


def joins(store: ObjectStore, head: Message, tree: ObjectTree) -> bool:
    """Whether the reply, whose objects are in `store`, says that an offered lane is joined, and nothing else."""
    from flwr.app import Message
    from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
    from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

    from sovfed.federation.messages import LaneReply
    from sovfed.federation.wire.flower import from_records

    ids = [node.object_id for node in iterate_object_tree(tree)]
    if head.metadata.message_type != LANE or len(ids) > FEW:
        return False
    whole = inflate_object_from_contents(tree.object_id, {name: store.get(name) or b"" for name in ids})
    if not isinstance(whole, Message) or not whole.has_content():
        return False
    with contextlib.suppress(ProtocolError):
        answer = from_records(whole.content)
        return isinstance(answer, LaneReply) and answer.accepted
    return False


def pull_bounded(
    pull_objects: Callable[..., dict[str, bytes]],
    max_message_bytes: int,
    object_ids: list[str],
    pull_object_fn: Callable[[str], bytes],
) -> dict[str, bytes]:
    """Flower's `pull_objects`, stopped when the message's objects exceed `max_message_bytes` in all, or stop coming.

    Raises ProtocolError then, at once if there are more than `MAX_OBJECTS`, and when the run is over; Flower drops the
    message, and its task with it. Until then the node takes no other message, of any run.
    """
    from flwr.supercore.run import RunNotRunningException

    if len(object_ids) > MAX_OBJECTS:
        raise ProtocolError(f"a message of {len(object_ids)} objects, at most {MAX_OBJECTS}")
    lock, total = threading.Lock(), 0

    def pull(object_id: str) -> bytes:
        nonlocal total
        content = pull_object_fn(object_id)
        with lock:
            total += len(content)
            if total > max_message_bytes:
                raise ProtocolError(f"a message of more than {max_message_bytes} bytes")
        return content

    try:
        return pull_objects(
            object_ids, patient(pull), initial_backoff=OBJECT_WAIT_S[0], backoff_cap=OBJECT_WAIT_S[1],
            max_concurrent_pulls=1 if len(object_ids) <= FEW else AT_ONCE,
        )  # fmt: skip
    except RunNotRunningException as error:  # no Exception, so that Flower would leave the task to wait for ever
        raise ProtocolError("the message's run is over") from error


def node_state(home: Path, bell: Bell | None = None) -> NodeStateFactory:
    """Flower's in-memory state of a SuperNode, as `whole_messages.py` keeps it; its node id is in `state/node_id`."""
    from flwr.supercore.object_store import ObjectStoreFactory
    from flwr.supernode.nodestate import NodeStateFactory

    from sovfed.clients.node.whole_messages import WholeMessages

    factory = NodeStateFactory(ObjectStoreFactory())
    factory.state_instance = WholeMessages(factory.objectstore_factory.store(), home / NODE_ID, bell or Bell())
    return factory


def serve_runtime(factory: NodeStateFactory, home: Path, port: int, bell: Bell) -> uvicorn.Server:
    """Serve the Runtime API on the loopback, behind the secret, in a thread. ServiceError if the port is taken.

    Who asks for a task is kept waiting until `bell` rings.
    """
    import uvicorn
    from flwr.supernode.main import create_app

    flower = create_app(factory, ensure_secret(home / TASK_SECRET).encode("ascii"))
    app = Held(flower, bell, ACQUIRE_TASK, lambda _: 0, ACQUIRE_HOLD_S)
    server = uvicorn.Server(
        uvicorn.Config(
            require_secret(app, ensure_secret(home / RUNTIME_SECRET)),
            host=LOOPBACK,
            port=port,
            access_log=False,
            log_config=None,
            lifespan="off",
            ws="none",
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=2,
        )
    )
    thread = threading.Thread(target=server.run, name="runtime", daemon=True)
    thread.start()
    while not server.started:
        thread.join(0.02)
        if not thread.is_alive():
            raise ServiceError(f"cannot serve the Runtime API on {LOOPBACK}:{port}; is the port taken?")
    return server


def sign_off(home: Path, address: str, root: bytes, key: EllipticCurvePrivateKey) -> None:
    """Deactivate the node that an earlier process of ours left online. Waits for the SuperLink if it is away.

    One that is not this key's, as where the home was enrolled anew or restored from a copy, is forgotten: the process
    ends as for a node that the agency does not know, and its next start is as the first.
    """
    import httpx
    from flwr.proto.fleet_pb2 import DeactivateNodeRequest
    from flwr.supercore.interceptors.http.runtime_version import RuntimeVersionHttpInterceptor
    from flwr.supercore.retry import make_simple_http_retry_invoker
    from flwr.supercore.run import RunNotRunningException
    from flwr.supernode.fleet_http_client import FleetHttpClient
    from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

    try:
        node_id = int((home / NODE_ID).read_text(encoding="ascii"))
    except (FileNotFoundError, ValueError):
        return  # the first start
    interceptors: list[ProtobufClientInterceptor] = [
        RuntimeVersionHttpInterceptor("SuperNode"),
        NodeAuthHttpInterceptor(key, key.public_key()),
    ]
    with FleetHttpClient.from_server_address(
        address, False, root, interceptors, retry_invoker=make_simple_http_retry_invoker()
    ) as client:
        try:
            client.DeactivateNode(DeactivateNodeRequest(node_id=node_id))
            log.info("signed off node %d, which had been left online", node_id)
        except httpx.HTTPStatusError as error:
            log.info("node %d was not online (status %d)", node_id, error.response.status_code)
        except KeyboardInterrupt as stopped:
            if _is_unknown(stopped):
                (home / NODE_ID).unlink(missing_ok=True)
            raise
        except RunNotRunningException as error:  # Flower's name for a 403
            raise ServiceError(f"{address} refuses this institution's certificate or node key") from error


def _is_unknown(stopped: KeyboardInterrupt) -> httpx.HTTPStatusError | None:
    """The answer of an agency that does not know the node, if Flower has interrupted its own process for that."""
    import httpx

    refused = stopped.__context__
    if isinstance(refused, httpx.HTTPStatusError) and refused.response.status_code == UNKNOWN:
        return refused
    return None


@contextlib.contextmanager
def in_words() -> Iterator[None]:
    """Raises NotValidNowError, naming the clock, where TLS says that the agency's certificate is not for this time.

    And ServiceError where the agency does not know this node, upon which Flower interrupts its own process.
    """
    import httpx

    try:
        yield
    except KeyboardInterrupt as stopped:
        if (refused := _is_unknown(stopped)) is None:
            raise
        raise ServiceError(
            f"{refused.request.url.netloc.decode()} does not know this institution's node (status {UNKNOWN}): the "
            "agency has removed it, or has lost its list; it can be admitted again (`sovfed server admit NAME` there)"
        ) from stopped
    except httpx.ConnectError as error:
        if not any(words in str(error) for words in NOT_NOW):
            raise
        raise NotValidNowError(
            f"the agency's certificate does not hold, and this machine's clock says {datetime.now(UTC):%F %T} UTC: one "
            f"of the two is wrong ({error})"
        ) from error


def serve(home: Path, config: ClientConfig, beat: Callable[[], None]) -> None:
    """Run the SuperNode until a signal or a failure; returns only after a failure, which Flower has logged.

    Its loop calls `beat` with each call to the SuperLink, in vain or not, and while it waits for a reply.

    Raises IdentityError if a key is missing, wrong or readable by others, NotValidNowError if a certificate, this
    institution's or the agency's, does not hold by this machine's clock.
    """
    from flwr.common.constant import ISOLATION_MODE_PROCESS
    from flwr.supernode.start_client_internal import start_client_internal

    from sovfed.clients.node.enrol import load_institution

    check_enrolled(home, datetime.now(UTC))
    identity = private_directory(home / "identity")
    private_directory(home / "state")
    key = load_node_key(identity / "node_key")
    read_private(identity / "key.pem")
    address = config.fleet_address or load_institution(home).fleet_address
    proxy = proxy_for(address, config.proxy, home)
    cert, own, roots = (identity / name for name in ("cert.pem", "key.pem", "root.pem"))
    use_client_certificate(Presented(cert, own, roots, proxy))
    root = read_bounded(identity / "root.pem")
    adapt_flower(config.max_message_bytes, beat)
    bell = Bell()
    factory = node_state(home, bell)
    server = serve_runtime(factory, home, config.runtime_port, bell)
    try:
        with in_words():
            sign_off(home, address, root, key)
            start_client_internal(
                state_factory=factory,
                server_address=address,
                node_config={},
                root_certificates=root,
                insecure=False,
                authentication_keys=(key, key.public_key()),
                isolation=ISOLATION_MODE_PROCESS,
                runtime_api_address=f"{LOOPBACK}:{config.runtime_port}",
                superexec_auth_secret=ensure_secret(home / TASK_SECRET).encode("ascii"),
                runtime_dependency_install=False,
            )
    finally:
        server.should_exit = True


def exit_with_any_thread() -> None:
    """End the process when a thread dies of an exception: Flower's heartbeat would stop and the node linger."""

    def end(failure: threading.ExceptHookArgs) -> None:
        log.error("thread %s failed", failure.thread and failure.thread.name, exc_info=failure.exc_value)
        logging.shutdown()
        os._exit(1)

    threading.excepthook = end


def main(arguments: list[str] | None = None) -> int:
    """Entry point. Exit codes 2 (configuration) and 3 (identity) are final, 1 is worth another start."""
    home, settings = begin("Flower's SuperNode with our certificate and secrets", arguments)
    exit_with_any_thread()
    leave_out_databases()
    loop = Pulse(pulse_file(home, "supernode")).start().watch("looking for messages", LOOP_S)
    try:
        serve(home, bind(ClientConfig, passed_settings(settings)), loop)
    except SovfedError as error:
        log.critical("%s", error)
        return exit_code(error)
    return 1


if __name__ == "__main__":
    leave(main)
