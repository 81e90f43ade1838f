"""Options that the agency's commands share."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Final

import click

from sovfed.federation.host.homes import default_home

DEFAULT_HOME: Final = default_home("server")
HOME_VARIABLE: Final = "SOVFED_SERVER_HOME"
HOME: Final = click.option(
    "--home", type=click.Path(path_type=Path, file_okay=False, resolve_path=True),
    default=DEFAULT_HOME, show_default="~/.sovfed/server", envvar=HOME_VARIABLE, help="The agency's home folder.",
)  # fmt: skip
JSON: Final = click.option("--json", "as_json", is_flag=True, help="Print JSON for machines.")


def option(home: Path) -> str:
    """What a further command needs, to find the same home."""
    usual = home == DEFAULT_HOME or os.environ.get(HOME_VARIABLE) == str(home)
    return "" if usual else f" --home {shlex.quote(str(home))}"
