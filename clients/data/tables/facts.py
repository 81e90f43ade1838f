"""Facts about persons that lie scattered over tables (FHIR, OMOP), gathered into one row a person by a mapping.

The mapping is a YAML file of the institution's; `columns` gives each column of the task a `Rule`.
"""

from __future__ import annotations

import datetime
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from sovfed.clients.data.tables.header import PERSON
from sovfed.clients.data.tables.source import Batch
from sovfed.clients.data.tables.units import Conversion
from sovfed.clients.data.tables.values import cells_of
from sovfed.federation.errors import DataError
from sovfed.federation.schema import bind, bounded, choice

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from sovfed.clients.data.tables.report import Report

TAKES: Final = ("last", "first", "mean", "least", "greatest", "count", "any")
ROWS: Final = 1 << 13


@dataclass(frozen=True)
class Rule(Conversion):
    """What becomes a column: of `table` (FHIR: a resource) the value at `path`, of the entries with one of `codes`.

    Its unit is converted where the table is read (`cells.py`), as that of any other one.
    """

    table: str = bounded(low=1, high=64)
    path: str = bounded("", 0, 256, doc="the value's field; FHIR: with dots between; empty: the entry's own value")
    codes: tuple[str, ...] = bounded((), doc="SYSTEM|CODE of FHIR, concept numbers of OMOP; of any code if empty")
    take: str = choice("last", TAKES, doc="which of a person's several; 'any': yes if there is one, else no")
    unit: str = bounded("", 0, 64, doc="entries in another unit are refused")
    age_at: str = bounded("", 0, 10, doc="a date: the value is a birth, and its age in years then is taken")
    values: dict[str, str] = field(default_factory=dict)  # the task's words for the table's

    def __post_init__(self) -> None:
        if self.age_at:
            datetime.date.fromisoformat(self.age_at)


def rules_of(mapping: Mapping[str, object], where: str, tables: Iterable[str]) -> dict[str, Rule]:
    """The rule of each column of a mapping. Raises DataError."""
    columns = mapping.get("columns")
    if not isinstance(columns, dict) or not columns:
        raise DataError(f"{where}: expected 'columns' with a rule for each")
    rules = {
        str(name): bind(Rule, _plain(rule), f"{where}: columns.{name}", DataError) for name, rule in columns.items()
    }
    table_names = set(tables)
    for name, rule in rules.items():
        if rule.table not in table_names:
            raise DataError(
                f"{where}: columns.{name}.table is '{rule.table}', expected one of {', '.join(sorted(table_names))}"
            )
    return rules


def _plain(rule: object) -> dict[str, Any]:
    """A rule with numbers and dates as the text that they are written as, and one code as a list of one."""
    if not isinstance(rule, dict):
        return {"": rule}
    plain: dict[str, Any] = {
        str(key): value.isoformat() if isinstance(value, datetime.date) else value for key, value in rule.items()
    }
    codes = plain.get("codes", [])
    plain["codes"] = [str(code) for code in (codes if isinstance(codes, list) else [codes])]
    words = plain.get("values")
    if isinstance(words, dict):
        plain["values"] = {str(key): str(value) for key, value in words.items()}
    return plain


class Gathered:
    """One column: the value of each person so far, by its rule."""

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self._values: dict[str, Any] = {}
        self._keys: dict[str, str] = {}

    def add(self, person: str, when: str, value: Any) -> None:
        """Take an entry of a person at a time (ISO 8601, "" if unknown)."""
        take = self.rule.take
        if take == "any":
            self._values[person] = "yes"
        elif take == "count":
            self._values[person] = self._values.get(person, 0) + 1
        elif value is not None and take in ("mean", "least", "greatest"):
            self._number(person, value)
        elif value is not None and self._newer(person, when):
            self._values[person], self._keys[person] = self._worded(value), when

    def value(self, person: str) -> Any:
        """The person's value; None if there is none."""
        if self.rule.take == "any":
            return self._values.get(person, "no")
        if self.rule.take == "count":
            return self._values.get(person, 0)
        value = self._values.get(person)
        return value[0] / value[1] if isinstance(value, tuple) else value

    def _newer(self, person: str, when: str) -> bool:
        before = self._keys.get(person)
        return before is None or (when < before if self.rule.take == "first" else when >= before)

    def _number(self, person: str, value: Any) -> None:
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError):  # a whole number of hundreds of digits
            self._values.setdefault(person, str(value))  # told as no number when the table is read
            return
        before = self._values.get(person)
        if self.rule.take == "mean":
            total, count = before if isinstance(before, tuple) else (0.0, 0)
            self._values[person] = (total + number, count + 1)
        elif isinstance(before, (float, type(None))):
            chosen = min if self.rule.take == "least" else max
            self._values[person] = number if before is None else chosen(before, number)

    def _worded(self, value: Any) -> Any:
        if self.rule.age_at:
            return _age(str(value), datetime.date.fromisoformat(self.rule.age_at))
        return self.rule.values.get(str(value), value) if self.rule.values else value


def _age(birth: str, then: datetime.date) -> float | str:
    """Whole years, or by the year alone where no more is known; as it stands if it is no date."""
    try:
        if birth.isdecimal() and len(birth) == 4:
            return float(then.year - int(birth))
        parts = [int(number) for number in birth[:10].split("-")]
        day = datetime.date(*[*parts, 1, 1][:3])
    except (ValueError, TypeError, OverflowError):
        return birth
    return float(then.year - day.year - ((then.month, then.day) < (day.month, day.day)))


class Facts(ABC):
    """A `Source` of one row a person."""

    word = "person"
    spells_lists = True
    decimal = "."

    def __init__(self, where: str, rules: Mapping[str, Rule]) -> None:
        self.where, self.rules = where, rules
        self.header: Sequence[str] = (PERSON, *rules)

    @abstractmethod
    def gather(self, report: Report) -> tuple[list[str], dict[str, Gathered]]:
        """All persons, and each column's values of them."""

    def batches(self, wanted: Sequence[int], numeric: Sequence[int], report: Report) -> Iterator[Batch]:
        persons, gathered = self.gather(report)
        for start in range(0, len(persons), ROWS):
            block = persons[start : start + ROWS]
            cells = [
                cells_of(
                    block
                    if self.header[position] == PERSON
                    else [gathered[self.header[position]].value(person) for person in block],
                    numeric=position in numeric,
                )
                for position in wanted
            ]
            yield Batch(cells, np.arange(start + 1, start + 1 + len(block), dtype=np.int64))
