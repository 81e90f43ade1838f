"""An institution's settings from `conf/` and the overrides of `sovfed client init`, read without Hydra.

Hydra composes runs, for the agency and for researchers. An institution chooses one file for its records and one for its
processes, and replaces single values: YAML and the binder of `federation/schema.py` do that, with the same refusals.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import yaml

from sovfed.clients.data.beside import own_settings, settings_of
from sovfed.clients.data.chosen import settled
from sovfed.clients.home.settings import read_settings
from sovfed.federation.compose import PACKAGED, groups, split_override, takes_text
from sovfed.federation.config import ClientConfig, DataConfig
from sovfed.federation.errors import ConfigError
from sovfed.federation.schema import bind

if TYPE_CHECKING:
    from sovfed.federation.tasks.columns import Schema

OWN: Final = ("client", "data")  # groups whose settings are an institution's; `task` chooses the data made for it
OF_TASK: Final = "${task}"
_WORDS: Final = {"null": None, "true": True, "false": False}
_INTEGER: Final = re.compile(r"[+-]?\d+")


def client_config(
    overrides: Sequence[str] = (), folders: Sequence[Path] = (PACKAGED,), *, schema: Schema | None = None
) -> ClientConfig:
    """The settings that `overrides` (`data=csv`, `data.path=/srv/heart.csv`, `client.device=cuda`) choose.

    `schema` is the task's, which says whether a folder is one of images. What stands beside the table of `data.path`
    in a file of its own settings is taken too; `overrides` come before it.

    Raises ConfigError on anything else, as `compose` does, and for settings that are not an institution's.
    """
    options = groups(folders)
    chosen = _defaults()
    values: dict[str, Any] = {}
    for key, raw in (split_override(text, folders) for text in overrides):
        group, _, name = key.removeprefix("client.data.").rpartition(".")
        if key in options and key in (*OWN, "task"):
            chosen[key] = raw
        elif key.startswith(("data.", "client.data.")):
            values.setdefault("data", {})[name] = _read(key, raw)
        elif group == "client":
            values[name] = _read(key, raw)
        else:
            raise ConfigError(f"'{key}' is chosen for a run, by the agency; an institution chooses {' and '.join(OWN)}")
    if chosen["data"] == OF_TASK:
        chosen["data"] = _data_of(chosen["task"], options["data"])
    data = _option("data", chosen["data"], folders)
    given = values.pop("data", {})
    own = _beside(given.get("path"))
    data |= ({} if own is None else own_settings(own)) | given
    client = _option("client", chosen["client"], folders) | values
    return bind(ClientConfig, {**client, "data": settled(bind(DataConfig, data, "data"), schema)}, "client")


def beside(overrides: Sequence[str]) -> Path | None:
    """The file of own settings beside the table that `overrides` name; None if there is none."""
    paths = [text.partition("=")[2] for text in overrides if text.startswith(("data.path=", "client.data.path="))]
    return _beside(paths[-1]) if paths else None


def _beside(path: object) -> Path | None:
    return settings_of(Path(path).expanduser()) if isinstance(path, str) and path else None


def _defaults() -> dict[str, str]:
    """The option of each group that stands when nothing is chosen."""
    listed = read_settings(PACKAGED / "config.yaml")["defaults"]
    return {name: option for entry in listed if isinstance(entry, dict) for name, option in entry.items()}


def _data_of(task: str, known: Sequence[str]) -> str:
    if task not in known:
        raise ConfigError(f"task '{task}' comes without data: choose them, as in data=csv data.path=records.csv")
    return task


def _option(group: str, option: str, folders: Sequence[Path]) -> dict[str, Any]:
    """The values in the file of `option`, from the first folder that has it."""
    path = next(path for folder in folders if (path := folder / group / f"{option}.yaml").exists())
    values = read_settings(path)
    if values.get("data") == "${data}":
        del values["data"]
    _refuse_references(values, path)
    return values


def _refuse_references(values: Mapping[str, Any], path: Path) -> None:
    for key, value in values.items():
        if isinstance(value, str) and "${" in value:
            raise ConfigError(f"{path}: '{key}' is {value[:80]!a}: write out the value")


def _read(key: str, raw: str) -> Any:
    """The value that `raw` stands for; text that fits no other type stays text, which the binder then refuses."""
    if "${" in raw:
        raise ConfigError(f"'{key}' is {raw[:80]!a}: write out the value")
    if takes_text(key):
        quoted = len(raw) > 1 and raw[0] == raw[-1] and raw[0] in "'\""
        return None if raw == "null" else raw[1:-1] if quoted else raw
    if raw.startswith("["):
        return _list(key, raw)
    if raw in _WORDS:
        return _WORDS[raw]
    if _INTEGER.fullmatch(raw):
        return int(raw)
    try:
        return float(raw)
    except ValueError:
        return raw


def _list(key: str, raw: str) -> list[Any]:
    """The texts of a list such as `[n.b., k.A.]`; a type of their own is for the binder to refuse."""
    try:
        values = yaml.load(raw, yaml.BaseLoader)  # noqa: S506 - makes texts, lists and mappings alone
    except yaml.YAMLError:
        values = None
    if not isinstance(values, list):
        raise ConfigError(f"'{key}' is {raw[:80]!a}: a list is written as [a, b]")
    return values
