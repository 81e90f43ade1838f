"""How a supervisor's process begins, whatever it is for."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from sovfed.federation.host.logs import log_to_stderr
from sovfed.federation.host.processes import die_with_parent
from sovfed.federation.host.quiet import be_quiet


def begin(description: str, arguments: list[str] | None = None) -> tuple[Path, Path]:
    """The home and the file of settings (`settings.passed_settings`) that the process was started for.

    From now on it ends with its parent, its log goes to the parent, its files are private, and libraries call nobody.
    Ends the process with exit code 2 where `arguments`, by default the command line's, are others.
    """
    die_with_parent()
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--config", type=Path, required=True, help="private file with its settings as JSON")
    options = parser.parse_args(arguments)
    log_to_stderr()
    os.umask(0o077)
    be_quiet(options.home)
    return options.home, options.config
