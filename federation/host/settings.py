"""How a parent hands its children their settings: a file of the home that nobody else can read.

A command line is shown to every user of the machine, and settings name folders, sites and addresses.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sovfed.federation.errors import ConfigError
from sovfed.federation.files import read_private, write_private

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

    from sovfed.federation.config import ClientConfig, ServerConfig

FILE: Final = "processes.json"
PLACES: Final = ("path", "mapping", "url_file", "query_file", "opt_out")  # settings of `data` that are files to read


def settings_file(home: Path, config: ClientConfig | ServerConfig) -> Path:
    """The file (0600) in `home` that holds `config`, for the `--config` of its processes."""
    path = home / FILE
    write_private(path, json.dumps(dataclasses.asdict(config)).encode())
    return path


@contextlib.contextmanager
def passing(
    home: Path, config: ClientConfig | ServerConfig, beside: AbstractContextManager[object] | None
) -> Iterator[None]:
    """`settings_file`, written as the block begins, and `beside` within: for the supervisor that has the home.

    One that is refused, since another has it, writes nothing that the other's processes would read when they are
    started again.
    """
    settings_file(home, config)
    with beside or contextlib.nullcontext():
        yield


def passed_settings(path: Path) -> dict[str, Any]:
    """What `settings_file` wrote. Raises IdentityError if others can read it, ConfigError if it is no JSON object."""
    try:
        values = json.loads(read_private(path))
    except ValueError as error:
        raise ConfigError(f"{path}: not JSON") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected a JSON object")
    return values
