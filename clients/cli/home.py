"""The option that every command of an institution takes."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import click

from sovfed.federation.host.homes import default_home

HOME: Final = click.option(
    "--home", type=click.Path(path_type=Path, file_okay=False), default=default_home("client"),
    show_default="~/.sovfed/client", envvar="SOVFED_CLIENT_HOME", help="The institution's home folder.",
)  # fmt: skip
