"""The settings in a question's text, for those too who know no task: an institution's policy, and the gateway."""

from __future__ import annotations

from typing import Final

from sovfed.federation.errors import ConfigError

PURPOSE: Final = "statistics"  # what the purpose of an order for statistics begins with
MOST: Final = {"bins": 1_000, "least": 10**9, "sites": 1}
LEAST: Final = 10  # the smallest count that is shown, if the question does not say


def least_of(text: str) -> int:
    """The smallest count that the answer to `text` shows. Raises ConfigError if it is no count."""
    given = [item.partition("=")[2] for item in text.split(",") if item.partition("=")[0].strip() == "least"]
    return min((setting("least", value) for value in given), default=LEAST)


def setting(name: str, value: str) -> int:
    """The value of setting `name`. Raises ConfigError."""
    try:
        number = int(value)
    except ValueError:
        number = 0
    if not 1 <= number <= MOST[name]:
        raise ConfigError(f"statistics: {name}={value.strip()[:20]!r}, expected 1 to {MOST[name]}")
    return number
