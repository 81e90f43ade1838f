"""Which column of a table is which column of a schema, and which one says who a person is."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sovfed.clients.data.tables.report import COLUMNS, did_you_mean
from sovfed.clients.data.tables.words import fold
from sovfed.federation.errors import DataError
from sovfed.federation.tasks.columns import REFUSE
from sovfed.federation.text import visible

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sovfed.federation.config import DataConfig
    from sovfed.federation.tasks.columns import Column, Schema

MOST_NAMED: Final = 40  # of the task's columns, if a header lacks them
OWN_NAMES: Final = "; of columns that it has by other names: columns: {COLUMN: OWN NAME} in the file of data.mapping"
PERSON: Final = "person"  # the column's name where neither data.person nor the task's schema gives one
ROW: Final = "row"  # as data.person: each row is another person
_NUMBER: Final = "(id|no|nr|num|number|nummer|key|code|identifier|hash)"
_LIKE_PERSON: Final = re.compile(
    rf"(patient|person|subject|participant|proband)(en|in|innen)?([ _.-]*{_NUMBER})?"
    rf"|(member|client|case|insured|pseudonym|versicherten|fall|pat)[ _.-]*{_NUMBER}"
    r"|p?id|mrn|pseudonym|ehr[ _-]*id|nhs[ _-]*(no|number)?|ssn|hn|medical[ _-]*record[ _-]*(no|number)?|empi|kvnr"
    r"|患者(id|番号)?"
)
_LIKE_CASE: Final = re.compile(r"(case|fall)[ _.-]?.*")  # which a person may have several of


@dataclass(frozen=True)
class Places:
    """Where in a table's header a schema's columns stand."""

    columns: Mapping[str, tuple[int, ...]]  # of each column of the schema, of a shape one a value
    person: int | None = None
    site: int | None = None
    declared: bool = False  # whether schema or settings say who is a person
    suspects: tuple[str, ...] = ()  # columns that look like a person's, though none is declared

    @property
    def wanted(self) -> list[int]:
        """Every column that is read, each once."""
        places = {position for positions in self.columns.values() for position in positions}
        return sorted(places | {position for position in (self.person, self.site) if position is not None})

    @property
    def not_private(self) -> str:
        """Why no private run may use the table, or ""."""
        if self.declared:
            return ""
        looks = ""
        if self.suspects:
            looks = f"; column {_listed(self.suspects)} looks like one: if it is, set data.person={self.suspects[0]}"
        return (
            f"nothing says whose a row is: there is no column '{PERSON}'{looks}. Name the column of persons with "
            f"data.person, or, if each row is another person, declare that with data.person={ROW}"
        )


def locate(
    schema: Schema, header: Sequence[str], config: DataConfig, where: str, *,
    targets: bool = True, files: bool = False, renamed: Mapping[str, str] | None = None,
) -> Places:  # fmt: skip
    """Find the schema's columns in `header`, whatever the case of its letters. Raises DataError.

    `renamed` gives the header's own word for a column of the schema. With `files` a column of images holds the names
    of files. Without `targets` what is learnt need not be there.
    """
    index = Index(header, where)
    columns: dict[str, tuple[int, ...]] = {}
    lacking: list[Column] = []
    for column in schema.columns:
        if column.role == "target" and not targets:
            continue
        places = _of(column, index, (renamed or {}).get(column.name), files=files)
        columns[column.name] = tuple(position for position in places if position is not None)
        if None in places:
            lacking.append(column)
    if lacking:
        raise DataError(index.lacks([column.name for column in lacking]) + _unmeasured(lacking))
    site = index.demand(config.site_column, "data.site_column") if config.site_column else None
    person, declared = _person(schema, config, index, "data.person" if targets else "--id")
    used = {position for positions in columns.values() for position in positions} | {site}
    unused = [name for position, name in enumerate(header) if position not in used]
    suspects = () if person is not None else tuple(like_persons(unused))
    if suspects and config.person != ROW:  # a task cannot know whose a row of this table is
        declared = False
    return Places(columns, person, site, declared, suspects)


def like_persons(names: Sequence[str]) -> list[str]:
    """Those of a header's `names` that look like a person's, most likely ones first: cases come after patients."""
    return sorted(
        (name for name in names if _LIKE_PERSON.fullmatch(fold(name))),
        key=lambda name: bool(_LIKE_CASE.fullmatch(fold(name))),
    )


class Index:
    """A header's names, found as they are, or by letters alone."""

    def __init__(self, header: Sequence[str], where: str) -> None:
        self.header, self.where = header, where
        self._exact: dict[str, list[int]] = {}
        self._folded: dict[str, list[int]] = {}
        for position, name in enumerate(header):
            self._exact.setdefault(name, []).append(position)
            self._folded.setdefault(fold(name), []).append(position)

    def place(self, name: str) -> int | None:
        """Where column `name` stands. Raises DataError if it stands there twice."""
        places = self._exact.get(name) or self._folded.get(fold(name)) or []
        if len(places) > 1:
            raise DataError(f"{self.where}: the header names a column twice: '{name}'")
        return places[0] if places else None

    def demand(self, name: str, setting: str, fix: str = "") -> int:
        """Where column `name` stands. Raises DataError if it does not, which ends with how to `fix` that."""
        position = self.place(name)
        if position is None:
            raise DataError(
                f"{self.where}: the header lacks the column '{name}' of {setting}{did_you_mean(name, self.header)}{fix}"
            )
        return position

    def lacks(self, names: Sequence[str]) -> str:
        """What to say of columns that are not there."""
        shown = ", ".join(f"'{name}'{self._like(name)}" for name in names[:MOST_NAMED])
        more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
        alone = ", or its separator is another one (data.separator)" if len(self.header) == 1 else ""
        its = ", ".join(f"'{visible(name)[:64]}'" for name in self.header[:MOST_NAMED] if name)
        rest = f" and {len(self.header) - MOST_NAMED} more" if len(self.header) > MOST_NAMED else ""
        return (
            f"{self.where}: the header lacks {len(names)} columns: {shown}{more}{alone}{OWN_NAMES}; it has {its}{rest}"
        )

    def _like(self, name: str) -> str:
        """A hint at a name of the header that is like `name`, or ""."""
        hint = did_you_mean(name, self.header)
        return hint if "did you mean" in hint else ""


