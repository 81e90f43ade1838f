"""What stands ahead of a log is in it once, in its order, whoever dies in the middle and whoever writes next."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from click.testing import CliRunner

from sovfed.cli import cli
from sovfed.federation.errors import EvidenceError, ServiceError
from sovfed.federation.evidence import ahead
from sovfed.federation.evidence.checking import check_log
from sovfed.federation.evidence.entries import read_entry
from sovfed.federation.evidence.noting import Noting
from sovfed.federation.evidence.standing import CHANGED, DAMAGED
from sovfed.federation.evidence.store import LogReader, enter_ahead, record

BEFORE = 7  # entries that the fixture writes
Change: TypeAlias = Callable[[list[bytes]], list[bytes]]


def rounds(home: Path) -> list[int]:
    """The numbers that the rounds after the fixture's tell, in their order."""
    entries = [read_entry(data) for _, data in LogReader(home).entries(BEFORE)]
    return [entry["round"] for entry in entries if entry["kind"] == "round"]


def damage(home: Path) -> list[dict[str, Any]]:
    """What the log tells of damage, but for when."""
    told = [read_entry(data) for _, data in LogReader(home).of_kind("damage")]
    return [{name: value for name, value in entry.items() if name not in ("at", "v")} for entry in told]


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
    "change", [edited, exchanged, lambda lines: [lines[0], *lines[2:]],
               lambda lines: [b"0" * 32 + b"\n", *lines[1:]], lambda lines: [*lines, *lines[2:]]],
)  # fmt: skip
def test_who_lacks_the_logs_key_adds_changes_and_moves_no_line(hospital: Path, change: Change) -> None:
    """What stands there is signed when it is entered: it must have been written by whoever writes the log."""
    in_a_process(hospital, "for number in (1, 2, 3):\n    noting.note('round', run='1', round=number)")
    path = hospital / ahead.FILE
    path.write_bytes(b"".join(change(path.read_bytes().splitlines(keepends=True))))
    with pytest.raises(EvidenceError, match="client log mend"):
        record(hospital, "round", run="1", round=4)
    with pytest.raises(EvidenceError, match="client log mend"):
        Noting(hospital).note("round", run="1", round=4)
    with pytest.raises(EvidenceError, match="client log mend"):
        check_log(hospital)
    assert rounds(hospital) == []


def test_what_is_set_aside_is_kept_and_the_log_tells_of_it(hospital: Path) -> None:
    in_a_process(hospital, "for number in (1, 2, 3):\n    noting.note('round', run='1', round=number)")
    path = hospital / ahead.FILE
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join((lines[0], lines[1], lines[3], lines[2])))
    result = CliRunner().invoke(cli, ["client", "log", "mend", "--home", str(hospital)])
    aside = next((hospital / "audit").glob("ahead.aside-*"))
    assert (result.exit_code, str(aside) in result.output) == (0, True), result.output
    assert aside.read_bytes() == b"".join((lines[0], lines[1], lines[3], lines[2]))
    moved = lines[3] + lines[2]
    entry = {"file": ahead.FILE, "why": DAMAGED, "bytes": len(moved), "sha256": sha256(moved).hexdigest()}
    assert damage(hospital) == [{**entry, "kind": "damage"}]
    assert rounds(hospital) == [1]
    result = CliRunner().invoke(cli, ["client", "log", "verify", "--home", str(hospital)])
    assert f"entry {BEFORE + 1} tells" in result.output
    assert Noting.mend(hospital) is None


@pytest.mark.parametrize("junk", [b"\n", b"\0" * 90 + b'"round":4}}\n', b"0" * 64 + b"{}\n"])
def test_one_damaged_line_at_the_end_is_set_aside_by_the_next_start_which_tells_so(hospital: Path, junk: bytes) -> None:
    """A power cut leaves it where sizes are on disk before data: its message had not left. Whoever puts it there could
    have taken the line away as well."""
    in_a_process(hospital, "for number in (1, 2, 3):\n    noting.note('round', run='1', round=number)")
    with (hospital / ahead.FILE).open("ab") as file:
        file.write(junk)
    with pytest.raises(EvidenceError, match="client log mend"):
        record(hospital, "round", run="1", round=4)  # not its business: whoever writes lines may live
    noting = started(hospital)
    noting.note("round", run="1", round=4)
    noting.close()
    assert rounds(hospital) == [1, 2, 3, 4]
    assert [(entry["bytes"], entry["sha256"]) for entry in damage(hospital)] == [(len(junk), sha256(junk).hexdigest())]
    assert check_log(hospital).damage == (BEFORE + 3,)


