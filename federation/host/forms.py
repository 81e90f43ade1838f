"""What a page of ours takes from a browser: forms of its own origin that are short, each answered once; few guesses."""

from __future__ import annotations

import contextlib
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from hmac import compare_digest
from ipaddress import IPv6Address, IPv6Network
from typing import TYPE_CHECKING, Final, Generic, TypeVar
from urllib.parse import parse_qs, urlsplit

if TYPE_CHECKING:
    from starlette.requests import Request

FORM_BYTES: Final = 8_192
FIELDS: Final = 16
HANDED_OUT: Final = 256  # forms that wait for an answer; the oldest is forgotten
FORM_S: Final = 30 * 60.0
TRIES: Final = 5  # wrong logins from an address in WINDOW_S
WINDOW_S: Final = 15 * 60.0
IPV6_BITS: Final = 64  # of an address, that stand for whoever has it
Shown = TypeVar("Shown")


class ForbiddenError(Exception):
    """Whoever asks may not do that."""


async def read_form(request: Request) -> dict[str, str]:
    """The fields of a form of this page. Raises ForbiddenError for another origin's, or one that is too long."""
    origin = request.headers.get("origin")
    if origin is not None and _host_of(origin) != request.headers.get("host", "").lower():
        raise ForbiddenError
    if request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        raise ForbiddenError
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > FORM_BYTES:
            raise ForbiddenError
    try:
        fields = parse_qs(body.decode("utf-8", "replace"), max_num_fields=FIELDS)
    except ValueError as error:
        raise ForbiddenError from error
    return {name: values[-1] for name, values in fields.items()}


def _host_of(origin: str) -> str:
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""


class Forms(Generic[Shown]):
    """Forms that were handed out, by a token that only their reader has, each good for one answer.

    What the reader was shown is kept here and not in the form. Safe to call from several threads.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._lock = clock, threading.Lock()
        self._forms: dict[str, tuple[float, Shown]] = {}

    def hand_out(self, shown: Shown) -> str:
        """The token of a form whose reader is `shown` that."""
        token = secrets.token_urlsafe(32)
        with self._lock:
            while len(self._forms) >= HANDED_OUT:
                del self._forms[next(iter(self._forms))]
            self._forms[token] = self._clock(), shown
        return token

    def take(self, token: str) -> Shown | None:
        """What the reader of the form with that `token` was shown; None if it is too old, answered already, or none."""
        with self._lock:
            form = self._forms.pop(token, None)
        return form[1] if form is not None and self._clock() - form[0] <= FORM_S else None


@dataclass
class Throttle:
    """Counts wrong tries by whoever makes them, an address or an officer's key: one that had too many waits.

    An account is not counted by its name where logins come from everywhere: anybody could lock it.

    A try counts as wrong from its beginning on, or many at once would all be let in.
    """

    clock: Callable[[], float] = time.monotonic
    _wrong: dict[str, deque[float]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def begin(self, address: str) -> float:
        """Count a login from `address` that is tried now, 0; or how long it has to wait."""
        address = _network(address)
        with self._lock:
            for other in [other for other in self._wrong if not self._recent(other)]:
                del self._wrong[other]
            times = self._wrong.setdefault(address, deque())
            if len(times) >= TRIES:
                return times[0] + WINDOW_S - self.clock()
            times.append(self.clock())
            return 0.0

    def right(self, address: str) -> None:
        """A login that was tried was right. Wrong ones before it stay: whoever has a password may guess another's."""
        with self._lock:
            if times := self._wrong.get(_network(address)):
                times.pop()

    def _recent(self, address: str) -> deque[float]:
        times = self._wrong.get(address, deque())
        while times and self.clock() - times[0] > WINDOW_S:
            times.popleft()
        return times


def _network(address: str) -> str:
    """`address`, or the network of an IPv6 address: whoever has one has them all."""
    with contextlib.suppress(ValueError):
        if (number := IPv6Address(address)).ipv4_mapped is None:
            return str(IPv6Network((number, IPV6_BITS), strict=False))
    return address


def same(given: str, expected: str) -> bool:
    """Whether two tokens are the same, in constant time; an empty one is none."""
    return bool(expected) and compare_digest(given.encode(), expected.encode())
