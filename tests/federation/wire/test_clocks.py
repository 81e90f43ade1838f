"""Clocks that differ are named at both sides, and Flower's bounds are those that we say them by."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, HTTPServer

import httpx
import pytest

from sovfed.federation.wire import clocks
from sovfed.federation.wire.clocks import (
    AHEAD_S,
    BEHIND_S,
    TIMESTAMP_HEADER,
    difference,
    note_time,
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
        difference(date, time.monotonic())
    tell_difference(answer(date))


def test_a_date_without_a_zone_is_utc() -> None:
    assert "ahead" in difference("Mon, 01 Jan 2001 00:00:00 -0000", time.monotonic())


def ago(seconds: float) -> str:
    return format_datetime(datetime.now(UTC) - timedelta(seconds=seconds), usegmt=True)


def answer(date: str, took_s: float = 0.0) -> httpx.Response:
    """An answer that bears `date`, to a request that left `took_s` ago."""
    request = httpx.Request("POST", "https://agency.example")
    note_time(request)
    request.extensions[clocks._ASKED] -= took_s
    return httpx.Response(200, headers={"date": date}, request=request)


@pytest.mark.parametrize(
    ("date_s", "took_s", "said"),
    [
        (15, 20, ""), (20, 20, ""), (0, 20, ""),  # written as it came in, before it was held or late, and as it left
        (3600, 3600, ""),  # a machine that stood still meanwhile
        (15, 0, "ahead"), (40, 20, "ahead"), (3600, 20, "ahead"),  # before it was asked
        (-400, 20, "behind"), (-400, 3600, "behind"),  # after it was here
    ],
)  # fmt: skip
def test_a_date_between_request_and_answer_is_no_difference_and_one_outside_is(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, date_s: int, took_s: int, said: str
) -> None:
    monkeypatch.setattr(clocks, "_warned", [])
    tell_difference(answer(ago(date_s), took_s))
    assert len(caplog.records) == bool(said) and said in caplog.text
    assert bool(difference(ago(date_s), time.monotonic() - took_s)) == bool(said)


def test_an_answer_that_is_held_for_seconds_is_no_wrong_clock(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server writes the date when the request comes in, and answers later than its clock may differ."""
    monkeypatch.setattr(clocks, "_warned", [])
    monkeypatch.setattr(clocks, "AHEAD_S", 0.5)

    class Late(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            date = ago(0)
            time.sleep(2.5)
            self.send_response_only(200)
            self.send_header("date", date)
            self.end_headers()

    with HTTPServer(("127.0.0.1", 0), Late) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        hooks: dict[str, list[Callable[..., None]]] = {"request": [note_time], "response": [tell_difference]}
        with httpx.Client(event_hooks=hooks, trust_env=False) as client:
            assert client.get(f"http://127.0.0.1:{server.server_port}").status_code == 200
    assert not caplog.records


@pytest.mark.parametrize(("ahead_s", "said"), [(0, False), (86_400, True), (-86_400, True)])
def test_an_answer_of_another_day_is_told_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, ahead_s: int, said: bool
) -> None:
    monkeypatch.setattr(clocks, "_warned", [])
    theirs = datetime.fromtimestamp(time.time() - ahead_s, UTC)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            tell_difference(answer(format_datetime(theirs, usegmt=True)))
            tell_difference(httpx.Response(401, request=httpx.Request("GET", "https://agency.example")))
    words = "ahead" if ahead_s > 0 else "behind"
    assert [words in record.message and "timedatectl" in record.message for record in caplog.records] == [True] * said
