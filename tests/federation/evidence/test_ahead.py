"""What stands ahead of a log is in it once, in its order, whoever dies in the middle and whoever writes next."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import pytest

from sovfed.federation.errors import EvidenceError
from sovfed.federation.evidence import ahead
from sovfed.federation.evidence.checking import check_log
from sovfed.federation.evidence.entries import read_entry
from sovfed.federation.evidence.noting import Noting
from sovfed.federation.evidence.store import LogReader, enter_ahead, record

BEFORE = 7  # entries that the fixture writes
Change: TypeAlias = Callable[[list[bytes]], list[bytes]]


def rounds(home: Path) -> list[int]:
    """The numbers that the entries after the fixture's tell, in their order."""
    return [read_entry(data)["round"] for _, data in LogReader(home).entries(BEFORE)]


def started(home: Path) -> Noting:
    noting = Noting(home)
    assert noting.begin()
    return noting


def in_a_process(home: Path, script: str) -> subprocess.CompletedProcess[str]:
    """Run `script` in a process that has a `noting` of `home` and is gone at its end, without leaving in order."""
    begun = (
        "import os, pathlib, resource, signal, sys\n"
        "from sovfed.federation.errors import ServiceError\n"
        "from sovfed.federation.evidence.noting import Noting\n"
        "noting = Noting(pathlib.Path(sys.argv[1]))\n"
        "assert noting.begin()\n"
    )
    command = [sys.executable, "-c", f"{begun}{script}\nos._exit(0)", str(home)]
    return subprocess.run(command, check=True, text=True, capture_output=True, timeout=60)


def test_what_was_noted_is_in_the_log_before_whatever_is_recorded_next(hospital: Path) -> None:
    noting = started(hospital)
    noting.note("round", run="1", round=1)
    assert LogReader(hospital, writable=False).extent() == BEFORE
    record(hospital, "round", run="1", round=2)
    noting.note("round", run="1", round=3)
    assert rounds(hospital) == [1, 2, 3]
    noting.close()
    assert check_log(hospital).size == BEFORE + 3


def test_what_a_process_that_was_killed_has_noted_is_entered_by_the_next_and_once(hospital: Path) -> None:
    for number in (1, 3):
        in_a_process(hospital, f"noting.note('round', run='1', round={number})")
        noting = started(hospital)  # enters it, and begins the file anew
        noting.note("round", run="1", round=number + 1)
        noting.close()
    in_a_process(hospital, "noting.note('round', run='1', round=5)\nnoting.look()")
    started(hospital).close()
    assert rounds(hospital) == [1, 2, 3, 4, 5]
    assert check_log(hospital).size == BEFORE + 5


def test_what_a_process_wrote_and_did_not_live_to_sync_is_entered_once_too(hospital: Path) -> None:
    in_a_process(
        hospital, "noting.write('round', run='1', round=1)\nnoting.look()\nnoting.write('round', run='1', round=2)"
    )
    noting = started(hospital)
    noting.write("round", run="1", round=3)
    noting.look()
    noting.sync()
    assert rounds(hospital) == [1, 2, 3]
    noting.close()
    assert check_log(hospital).size == BEFORE + 3


def test_a_line_that_a_power_cut_has_torn_is_left_out(hospital: Path) -> None:
    in_a_process(hospital, "noting.note('round', run='1', round=1)")
    with (hospital / ahead.FILE).open("ab") as file:
        file.write(b'{"at":1,"fields":{"round":2')
    started(hospital).note("round", run="1", round=3)
    assert rounds(hospital) == [1, 3]


def test_a_line_that_does_not_fit_on_the_disk_is_refused_and_the_next_is_whole(hospital: Path) -> None:
    in_a_process(
        hospital,
        "noting.note('round', run='1', round=1)\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        f"size = os.stat(sys.argv[1] + '/{ahead.FILE}').st_size\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20, resource.RLIM_INFINITY))\n"
        "try:\n    noting.note('round', run='1', round=2)\n"
        "except ServiceError:\n    pass\n"
        "else:\n    raise SystemExit(1)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))\n"
        "noting.note('round', run='1', round=3)\n",
    )
    assert rounds(hospital) == [1, 3]


def test_a_second_process_records_as_before_and_what_stands_ahead_comes_first(hospital: Path) -> None:
    first, second = started(hospital), Noting(hospital)
    first.note("round", run="1", round=1)
    assert not second.begin()
    second.note("round", run="1", round=2)
    assert rounds(hospital) == [1, 2]
    first.close()
    assert second.begin()


def test_a_long_file_is_begun_anew_and_nothing_is_entered_twice(
    hospital: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ahead, "RENEW_BYTES", 200)
    noting = started(hospital)
    for number in range(1, 9):
        noting.note("round", run="1", round=number)
        if number % 2:
            noting.look()
    assert (hospital / ahead.FILE).stat().st_size < 400
    assert enter_ahead(hospital)
    assert rounds(hospital) == list(range(1, 9))
    check_log(hospital)


def edited(lines: list[bytes]) -> list[bytes]:
    return [lines[0], lines[1].replace(b'"round":1', b'"round":7'), *lines[2:]]


def exchanged(lines: list[bytes]) -> list[bytes]:
    return [lines[0], lines[2], lines[1], *lines[3:]]


@pytest.mark.parametrize(
    "change", [edited, exchanged, lambda lines: [*lines, lines[2]], lambda lines: [lines[0], *lines[2:]],
               lambda lines: [b"0" * 32 + b"\n", *lines[1:]], lambda lines: [*lines, b"\n"]],
)  # fmt: skip
def test_who_lacks_the_logs_key_adds_changes_and_moves_no_line(hospital: Path, change: Change) -> None:
    """What stands there is signed when it is entered: it must have been written by whoever writes the log."""
    in_a_process(hospital, "for number in (1, 2, 3):\n    noting.note('round', run='1', round=number)")
    path = hospital / ahead.FILE
    path.write_bytes(b"".join(change(path.read_bytes().splitlines(keepends=True))))
    with pytest.raises(EvidenceError, match="log's key"):
        record(hospital, "round", run="1", round=4)
    with pytest.raises(EvidenceError, match="log's key"):
        Noting(hospital).note("round", run="1", round=4)
    assert rounds(hospital) == []


def test_nothing_of_what_was_entered_is_left_once_its_writer_ends_or_contents_are_deleted(hospital: Path) -> None:
    noting, file = started(hospital), hospital / ahead.FILE
    noting.note("round", run="secret", round=1)
    Noting.leave_nothing(hospital)
    assert b"secret" in file.read_bytes()  # who writes there lives
    noting.close()
    assert b"secret" not in file.read_bytes()
    in_a_process(hospital, "noting.note('round', run='secret', round=2)")
    Noting.leave_nothing(hospital)
    assert b"secret" not in file.read_bytes()
    assert rounds(hospital) == [1, 2]
