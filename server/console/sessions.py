"""Sessions of the console, in memory: whoever restarts it logs everybody out. And how often a login may be tried."""

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
from typing import Final

IDLE_S: Final = 30 * 60.0
LONGEST_S: Final = 12 * 3600.0
MOST: Final = 256  # sessions; the oldest ends
TRIES: Final = 5  # wrong logins from an address in WINDOW_S
WINDOW_S: Final = 15 * 60.0
IPV6_BITS: Final = 64  # of an address, that stand for whoever has it


@dataclass
class Session:
    """Who is logged in, and the token that their forms must carry."""

    name: str
    csrf: str
    begun: float
    used: float


class Sessions:
    """Who is logged in, by the secret in their cookie. Safe to call from several threads."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._lock = clock, threading.Lock()
        self._sessions: dict[str, Session] = {}

    def begin(self, name: str) -> str:
        """The secret of a new session."""
        token, now = secrets.token_urlsafe(32), self._clock()
        with self._lock:
            while len(self._sessions) >= MOST:
                del self._sessions[next(iter(self._sessions))]
            self._sessions[token] = Session(name, secrets.token_urlsafe(32), now, now)
        return token

    def get(self, token: str) -> Session | None:
        """The session of `token`, if it is neither idle nor old; it is used by this."""
        now = self._clock()
        with self._lock:
            session = self._sessions.get(token)
            if session is None:
                return None
            if now - session.used > IDLE_S or now - session.begun > LONGEST_S:
                del self._sessions[token]
                return None
            session.used = now
            return session

    def end(self, token: str) -> None:
        with self._lock:
            self._sessions.pop(token, None)


@dataclass
class Throttle:
    """Counts wrong logins by address: one that had too many waits. A name is not locked: anybody could lock it.

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
