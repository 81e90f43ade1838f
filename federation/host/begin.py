"""How a supervisor's process begins, whatever it is for."""

from __future__ import annotations

import argparse
import os
import sys
import threading
from pathlib import Path
from typing import Final

from sovfed.federation.host.logs import log_to_stderr
from sovfed.federation.host.processes import die_with_parent
from sovfed.federation.host.quiet import be_quiet

ENDED: Final = b"MemoryError: a thread has ended for want of memory, and this process with it\n"


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
    end_without_memory()
    os.umask(0o077)
    be_quiet(options.home)
    return options.home, options.config


def end_without_memory() -> None:
    """Have this process end as soon as one of its threads does for want of memory; its supervisor starts a whole one.

    What that thread was to do is done by no other: a server that lost one is alive, and whoever asks it waits for ever.
    """
    told, unraisable = threading.excepthook, sys.unraisablehook

    def end_thread(failure: threading.ExceptHookArgs) -> None:
        _end_if(failure.exc_type)
        told(failure)

    def end_unraisable(failure: sys.UnraisableHookArgs) -> None:  # a thread that fails before it has begun
        _end_if(failure.exc_type)
        unraisable(failure)

    threading.excepthook, sys.unraisablehook = end_thread, end_unraisable


def _end_if(kind: type[BaseException]) -> None:
    if issubclass(kind, MemoryError):
        os.write(2, ENDED)  # and no more is told, for that takes memory
        os._exit(1)
