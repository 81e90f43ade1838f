"""Where a role's home folder is when nobody says it."""

from __future__ import annotations

from pathlib import Path
from typing import Final, Literal

SYSTEM: Final = Path("/var/lib/sovfed")


def default_home(role: Literal["client", "server"]) -> Path:
    """`~/.sovfed/ROLE`, or `/var/lib/sovfed/ROLE` for a user that has no home, as a service's or a container's."""
    try:
        return Path.home() / ".sovfed" / role
    except RuntimeError:  # neither HOME nor an entry in the list of users
        return SYSTEM / role
