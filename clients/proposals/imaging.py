"""A column that names images beside its table: their shape, by the heads of some."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

from sovfed.clients.data.pictures import DICOM, PLAIN, shape_of
from sovfed.clients.proposals.guesses import CONFIRM, Seen, absent

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

LOOKED_AT: Final = 200  # files of a table
MOSTLY: Final = 0.9  # of the cells


def pictured(tables: Sequence[tuple[Path, Sequence[str]]]) -> Seen | None:
    """What a column is whose cells name image files, each table's in its folder; None if they do not."""
    present = [(folder, [cell for cell in cells if not absent(cell)]) for folder, cells in tables]
    names = [cell.lower() for _, cells in present for cell in cells]
    if not names or sum(name.endswith((*PLAIN, *DICOM)) for name in names) < MOSTLY * len(names):
        return None
    shapes = Counter(shape_of(folder, name) for folder, cells in present for name in cells[:LOOKED_AT])
    missing = shapes.pop(None, 0)
    if not shapes:
        return Seen("", "it names images, and none of them lies beside the table")
    (shape, count), *others = shapes.most_common()
    told = [f"{missing} of the images looked at are missing or no PNG, JPEG or DICOM of 8 bits"] if missing else []
    if others:
        more = sum(number for _, number in others)
        told.append(f"{more} of {count + more} images looked at have another size or colours: bring all to one before")
    return Seen("image", values={"shape": shape}, note=f"{CONFIRM}: channels, height, width", told=tuple(told))
