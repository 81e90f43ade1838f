"""What a flood of log lines leaves of the log."""

from __future__ import annotations

import logging

from sovfed.server.network.repeats import ALIKE, MAX_KINDS, OF_ONE_KIND, LeaveOutRepeats


def line(message: str, *args: object) -> logging.LogRecord:
    return logging.LogRecord("sovfed.gate", logging.WARNING, __file__, 1, message, args, None)


def test_lines_that_differ_in_numbers_only_are_collapsed_and_counted() -> None:
    now = [0.0]
    repeats = LeaveOutRepeats(lambda: now[0])
    flood = [repeats.filter(line("refused %d from %s", 403, f"192.0.2.9:{10_000 + n}")) for n in range(1000)]
    assert sum(flood) == ALIKE[0]
    assert repeats.filter(line("a line of another kind"))
    assert repeats.filter(line("refused %d from %s", 403, "192.0.2.8:40000")), "of another address"
    now[0] = 60.0
    late = line("refused %d from %s", 403, "192.0.2.9:40000")
    assert repeats.filter(late)
    assert late.getMessage() == "refused 403 from 192.0.2.9:40000 (995 lines like this were left out)"


def test_lines_of_one_place_are_bounded_whatever_they_say() -> None:
    repeats = LeaveOutRepeats(lambda: 0.0)
    words = ["".join(chr(97 + int(digit)) for digit in str(n)) for n in range(5000)]
    assert sum(repeats.filter(line("refused: %s", word)) for word in words) == OF_ONE_KIND[0]
    assert len(repeats._kinds) <= MAX_KINDS