def test_an_older_file_that_is_put_back_is_not_entered_again(hospital: Path) -> None:
    in_a_process(hospital, "noting.note('round', run='1', round=1)")
    path = hospital / ahead.FILE
    older = path.read_bytes()
    in_a_process(hospital, "noting.note('round', run='1', round=2)\nnoting.look()")
    path.write_bytes(older)
    for write in (lambda: record(hospital, "round", run="1", round=3), lambda: started(hospital)):
        with pytest.raises(EvidenceError, match=r"an older one.*client log mend"):
            write()
    assert Noting.mend(hospital) is not None
    assert rounds(hospital) == [1, 2]
    assert check_log(hospital).damage == (BEFORE + 2,)


@pytest.mark.parametrize("unentered", ["", "\nnoting.note('round', run='1', round=2)"])
def test_a_file_that_is_gone_is_missed_by_whoever_writes_next(hospital: Path, unentered: str) -> None:
    in_a_process(hospital, f"noting.note('round', run='1', round=1)\nnoting.look(){unentered}")
    (hospital / ahead.FILE).unlink()
    with pytest.raises(EvidenceError, match=r"it is gone.*client log mend"):
        record(hospital, "round", run="1", round=3)
    with pytest.raises(EvidenceError, match="it is gone"):
        check_log(hospital)
    Noting.mend(hospital)
    assert (rounds(hospital), check_log(hospital).damage) == ([1], (BEFORE + 1,))


def test_a_file_that_its_writer_has_left_in_order_may_go(hospital: Path) -> None:
    """As where a backup has the database alone."""
    noting, file = started(hospital), hospital / ahead.FILE
    noting.note("round", run="1", round=1)
    left = file.read_bytes()
    noting.close()
    file.unlink()
    assert check_log(hospital).size == BEFORE + 1
    file.write_bytes(left)  # its own last lines are known
    for number in (2, 3):
        file.unlink(missing_ok=True)
        noting = started(hospital)
        noting.note("round", run="1", round=number)
        noting.close()
    assert rounds(hospital) == [1, 2, 3]
    file.write_bytes(left)
    with pytest.raises(EvidenceError, match="an older one"):
        started(hospital)


def remove(path: Path) -> None:
    path.unlink()


def cut(path: Path) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-1]))


def edit(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b'"round":2', b'"round":7'))


def copy(path: Path) -> None:
    """The same again, as a backup puts it back: what is added to the one before is nowhere."""
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data)


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def empty(path: Path) -> None:
    path.write_bytes(b"")


def append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(path.read_bytes().splitlines(keepends=True)[1])


@pytest.mark.parametrize("attack", [remove, cut, edit, copy, pipe, link, empty, append])
@pytest.mark.parametrize("again", [True, False])
def test_whoever_writes_lines_enters_them_from_memory_where_somebody_changed_the_file(
    hospital: Path, attack: Callable[[Path], None], again: bool
) -> None:
    noting = started(hospital)
    noting.note("round", run="1", round=1)
    noting.look()
    noting.note("round", run="1", round=2)
    attack(hospital / ahead.FILE)
    if again:
        noting.note("round", run="1", round=3)
    noting.look()
    assert len(damage(hospital)) == 1
    noting.note("round", run="1", round=4)
    noting.close()
    assert rounds(hospital) == [1, 2, *([3] if again else []), 4]
    checked = check_log(hospital)
    assert len(checked.damage) == 1
    assert damage(hospital) == [{"file": ahead.FILE, "kind": "damage", "why": CHANGED}]


def test_a_folder_in_the_place_of_the_file_ends_what_is_written_ahead_and_is_told(hospital: Path) -> None:
    noting, path = started(hospital), hospital / ahead.FILE
    noting.note("round", run="1", round=1)
    path.unlink()
    path.mkdir()
    with pytest.raises(OSError, match="directory"):
        noting.look()
    with pytest.raises(EvidenceError, match="client log mend"):
        noting.note("round", run="1", round=2)
    assert Noting.mend(hospital) is not None
    noting.note("round", run="1", round=3)
    noting.close()
    assert rounds(hospital) == [1, 3]


@pytest.mark.parametrize("call", ["write", "fsync", "replace", "open"])
def test_a_file_that_cannot_be_begun_anew_loses_no_entry(hospital: Path, call: str) -> None:
    """A full disk, or too many open files, just then: the file's name had been another by then than what it said."""
    in_a_process(
        hospital,
        "from sovfed.federation.evidence import ahead\n"
        "ahead.RENEW_BYTES = 1\n"
        "noting.note('round', run='1', round=1)\n"
        "real, fails = ahead.write_private, True\n"
        "def fail(*_, **__):\n"
        "    raise OSError(28, 'No space left on device')\n"
        "def begun(path, data):\n"
        f"    kept = os.{call}\n"
        f"    if {call!r} != 'open':\n"
        f"        os.{call} = fail\n"
        "    try:\n        real(path, data)\n"
        f"    finally:\n        os.{call} = fail if {call!r} == 'open' else kept\n"
        f"kept, ahead.write_private = os.{call}, begun\n"
        "try:\n    noting.look()\nexcept OSError:\n    pass\n"
        f"os.{call}, ahead.write_private = kept, real\n"
        "for number in (2, 3):\n    noting.note('round', run='1', round=number)\n",
    )
    started(hospital).close()
    assert rounds(hospital) == [1, 2, 3]
    assert check_log(hospital).damage == ()


