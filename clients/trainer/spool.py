"""Requests and replies as files in the home, for a trainer on another machine of a cluster that mounts the same home.

A Unix socket ends at its machine, and the trainer has no network: what both sides have is a folder, which no other user
may enter. Each file is a frame of the socket's (`clients/trainer/frames.py`), with all vectors in it, and whole once
it has its name.

    spool/requests/ID    written and removed by the gateway
    spool/replies/ID     written by the trainer, removed by the gateway
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import threading
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sovfed.clients.trainer.frames import frame_parts, from_frame
from sovfed.clients.trainer.socket import Service, reply_to
from sovfed.federation.errors import ProtocolError, ServiceError
from sovfed.federation.files import open_plain, private_directory
from sovfed.federation.messages import Reply, Request

if TYPE_CHECKING:
    from collections.abc import Iterable

log = logging.getLogger(__name__)
SPOOL: Final = Path("spool")
REQUESTS: Final = SPOOL / "requests"
REPLIES: Final = SPOOL / "replies"
AT_ONCE: Final = 4
_NAME: Final = re.compile(r"[0-9a-f]{32}")
_POLL_S: Final = (0.05, 1.0)  # first and longest pause between two looks; a request or a reply makes it short again


def make_folders(home: Path) -> None:
    """Make the spool in `home`, for this user alone. Raises ServiceError."""
    for folder in (SPOOL, REQUESTS, REPLIES):
        private_directory(home / folder)


def waiting(home: Path) -> list[str]:
    """The requests in `home` that nobody has answered yet, by name; none where there is no spool."""
    return sorted(_names(home / REQUESTS) - _names(home / REPLIES))


def _names(folder: Path) -> set[str]:
    with contextlib.suppress(FileNotFoundError):
        return {path.name for path in folder.iterdir() if _NAME.fullmatch(path.name)}
    return set()


def _write(folder: Path, name: str, parts: Iterable[bytes | memoryview]) -> None:
    """The file `name` in `folder`, which nobody sees before it is whole."""
    unfinished = folder / f".{name}"
    unfinished.unlink(missing_ok=True)
    # The other side may write here too: what it put in the way, as a link to a ledger, is never written through.
    with os.fdopen(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), "wb") as file:
        file.writelines(parts)
    unfinished.rename(folder / name)


def _read(path: Path, most_bytes: int) -> bytes:
    """Raises ProtocolError for a file of more than `most_bytes`, OSError for a link or a pipe."""
    with open_plain(path) as file:
        data = file.read(most_bytes + 1)
    if len(data) > most_bytes:
        raise ProtocolError(f"{path}: expected at most {most_bytes} bytes")
    return data


class SpoolServer:
    """Answers what lies in the spool of `home` until `stop`; each request once, at most four at a time."""

    def __init__(self, service: Service, home: Path, most_bytes: int) -> None:
        make_folders(home)
        self._service, self._home, self._most_bytes = service, home, most_bytes
        self._stop, self._lock = threading.Event(), threading.Lock()
        self._busy: set[str] = set()
        self._last = time.monotonic()
        self._thread = threading.Thread(target=self._watch, name="spool", daemon=True)
        self._thread.start()

    def idle_s(self) -> float:
        """Seconds since the last request was answered; 0 while one is."""
        with self._lock:
            return 0.0 if self._busy else time.monotonic() - self._last

    def stop(self, grace_s: float) -> None:
        """Take no further request; those in work have `grace_s`, and are asked again of the next trainer."""
        self._stop.set()
        self._thread.join()
        deadline = time.monotonic() + grace_s
        while self.idle_s() == 0.0 and time.monotonic() < deadline:
            time.sleep(_POLL_S[0])

    def _watch(self) -> None:
        pause = _POLL_S[0]
        while not self._stop.wait(pause):
            try:
                started = self._start_waiting()
            except OSError as error:  # a share that is away comes back
                log.warning("the spool cannot be read: %s", error)
                started = False
            pause = _POLL_S[0] if started else min(1.5 * pause, _POLL_S[1])

    def _start_waiting(self) -> bool:
        started = False
        for name in waiting(self._home):
            with self._lock:
                if name in self._busy or len(self._busy) >= AT_ONCE:
                    continue
                self._busy.add(name)
            # A daemon: a job that must end does not wait for an hour's training.
            threading.Thread(target=self._answer, args=(name,), name="spooled", daemon=True).start()
            started = True
        return started

    def _answer(self, name: str) -> None:
        request = self._home / REQUESTS / name
        try:
            reply = frame_parts(reply_to(self._service, _read(request, self._most_bytes)))
            if request.exists():  # else nobody waits for it any more
                _write(self._home / REPLIES, name, reply)
        except (OSError, ProtocolError) as error:
            log.warning("request %s could not be answered: %s", name, error)
        finally:
            with self._lock:
                self._busy.discard(name)
                self._last = time.monotonic()


class SpoolStub:
    """The trainer behind the spool, as seen by the gateway. Safe for use from several threads; one a home."""

    def __init__(self, home: Path, most_bytes: int, timeout_s: float) -> None:
        """`timeout_s` bounds one answer, with the wait for a job to start. What a gateway left before is removed."""
        make_folders(home)
        self._home, self._most_bytes, self._timeout_s = home, most_bytes, timeout_s
        self._closed = threading.Event()
        for folder in (home / REQUESTS, home / REPLIES):
            for path in folder.iterdir():
                path.unlink(missing_ok=True)

    def answer(self, request: Request) -> Reply:
        """The trainer's reply, whichever job gives it: repeats are harmless.

        Raises ServiceError when `timeout_s` has passed or a file cannot be written, ProtocolError on a malformed reply.
        """
        name = uuid.uuid4().hex
        try:
            _write(self._home / REQUESTS, name, frame_parts(request))
            reply = from_frame(self._wait_for(self._home / REPLIES / name))
        except OSError as error:
            raise ServiceError(f"{self._home / SPOOL}: {error.strerror}") from error
        finally:
            for folder in (REQUESTS, REPLIES):
                with contextlib.suppress(OSError):
                    (self._home / folder / name).unlink()
        if not isinstance(reply, Reply):
            raise ProtocolError(f"the trainer answered with a {type(reply).__name__}")
        return reply

    def _wait_for(self, path: Path) -> bytes:
        deadline, pause = time.monotonic() + self._timeout_s, _POLL_S[0]
        while time.monotonic() < deadline:
            with contextlib.suppress(FileNotFoundError):
                return _read(path, self._most_bytes)
            if self._closed.wait(pause):
                raise ServiceError(f"{path}: closed while the trainer worked")
            pause = min(1.2 * pause, _POLL_S[1])
        raise ServiceError(f"{path}: no job has answered within {self._timeout_s:g} s")

    def close(self) -> None:
        """A waiting `answer` fails."""
        self._closed.set()
