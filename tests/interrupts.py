"""Ctrl-C as tests send it, whoever started them."""

from __future__ import annotations

import subprocess
from typing import Final

# A shell has what it starts in the background ignore SIGINT, and so all that comes of it.
INTERRUPTIBLE: Final = ("env", "--default-signal=INT")


def told_at_its_end(process: subprocess.Popen[str]) -> str:
    """What the process wrote to its stderr; one that does not end is killed."""
    try:
        return process.communicate(timeout=60)[1]
    except subprocess.TimeoutExpired:
        process.kill()
        raise