def test_lines_that_the_database_never_takes_in_are_refused_in_the_end(
    hospital: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ahead, "MAX_BYTES", 400)
    noting = started(hospital)
    noting.note("round", run="1", round=1)
    noting.note("round", run="1", round=2)
    with pytest.raises(ServiceError, match="does not take it in; nothing was sent"):
        noting.note("round", run="1", round=3)
    noting.close()
    assert rounds(hospital) == [1, 2]


def test_killed_at_each_system_call_nothing_that_left_is_missing_and_nothing_is_twice(hospital: Path) -> None:
    """Each of the calls that write, in turn, is the last of a process that notes, enters and begins the file anew."""
    script = (
        "import os, pathlib, shutil, sys\n"
        "from sovfed.federation.evidence import ahead\n"
        "from sovfed.federation.evidence.checking import check_log\n"
        "from sovfed.federation.evidence.entries import read_entry\n"
        "from sovfed.federation.evidence.noting import Noting\n"
        "from sovfed.federation.evidence.store import LogReader\n"
        "home, names = pathlib.Path(sys.argv[1]), ('write', 'fsync', 'fdatasync', 'replace', 'open', 'unlink')\n"
        "ahead.RENEW_BYTES = 600\n"
        "def work(at, copy, left):\n"
        "    def counted(real):\n"
        "        def call(*args, **options):\n"
        "            nonlocal at\n"
        "            at -= 1\n"
        "            if at == 0:\n"
        "                os._exit(9)\n"
        "            return real(*args, **options)\n"
        "        return call\n"
        "    sent = os.write\n"
        "    for name in names:\n"
        "        setattr(os, name, counted(getattr(os, name)))\n"
        "    noting = Noting(copy)\n"
        "    for number in range(1, 7):\n"
        "        noting.note('round', run='1', round=number)\n"
        "        sent(left, b'.')\n"
        "        if number % 2 == 0:\n"
        "            noting.look()\n"
        "    noting.close()\n"
        "    os._exit(0)\n"
        "at, code = 0, 9\n"
        "while code:\n"
        "    at += 1\n"
        "    copy, (read, left) = home.with_name(f'copy-{at}'), os.pipe()\n"
        "    shutil.copytree(home, copy)\n"
        "    if not (child := os.fork()):\n"
        "        work(at, copy, left)\n"
        "    os.close(left)\n"
        "    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])\n"
        "    count = len(os.read(read, 100))\n"
        "    os.close(read)\n"
        "    assert code in (0, 9), code\n"
        "    noting = Noting(copy)\n"
        "    assert noting.begin()\n"
        "    noting.close()\n"
        f"    told = [read_entry(data)['round'] for _, data in LogReader(copy).entries({BEFORE})]\n"
        "    assert told == list(range(1, len(told) + 1)) and len(told) in (count, count + 1), (at, told, count)\n"
        "    assert not check_log(copy).damage\n"
        "    shutil.rmtree(copy)\n"
        "print(at)\n"
    )
    command = [sys.executable, "-W", "ignore", "-c", script, str(hospital)]
    done = subprocess.run(command, check=False, text=True, capture_output=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 30


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


def test_a_disk_that_fails_as_a_line_is_synced_lets_nothing_leave(
    hospital: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noting = started(hospital)
    noting.write("round", run="1", round=1)
    with monkeypatch.context() as patched:

        def fail(_: int) -> None:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        patched.setattr(os, "fdatasync", fail)
        for _ in range(2):  # it does not hold the second time either
            with pytest.raises(ServiceError, match="nothing was sent"):
                noting.sync()
    noting.sync()
    noting.close()
    assert rounds(hospital) == [1]


def test_a_line_that_was_written_and_whose_log_takes_nothing_in_any_more_lets_nothing_leave(tmp_path: Path) -> None:
    (tmp_path / "audit").mkdir()
    answers = iter((True, False))
    writer = ahead.Ahead(tmp_path, lambda *_, **__: next(answers))
    assert writer.begin(b"key") and writer.add("round", 0, {"round": 1})
    (tmp_path / ahead.FILE).unlink()
    assert not writer.add("round", 0, {"round": 2})
    with pytest.raises(ServiceError, match="nothing was sent"):
        writer.sync()


def test_a_file_that_cannot_be_written_anew_is_an_error_in_words(hospital: Path) -> None:
    noting = started(hospital)
    noting.write("round", run="1", round=1)
    (hospital / ahead.FILE).unlink()
    (hospital / ahead.FILE).mkdir()
    with pytest.raises(ServiceError, match="nothing was sent"):
        noting.write("round", run="1", round=2)
    noting.sync()  # of the first, which the database has
    assert rounds(hospital) == [1]
