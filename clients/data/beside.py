"""A table's own settings: beside `koeln.csv` a `koeln.yaml` with its `data`, as in a client.yaml."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from sovfed.clients.home.settings import read_settings
from sovfed.federation.errors import ConfigError

ENDING: Final = ".yaml"
GROUP: Final = "data"
FILES: Final = ("mapping", "url_file", "query_file", "opt_out", "bad_rows_file")  # as they stand from the folder


def own_settings(path: Path) -> dict[str, Any]:
    """What `path` says of the table beside it; files that it names are found from its folder. Raises ConfigError."""
    content = read_settings(path)
    own = content.get(GROUP)
    if set(content) != {GROUP} or not isinstance(own, dict):
        raise ConfigError(f"{path}: expected '{GROUP}:' alone, with that institution's settings below it")
    return own | {key: str(path.parent / Path(own[key]).expanduser()) for key in FILES if isinstance(own.get(key), str)}


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
