"""An audit's time: tries are begun while there is some, and what is left is told in words."""

from __future__ import annotations

import time

from sovfed.simulations.audit.chaos.pace import Pace


def test_tries_are_begun_while_there_is_time() -> None:
    assert Pace().may_begin()
    assert Pace(1.0).may_begin()


def test_one_try_is_begun_however_long_its_beginning_took() -> None:
    """Seen: on a busy machine the federation took longer to set up, and the same command came no further."""
    late = Pace(1.0, made=time.monotonic() - 61.0)
    assert late.may_begin()
    assert not late.may_begin()


def test_what_is_left_goes_by_what_was_taken() -> None:
    now = time.monotonic()
    pace = Pace(begun=[now - 240.0, now - 60.0])  # one of three minutes, one of one
    assert pace.left(5) == "5 more, about 10 min"
    assert pace.left(0) == ""
