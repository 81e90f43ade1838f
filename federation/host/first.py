"""The first process of a container: starts `sovfed …`, passes signals on, and reaps what ends without a parent.

`python -m sovfed.federation.host.first client up --plain`: a supervisor waits for its own children only, and there is
no other process in a container that would take leave of a dead coordinator's.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Final

from sovfed.federation.host.quiet import python_command

PASSED_ON: Final = (
    signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH,
)  # fmt: skip


def run(argv: list[str]) -> int:
    """Run `argv` until it ends; its exit code, or 128 and the number of the signal that ended it."""
    signal.pthread_sigmask(signal.SIG_BLOCK, PASSED_ON)  # none is lost between the start and the handler
    child = os.posix_spawn(argv[0], argv, os.environ, setsigmask=())
    for number in PASSED_ON:
        signal.signal(number, lambda received, _frame: _pass_on(child, received))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, PASSED_ON)
    while True:
        pid, status = os.wait()
        if pid == child:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code


def _pass_on(child: int, received: int) -> None:
    try:
        os.kill(child, received)
    except ProcessLookupError:
        return


def main() -> int:
    """Run `sovfed` with this process's arguments."""
    return run(python_command("sovfed", *sys.argv[1:]))


if __name__ == "__main__":
    sys.exit(main())
