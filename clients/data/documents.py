"""An institution's texts as documents: lines of JSON (plain or packed by xz), plain text files, or folders of these.

What is no document is never taken for one, nor passed over: another kind of file is refused where it is named, and
counted where it lies in a folder; a line that is no object of JSON is an error that names it. A folder's documents lie
in it: a symbolic link to another place is refused.
"""

from __future__ import annotations

import codecs
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from sovfed.clients.data.files import unreadable
from sovfed.clients.data.jsonl import SUFFIXES, Jsonl, object_in
from sovfed.clients.data.tables.words import is_nobody, person_name
from sovfed.clients.data.token_store import SIDES, Document
from sovfed.federation.errors import ConfigError, DataError

TEXT: Final = ".txt"
KINDS: Final = (*SUFFIXES, TEXT)
LONGEST: Final = 1 << 26  # bytes of a text file
KEYS: Final = 8  # keys of a line that an error names
MARKS: Final = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))


@dataclass(frozen=True)
class Keys:
    """Which keys of a line hold what ("": none does), and how a text that is not UTF-8 is written."""

    text: str = "text"
    name: str = "id"
    person: str = ""
    side: str = ""
    named: bool = False  # a line without a name is refused; else it is called by file and line
    encoding: str = ""

    def __post_init__(self) -> None:
        try:
            if self.encoding:
                "".encode(self.encoding)
        except (LookupError, ValueError):
            raise ConfigError(
                f"{self.encoding[:40]!a} is no text encoding; as cp1252, shift_jis or utf-16-le"
            ) from None


def documents_in(paths: Iterable[Path], keys: Keys) -> Iterator[Document]:
    """The documents of files and folders, folders' files in the order of their names. Raises DataError."""
    for path in paths:
        for file in _files(path):
            yield from _lines(file, keys) if _kind(file) != TEXT else [_plain(file, keys)]


def passed_over(paths: Iterable[Path]) -> dict[str, int]:
    """How many files of folders are no documents, by the ends of their names ("": none)."""
    files = (file for path in paths if path.is_dir() for file in path.rglob("*"))
    return dict(sorted(Counter(file.suffix.lower() for file in files if file.is_file() and not _kind(file)).items()))


def _kind(file: Path) -> str:
    return next((kind for kind in KINDS if file.name.lower().endswith(kind)), "")


def _files(path: Path) -> list[Path]:
    kinds = ", ".join(KINDS)
    if not path.is_dir():
        if not _kind(path):
            raise DataError(f"{path}: no document; expected {kinds}, or a folder. Of a table make lines of JSON")
        return [path]
    entries = sorted(path.rglob("*"))
    link = next((entry for entry in entries if entry.is_symlink() and (_kind(entry) or entry.is_dir())), None)
    if link is not None:
        raise DataError(f"{link}: a symbolic link, which may lead out of {path}: name what it leads to beside {path}")
    files = [file for file in entries if _kind(file) and file.is_file()]
    if not files:
        raise DataError(f"{path}: no {kinds} file in it")
    return files


def _plain(file: Path, keys: Keys) -> Document:
    for key in filter(None, (keys.person, keys.side)):
        raise DataError(f"{file}: a {TEXT} file has no key '{key}'; make lines of JSON of such documents")
    try:
        if file.stat().st_size > LONGEST:
            raise DataError(f"{file}: over {LONGEST} bytes; cut it into documents, a line of JSON each")
        text = _decoded(file.read_bytes(), keys.encoding, str(file))
    except OSError as error:
        raise unreadable(file, error) from error
    return Document(file.name, text.replace("\r\n", "\n").replace("\r", "\n"))


def _decoded(content: bytes, encoding: str, where: str) -> str:
    """The text of `content`: by its byte order mark, else UTF-8, else `encoding`. Raises DataError."""
    marked = next(((mark, name) for mark, name in MARKS if content.startswith(mark)), None)
    if marked is not None:
        kinds, content = [marked[1]], content[len(marked[0]) :]
    else:
        kinds = ["utf-8", *filter(None, [encoding])]
    for kind in kinds:
        try:
            text = content.decode(kind)
        except UnicodeError:
            continue
        if "\0" not in text:  # Western letters in UTF-16 are UTF-8 with zeros
            return text
    raise DataError(f"{where}: not {' or '.join(kinds)} text; --encoding says how it is written (cp1252, shift_jis, …)")


def _lines(file: Path, keys: Keys) -> Iterator[Document]:
    for number, line in Jsonl(file, ()).lines():
        where = f"{file}, line {number}"
        record = _record(line, keys.encoding, where)
        named = keys.named or keys.name in record
        name = _word(record, keys.name, where, "--id") if named else f"{file.name}:{number}"
        side = _word(record, keys.side, where, "--split") if keys.side else ""
        if keys.side and side not in SIDES:
            raise DataError(f"{where}: '{keys.side}' is none of {', '.join(SIDES)}")
        person = _person(record, keys.person, where) if keys.person else ""
        yield Document(name, _text(record, keys.text, where), person, side)


def _record(line: bytes, encoding: str, where: str) -> dict[str, Any]:
    if line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise DataError(f"{where}: UTF-16, in which lines of JSON cannot be told apart: save it as UTF-8")
    record = object_in(_decoded(line, encoding, where))
    if record is None:
        raise DataError(f"{where}: no object of JSON; each line must be a whole one, {{…}}")
    return record


def _text(record: dict[str, Any], key: str, where: str) -> str:
    """What `key` says, half a character as a question mark; null is an empty text. Raises DataError."""
    text = _value(record, key, where, "--text")
    if text is None:
        return ""
    if not isinstance(text, str):
        raise DataError(f"{where}: '{key}' is no text")
    return _unicode(text)


def _word(record: dict[str, Any], key: str, where: str, option: str) -> str:
    """What `key` says, a number as its digits. Raises DataError."""
    value = _value(record, key, where, option)
    if isinstance(value, bool) or not isinstance(value, (str, int)) or (isinstance(value, str) and not value.strip()):
        raise DataError(f"{where}: '{key}' is no word or number ({option})")
    return _unicode(str(value))


def _person(record: dict[str, Any], key: str, where: str) -> str:
    """The name of whose text it is, as names in tables are compared. Raises DataError where that is nobody."""
    name = person_name(_word(record, key, where, "--person"))
    if is_nobody(name):
        raise DataError(f"{where}: '{key}' names no person")
    return name


def _unicode(text: str) -> str:
    """JSON may hold halves of characters, which no text has."""
    return text.encode("utf-8", "replace").decode()


def _value(record: dict[str, Any], key: str, where: str, option: str) -> object:
    if key not in record:
        keys = ", ".join(repr(each[:40]) for each in list(record)[:KEYS])
        raise DataError(f"{where}: no key '{key}'; it has {keys or 'none'}: say which with {option}")
    return record[key]
