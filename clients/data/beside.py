"""A table's own settings: beside `koeln.csv` a `koeln.yaml` with its `data`, as in a client.yaml."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sovfed.clients.home.settings import read_settings
from sovfed.federation.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

ENDING: Final = ".yaml"
GROUP: Final = "data"
PATH: Final = "path"
FILES: Final = ("mapping", "url_file", "query_file", "opt_out", "bad_rows_file")  # as they stand from the folder


def own_settings(path: Path) -> dict[str, Any]:
    """What `path` says of the table beside it; files that it names are found from its folder. Raises ConfigError."""
    content = read_settings(path)
    own = content.get(GROUP)
    if set(content) != {GROUP} or not isinstance(own, dict):
        raise ConfigError(f"{path}: expected '{GROUP}:' alone, with that institution's settings below it")
    if PATH in own:
        raise ConfigError(f"{path}: '{GROUP}.{PATH}' is the table that lies beside it; leave it out")
    return own | {key: str(path.parent / Path(own[key]).expanduser()) for key in FILES if isinstance(own.get(key), str)}


def settings_of(table: Path) -> Path | None:
    """The file of the own settings of `table`; None if there is none, or for a folder."""
    path = table.with_suffix(ENDING)
    return path if table.is_file() and path != table and is_settings(path) else None


def as_words(own: Mapping[str, Any]) -> list[str]:
    """Settings as a command line has them, `data.KEY=VALUE` each."""
    return [f"{GROUP}.{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in own.items()]


def is_settings(path: Path) -> bool:
    """Whether the file is there, and meant to be a table's own settings."""
    try:
        return path.is_file() and set(read_settings(path)) == {GROUP}
    except ConfigError:
        return False


def is_task(path: Path) -> bool:
    """Whether the file is a task.yaml, which may have a table's name and lie beside it."""
    try:
        return {"format", "target"} <= set(read_settings(path))
    except ConfigError:
        return False
