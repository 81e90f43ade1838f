"""What an institution's own table calls the task's columns and words, and in which units it is: data.mapping's file."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import yaml

from sovfed.clients.data.files import read_file
from sovfed.clients.data.tables.header import PERSON, like_persons
from sovfed.clients.data.tables.units import Conversion
from sovfed.clients.data.tables.words import MISSING, Rules, Words, fold
from sovfed.federation.errors import DataError
from sovfed.federation.schema import bind, bounded, nearest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sovfed.federation.config import DataConfig
    from sovfed.federation.tasks.columns import Column, Schema

MAX_MAPPING: Final = 1 << 20  # bytes
WORDED: Final = ("boolean", "category")  # kinds of columns whose cells are words
OF_FACTS: Final = ("fhir", "omop")  # sources whose mapping says how columns are gathered
UNIT: Final = ("multiply", "add")
PERSON_COLUMN: Final = "; which column says who a person is goes into data.person=COLUMN, as this table calls it"


@dataclass(frozen=True)
class OwnColumn(Conversion):
    """A column of the task in the institution's table: its name, the task's word for each of its own, its unit."""

    name: str = bounded("", 0, 256)
    values: dict[str, str] = field(default_factory=dict)

    @property
    def folded(self) -> dict[str, str]:
        """The task's words by the table's as they are compared."""
        return {fold(own): word for own, word in self.values.items()}


def own_columns(schema: Schema, config: DataConfig) -> Mapping[str, OwnColumn]:
    """`columns: {age: Alter, home: {name: Wohnform, values: {zu Hause: own}}}` of data.mapping. Raises DataError."""
    if config.mapping is None:
        return {}
    content = read_mapping(config)
    if config.source in OF_FACTS:
        content = _units_of_facts(schema, content)
    columns = _columns_of(content, config)
    by_name = {column.name: column for column in schema.columns}
    own = {}
    for name, told in columns.items():
        where = f"{config.mapping}: columns.{str(name)[:64]}"
        if name not in by_name:
            person = str(name) in (schema.person, PERSON) or like_persons([str(name)])
            hint = PERSON_COLUMN if person else nearest(str(name), by_name)
            raise DataError(f"{where}: the task has no such column{hint}")
        own[name] = bind(OwnColumn, _plain(told, where), where, DataError)
        _check_words(by_name[name], own[name], where)
        if own[name].changes and by_name[name].kind != "number":
            raise DataError(f"{where}: a {by_name[name].kind} has no unit; multiply and add are for numbers")
    return own


def declared_columns(config: DataConfig) -> dict[str, OwnColumn]:
    """As `own_columns`, before there is a task to hold it to. Raises DataError."""
    own = {}
    for name, told in _columns_of(read_mapping(config), config).items():
        where = f"{config.mapping}: columns.{str(name)[:64]}"
        own[str(name)] = bind(OwnColumn, _plain(told, where), where, DataError)
    return own


def _columns_of(content: Mapping[str, object], config: DataConfig) -> dict[Any, Any]:
    for key in content:
        if key != "columns":
            hint = "; words stand with their column: columns: {COLUMN: {values: {OWN WORD: TASK'S WORD}}}"
            raise DataError(f"{config.mapping}: unknown key '{str(key)[:64]}', expected 'columns' alone{hint}")
    columns = content.get("columns") or {}
    if not isinstance(columns, dict):
        raise DataError(f"{config.mapping}: 'columns' must give each column of the task its own name in the table")
    return columns


def renamed(own: Mapping[str, OwnColumn]) -> dict[str, str]:
    """The table's own name for columns of the task."""
    return {name: column.name for name, column in own.items() if column.name}


def read_mapping(config: DataConfig) -> dict[str, object]:
    """What stands in the file of data.mapping. Raises DataError."""
    if config.mapping is None:
        raise DataError(f"data.source '{config.source}' needs data.mapping: a YAML file that says what a column is")
    path = Path(config.mapping).expanduser()
    try:
        content = yaml.safe_load(read_file(path, MAX_MAPPING, setting="data.mapping"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise DataError(f"{path}: not YAML ({type(error).__name__})") from None
    if not isinstance(content, dict):
        raise DataError(f"{path}: expected 'columns' with a line for each")
    return content


def _units_of_facts(schema: Schema, content: Mapping[str, object]) -> dict[str, object]:
    """Of a mapping that says how columns are gathered, which `rules_of` reads, the units alone."""
    columns = content.get("columns")
    rules = columns.items() if isinstance(columns, dict) else ()
    names = {column.name for column in schema.columns}
    return {
        "columns": {
            name: {key: rule[key] for key in UNIT if key in rule}
            for name, rule in rules
            if name in names and isinstance(rule, dict)
        }
    }


def _plain(told: object, where: str) -> dict[str, Any]:
    """A column's own name alone, or with its words; numbers as the text that they are written as."""
    if not isinstance(told, dict):
        return {"name": told}
    plain: dict[str, Any] = {str(key): value for key, value in told.items()}
    values = plain.get("values")
    if isinstance(values, dict):
        if any(not isinstance(word, (str, int)) or isinstance(word, bool) for pair in values.items() for word in pair):
            raise DataError(f"{where}.values: expected words; yes, no, days and decimals are words in quotes alone")
        plain["values"] = {str(own): str(word) for own, word in values.items()}
        if len(plain["values"]) < len(values):
            raise DataError(f"{where}.values: a word stands twice, as a number and in quotes")
    return plain


def _check_words(column: Column, own: OwnColumn, where: str) -> None:
    """Raise DataError unless the words that are meant are the task's, or say that a value is missing."""
    if not own.values:
        return
    if column.kind not in WORDED:
        raise DataError(
            f"{where}.values: a {column.kind} has no words; of what stands for a missing value: data.missing_words"
        )
    words = Words(column, Rules())
    meant = dict[str, str]()
    for table_word, word in own.values.items():
        if meant.setdefault(fold(table_word), word) != word:
            raise DataError(f"{where}.values: '{table_word[:64]}' stands twice, as capitals and spaces do not count")
    for word in own.values.values():
        if words.code(word)[1] not in ("", MISSING):
            options = column.categories or ("no", "yes")
            raise DataError(
                f"{where}.values: '{word[:64]}' is no word of the task's{nearest(word, options)}, "
                f"expected one of {', '.join(options[:20])}"
            )
