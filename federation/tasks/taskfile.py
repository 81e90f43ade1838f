"""What a task.yaml says: columns, target, model, recommended training and card. Strict, bounded, no code is named."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from functools import cached_property
from typing import Any, Final

from sovfed.federation.errors import ConfigError
from sovfed.federation.plan import SCHEDULES
from sovfed.federation.schema import bind, bounded, choice, named, nearest
from sovfed.federation.tasks.columns import Column, Schema
from sovfed.federation.tasks.document import block, parse
from sovfed.federation.tasks.families import Family, family_of
from sovfed.federation.tasks.targets import NEXT_TOKEN, Target
from sovfed.federation.text import steers, visible

FORMAT: Final = 1  # raised whenever a file comes to mean something else
ONE_ROW: Final = "one row a person"
INPUT_KINDS: Final = ("number", "boolean", "category", "date", "image", "text", "tokens")
LONGEST_WORD: Final = 64
LONGEST_WINDOW: Final = 1 << 16  # tokens
MOST_SYMBOLS: Final = 1 << 20  # tokens of a vocabulary
EPOCH: Final = date(1970, 1, 1).toordinal()
_IN_COLUMN: Final = frozenset(field.name for field in dataclasses.fields(Column)) - {"name", "role"}
_WORDS: Final = ("categories", "true", "false")


@dataclass(frozen=True)
class Training:
    """Settings that are recommended to who starts a run; a run's own go first."""

    optimizer: str | None = named(None)
    learning_rate: float | None = bounded(None, 1e-9, 1e3)
    momentum: float | None = bounded(None, 0.0, 0.999999)
    weight_decay: float | None = bounded(None, 0.0, 10.0)
    batch_size: int | None = bounded(None, 1, 1_000_000)
    local_epochs: int | None = bounded(None, 1, 10_000)
    rounds: int | None = bounded(None, 1, 100_000)
    schedule: str | None = choice(None, SCHEDULES)
    cooldown: float | None = bounded(None, 0.01, 1.0)


@dataclass(frozen=True)
class Card:
    """Texts for people."""

    purpose: str = bounded("", 0, 4_000, lines=True)
    limits: str = bounded("", 0, 4_000, lines=True, doc="what the model is not for")
    licence: str = bounded("", 0, 200)
    citation: str = bounded("", 0, 2_000, lines=True)
    contact: str = bounded("", 0, 200)


