"""The simulated institutions' own settings: beside `koeln.csv` a `koeln.yaml` with its `data`, as in a client.yaml."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sovfed.clients.data import connector, natural_sites
from sovfed.clients.data.beside import ENDING, GROUP, is_settings, is_task, own_settings
from sovfed.federation.config import DataConfig
from sovfed.federation.errors import ConfigError
from sovfed.federation.schema import bind, nearest

if TYPE_CHECKING:
    from collections.abc import Sequence

GIVEN: Final = frozenset({"source", "path", "site", "sites", "site_column"})  # by the simulation


def natural_institutions(data: DataConfig) -> list[DataConfig]:
    """The real institutions that the source has records of, each with its own settings over those of `data`.

    Raises ConfigError for settings that are none, or of no institution.
    """
    names = natural_sites(data)
    folder = Path(data.path).expanduser() if data.path else None
    own = _own_settings(folder, names) if folder is not None and folder.is_dir() and not data.site_column else {}
    return [
        dataclasses.replace(_bound(data, own.get(name, {}), folder, name), site=name, sites=len(names))
        for name in names
    ]


def settings_file(data: DataConfig) -> str:
    """Where the table of an institution in a folder has its own settings, or could have them; "" of any other."""
    table = data.path and not data.site_column and connector(data.source).survey is not None
    folder = Path(data.path).expanduser() if data.path and table else None
    return f"{folder / data.site}{ENDING}" if folder is not None and folder.is_dir() else ""


def _bound(data: DataConfig, own: dict[str, Any], folder: Path | None, name: str) -> DataConfig:
    """`data` with an institution's `own` settings; its files lie in `folder`."""
    if not own or folder is None:
        return data
    where = f"{folder / name}{ENDING}: {GROUP}"
    if given := sorted(GIVEN & set(own)):
        raise ConfigError(f"{where}.{given[0]}: that is the simulation's; this file says how one table is written")
    return bind(DataConfig, {**vars(data), **own}, where)


def _own_settings(folder: Path, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The settings in NAME.yaml, of each institution that has one. A file of anything else is left alone."""
    settings = {}
    for path in sorted(folder.glob(f"*{ENDING}")):
        name = path.name.removesuffix(ENDING)
        if name not in names:
            _check_nobodys(path, name, names)
            continue
        if not is_task(path):
            settings[name] = own_settings(path)
    return settings


def _check_nobodys(path: Path, name: str, names: Sequence[str]) -> None:
    """Raise ConfigError if the file looks like an institution's settings, which would be ignored."""
    if is_settings(path):
        raise ConfigError(f"{path}: there is no table of an institution '{name}'{nearest(name, names)}")
