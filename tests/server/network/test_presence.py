"""Who has joined, as it is told."""

from __future__ import annotations

import time
from pathlib import Path

from sovfed.server.network.presence import Presence, read_presence, write_presence


def test_a_sentence_names_who_is_missing_and_since_when() -> None:
    noon = time.mktime((*time.localtime()[:3], 12, 0, 7, 0, 0, -1))
    assert Presence(31, 32, {"hospital-27": noon}).sentence() == "31 of 32 joined, missing hospital-27 since 12:00:07"
    assert Presence(4, 4, {}).sentence() == "4 of 4 joined"


def test_a_sentence_names_eight_and_counts_the_others() -> None:
    missing = {f"h{number}": 0.0 for number in range(10)}
    text = Presence(1, 11, missing).sentence()
    assert text.startswith("1 of 11 joined, missing h0 since 19")  # another day: with its date
    assert text.endswith(" and 2 more")
    assert "h8" not in text


def test_it_is_read_as_it_was_written_and_none_where_it_was_not(tmp_path: Path) -> None:
    assert read_presence(tmp_path) is None
    presence = Presence(3, 4, {"hospital-1": 7.5})
    write_presence(tmp_path, presence)
    assert read_presence(tmp_path) == presence
    (tmp_path / "presence.json").write_text('{"joined": 1')
    assert read_presence(tmp_path) is None
