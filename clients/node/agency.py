"""Calls to the agency's registry: TLS pinned to our root, through a proxy where one is set, repeated until done."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final, TypeVar

import grpc

from sovfed.federation.errors import IdentityError, ServiceError
from sovfed.federation.files import read_bounded
from sovfed.federation.identity import read_pair
from sovfed.federation.wire import enrolment_pb2 as pb
from sovfed.federation.wire.bridge import grpc_options
from sovfed.federation.wire.enrolment import MAX_REGISTRY_BYTES, TOLD
from sovfed.federation.wire.proxy import proxy_for
from sovfed.federation.wire.reach import Pinned, UnreachableError, look

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

FIRST_POLL_S: Final = 0.1
LONGEST_POLL_S: Final = 10.0
CALL_TIMEOUT_S: Final = 10.0
NOT_SIGNED: Final = "the authority has not signed yet"
_RETRIED: Final = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
)
Reply = TypeVar("Reply")


def open_channel(
    home: Path, address: str, credentials: grpc.ChannelCredentials, max_bytes: int, proxy: str | None
) -> grpc.Channel:
    """A channel to `address`; `proxy` is `client.proxy`."""
    way = grpc_options(proxy_for(address, proxy, home))
    return grpc.secure_channel(address, credentials, (*way, ("grpc.max_receive_message_length", max_bytes)))


def mutual_channel(home: Path, address: str, proxy: str | None) -> grpc.Channel:
    """A channel that shows the institution's own certificate."""
    root = read_bounded(home / "identity" / "root.pem")
    credentials = grpc.ssl_channel_credentials(root, *read_pair(home / "identity"))
    return open_channel(home, address, credentials, MAX_REGISTRY_BYTES, proxy)


def ask(channel: grpc.Channel, method: str, request: Any, reply: type[Reply], action: str) -> Reply:
    """The reply to one call. Raises IdentityError if it is refused, ServiceError on any other failure."""
    call = channel.unary_unary(method, serialise, reply.FromString)  # type: ignore[attr-defined]
    try:
        answer: Reply = call(request, timeout=CALL_TIMEOUT_S)
    except grpc.RpcError as error:
        raise translated(error, action) from error
    return answer


def poll(
    channel: grpc.Channel, method: str, request: Any, timeout_s: float, action: str,
    why_not: Callable[[], str] = lambda: "", told: Callable[[str], None] = lambda _: None,
) -> pb.EnrolReply:  # fmt: skip
    """The reply that carries the certificate, asked for again until it comes; the waits grow.

    `told` is given what is waited for, each time it is something else; where the agency cannot be reached, `why_not`
    is asked for the reason.
    """
    call = channel.unary_unary(method, serialise, pb.EnrolReply.FromString)
    deadline, wait_s, last, said = time.monotonic() + timeout_s, FIRST_POLL_S, NOT_SIGNED, ""
    while True:
        try:
            reply: pb.EnrolReply = call(request, timeout=CALL_TIMEOUT_S)
            if reply.certificate:
                return reply
            last = NOT_SIGNED
        except grpc.RpcError as error:
            if error.code() not in _RETRIED:
                raise translated(error, action) from error
            last = why_not() or f"{error.code().name}: {error.details()}"
        if last != said:
            told(said := last)
        if time.monotonic() + wait_s > deadline:
            raise ServiceError(f"{action}: not done within {timeout_s:g} s ({last}); call again to go on waiting")
        time.sleep(wait_s)
        wait_s = min(wait_s * 1.5, LONGEST_POLL_S)


def why_not(home: Path, address: str, root: bytes, proxy: str | None) -> str:
    """Why `address` cannot be reached at the moment, with the fix; "" if it can.

    Raises ServiceError if waiting would not change it: a proxy's refusal, TLS that is looked into, a wrong clock.
    """
    try:
        look(address, Pinned(root.decode("ascii")), proxy_for(address, proxy, home))
    except UnreachableError as error:
        if not error.passing:
            raise ServiceError(f"{error}; {error.fix}") from error
        return f"UNAVAILABLE: {error}; {error.fix}"
    return ""


def translated(error: grpc.RpcError, action: str) -> IdentityError | ServiceError:
    """A refusal as IdentityError, anything else as ServiceError."""
    code = error.code()
    if code is grpc.StatusCode.PERMISSION_DENIED:
        details = error.details() or ""
        reason = details.removeprefix(TOLD) if details.startswith(TOLD) else "the reason stands in the agency's log"
        hint = "; if a newer invitation was made, this one is void" if action.startswith("enrolment") else ""
        return IdentityError(f"{action}: refused; {reason}{hint}")
    return ServiceError(f"{action}: {code.name}: {error.details()}")


def serialise(message: Any) -> bytes:
    """The bytes of a protobuf message."""
    data: bytes = message.SerializeToString()
    return data
