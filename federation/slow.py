"""What goes on is said where it takes longer than somebody likes to look at nothing."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import click

from sovfed.federation.text import visible

SILENT_S: Final = 2.0


@contextmanager
def said_if_slow(doing: str, silent_s: float = SILENT_S) -> Iterator[None]:
    """Say what is `doing`, once and on stderr, if what stands within takes longer than `silent_s` seconds."""
    timer = threading.Timer(silent_s, lambda: click.echo(visible(f"{doing} …"), err=True))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