@dataclass(frozen=True)
class TaskFile:
    """A task.yaml, checked. Equal files mean the same task."""

    name: str = named()
    title: str = bounded(low=1, high=200)
    person: str = bounded(low=1, high=64, doc="the column that names a person, or 'one row a person'")
    columns: tuple[Column, ...] = ()
    target: Target = field(default_factory=Target)
    model: Family = field(default_factory=Family)
    version: str = named("1")
    headline: str = bounded("", 0, 64, doc="the metric to report first")
    training: Training = field(default_factory=Training)
    card: Card = field(default_factory=Card)
    format: int = bounded(FORMAT, FORMAT, FORMAT)

    def __post_init__(self) -> None:
        if obstacle := self.model.obstacle(self.schema):
            raise ValueError(obstacle)
        if (self.target.kind == NEXT_TOKEN) != (self.model.learns == NEXT_TOKEN):
            raise ValueError(f"family '{self.model.family}' is not for a target of kind '{self.target.kind}'")

    @cached_property
    def schema(self) -> Schema:
        alone = self.person == ONE_ROW
        columns = (*self.columns, *self.target.to_columns(self.columns))
        return Schema(columns, person="" if alone else self.person, one_row_a_person=alone)

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON of all that it says; what it leaves at its default is not in it."""
        document = parse(to_text(self))
        document["columns"] = list(document["columns"].items())  # their order is the model's
        return hashlib.sha256(json.dumps(document, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def read_text(text: bytes | str) -> TaskFile:
    """The task file that `text` is. Raises ConfigError, and nothing else, whatever the bytes are."""
    values = parse(text)
    known = [item.name for item in dataclasses.fields(TaskFile)]
    for name in values:  # first: what is misspelt is missing too
        if name not in known:
            shown = visible(str(name)[:64], keep="")
            raise ConfigError(f"unknown key '{shown}'{nearest(shown, known)}")
    for name in ("name", "title", "person", "columns", "target", "model"):
        if name not in values:
            raise ConfigError(f"missing key '{name}'")
    prepared = values | {
        "columns": tuple(_read_column(name, value) for name, value in _group(values, "columns").items()),
        "target": _with_words(_group(values, "target"), ("classes", "true", "false"), "target"),
        "model": family_of(_group(values, "model")),
    }
    if type(prepared.get("version")) is int:
        prepared["version"] = str(prepared["version"])
    return bind(TaskFile, prepared)


def to_text(task: TaskFile, notes: Mapping[str, str] | None = None) -> str:
    """The text that `read_text` makes `task` of; `notes`, by place ("columns.age"), become comments behind the line."""
    head = {"format": task.format, "name": task.name, "title": task.title, "version": task.version}
    groups: dict[str, Mapping[str, Any]] = {
        "columns": {column.name: _said(column) for column in task.columns},
        "target": {"kind": task.target.kind} | _chosen(task.target),
        "model": {"family": task.model.family} | _sizes(task.model),
        "training": _chosen(task.training),
        "card": _chosen(task.card),
    }
    last = {"headline": task.headline} if task.headline else {}
    text = block({**head, "person": task.person, **last}, notes)
    for name, group in groups.items():
        if group:
            inside = {key.removeprefix(f"{name}."): note for key, note in (notes or {}).items() if "." in key}
            text += f"{name}:\n" + block(group, inside, "  ")
    return text


def _sizes(model: Family) -> dict[str, Any]:
    """What `model` is made of; what came later, and is not asked for, is not said: digests stay what they were."""
    sizes = dataclasses.asdict(model)
    later = {"personal": "none", "goldfish": 0}
    return {name: size for name, size in sizes.items() if name not in later or size != later[name]}


def _group(values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    group = values[name]
    if not isinstance(group, Mapping):
        raise ConfigError(f"'{name}' must be a group of settings, got {type(group).__name__}")
    return group


def _read_column(name: str, value: object) -> Column:
    where = f"columns.{visible(name[:64], keep='')}"
    if not isinstance(value, Mapping):
        raise ConfigError(f"'{where}' must be a group of settings such as {{kind: number, low: 0, high: 1}}")
    for key in value:
        if key not in _IN_COLUMN:
            shown = visible(key[:64], keep="")
            raise ConfigError(f"unknown key '{where}.{shown}'{nearest(shown, _IN_COLUMN)}")
    kind = value.get("kind")
    if kind not in INPUT_KINDS:
        raise ConfigError(f"'{where}.kind' is {str(kind)[:64]!r}{nearest(str(kind)[:64], INPUT_KINDS)}")
    prepared = _with_words(value, _WORDS, where)
    if kind == "date":
        prepared |= {key: _days(value[key], f"{where}.{key}") for key in ("low", "high", "fill") if key in value}
    if kind in ("number", "date") and not {"low", "high"} <= set(value):
        raise ConfigError(f"'{where}' needs 'low' and 'high', the least and greatest value that can be")
    if kind == "tokens" and ("high" not in value or "low" in value):
        raise ConfigError(f"'{where}' needs 'high', the last token of the vocabulary, and has no 'low'")
    if kind not in ("number", "date", "tokens") and {"low", "high"} & set(value):
        raise ConfigError(f"'{where}': a {kind} has no 'low' and 'high'")
    column = bind(Column, {**prepared, "name": name, "role": "input"}, where)
    _check(column, where, "fill" in value)
    return column


def _check(column: Column, where: str, filled: bool) -> None:
    """What a schema made by hand may do and a file may not."""
    low, high = column.bounds
    if filled != (column.missing == "constant"):
        raise ConfigError(f"'{where}.fill' belongs to missing: constant")
    if filled and (column.kind == "category" or not low <= column.fill <= high):
        fix = "take missing: category" if column.kind == "category" else f"expected {low:g} to {high:g}"
        raise ConfigError(f"'{where}.fill' is {column.fill:g}, {fix}")
    if column.indicator and (column.missing == "refuse" or column.kind == "category"):
        raise ConfigError(f"'{where}.indicator' belongs to numbers that may be missing")
    if column.kind == "image" and len(column.shape) != 3:
        raise ConfigError(f"'{where}.shape' is {list(column.shape)[:4]}, expected [channels, height, width]")
    if column.kind == "tokens":
        if not (column.high.is_integer() and column.high < MOST_SYMBOLS):
            raise ConfigError(f"'{where}.high' is {column.high:g}, expected a whole number below {MOST_SYMBOLS}")
        if len(column.shape) != 1 or not 2 <= column.shape[0] <= LONGEST_WINDOW:
            raise ConfigError(f"'{where}.shape' is {list(column.shape)[:4]}, expected [tokens], 2 to {LONGEST_WINDOW}")
    if column.kind == "text" and (len(column.shape) != 1 or column.shape[0] > 1 << 16):
        raise ConfigError(f"'{where}.shape' is {list(column.shape)[:4]}, expected [bytes], at most {1 << 16}")


def _with_words(values: Mapping[str, Any], names: tuple[str, ...], where: str) -> dict[str, Any]:
    """`values` whose lists `names` hold words: 1 and true are as they were written."""
    prepared = dict(values)
    for name in names:
        if isinstance(prepared.get(name), list):
            prepared[name] = tuple(_word(item, f"{where}.{name}") for item in prepared[name])
    return prepared


def _word(value: object, where: str) -> str:
    word = ("true" if value else "false") if isinstance(value, bool) else str(value) if type(value) is int else value
    if not isinstance(word, str):
        raise ConfigError(f"'{where}' holds {str(value)[:64]!r}, expected words; put it in quotes")
    if not 1 <= len(word) <= LONGEST_WORD or word != word.strip() or steers(word):
        raise ConfigError(
            f"'{where}' holds {word[:64]!a}, expected words of up to {LONGEST_WORD} characters, no spaces around them"
        )
    return word


def _days(value: object, where: str) -> int:
    """Days since 1970-01-01 of an ISO date."""
    try:
        return date.fromisoformat(value if isinstance(value, str) else "").toordinal() - EPOCH
    except ValueError as error:
        raise ConfigError(f"'{where}' is {str(value)[:64]!a}, expected a date such as 1990-01-31") from error


def _chosen(values: Any) -> dict[str, Any]:
    """What differs from the defaults."""
    return {
        item.name: getattr(values, item.name)
        for item in dataclasses.fields(values)
        if getattr(values, item.name) != item.default
    }


def _said(column: Column) -> dict[str, Any]:
    """A column as the file has it."""
    bounds = {"low": column.low, "high": column.high} if column.kind in ("number", "date") else {}
    settings = {"kind": column.kind} | bounds | _chosen(column)
    for name in ("name", "role"):
        settings.pop(name, None)
    if column.kind == "date":
        days = {key: int(settings[key]) for key in ("low", "high", "fill") if key in settings}
        settings |= {key: date.fromordinal(value + EPOCH).isoformat() for key, value in days.items()}
    if column.missing == "constant":
        settings.setdefault("fill", column.fill)
    return settings
