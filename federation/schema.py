"""Checked construction of frozen dataclasses from untrusted mappings.

One binder serves the configuration files and the messages between processes: types are exact, numbers are finite and
inside the range that the field declares, names are known, and no text can forge a line of a log or steer a terminal.
Nothing is coerced but int to float. Bounds stand in the dataclass: `rounds: int = bounded(10, 1, 100_000, doc="...")`.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import sys
import types
import typing
from collections.abc import Hashable, Iterable, Mapping
from functools import cache
from typing import Any, Final, TypeVar

from sovfed.federation.errors import ConfigError, SovfedError
from sovfed.federation.text import NAME, NAME_IN_WORDS, steers, visible

T = TypeVar("T")
BIGGEST: Final = sys.float_info.max
MOST_SHOWN: Final = 80  # characters of a value in an error
_MISSING: Any = dataclasses.MISSING


def bounded(
    default: Any = _MISSING,
    low: float | None = None,
    high: float | None = None,
    *,
    doc: str = "",
    unit: str = "",
    lines: bool = False,
    words: bool = False,
) -> Any:
    """A dataclass field whose value (or length, for text and lists) must lie in [low, high].

    Text may have `lines`. A list of `words` takes whole numbers for their digits, as a person writes [k.A., -99].
    """
    rules = {"low": low, "high": high, "doc": doc, "unit": unit, "lines": lines, "words": words}
    return dataclasses.field(default=default, metadata=rules)


def named(default: Any = _MISSING, low: int = 1, high: int = 64, *, doc: str = "") -> Any:
    """A text field that is a name (`text.NAME`): safe in a log line, on a terminal and as a file's name."""
    return dataclasses.field(default=default, metadata={"low": low, "high": high, "name": True, "doc": doc})


def choice(default: Any, options: Iterable[str], *, doc: str = "") -> Any:
    """A text field that takes one of `options`."""
    return dataclasses.field(default=default, metadata={"options": tuple(options), "doc": doc})


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint ' (did you mean X?)', or the known names when nothing is close."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f" (did you mean '{close[0]}'?)" if close else f" (known: {', '.join(names) or 'none'})"


@cache
def _hints(cls: Hashable) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def bind(cls: type[T], values: Mapping[str, Any], where: str = "", error: type[SovfedError] = ConfigError) -> T:
    """Build `cls` from `values`, raising `error` with the full key, what was got and what is allowed."""
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for name in values:
        if not isinstance(name, str) or name not in fields:
            shown = visible(str(name)[:80], keep="")
            raise error(f"unknown key '{_join(where, shown)}'{nearest(shown, fields)}")
    hints = _hints(cls)  # type: ignore[arg-type]  # mypy takes type[T] for unhashable
    bound: dict[str, Any] = {}
    for name, field in fields.items():
        key = _join(where, name)
        if name in values:
            bound[name] = _value(hints[name], values[name], field.metadata, key, error)
        elif field.default is _MISSING and field.default_factory is _MISSING:
            raise error(f"missing key '{key}'")
    try:
        return cls(**bound)
    except ValueError as problem:  # a __post_init__ that relates several fields
        raise error(f"{where or cls.__name__}: {problem}") from problem


def _join(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _value(kind: Any, value: Any, rules: Mapping[str, Any], key: str, error: type[SovfedError]) -> Any:
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        inner = [arm for arm in typing.get_args(kind) if arm is not type(None)]
        if value is None:
            if len(inner) == len(typing.get_args(kind)):
                raise error(f"'{key}' must not be null")
            return None
        return _value(inner[0], value, rules, key, error)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        if isinstance(value, kind):
            return value
        if not isinstance(value, Mapping):
            raise error(f"'{key}' must be a group of settings, got {_short(value)}")
        return bind(kind, value, key, error)
    if typing.get_origin(kind) is tuple:
        if not isinstance(value, (list, tuple)):
            raise error(f"'{key}' must be a list, got {_short(value)}")
        item = typing.get_args(kind)[0]
        if rules.get("words"):
            value = [str(element) if type(element) is int else element for element in value]
        return tuple(_value(item, element, rules, f"{key}[{i}]", error) for i, element in enumerate(value))
    if typing.get_origin(kind) is dict:
        if not isinstance(value, Mapping):
            raise error(f"'{key}' must be a mapping, got {_short(value)}")
        item = typing.get_args(kind)[1]
        return {str(name): _value(item, element, rules, f"{key}.{name}", error) for name, element in value.items()}
    return _scalar(kind, value, rules, key, error)


def _scalar(kind: Any, value: Any, rules: Mapping[str, Any], key: str, error: type[SovfedError]) -> Any:
    if kind is float and type(value) is int:
        value = float(value) if abs(value) <= BIGGEST else math.inf if value > 0 else -math.inf
    if type(value) is not kind:
        raise error(f"'{key}' must be {kind.__name__}, got {_short(value)} ({type(value).__name__})")
    if kind is float and not math.isfinite(value):
        raise error(f"'{key}' must be finite, got {value!r}")
    if kind is str and steers(value.replace("\n", "") if rules.get("lines") else value):
        raise error(f"'{key}' must hold no control characters, got {value[:80]!a}")
    if rules.get("name") and value and not NAME.fullmatch(value):
        raise error(f"'{key}' must be {NAME_IN_WORDS}, got {value[:80]!a}")
    options = rules.get("options")
    if options and value not in options:
        raise error(f"'{key}' is {_short(value)}{nearest(str(value)[:MOST_SHOWN], options)}")
    size = value if kind in (int, float) else len(value) if isinstance(value, (str, bytes)) else None
    low, high = rules.get("low"), rules.get("high")
    if size is not None and ((low is not None and size < low) or (high is not None and size > high)):
        quantity = "" if kind in (int, float) else "length "
        raise error(f"'{key}' {quantity}{_short(size)} is outside [{_edge(low)}, {_edge(high)}]{_unit(rules)}")
    return value


def _short(value: Any) -> str:
    """`value` as an error shows it: whoever sent it does not fill a log with it."""
    text = repr(value)
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}…"


def _edge(value: float | None) -> str:
    return "…" if value is None else f"{value:g}"


def _unit(rules: Mapping[str, Any]) -> str:
    return f" {rules['unit']}" if rules.get("unit") else ""
