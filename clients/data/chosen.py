"""The settings of the group `data` as a command line has them, for a file that it names."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Final

import yaml

from sovfed.clients.data.beside import own_settings
from sovfed.clients.data.tables.prediction import place_of
from sovfed.federation.config import DataConfig
from sovfed.federation.errors import ConfigError, DataError
from sovfed.federation.schema import bind, nearest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sovfed.federation.tasks.columns import Schema

SUMMARY: Final = "summary.json"
LONGEST_SUMMARY: Final = 1 << 24  # bytes
OF_CELLS: Final = ("missing_words", "detection_limit", "date_format")  # what a cell means, in whichever file
AUTO: Final = "auto"  # the source that stands for whichever reads what lies at data.path
OF_A_PREDICTION: Final = frozenset(
    {
        "encoding", "separator", "decimal", "date_format", "missing_words", "detection_limit", "mapping", "bad_rows",
        "max_bad_share",
    }
)  # fmt: skip


def chosen(file: Path, settings: Sequence[str], own: Path | None = None, schema: Schema | None = None) -> DataConfig:
    """The records in `file` as `settings` say, each `data.KEY=VALUE`, and the file `own`. Raises ConfigError."""
    values = {**({} if own is None else own_settings(own)), **_values(settings)}
    place = {"path": str(file)} if "source" in values else place_of(file, schema)
    return bind(DataConfig, {**values, **place}, "data", ConfigError)


def settled(data: DataConfig, schema: Schema | None = None) -> DataConfig:
    """`data` with the connector of what lies at its path, where `auto` stands for it. Raises DataError."""
    if data.source != AUTO:
        return data
    if not data.path:
        raise DataError("which records? data.path=FILE, or a folder of one file a site; or data.source")
    return dataclasses.replace(data, **place_of(Path(data.path).expanduser(), schema))  # type: ignore[arg-type]


def as_written(settings: Sequence[str]) -> DataConfig:
    """How tables are written as `settings` say, whichever they are. Raises ConfigError."""
    return bind(DataConfig, _values(settings), "data", ConfigError)


def for_prediction(settings: Sequence[str], keep: str = "") -> DataConfig:
    """How the table to predict for is written; its column `keep` is carried through. Raises ConfigError."""
    values = _values(settings)
    for key in values:
        if key not in OF_A_PREDICTION:
            hint = "; --id names the column to carry through" if key == "person" else nearest(key, OF_A_PREDICTION)
            raise ConfigError(
                f"data.{key[:64]} says nothing of a table to predict for{hint}; expected one of "
                + ", ".join(f"data.{name}" for name in sorted(OF_A_PREDICTION))
            )
    return dataclasses.replace(bind(DataConfig, values, "data", ConfigError), person=keep or None)


def of_training(model: Path) -> list[str]:
    """The settings `OF_CELLS` of the simulation that `model`, a folder or the file in it, came of; [] of any other."""
    summary = (model if model.is_dir() else model.parent) / SUMMARY
    try:
        with summary.open("rb") as file:
            data = json.loads(file.read(LONGEST_SUMMARY))["config"]["data"]
        values = {key: data[key] for key in OF_CELLS if data[key] not in (None, [], getattr(DataConfig(), key))}
    except (OSError, ValueError, RecursionError, KeyError, TypeError):
        return []
    return [f"data.{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in values.items()]


def _values(settings: Sequence[str]) -> dict[str, object]:
    values: dict[str, object] = {}
    for setting in settings:
        key, sign, text = setting.partition("=")
        if not sign:
            raise ConfigError(f"'{setting[:64]}' is no KEY=VALUE, as in data.decimal=,")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            value = text
        values[key.removeprefix("data.")] = text if isinstance(value, (int, float)) and key.endswith("site") else value
    return values
