"""Persons who do not want to be learnt from: a list that the institution keeps, applied before anything is trained.

Their rows neither train nor are held out. Nobody is told how many they are: it shows in nothing but the sums. A list is
written by other hands than a table, and rather too many are left out than one too few: names are the same that differ
in letters' case, quotes, invisible characters or zeros before a number, and of a line with separators the first field
counts as well as the whole.
"""

from __future__ import annotations

import logging
import re
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sovfed.clients.data.files import unreadable
from sovfed.federation.errors import DataError

if TYPE_CHECKING:
    from sovfed.clients.data import Indices
    from sovfed.federation.config import DataConfig

log = logging.getLogger(__name__)
MAX_BYTES: Final = 1 << 28
_SEPARATORS: Final = re.compile(r"[,;\t|]")
_ZEROS: Final = re.compile(r"(?<![0-9])0+(?=[0-9])")  # before a number
_WHOLE: Final = re.compile(r"([+-]?[0-9]+)\.0*")  # as a whole number is written where numbers have a point
_AROUND: Final = "\"'`«»“”„‘’()[]<>.,;:|#*"


def remaining(config: DataConfig, names: pa.ChunkedArray | None, *parts: Indices) -> tuple[Indices, ...]:
    """`parts`, which are numbers of rows, without the rows of persons on the list of `data.opt_out`.

    `names` are the persons of all rows. Raises DataError where the list, or who is a person, is not known.
    """
    if config.opt_out is None:
        return parts
    if names is None:
        raise DataError("data.opt_out names persons, and nothing says who is a person: set data.person")
    listed = read_list(Path(config.opt_out).expanduser())
    out = pa.array([name for name in names.unique().to_pylist() if likeness(name) in listed], pa.string())
    if listed and not len(out):
        log.warning(
            "data.opt_out: no line of the list names anybody in these records; is it of the column data.person?"
        )
    left_out = np.asarray(pc.is_in(names, value_set=out).to_numpy(), dtype=bool)
    return tuple(part[~left_out[part]] for part in parts)


def read_list(path: Path) -> frozenset[str]:
    """The likenesses of the persons in the file, one a line; a file that is empty lists nobody. Raises DataError."""
    return frozenset[str]().union(*read_lines(path))


def read_lines(path: Path) -> list[frozenset[str]]:
    """The likenesses that each line of the file stands for, of lines that name somebody. Raises DataError."""
    try:
        if not path.is_file() or path.stat().st_size > MAX_BYTES:
            raise DataError(f"{path}: data.opt_out must be a file of at most {MAX_BYTES} bytes, one person a line")
        text = path.read_text(encoding="utf-8-sig")
    except PermissionError as error:
        raise DataError(
            f"{path}: the trainer may not read it; one that an editor has replaced it may after a restart, or in the "
            "folder of the records"
        ) from error
    except OSError as error:
        raise unreadable(path, error) from error
    except UnicodeDecodeError:
        raise DataError(f"{path}: not UTF-8") from None
    if "\0" in text:
        raise DataError(f"{path}: not UTF-8 text, it holds zero bytes")
    lines = re.split(r"[\r\n]+", text)
    likenesses = (frozenset(map(likeness, (line, *_SEPARATORS.split(line.strip())[:1]))) - {""} for line in lines)
    return [line for line in likenesses if line]


def likeness(name: str) -> str:
    """What `name` has in common with every other spelling of the same person; "" if there is no name in it."""
    stripped = _shown(name).removeprefix("urn:uuid:").removeprefix("patient/").strip(_AROUND)
    whole = _WHOLE.fullmatch(stripped)
    return _ZEROS.sub("", whole[1] if whole else stripped)


def _shown(name: str) -> str:
    """The letters of `name` that are seen, in small ones, with one kind of dash."""
    if name.isascii() and name.isprintable():
        return name.lower().replace(" ", "")
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
    kinds = [(letter, unicodedata.category(letter)) for letter in folded]
    return "".join("-" if kind == "Pd" else letter for letter, kind in kinds if kind[0] not in "CZ")
