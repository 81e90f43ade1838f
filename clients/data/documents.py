"""An institution's texts as documents: lines of JSON (plain or packed by xz), plain text files, or folders of these."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from sovfed.clients.data.files import unreadable
from sovfed.clients.data.jsonl import SUFFIXES, Jsonl
from sovfed.clients.data.token_store import SIDES, Document
from sovfed.federation.errors import DataError

TEXT: Final = ".txt"
LONGEST: Final = 1 << 26  # bytes of a text file


@dataclass(frozen=True)
class Keys:
    """Which keys of a line hold what; "": none does."""

    text: str = "text"
    name: str = "id"
    person: str = ""
    side: str = ""


def documents_in(paths: Iterable[Path], keys: Keys) -> Iterator[Document]:
    """The documents of files and folders, folders' files in the order of their names. Raises DataError."""
    for path in paths:
        for file in _files(path):
            yield from _lines(file, keys) if file.name.endswith(SUFFIXES) else [_plain(file)]


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    files = sorted(file for file in path.rglob("*") if file.name.endswith((*SUFFIXES, TEXT)) and file.is_file())
    if not files:
        raise DataError(f"{path}: no {', '.join((*SUFFIXES, TEXT))} file in it")
    return files


def _plain(file: Path) -> Document:
    try:
        if file.stat().st_size > LONGEST:
            raise DataError(f"{file}: over {LONGEST} bytes; cut it into documents, a line of JSON each")
        return Document(file.name, file.read_text(encoding="utf-8"))
    except OSError as error:
        raise unreadable(file, error) from error
    except UnicodeDecodeError:
        raise DataError(f"{file}: not UTF-8") from None


def _lines(file: Path, keys: Keys) -> Iterator[Document]:
    for number, line in Jsonl(file, ()).objects():
        where = f"{file}, line {number}"
        name = _word(line, keys.name, where) if keys.name in line else f"{file.name}:{number}"
        side = _word(line, keys.side, where) if keys.side else ""
        if keys.side and side not in SIDES:
            raise DataError(f"{where}: '{keys.side}' is none of {', '.join(SIDES)}")
        text = line.get(keys.text)
        if not isinstance(text, str):
            raise DataError(f"{where}: '{keys.text}' is no text")
        yield Document(name, _unicode(text), _word(line, keys.person, where) if keys.person else "", side)


def _word(line: dict[str, Any], key: str, where: str) -> str:
    """What `key` says, a number as its digits. Raises DataError."""
    value = line.get(key)
    if isinstance(value, bool) or not isinstance(value, (str, int)) or value == "":
        raise DataError(f"{where}: '{key}' is no word")
    return _unicode(str(value))


def _unicode(text: str) -> str:
    """JSON may hold halves of characters, which no text has."""
    return text.encode("utf-8", "replace").decode()
