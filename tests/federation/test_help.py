"""Lines of help that are too wide are folded so that a command can still be copied."""

from __future__ import annotations

import pytest

from sovfed.federation.help import folded

NOTED = "  sovfed server requests          what waits, since when, with which fingerprint, and what is next"
QUOTED = '  sovfed run propose task=heart order.purpose="risk of infarction, study 12" order.valid_days=90'


@pytest.mark.parametrize("line", ["  sovfed run list", NOTED, QUOTED])
def test_no_line_is_wider_than_the_room(line: str) -> None:
    assert all(len(part) <= 60 for part in folded(line, 60))


def test_what_a_command_does_goes_below_it() -> None:
    first, second, *_ = folded(NOTED, 60)
    assert first == "  sovfed server requests" and second.startswith("      what waits")


def test_a_folded_command_is_the_same_command_and_quotes_are_kept_whole() -> None:
    parts = list(folded(QUOTED, 60))
    assert '"risk of infarction, study 12"' in "\n".join(parts)
    joined = " ".join(part.strip().removesuffix(" \\") for part in parts)
    assert joined == QUOTED.strip()