def _unmeasured(lacking: Sequence[Column]) -> str:
    """What to do about those of the columns that a table may lack the values of."""
    spare = [column.name for column in lacking if column.role != "target" and column.missing != REFUSE]
    return f"; what is not known here at all is an empty column: {_listed(spare)}" if spare else ""


def _of(column: Column, index: Index, own: str | None, *, files: bool) -> list[int | None]:
    """Where a column's values stand: in one column of its name, or in one for each value."""
    position = index.place(own or column.name)
    if position is not None or not column.shape or column.kind == "text" or (files and column.kind == "image"):
        return [position]
    return [index.place(name) for name in column.cells()]


def _person(schema: Schema, config: DataConfig, index: Index, setting: str) -> tuple[int | None, bool]:
    """Where the person's column stands, and whether anything declares who is a person. Raises DataError."""
    by_row = config.person == ROW or (schema.one_row_a_person and config.person is None)
    if by_row:
        words = [schema.person or PERSON, ROW] if config.person == ROW else []
        if (present := [name for name in words if index.place(name) is not None]) or schema.person:
            raise DataError(
                f"{index.where}: data.person is '{ROW}', each row another person, yet there is a column "
                f"{_listed(present or [schema.person])}"
            )
        return None, True
    if config.person:
        return index.demand(config.person, setting), True
    if schema.person:
        own = f"; where it is called otherwise here: {setting}{'=' if setting != '--id' else ' '}COLUMN"
        return index.demand(schema.person, "the task, which names the person,", own), True
    position = index.place(PERSON)
    return position, position is not None


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"'{visible(name)[:64]}'" for name in names[:COLUMNS])
