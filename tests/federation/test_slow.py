"""What takes long says what it does; what does not says nothing."""

from __future__ import annotations

import threading
from contextlib import suppress

import pytest

from sovfed.federation.slow import said_if_slow


def timers() -> list[threading.Timer]:
    return [thread for thread in threading.enumerate() if isinstance(thread, threading.Timer)]


def test_what_takes_longer_says_what_goes_on_once_and_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    before = timers()
    with said_if_slow("reading \x1b[31m", silent_s=0.0):
        for timer in set(timers()) - set(before):
            timer.join(30)
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("reading ") and err.endswith(" …\n") and "\x1b" not in err


def test_what_ends_in_time_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with said_if_slow("reading", silent_s=3600.0):
        waiting = timers()
    with suppress(ValueError), said_if_slow("reading", silent_s=3600.0):
        waiting += timers()
        raise ValueError
    assert waiting and all(timer.finished.is_set() for timer in waiting)
    assert capsys.readouterr() == ("", "")
