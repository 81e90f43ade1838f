"""How a process of ours ends: at once, and with its own exit code."""

from __future__ import annotations

import atexit
import logging
import os
import sys
import threading
import traceback
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable


def leave(main: Callable[[], int]) -> NoReturn:
    """Run a process's `main` and end with the exit code it returns; the last line of its module.

    Python's own end takes modules away beneath libraries' threads that still run: of 40 SuperNodes that Flower ended
    one died of SIGSEGV so. Here, after what every end does (threads waited for, `atexit`, logs and streams written
    out), the process is gone, which also spares the search for garbage (a second, where torch is).
    """
    code = _code(main)
    code = _code(_wait_for_threads) or code
    code = _code(_run_atexit) or code
    logging.shutdown()
    for stream in sys.stdout, sys.stderr:
        try:
            stream.flush()
        except (OSError, ValueError):  # its reader is gone
            code = code or 1
    os._exit(code)


def _code(main: Callable[[], int]) -> int:
    try:
        return main()
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        sys.stderr.write(f"{end.code}\n")
        return 1
    except BaseException:
        _tell()
        return 1


def _tell() -> None:
    """Tell of the exception as Python does: by the hook that is set, with which it is one record of the log."""
    try:
        sys.excepthook(*sys.exc_info())
    except BaseException:
        traceback.print_exc()


def _wait_for_threads() -> int:
    """Until all that are no daemons have ended, as Python's own end does; a signal's handler may raise here too."""
    threading._shutdown()  # type: ignore[attr-defined]
    return 0


def _run_atexit() -> int:
    atexit._run_exitfuncs()
    return 0
