"""Persons who do not want to be learnt from: a list that the institution keeps, applied before anything is trained.

Their rows neither train nor are held out. Nobody is told how many they are: it shows in nothing but the sums.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sovfed.clients.data.files import unreadable
from sovfed.clients.data.tables.cells import names_of
from sovfed.federation.errors import DataError

if TYPE_CHECKING:
    from sovfed.clients.data import Indices
    from sovfed.federation.config import DataConfig

MAX_BYTES: Final = 1 << 28


def remaining(config: DataConfig, names: pa.ChunkedArray | None, *parts: Indices) -> tuple[Indices, ...]:
    """`parts`, which are numbers of rows, without the rows of persons on the list of `data.opt_out`.

    `names` are the persons of all rows. Raises DataError where the list, or who is a person, is not known.
    """
    if config.opt_out is None:
        return parts
    if names is None:
        raise DataError("data.opt_out names persons, and nothing says who is a person: set data.person")
    out = pc.is_in(names, value_set=_listed(Path(config.opt_out).expanduser()))
    left_out = np.asarray(out.combine_chunks().to_numpy(zero_copy_only=False), dtype=bool)
    return tuple(part[~left_out[part]] for part in parts)


def _listed(path: Path) -> pa.Array:
    """The persons in the file, one a line, as those of a table are compared; a file that is empty lists nobody."""
    try:
        if not path.is_file() or path.stat().st_size > MAX_BYTES:
            raise DataError(f"{path}: data.opt_out must be a file of at most {MAX_BYTES} bytes, one person a line")
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise unreadable(path, error) from error
    except UnicodeDecodeError:
        raise DataError(f"{path}: not UTF-8") from None
    stripped = [line.strip() for line in lines if line.strip()]
    return names_of(pa.array(stripped, pa.string()))[0]
