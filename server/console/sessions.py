"""Sessions of the console, in memory: whoever restarts it logs everybody out."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

IDLE_S: Final = 30 * 60.0
LONGEST_S: Final = 12 * 3600.0
MOST: Final = 256  # sessions; the oldest ends


@dataclass
class Session:
    """Who is logged in, by which password's digest, and the token that their forms must carry."""

    name: str
    digest: str
    csrf: str
    begun: float
    used: float


class Sessions:
    """Who is logged in, by the secret in their cookie. Safe to call from several threads."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._lock = clock, threading.Lock()
        self._sessions: dict[str, Session] = {}

    def begin(self, name: str, digest: str) -> str:
        """The secret of a new session of whoever has shown the password of `digest`."""
        token, now = secrets.token_urlsafe(32), self._clock()
        with self._lock:
            while len(self._sessions) >= MOST:
                del self._sessions[next(iter(self._sessions))]
            self._sessions[token] = Session(name, digest, secrets.token_urlsafe(32), now, now)
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
