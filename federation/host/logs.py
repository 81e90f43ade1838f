"""What our processes log, and how their supervisor keeps it: one line a record, not to be forged, flooded or steered.

A child's formatter escapes what would end a line or steer a terminal, and indents tracebacks, so that a line which
begins with a level was written by us. The supervisor escapes once more what it copies, counts lines that repeat, and
bounds the rate: refusals are what the other side can cause at will, and must not turn the log over.
"""

from __future__ import annotations

import contextlib
import json
import logging
import logging.handlers
import os
import re
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

from sovfed.federation.text import visible

if TYPE_CHECKING:
    from types import TracebackType

LOG_BYTES: Final = 10_000_000
LOG_FILES: Final = 3  # beside the newest
MESSAGE_LENGTH: Final = 4_000
REPEATS: Final = 5  # of the same line in a window; the rest are counted
WINDOW_S: Final = 60.0
KIND: Final = (1_000_000, 1_000.0)  # bytes at once, bytes a second: of lines that begin alike
TOTAL: Final = (8_000_000, 2_000.0)  # of all lines: whoever floods needs more than four hours for 40 MB
MOST: Final = 4_096  # lines, or beginnings of lines, kept in mind
CHATTY: Final = ("httpx", "httpcore", "mlflow", "alembic")  # at INFO, a line for each call
_LINE: Final = re.compile(  # as `log_to_stderr` has it, with a coordinator's own time or without
    r"(?:\S+ \S+ )?(?P<level>DEBUG|INFO|WARNING|ERROR|CRITICAL) (?P<logger>[\w.]+): (?P<message>.*)"
)
_STAMP: Final = 28  # bytes that the time adds to a line


class OneLine(logging.Formatter):
    """A record as one line that nothing in it can break; a traceback stands indented under it."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 (logging's name, as below)
        text = visible(record.message, keep="")
        more = len(text) - MESSAGE_LENGTH
        record.message = text if more <= 0 else f"{text[:MESSAGE_LENGTH]}… ({more} characters more)"
        return super().formatMessage(record)

    def formatException(self, ei: Any) -> str:  # noqa: N802
        return _indented(super().formatException(ei))

    def formatStack(self, stack_info: str) -> str:  # noqa: N802
        return _indented(super().formatStack(stack_info))


class JsonRecord(OneLine):
    """A record as one JSON object: `time` (UTC), `level`, `logger`, `message`, and `traceback` if there is one."""

    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        told = {"time": f"{stamp}.{int(record.msecs):03d}Z", "level": record.levelname, "logger": record.name}
        told["message"] = visible(record.getMessage(), keep="")[:MESSAGE_LENGTH]
        if record.exc_info:
            told["traceback"] = self.formatException(record.exc_info)
        return json.dumps(told)


class _Plain(logging.LogRecord):
    def getMessage(self) -> str:  # noqa: N802
        return visible(super().getMessage(), keep="")


def log_to_stderr(form: str = "%(levelname)s %(name)s: %(message)s") -> None:
    """Have this process log to stderr from INFO on, and its last exception too; libraries that chatter from WARNING."""
    logging.setLogRecordFactory(_Plain)  # libraries with handlers of their own, as Flower
    flower = logging.getLogger("flwr")
    flower.addHandler = _ignore  # type: ignore[method-assign, assignment]  # it adds a coloured one when imported
    handler = logging.StreamHandler(sys.stderr)
    handler.setLevel(logging.INFO)
    handler.setFormatter(OneLine(form) if form != "json" else JsonRecord())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)
    sys.excepthook = _log_last


def _ignore(_: logging.Handler) -> None:
    """Flower's lines go where ours go."""


