"""What a supervisor tells systemd, where a unit of Type=notify started it (sd_notify(3)): ready, and still alive."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from typing import Final

_BEAT_S: Final = 10.0


class Notifier:
    """Tells the service manager of this process; silent without one."""

    def __init__(self) -> None:
        address = os.environ.get("NOTIFY_SOCKET", "")
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        self._watched = bool(os.environ.get("WATCHDOG_USEC"))
        self._last = -_BEAT_S

    def ready(self) -> None:
        """Everything that this service is runs."""
        self._tell("READY=1")

    def alive(self) -> None:
        """The loop that watches the children goes round; told at most every ten seconds."""
        if self._watched and time.monotonic() - self._last >= _BEAT_S:
            self._last = time.monotonic()
            self._tell("WATCHDOG=1")

    def stopping(self) -> None:
        """It was asked to stop, or gave up."""
        self._tell("STOPPING=1")

    def _tell(self, state: str) -> None:
        if not self._address:
            return
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.settimeout(1.0)
            sender.sendto(state.encode("ascii"), self._address)
