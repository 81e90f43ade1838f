"""Settings files of an institution: YAML of plain data, written from a dataclass with its documentation as comments."""

from __future__ import annotations

import dataclasses
import json
import textwrap
from typing import TYPE_CHECKING, Any

from sovfed.federation.errors import ConfigError, SovfedError
from sovfed.federation.files import not_read

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping
    from pathlib import Path

    from _typeshed import DataclassInstance


def read_settings(path: Path, error: type[SovfedError] = ConfigError) -> dict[str, Any]:
    """The settings in the YAML file `path`, not yet checked. Raises `error`."""
    import yaml

    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as problem:
        raise not_read(path, problem, error(f"{path}: cannot be read: {problem}")) from problem
    except (UnicodeDecodeError, yaml.YAMLError) as problem:
        raise error(f"{path}: cannot be read: {problem}") from problem
    if not isinstance(settings, dict):
        raise error(f"{path}: expected lines 'name: value', got {type(settings).__name__}")
    return settings


def settings_text(values: DataclassInstance, head: str, skip: Collection[str] = ()) -> str:
    """The YAML file of `values` under `head`, with what each field means; without the fields in `skip`."""
    lines = [f"# {line}".rstrip() for line in head.splitlines()]
    return "\n".join([*lines, "", *_lines(values, skip, "")]) + "\n"


def _lines(values: DataclassInstance, skip: Collection[str], indent: str) -> Iterator[str]:
    for field in dataclasses.fields(values):
        value = getattr(values, field.name)
        if field.name in skip:
            continue
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            yield f"{indent}{field.name}:"
            yield from _lines(value, (), indent + "  ")
            continue
        comment = f"{field.metadata.get('doc', '')}{_takes(field.metadata)}"
        yield from (f"{indent}# {line}" for line in textwrap.wrap(comment, 100))
        if isinstance(value, dict) and value:
            yield f"{indent}{field.name}:"
            yield from named_lines(value, indent + "  ")
            continue
        yield f"{indent}{field.name}: {_scalar(value)}"


def named_lines(groups: Mapping[str, DataclassInstance], indent: str) -> Iterator[str]:
    """Each group of settings under its name, without what is as it is anyway."""
    for name, values in groups.items():
        lines = list(_chosen(values, indent + "  "))
        yield f"{indent}{_scalar(name)}:{'' if lines else ' {}'}"
        yield from lines


def _chosen(values: DataclassInstance, indent: str) -> Iterator[str]:
    """What differs from the defaults; of several groups that look alike nobody wants to read each comment again."""
    for field in dataclasses.fields(values):
        value = getattr(values, field.name)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            if lines := [*_chosen(value, indent + "  ")]:
                yield f"{indent}{field.name}:"
                yield from lines
        elif value != field.default or field.name == "source":
            yield f"{indent}{field.name}: {_scalar(value)}"


def _scalar(value: Any) -> str:
    """`value` in JSON, whose scalars and lists are YAML, but for 1e-06: YAML takes that for a text."""
    text = json.dumps(value)
    return text.replace("e", ".0e") if isinstance(value, float) and "." not in text else text


def _takes(rules: Any) -> str:
    if rules.get("options"):
        return f" [{', '.join(rules['options'])}]"
    low, high, unit = rules.get("low"), rules.get("high"), rules.get("unit")
    return (
        f" [{low:g} to {high:g}{f' {unit}' if unit else ''}]" if unit and low is not None and high is not None else ""
    )
