"""Clocks that differ are named at both sides, and Flower's bounds are those that we say them by."""

from __future__ import annotations

import logging
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import httpx
import pytest

from sovfed.federation.wire import clocks
from sovfed.federation.wire.clocks import (
    AHEAD_S,
    BEHIND_S,
    TIMESTAMP_HEADER,
    difference,
    signed_too_far,
    tell_difference,
)

NOW = datetime(2026, 5, 1, 12, 0, tzinfo=UTC)


def test_the_bounds_and_the_header_are_flowers() -> None:
    from flwr.common.constant import SYSTEM_TIME_TOLERANCE, TIMESTAMP_TOLERANCE
    from flwr.common.constant import TIMESTAMP_HEADER as FLOWERS

    assert (AHEAD_S, BEHIND_S) == (SYSTEM_TIME_TOLERANCE, TIMESTAMP_TOLERANCE + SYSTEM_TIME_TOLERANCE)
    assert FLOWERS.encode() == TIMESTAMP_HEADER


@pytest.mark.parametrize(
    ("signed_s", "words"),
    [(0, ""), (-300, ""), (4, ""), (86_400, "1 day, 0:00:00 ahead"), (-86_400, "1 day, 0:00:00 behind"), (6, "ahead")],
)
def test_a_request_that_was_signed_too_far_from_now_names_both_clocks(signed_s: int, words: str) -> None:
    said = signed_too_far((NOW + timedelta(seconds=signed_s)).isoformat().encode(), NOW)
    assert words in said and bool(said) == bool(words)
    assert not said or "2026-05-01 12:00:00 UTC" in said


@pytest.mark.parametrize("stamp", [None, b"", b"yesterday", b"2026-05-01T12:00:00", b"\xff"])
def test_what_is_no_time_is_left_to_flower(stamp: bytes | None) -> None:
    assert signed_too_far(stamp, NOW) == ""


@pytest.mark.parametrize("date", ["", "now", "Mon, 99 Foo 99999999 99:99:99 +9999", "Mon, 01 Jan 9999999 00:00:00"])
def test_an_answer_whose_date_is_none_is_no_traceback(date: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - whatever Python says of it
        difference(date)
    tell_difference(httpx.Response(401, headers={"date": date}))


def test_a_date_without_a_zone_is_utc_and_a_long_wait_is_no_difference() -> None:
    assert "ahead" in difference("Mon, 01 Jan 2001 00:00:00 -0000")
    earlier = format_datetime(datetime.now(UTC) - timedelta(seconds=15), usegmt=True)
    assert "ahead" in difference(earlier) and difference(earlier, waited_s=20) == ""


@pytest.mark.parametrize(("ahead_s", "said"), [(0, False), (86_400, True), (-86_400, True)])
def test_an_answer_of_another_day_is_told_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, ahead_s: int, said: bool
) -> None:
    monkeypatch.setattr(clocks, "_warned", [])
    theirs = datetime.fromtimestamp(time.time() - ahead_s, UTC)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            tell_difference(httpx.Response(401, headers={"date": format_datetime(theirs, usegmt=True)}))
            tell_difference(httpx.Response(401))
    words = "ahead" if ahead_s > 0 else "behind"
    assert [words in record.message and "timedatectl" in record.message for record in caplog.records] == [True] * said
