"""A plain YAML document from an untrusted source: mappings, lists, words, numbers, true, false and null; no more.

No tags, anchors or aliases, no second value for a key, nothing deep. Words stay words: unlike YAML 1.1, `no`, `on`,
`1:30`, `2026-01-31` and `007` are text, as a clinic's category or date is meant, and `1e-3` is a number.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from sovfed.federation.errors import ConfigError
from sovfed.federation.text import visible

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from yaml.events import Event, ScalarEvent

Value: TypeAlias = "dict[str, Value] | list[Value] | str | int | float | bool | None"
MAX_BYTES: Final = 1 << 20
MAX_DEPTH: Final = 8
_INTEGER: Final = re.compile(r"[-+]?(0|[1-9][0-9]{0,17})", re.ASCII)
_NUMBER: Final = re.compile(
    r"[-+]?([0-9]{1,40}\.[0-9]{0,40}|\.[0-9]{1,40}|[0-9]{1,40}(?=[eE]))([eE][-+]?[0-9]{1,4})?", re.ASCII
)
_WORDS: Final[dict[str, bool | None]] = {"true": True, "false": False, "null": None, "~": None, "": None}
_UNQUOTED: Final = re.compile(r"[^\W\d][\w ()/.+²³°µ-]*(?<! )")
_READ_OTHERWISE: Final = frozenset({"yes", "no", "on", "off", "y", "n", "true", "false", "null"})  # by other readers


def parse(text: bytes | str) -> dict[str, Any]:
    """The mapping that `text` holds. Raises ConfigError with the line, whatever the bytes are."""
    import yaml

    data = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    if len(data) > MAX_BYTES:
        raise ConfigError(f"more than {MAX_BYTES} bytes")
    loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        value = _document(yaml.parse(data.decode("utf-8-sig"), Loader=loader))
    except UnicodeDecodeError as error:
        raise ConfigError(f"is not UTF-8 at byte {error.start}") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or getattr(error, "reason", None)
        line = "" if mark is None else f"line {mark.line + 1}: "
        raise ConfigError(f"{line}{visible(str(problem or 'not YAML'), keep='')}") from error
    if not isinstance(value, dict):
        raise ConfigError("holds no settings, expected 'name: value' lines")
    return value


def _document(events: Iterator[Event]) -> Value:
    """The one document of an event stream."""
    from yaml import events as kinds

    value: Value = None
    documents = 0
    for event in events:
        if isinstance(event, kinds.DocumentStartEvent):
            documents += 1
            if documents > 1:
                raise ConfigError(f"line {_line(event)}: a second document, expected one")
            value = _value(next(events), events, 0)
    return value


def _value(event: Event, events: Iterator[Event], depth: int) -> Value:
    from yaml import events as kinds

    if isinstance(event, kinds.AliasEvent) or getattr(event, "anchor", None):
        raise ConfigError(f"line {_line(event)}: anchors and aliases are not allowed")
    if depth > MAX_DEPTH:
        raise ConfigError(f"line {_line(event)}: nested more than {MAX_DEPTH} deep")
    if isinstance(event, kinds.ScalarEvent):
        return _scalar(event)
    if getattr(event, "tag", None) not in (None, "!"):
        raise ConfigError(f"line {_line(event)}: tags are not allowed")
    if isinstance(event, kinds.SequenceStartEvent):
        items: list[Value] = []
        while not isinstance(item := next(events), kinds.SequenceEndEvent):
            items.append(_value(item, events, depth + 1))
        return items
    mapping: dict[str, Value] = {}
    while not isinstance(key := next(events), kinds.MappingEndEvent):
        if not isinstance(key, kinds.ScalarEvent) or key.anchor:
            raise ConfigError(f"line {_line(key)}: a key must be a word")
        if key.value in mapping:
            raise ConfigError(f"line {_line(key)}: '{visible(key.value[:64], keep='')}' comes twice")
        mapping[key.value] = _value(next(events), events, depth + 1)
    return mapping


def _line(event: Event) -> int:
    return 0 if event.start_mark is None else event.start_mark.line + 1


def _scalar(event: ScalarEvent) -> Value:
    plain, _ = event.implicit
    if event.tag not in (None, "!"):
        raise ConfigError(f"line {_line(event)}: tags are not allowed")
    return resolved(event.value) if plain else str(event.value)


def resolved(word: str) -> str | int | float | bool | None:
    """What an unquoted word means."""
    if word in _WORDS:
        return _WORDS[word]
    if _INTEGER.fullmatch(word):
        return int(word)
    return float(word) if _NUMBER.fullmatch(word) else word


def flow(value: object) -> str:
    """`value` on one line, as `parse` reads it again."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_text(str(name))}: {flow(item)}" for name, item in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(flow, value)) + "]"
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)
    return json.dumps(value)


def block(values: Mapping[str, object], notes: Mapping[str, str] | None = None, indent: str = "") -> str:
    """`values`, one key a line; `notes` are comments behind the lines of their keys."""
    lines = []
    for name, value in values.items():
        note = f"  # {notes[name]}" if notes and notes.get(name) else ""
        lines.append(f"{indent}{_text(name)}: {flow(value)}{note}\n")
    return "".join(lines)


def _text(word: str) -> str:
    plain = _UNQUOTED.fullmatch(word) and word.isprintable() and word.lower() not in _READ_OTHERWISE
    return word if plain and isinstance(resolved(word), str) else json.dumps(word, ensure_ascii=False)
