"""CSV as institutions export it: whatever separator, encoding and decimal mark; a file, or a folder of one a site."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sovfed.clients.data.tables.connect import connector, file_of
from sovfed.clients.data.tables.delimited import Delimited

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sovfed.federation.config import DataConfig

SUFFIXES: Final = (".csv", ".tsv", ".txt")


def open_csv(config: DataConfig, names: Iterable[str]) -> Delimited:
    """The configured site's file. Raises DataError."""
    return Delimited(file_of(config, SUFFIXES), config, names)


CONNECTOR: Final = connector(open_csv, SUFFIXES, reads=())
