"""A framework's table, filled from a home: what there is to show for each control, and what is left. No verdicts."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import yaml

from sovfed.federation.errors import ConfigError
from sovfed.federation.evidence.entries import KINDS
from sovfed.federation.evidence.store import LogReader, has_log
from sovfed.federation.schema import bind, bounded
from sovfed.federation.text import day

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

NAMES: Final = ("sp800-226", "satre", "tehdas2", "dspt")
UNSET: Final = "not set here"


@dataclass(frozen=True)
class Control:
    """What a framework asks, in our words, what holds in general, where to see that, and what is left."""

    control: str = bounded(low=1, high=300)
    holds: str = bounded(low=1, high=300)
    gap: str = bounded(low=1, high=300)
    settings: tuple[str, ...] = bounded((), 1, 200)  # FILE KEY.KEY of the home
    log: tuple[str, ...] = bounded((), 1, 32)  # kinds of entries
    tests: tuple[str, ...] = bounded((), 1, 300)  # of the source; `::*` is a whole file


@dataclass(frozen=True)
class Framework:
    """A framework's title and its controls."""

    title: str = bounded(low=1, high=200)
    rows: tuple[Control, ...] = ()


@dataclass(frozen=True)
class Shown:
    """A control with what this home has to show: settings with their values, entries of its log by kind."""

    control: Control
    settings: dict[str, str] = field(default_factory=dict)
    log: dict[str, str] = field(default_factory=dict)


def load_framework(name: str) -> Framework:
    """The framework `name`. Raises ConfigError if there is none."""
    if name not in NAMES:
        raise ConfigError(f"no framework '{name[:40]}'; there are {', '.join(NAMES)}")
    data = (files("sovfed.federation.evidence.frameworks") / f"{name}.yaml").read_text(encoding="utf-8")
    framework = bind(Framework, yaml.safe_load(data), name)
    strange = {kind for row in framework.rows for kind in row.log} - set(KINDS)
    if strange:
        raise ConfigError(f"{name}: no entry of a log is of kind {', '.join(sorted(strange))}")
    return framework


def filled(framework: Framework, home: Path | None) -> Iterator[Shown]:
    """Each control of `framework` with what `home` has to show; without a home what holds in general."""
    if home is None:
        yield from map(Shown, framework.rows)
        return
    settings, log = {name: _read(home / name) for name in ("policy.yaml", "client.yaml", "server.json")}, _log(home)
    for row in framework.rows:
        values = {entry: _value(settings, entry) for entry in row.settings}
        here = {entry: value for entry, value in values.items() if value is not None}
        yield Shown(row, here, {kind: log.get(kind, "no entry") for kind in row.log})


def as_markdown(framework: Framework, rows: list[Shown], home: Path | None) -> Iterator[str]:
    """The table, as lines of Markdown."""
    yield f"# {framework.title}"
    yield ""
    where = f"of {home.name}, {datetime.now(UTC):%F}" if home else "of sovfed in general"
    yield f"What there is to show {where}. The wording is ours; it judges nothing."
    yield ""
    yield "| control | what holds | as set and recorded here | by which test | what is left |"
    yield "|---|---|---|---|---|"
    for shown in rows:
        row = shown.control
        seen = [*(f"{key} = {value}" for key, value in shown.settings.items())]
        seen += [f"log: {value} of {kind}" for kind, value in shown.log.items()]
        cells = (row.control, row.holds, "; ".join(seen) or "–", "; ".join(row.tests) or "–", row.gap)
        yield "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def _read(path: Path) -> Mapping[str, Any] | None:
    """The settings in `path`; None of a home of the other role. Raises ConfigError if they cannot be read."""
    if not path.exists():
        return None
    try:
        text = path.read_text(encoding="utf-8")
        values: Any = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read") from error
    return values if isinstance(values, dict) else {}


def _value(settings: Mapping[str, Mapping[str, Any] | None], entry: str) -> str | None:
    """The value that `entry` (FILE KEY.KEY) has in this home; None if it is a setting of the other role."""
    file, _, key = entry.partition(" ")
    value: Any = settings.get(file)
    if value is None:
        return None
    for part in key.split("."):
        if not isinstance(value, dict) or part not in value:
            return UNSET
        value = value[part]
    if isinstance(value, dict | list) and value:
        return f"{len(value)} named"  # whose names are nobody's business here
    return json.dumps(value) if value not in ("", [], {}) else UNSET


def _log(home: Path) -> dict[str, str]:
    """How many entries of each kind there are, and of which day the newest is."""
    if not has_log(home):
        return {}
    counts, newest = Counter[str](), dict[str, int]()
    for entry in LogReader(home).newest():
        counts[entry["kind"]] += 1
        newest.setdefault(entry["kind"], entry["at"])
    days = {kind: day(at, "%F") for kind, at in newest.items()}
    words = {kind: f"{count} {'entry' if count == 1 else 'entries'}" for kind, count in counts.items()}
    return {kind: f"{words[kind]}, the newest of {days[kind]}," for kind in words}
