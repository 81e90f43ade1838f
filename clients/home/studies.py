"""An institution's studies in `client.yaml`: listed, added and removed, the rest as its operator has written it."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from sovfed.clients.home.folder import SETTINGS, load_config
from sovfed.clients.home.settings import named_lines, read_settings
from sovfed.federation.config import REST, ClientConfig, StudyConfig
from sovfed.federation.errors import ConfigError
from sovfed.federation.files import write_private
from sovfed.federation.schema import bind, nearest
from sovfed.federation.text import AT

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sovfed.clients.home.policy import Policy
    from sovfed.federation.config import DataConfig

INDENT: Final = "  "
_GROUP: Final = re.compile(r"^studies:[ ]*(\{[ ]*\})?[ ]*$", re.MULTILINE)  # an empty one, or one that follows in lines


def listed(config: ClientConfig, policy: Policy) -> Iterator[str]:
    """A line for each study, and one for the tasks that no study names."""
    width = max(len(name) for name in (*config.studies, REST))
    for name, study in config.studies.items():
        allowed = any(_meet(study.task, entry) for entry in policy.allowed_tasks)
        word = "allowed" if allowed else "not in allowed_tasks"
        whose = f"  population {study.population}" if study.population else ""
        yield f"{name.ljust(width)}  {study.task}  {word}  {_place(study.data)}{whose}"
    yield f"{REST.ljust(width)}  every other task  {_place(config.data)}"


def add_study(home: Path, name: str, task: str, data: DataConfig, population: str = "") -> ClientConfig:
    """Write study `name` into `home/client.yaml`, beside what is there; the settings as they then are.

    Raises ConfigError if the study, or one of its task, is there; or with what to add by hand where the file is not
    written as this looks for it.
    """
    path = home / SETTINGS
    if not path.exists():
        load_config(home)  # says what is missing
    before, text = read_settings(path), path.read_text(encoding="utf-8")
    old = bind(ClientConfig, before, str(path))
    if name in old.studies:
        raise ConfigError(f"{path}: study '{name}' is there already; change it by hand")
    study = bind(StudyConfig, {"task": task, "data": data, "population": population}, name)
    expected = bind(ClientConfig, {**before, "studies": {**old.studies, name: study}}, str(path))
    block = "\n".join(named_lines({name: study}, INDENT))
    changed = _with_block(text, block)
    if _read(changed) != expected:
        raise ConfigError(f"{path}: its 'studies' are written in another way; add there by hand\n{block}")
    write_private(path, changed.encode())
    return load_config(home)


def remove_study(home: Path, name: str) -> StudyConfig:
    """Take study `name` out of `home/client.yaml`; what it was. Raises ConfigError if it is not there, or not in lines
    of its own.
    """
    path = home / SETTINGS
    old = load_config(home).studies
    if name not in old:
        raise ConfigError(f"{path}: there is no study '{name}'{nearest(name, tuple(old))}")
    text = path.read_text(encoding="utf-8")
    lines = rf"^{INDENT}(['\"]?){re.escape(name)}\1:.*\n(?:{INDENT}[ ].*\n)*"
    changed = re.sub(lines, "", f"{text.rstrip()}\n", flags=re.MULTILINE)
    if len(old) == 1:
        changed = re.sub(r"^studies:[ ]*$", "studies: {}", changed, flags=re.MULTILINE)
    before = bind(ClientConfig, read_settings(path), str(path))
    if _read(changed) != replace(before, studies={key: study for key, study in before.studies.items() if key != name}):
        raise ConfigError(f"{path}: study '{name}' is not in lines of its own; take it out by hand")
    write_private(path, changed.encode())
    return old[name]


def _with_block(text: str, block: str) -> str:
    """`text` with `block` as the first of `studies`."""
    if not re.search(r"^studies:", text, re.MULTILINE):
        return f"{text.rstrip()}\nstudies:\n{block}\n"
    return _GROUP.sub(lambda _: f"studies:\n{block}", text, count=1)


def _read(text: str) -> ClientConfig | None:
    """The settings that `text` holds; None if it holds none."""
    import yaml

    try:
        document: Any = yaml.safe_load(text)
        return bind(ClientConfig, document)
    except (yaml.YAMLError, ConfigError, TypeError):
        return None


def _meet(task: str, entry: str) -> bool:
    """Whether a study's task and an entry of `allowed_tasks` have a version in common."""
    (name, _, digest), (other_name, _, second) = task.partition(AT), entry.partition(AT)
    return name == other_name and (digest.startswith(second) or second.startswith(digest))


def _place(data: DataConfig) -> str:
    return f"{data.source} {data.path or data.url_file or '(built in)'}"