def _log_last(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    logging.getLogger("sovfed").critical("ended by an exception", exc_info=(kind, error, trace))


def _indented(text: str) -> str:
    return "\n".join(f"    {visible(line)}" for line in text.split("\n"))


@dataclass
class _Bucket:
    """Lets `burst` bytes through at once and `rate` bytes a second."""

    burst: float
    rate: float
    left: float = field(init=False)
    at: float = 0.0

    def __post_init__(self) -> None:
        self.left = self.burst

    def take(self, size: int, now: float) -> bool:
        self.left = min(self.burst, self.left + (now - self.at) * self.rate)
        self.at = now
        if size > self.left:
            return False
        self.left -= size
        return True


class Thinning:
    """Which of a process's lines are kept: all of a calm process, and of a flood what tells what it was."""

    def __init__(self) -> None:
        self._seen: dict[str, int] = {}
        self._kinds: dict[str, _Bucket] = {}
        self._total = _Bucket(*TOTAL)
        self._left_out, self._since = 0, 0.0

    def admit(self, line: str, now: float) -> list[str]:
        """What to write as `line` comes at `now` (monotonic seconds): tallies that are due, and the line or not."""
        lines = self.due(now, early=len(self._seen) >= MOST)
        count = self._seen[line] = self._seen.get(line, 0) + 1
        if count > REPEATS:
            return lines
        if len(self._kinds) >= MOST:
            self._kinds.clear()
        kind = self._kinds.setdefault(_beginning(line), _Bucket(*KIND))
        size = len(line) + _STAMP
        if kind.take(size, now) and self._total.take(size, now):
            return [*lines, line]
        self._left_out += 1
        return lines

    def due(self, now: float, *, early: bool = False) -> list[str]:
        """The tallies of a window that is over."""
        if now - self._since < WINDOW_S and not early:
            return []
        lines = []
        for line, count in self._seen.items():
            if count > REPEATS:
                tally = f"… repeated {count - REPEATS} times: {line[:200]}"
                if self._total.take(len(tally) + _STAMP, now):
                    lines.append(tally)
                else:
                    self._left_out += 1
        if self._left_out:
            lines.append(f"… {self._left_out} more lines are left out, which came too fast")
        self._seen, self._left_out, self._since = {}, 0, now
        return lines


def _beginning(line: str) -> str:
    """What lines of one kind have in common: level, logger and the first words."""
    head, colon, message = line.partition(": ")
    beginning = f"{head[:60]}{message[:8]}" if colon else line[:32]
    return "".join("0" if character.isdigit() else character for character in beginning)


class Log:
    """A child's lines in a file of mode 0600, rotated by size, thinned, each with the time in UTC."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic, form: str = "text") -> None:
        self.path = path
        path.touch(mode=0o600)
        self._clock, self._thinning, self._lock = clock, Thinning(), threading.Lock()
        self._handler = _Private(path, maxBytes=LOG_BYTES, backupCount=LOG_FILES, delay=True)
        formatter = logging.Formatter("%(asctime)s.%(msecs)03dZ %(message)s", "%Y-%m-%dT%H:%M:%S")
        formatter.converter = time.gmtime
        self._handler.setFormatter(formatter if form == "text" else JsonLine(path.stem))

    def write(self, line: str) -> None:
        with self._lock:
            self._put(self._thinning.admit(visible(line), self._clock()))

    def tick(self) -> None:
        """Write the tallies that are due, though no line came since."""
        with self._lock:
            self._put(self._thinning.due(self._clock()))

    def close(self) -> None:
        with self._lock:
            self._put(self._thinning.due(self._clock(), early=True))
            self._handler.close()

    def tail(self, count: int = 15) -> str:
        return "\n".join(self.path.read_text(errors="replace").splitlines()[-count:])

    def _put(self, lines: list[str]) -> None:
        for line in lines:
            lost = self._handler.lost
            self._handler.handle(logging.makeLogRecord({"msg": line}))
            if lost and self._handler.lost == lost:  # there is room again
                self._handler.lost = 0
                self._handler.handle(logging.makeLogRecord({"msg": f"… {lost} lines could not be written"}))


class JsonLine(logging.Formatter):
    """A line of `process` as one JSON object: `time` (UTC), `process`, `level`, `logger`, `message`.

    A line that no logger wrote, as of a traceback, has neither level nor logger.
    """

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        told = {"time": f"{stamp}.{int(record.msecs):03d}Z", "process": self._process}
        line = record.getMessage()
        parsed = _LINE.fullmatch(line)
        return json.dumps(told | (parsed.groupdict() if parsed else {"message": line}))


class _Private(logging.handlers.RotatingFileHandler):
    """A rotating file that is the owner's alone, whatever the umask. What cannot be written is counted in `lost`."""

    lost = 0

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        if not self.lost:
            with contextlib.suppress(OSError):  # the supervisor's own log may lie on that disk
                sys.stderr.write(f"warning: {self.baseFilename} cannot be written: {sys.exc_info()[1]}\n")
        self.lost += 1

    def _open(self) -> IO[Any]:  # type: ignore[override]
        def private(path: str, flags: int) -> int:
            return os.open(path, flags, 0o600)

        return open(self.baseFilename, self.mode, encoding="utf-8", errors="backslashreplace", opener=private)
