"""What stands in front of every gRPC call of the registry: limits, the peer's certificate, deadlines, opaque errors.

gRPC itself checks the chain of a client's certificate, but knows no revocation list, and it would send the text of an
unexpected exception to the peer. `Guard` closes both gaps for every handler of a server, whoever wrote it: a peer gets
a status and a fixed sentence, and the reason stands in our log. gRPC also waits for a request for ever, parses it
before it asks anybody, and answers junk with the name of a Python class; so the registry's calls are read by `unary`.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import time
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Final, TypeAlias
from urllib.parse import unquote

import grpc
from google.protobuf.message import DecodeError

from sovfed.federation.errors import IdentityError, InvitationError
from sovfed.federation.identity import Trust
from sovfed.federation.wire.enrolment import TOLD

REFUSED: Final = "The registry refused this request."
BUSY: Final = "Too many requests; try again later."
MALFORMED: Final = "The registry could not read this request."
LATE: Final = "The request did not come in time."
MESSAGE_S: Final = 5.0  # from the call to its request
PER_SOURCE: Final = 8  # calls without a request that an address may have open
PER_INSTITUTION: Final = 64  # calls and lanes that an institution may have open at the lane port
FAILED: Final = "The registry met an error."
MAX_SOURCES: Final = 10_000  # addresses whose rate is remembered
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Behaviour: TypeAlias = Callable[[Any, Context], Coroutine[Any, Any, Any]]
log = logging.getLogger("sovfed.registry")


class RateLimit:
    """A token bucket for each source address: `rate_per_s` on average, `burst` at once."""

    def __init__(self, rate_per_s: float, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate_per_s, self._burst, self._clock = rate_per_s, burst, clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # source → (tokens left, when)

    def allow(self, source: str) -> bool:
        """Whether one more call from `source` is allowed now; counts it if so."""
        now = self._clock()
        tokens, when = self._buckets.pop(source, (float(self._burst), now))
        tokens = min(float(self._burst), tokens + (now - when) * self._rate_per_s)
        allowed = tokens >= 1.0
        self._buckets[source] = (tokens - 1.0 if allowed else tokens, now)
        if len(self._buckets) > MAX_SOURCES:
            self._buckets.popitem(last=False)
        return allowed


class Guard(grpc.aio.ServerInterceptor):
    """Admits a call if `trust` (where given) does, `PER_INSTITUTION` at a time, and keeps the text of errors at home.

    A call is judged when it opens; the lane, whose calls last, goes on judging. Handlers are coroutines that read and
    write through their context.
    """

    def __init__(self, *, trust: Trust | None = None) -> None:
        self._trust = trust
        self._open: Counter[str] = Counter()  # calls and lanes, by institution

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """The handler of the call, guarded. An unknown method has none, and gRPC answers UNIMPLEMENTED."""
        handler: Any = await continuation(handler_call_details)
        if handler is None:
            return None
        name = "_".join(
            "stream" if many else "unary" for many in (handler.request_streaming, handler.response_streaming)
        )
        behaviour = self._guarded(getattr(handler, name), handler_call_details.method)
        make = getattr(grpc, f"{name}_rpc_method_handler")
        guarded: Handler = make(behaviour, handler.request_deserializer, handler.response_serializer)
        return guarded

    def _guarded(self, inner: Behaviour, method: str) -> Behaviour:
        async def call(request: Any, context: Context) -> Any:
            try:
                async with self._admitted(context):
                    return await inner(request, context)
            except Exception as error:
                return await _hide(method, context, error)

        return call

    @asynccontextmanager
    async def _admitted(self, context: Context) -> AsyncIterator[None]:
        if self._trust is None:
            yield
            return
        institution = self._trust.verify_auth_context(context.auth_context()).institution
        if self._open[institution] >= PER_INSTITUTION:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, BUSY)
        self._open[institution] += 1
        try:
            yield
        finally:
            self._open[institution] -= 1
            if not self._open[institution]:
                del self._open[institution]


class Hall:
    """Calls whose request has not come. Over `most` of one address its own oldest is sent away, and nobody else's."""

    def __init__(self, most: int = PER_SOURCE) -> None:
        self._most = most
        self._waiting: dict[str, dict[asyncio.Timeout, None]] = {}  # in the order in which they came

    @contextmanager
    def wait(self, source: str, patience: asyncio.Timeout) -> Iterator[None]:
        """Be one of the calls of `source`, for as long as `patience` lasts."""
        calls = self._waiting.setdefault(source, {})
        if len(calls) >= self._most:
            oldest = next(iter(calls))
            del calls[oldest]
            oldest.reschedule(asyncio.get_running_loop().time())
        calls[patience] = None
        try:
            yield
        finally:
            calls.pop(patience, None)
            if not calls and self._waiting.get(source) is calls:
                del self._waiting[source]


def unary(
    behaviour: Behaviour, parse: Callable[[bytes], Any], hall: Hall, limit: RateLimit | None = None
) -> grpc.RpcMethodHandler[Any, Any]:
    """The handler of a call of one request and one reply: read within `MESSAGE_S`, counted by `limit`, then parsed."""

    async def answer(_: Any, context: Context) -> None:
        source = source_of(context.peer())
        try:
            async with asyncio.timeout(MESSAGE_S) as patience:
                with hall.wait(source, patience):
                    data = await context.read()
        except TimeoutError:
            await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, LATE)
        if limit is not None and not limit.allow(source):
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, BUSY)
        try:
            request = parse(data if isinstance(data, bytes) else b"\xff")
        except DecodeError:
            log.info("%s: a request that cannot be read", context.peer())
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, MALFORMED)
        reply = await behaviour(request, context)
        await context.write(reply.SerializeToString())

    handler: Handler = grpc.stream_stream_rpc_method_handler(answer)
    return handler


def source_of(peer: str) -> str:
    """The address of gRPC's `peer` without its port; of IPv6 the network (/64), which is what one subscriber has."""
    kind, _, authority = unquote(peer).partition(":")
    host = authority.rpartition(":")[0].strip("[]").partition("%")[0]
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return kind
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(ipaddress.ip_network((address, 64), strict=False))
    return str(address)


async def _hide(method: str, context: Context, error: Exception) -> None:
    """End the call with a fixed sentence; what a handler aborted with on purpose stands."""
    if isinstance(error, grpc.aio.AbortError):
        raise error
    if isinstance(error, grpc.aio.BaseError):  # of the transport: the call is over, and there is nobody to tell
        log.info("%s: the peer is gone", method)
        raise error
    if isinstance(error, IdentityError):
        log.warning("%s from %s: %s", method, context.peer(), error)
        if isinstance(error, InvitationError):
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, f"{TOLD}{error}")
        await context.abort(grpc.StatusCode.PERMISSION_DENIED, REFUSED)
    log.error("%s from %s", method, context.peer(), exc_info=error)
    await context.abort(grpc.StatusCode.INTERNAL, FAILED)
