"""Text from elsewhere: which names may be given, and how anything else is shown in a log or on a terminal."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
import unicodedata
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote

if TYPE_CHECKING:
    from sovfed.federation.errors import SovfedError

NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*", re.ASCII)  # of runs, tasks, grants: no path, no log line
AT: Final = "@"  # between a task's name and its digest
LEAST_DIGEST: Final = 32  # digits of a digest beside a name: no two tasks can be made that share as many
DIGEST: Final = re.compile(rf"[0-9a-f]{{{LEAST_DIGEST},64}}")
NAME_LENGTH: Final = 128  # of what a message carries
SHORTEST_SECRET: Final = 3  # shorter words would be found everywhere
NAME_IN_WORDS: Final = "of A-Z, a-z, 0-9, '.', '_' and '-', not beginning with '.' or '-'"
_USER: Final = re.compile(r"(\w+://)[^\s'\"]*@")  # a password may hold all but '@'
_QUERY: Final = re.compile(r"(\w+://[^\s'\"?]*)\?[^\s'\"]*")
ARCHIVE: Final = ".sovtask"  # how the name of a task's archive ends
LAST_MOMENT: Final = 253_402_300_799  # seconds since 1970: the last of the year 9999, with which calendars end
_PLAINLY: Final = {  # what our own output says beyond ASCII, for a terminal that cannot show it
    "–": "-", "…": "...", "ε": "epsilon", "δ": "delta", "σ": "sigma", "Σ": "sum", "√": "sqrt", "∞": "inf", "·": "*",
    "×": "x", "±": "+-", "≤": "<=", "≥": ">=", "≈": "~", "→": "->", "←": "<-", "✓": "ok", "✗": "x", "•": "*", "“": '"',
    "”": '"', "‘": "'", "’": "'", "²": "^2", "µ": "u", "μ": "mu", "λ": "lambda", "░": " ", "█": "#",
}  # fmt: skip
_UNSEEN: Final = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)
_STEERING: Final = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})  # control, bidirectional, line ends


def names_task(entry: str, name: str, digest: str) -> bool:
    """Whether `entry`, a name or NAME@DIGEST, is the task of that name and digest."""
    task_name, at, prefix = entry.partition(AT)
    return task_name == name and (not at or (len(prefix) >= LEAST_DIGEST and digest.startswith(prefix)))


def steers(text: str) -> bool:
    """Whether `text` holds a character that moves a cursor, ends a line, hides or turns what stands beside it, or is
    itself not seen though it is a letter: two words would look the same.
    """
    if _UNSEEN.search(text):
        return True
    return not text.isprintable() and any(unicodedata.category(character) in _STEERING for character in text)


def visible(text: str, keep: str = "\t") -> str:
    r"""`text` with every steering character but those in `keep` written as its escape: ESC becomes `\x1b`."""
    if text.isprintable():
        return text
    return "".join(
        character.encode("unicode_escape").decode("ascii")
        if unicodedata.category(character) in _STEERING and character not in keep
        else character
        for character in text
    )


def in_other_words(error: UnicodeError) -> tuple[str, int]:
    """An error handler of `codecs`: what an encoding lacks in ASCII, else as its escape. It never fails to encode."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    words = (_PLAINLY.get(character) or _drawn(character) for character in text)
    return "".join(words), error.end


def _drawn(character: str) -> str:
    """A line of a table or a bar by one of ASCII, anything else as its escape."""
    name = unicodedata.name(character, "")
    if name.startswith("BOX DRAWINGS"):
        return "|" if "VERTICAL" in name and "HORIZONTAL" not in name else "-" if name.endswith("HORIZONTAL") else "+"
    return character.encode("ascii", "backslashreplace").decode("ascii")


def plain_name(text: str) -> str:
    """`text` itself if it is a name of a run; else a name made of it, another for every text."""
    if NAME.fullmatch(text) and len(text) <= NAME_LENGTH:
        return text
    digest = hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:16]
    return re.sub(r"[^A-Za-z0-9_]+", "-", f"{text[:40]}-{digest}").lstrip("-")


def without_credentials(text: str) -> str:
    """`text` with neither user, password nor query in any URI: what may be stored, logged or shown of it."""
    return _QUERY.sub(r"\1", _USER.sub(r"\1", text))


def conceal(text: str, uri: str) -> str:
    """`text` without the credentials of any URI, and without those of `uri` however they are quoted there."""
    shown = without_credentials(uri)
    words = set(re.split(r"[:@/?&=#\s]+", f"{uri} {unquote(uri)}")) - set(re.split(r"[:@/?&=#\s]+", shown))
    for word in sorted(words, key=len, reverse=True):
        if len(word) >= SHORTEST_SECRET:
            text = text.replace(word, "***")
    return without_credentials(text)


def cell(text: str) -> str:
    """`text` for a table or line of rich: nothing in it steers the terminal or is taken for markup."""
    from rich.markup import escape

    return escape(visible(text, keep=""))


def to_base64(data: bytes) -> str:
    """`data` in base64, without line breaks (RFC 4648, section 4)."""
    return base64.b64encode(data).decode("ascii")


def from_base64(text: str, where: str, error: type[SovfedError]) -> bytes:
    """What `text` encodes. Raises `error`, naming `where`, unless it is in the one spelling that `to_base64` writes."""
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as problem:
        raise error(f"{where}: not base64") from problem
    if to_base64(data) != text:
        raise error(f"{where}: base64 in another spelling")
    return data


def json_object(data: bytes | str, where: str, error: type[SovfedError], most: int) -> dict[str, Any]:
    """The JSON object that `data` spells, which somebody else wrote.

    Raises `error`, naming `where`, and nothing else: on over `most` bytes, on another value, on one that is nested too
    deep to be read, on bytes that are no text, on NaN and infinities.
    """
    if len(data) > most:
        raise error(f"{where}: {len(data)} bytes, at most {most} are read")
    try:
        values: Any = json.loads(data, parse_constant=_no_number)
    except (ValueError, RecursionError) as problem:
        raise error(f"{where}: not JSON") from problem
    if not isinstance(values, dict):
        raise error(f"{where}: not a JSON object")
    return values


def _no_number(name: str) -> float:
    raise ValueError(name)


def day(moment: float, form: str = "%F %R UTC") -> str:
    """A moment (s since 1970) in UTC, for people; one that no calendar has says so, since anybody may have named it."""
    try:
        return f"{datetime.fromtimestamp(moment, UTC):{form}}"
    except (ValueError, OverflowError, OSError):
        return "on no day that there is"
