"""Loopback ports for processes that are about to start: of ours, no other program is given the same."""

from __future__ import annotations

import atexit
import random
import socket
import sys
from collections import deque
from typing import Final

PORTS: Final = range(10_240, 32_768)  # the system takes those above by itself, for connections
MOST_HELD: Final = 500
_held: deque[socket.socket] = deque()


@atexit.register
def _give_back() -> None:
    while _held:
        _held.pop().close()


def free_ports(count: int) -> list[int]:
    """TCP ports that nobody listens on, kept from other programs that ask here while this one lives (on Linux)."""
    chosen: list[int] = []
    while len(chosen) < count:
        port = random.SystemRandom().choice(PORTS)
        if _hold(port) and _nobody_listens(port):
            chosen.append(port)
    return chosen


def _hold(port: int) -> bool:
    """Whether the port is this process's now: its name is taken, as a socket that no file stands for."""
    if sys.platform != "linux":
        return True
    name = socket.socket(socket.AF_UNIX)
    try:
        name.bind(f"\0sovfed-port-{port}")
    except OSError:
        name.close()
        return False
    _held.append(name)
    if len(_held) > MOST_HELD:
        _held.popleft().close()
    return True


def _nobody_listens(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
