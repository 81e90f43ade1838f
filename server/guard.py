"""What stands in front of every gRPC call of the registry: a rate limit, the peer's certificate, opaque errors.

gRPC itself checks the chain of a client's certificate, but knows no revocation list, and it would send the text of an
unexpected exception to the peer. `Guard` closes both gaps for every handler of a server, whoever wrote it: a peer gets
a status and a fixed sentence, and the reason stands in our log.
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final, TypeAlias

import grpc

from sovfed.federation.errors import IdentityError
from sovfed.federation.identity import Trust

REFUSED: Final = "The registry refused this request."
BUSY: Final = "Too many requests; try again later."
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
        left, when = self._buckets.pop(source, (float(self._burst), now))
        left = min(float(self._burst), left + (now - when) * self._rate_per_s)
        allowed = left >= 1.0
        self._buckets[source] = (left - 1.0 if allowed else left, now)
        if len(self._buckets) > MAX_SOURCES:
            self._buckets.popitem(last=False)
        return allowed


class Guard(grpc.aio.ServerInterceptor):
    """Admits a call if `limit` and `trust` (each where given) do, and keeps the text of errors at home.

    A stream is judged when it opens; the lane, which has the only ones, goes on judging while they are open. Handlers
    are coroutines: a stream's read and write through their context.
    """

    def __init__(self, *, trust: Trust | None = None, limit: RateLimit | None = None) -> None:
        self._trust, self._limit = trust, limit

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
                if self._limit is not None and not self._limit.allow(context.peer().rpartition(":")[0]):
                    await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, BUSY)
                self._verify(context)
                return await inner(request, context)
            except Exception as error:
                return await _hide(method, context, error)

        return call

    def _verify(self, context: Context) -> None:
        if self._trust is not None:
            self._trust.verify_auth_context(context.auth_context())


async def _hide(method: str, context: Context, error: Exception) -> None:
    """End the call with a fixed sentence; what a handler aborted with on purpose stands."""
    if isinstance(error, grpc.aio.AbortError):
        raise error
    if isinstance(error, grpc.aio.BaseError):  # of the transport: the call is over, and there is nobody to tell
        log.info("%s: the peer is gone", method)
        raise error
    if isinstance(error, IdentityError):
        log.warning("%s from %s: %s", method, context.peer(), error)
        await context.abort(grpc.StatusCode.PERMISSION_DENIED, REFUSED)
    log.error("%s from %s", method, context.peer(), exc_info=error)
    await context.abort(grpc.StatusCode.INTERNAL, FAILED)
