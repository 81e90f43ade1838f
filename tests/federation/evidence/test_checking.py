"""Whoever changes a log's database is noticed, and the first entry that is wrong is named."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.lane_fixture import Authority

from sovfed.clients.trainer.evidence import Evidence
from sovfed.federation import database
from sovfed.federation.certificates import InstitutionNames, ServerNames
from sovfed.federation.errors import EvidenceError, IdentityError, ServiceError
from sovfed.federation.evidence import merkle
from sovfed.federation.evidence.checking import check_log
from sovfed.federation.evidence.entries import canonical, read_entry
from sovfed.federation.evidence.keys import LOG_KEY
from sovfed.federation.evidence.store import FILE, LogReader, record
from sovfed.federation.evidence.witness import keep_cosignature, watch
from sovfed.federation.host import landlock
from sovfed.federation.identity import load_roots


def _change(home: Path, change: Callable[[sqlite3.Connection], object]) -> None:
    with sqlite3.connect(home / FILE) as db:
        change(db)
    db.close()


def _edit(db: sqlite3.Connection, seq: int, **fields: object) -> None:
    (data,) = db.execute("SELECT data FROM entries WHERE seq = ?", (seq,)).fetchone()
    db.execute("UPDATE entries SET data = ? WHERE seq = ?", (canonical({**read_entry(data), **fields}), seq))


def _hash_anew(db: sqlite3.Connection) -> None:
    """All that whoever has the database and not the key can make fit."""
    entries = [bytes(data) for (data,) in db.execute("SELECT data FROM entries ORDER BY seq").fetchall()]
    db.execute("DELETE FROM nodes")
    made = dict[tuple[int, int], bytes]()
    for position, data in enumerate(entries):
        nodes = merkle.completed(position, merkle.leaf_hash(data), lambda level, at: made[level, at])
        made.update({(level, at): value for level, at, value in nodes})
        db.executemany("INSERT INTO nodes VALUES (?, ?, ?)", nodes)


def test_a_log_that_nobody_touched_holds(hospital: Path) -> None:
    record(hospital, "refusal", code="policy", count=3)

    checked = check_log(hospital)

    assert (checked.origin, checked.size) == ("sovfed/institution/hospital-1", 8)


def test_an_edited_entry_is_named(hospital: Path) -> None:
    _change(hospital, lambda db: _edit(db, 3, participants=[]))

    with pytest.raises(EvidenceError, match="entry 3"):
        check_log(hospital)


def test_an_edited_entry_whose_hashes_were_made_anew_is_named(hospital: Path) -> None:
    def edit(db: sqlite3.Connection) -> None:
        _edit(db, 3, participants=[])
        _hash_anew(db)

    _change(hospital, edit)

    with pytest.raises(EvidenceError, match="entry 3: is not what the log's head was signed for"):
        check_log(hospital)


def test_a_deleted_entry_is_named(hospital: Path) -> None:
    _change(hospital, lambda db: db.execute("DELETE FROM entries WHERE seq = 2"))

    with pytest.raises(EvidenceError, match="entry 2 is missing"):
        check_log(hospital)


def test_a_deleted_entry_whose_place_is_taken_is_named(hospital: Path) -> None:
    def delete(db: sqlite3.Connection) -> None:
        db.execute("DELETE FROM entries WHERE seq = 2")
        for seq in range(3, 7):
            db.execute("UPDATE entries SET seq = ? WHERE seq = ?", (seq - 1, seq))
        db.execute("DELETE FROM heads WHERE size = 7")
        _hash_anew(db)

    _change(hospital, delete)

    with pytest.raises(EvidenceError, match="entry 2"):
        check_log(hospital)


def test_two_entries_in_each_others_place_are_named(hospital: Path) -> None:
    def swap(db: sqlite3.Connection) -> None:
        for old, new in ((4, -1), (5, 4), (-1, 5)):
            db.execute("UPDATE entries SET seq = ? WHERE seq = ?", (new, old))

    _change(hospital, swap)

    with pytest.raises(EvidenceError, match="entry 4"):
        check_log(hospital)


def test_entries_cut_from_the_end_are_missed(hospital: Path) -> None:
    _change(hospital, lambda db: db.execute("DELETE FROM entries WHERE seq >= 5"))

    with pytest.raises(EvidenceError, match="entry 5 is missing"):
        check_log(hospital)


def _cut(db: sqlite3.Connection) -> None:
    db.execute("DELETE FROM entries WHERE seq >= 5")
    db.execute("DELETE FROM heads WHERE size > 5")
    _hash_anew(db)


def test_a_log_cut_everywhere_is_missed_by_the_head_that_another_cosigned(hospital: Path, other: Path) -> None:
    own, their = LogReader(hospital), LogReader(other)
    keep_cosignature(hospital, their.voucher, own.voucher, watch(other, own.voucher, own.head(), []))
    assert check_log(hospital).cosigned == {"sovfed/institution/hospital-2": 7}

    _change(hospital, _cut)

    with pytest.raises(EvidenceError, match="entry 5 is missing: a head that sovfed/institution/hospital-2"):
        check_log(hospital)


def test_a_log_cut_everywhere_is_missed_by_a_head_that_somebody_else_kept(hospital: Path) -> None:
    note = LogReader(hospital).head()
    _change(hospital, _cut)
    check_log(hospital)  # nothing in the home itself tells

    with pytest.raises(EvidenceError, match="entry 5 is missing"):
        check_log(hospital, [note])


def test_a_log_cut_and_written_anew_with_its_own_key_is_told_by_a_head_that_was_kept(hospital: Path) -> None:
    note = LogReader(hospital).head()
    _change(hospital, _cut)
    for _ in range(4):
        record(hospital, "round", run="another")
    check_log(hospital)

    with pytest.raises(EvidenceError, match="written anew"):
        check_log(hospital, [note])


def test_keys_of_another_home_are_not_taken(hospital: Path, other: Path) -> None:
    shutil.copy(other / "audit" / "keys.json", hospital / "audit" / "keys.json")

    with pytest.raises(EvidenceError, match="entry 0"):
        check_log(hospital)


def test_keys_that_no_certificate_vouches_for_are_not_taken(hospital: Path) -> None:
    path = hospital / "audit" / "keys.json"
    path.write_bytes(path.read_bytes().replace(b'"log":"sovfed/institution/', b'"log":"sovfed/agency/'))

    with pytest.raises(EvidenceError, match=r"id than its own|certificate"):
        LogReader(hospital).voucher.check(load_roots(hospital / "identity" / "root.pem"))


def test_a_log_that_grows_while_it_is_checked_holds(hospital: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen: `log verify` during a run named the newest entry as changed."""
    for name in ("nodes", "entries", "heads"):
        read = getattr(LogReader, name)

        def grows(log: LogReader, *arguments: int, read: Callable[..., Iterator[object]] = read) -> Iterator[object]:
            rows = [*read(log, *arguments)]
            record(hospital, "round", run="2")
            return iter(rows)

        monkeypatch.setattr(LogReader, name, grows)

    assert check_log(hospital).size == 7
    assert check_log(hospital).size == 10


@pytest.mark.parametrize("read", [LogReader.entries, LogReader.newest, lambda log: log.heads(7)])
def test_whoever_reads_slowly_keeps_nobody_from_appending(
    hospital: Path, monkeypatch: pytest.MonkeyPatch, read: Callable[[LogReader], Iterator[object]]
) -> None:
    """Seen: a log that was being checked could not be appended to, for 30 s; then the round failed."""
    monkeypatch.setattr(database, "BUSY_S", 0.2)
    reading = read(LogReader(hospital))
    next(reading)

    assert record(hospital, "round", run="2") == 7
    assert len([*reading]) in (6, 7)


def _die_in_a_transaction(home: Path) -> None:
    """As in a power cut: the journal is on disk, and half of what was to be written."""
    script = (
        "import os, sqlite3, sys\n"
        "db = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "db.execute('PRAGMA journal_mode = TRUNCATE'); db.execute('PRAGMA cache_size = 1')\n"
        "db.execute('BEGIN IMMEDIATE')\n"
        "db.execute('UPDATE entries SET data = ?', (b'x' * 3000,))\n"
        "for number in range(1000, 1200):\n"
        "    db.execute('INSERT INTO entries VALUES (?, ?)', (number, b'x' * 3000))\n"
        "os._exit(9)\n"
    )
    subprocess.run([sys.executable, "-c", script, str(home / FILE)], check=False, timeout=60)
    assert (home / f"{FILE}-journal").stat().st_size > 0


def test_whoever_reads_first_undoes_what_a_dead_writer_left(hospital: Path) -> None:
    """Seen: after a power cut in the middle of an entry nothing started any more, for all read the log first."""
    _die_in_a_transaction(hospital)
    assert LogReader(hospital).extent() == 7
    assert check_log(hospital).size == 7


@pytest.mark.skipif(landlock.version() == 0, reason="this kernel has no Landlock")
def test_who_may_only_read_is_told_to_wait_and_suspects_nobody(hospital: Path) -> None:
    """A gateway; until a trainer has started again, or anybody has written."""
    _die_in_a_transaction(hospital)
    script = (
        "import sys\nfrom pathlib import Path\nfrom sovfed.clients.node.sandbox import seal_as\n"
        "from sovfed.federation.evidence.store import LogReader\nhome = Path(sys.argv[1])\n"
        "seal_as('gateway', home)\nLogReader(home).extent()\n"
    )
    command = [sys.executable, "-c", script, str(hospital)]
    refused = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert "ServiceError" in refused.stderr and "a writer died in the middle" in refused.stderr
    Evidence(hospital)
    assert subprocess.run(command, check=False, timeout=60).returncode == 0


@pytest.mark.parametrize("name", [LOG_KEY, "audit-key"])
def test_a_key_that_others_may_read_is_noticed_while_the_log_goes_on(hospital: Path, name: str) -> None:
    """The key is read once, and again only when a file or folder that matters is another."""
    record(hospital, "round", run="1", round=8, participants=["hospital-1"])
    before = (hospital / name).stat().st_mode
    (hospital / name).chmod(before | 0o055)
    with pytest.raises((IdentityError, ServiceError), match="expected 0"):
        record(hospital, "round", run="1", round=9, participants=["hospital-1"])
    (hospital / name).chmod(before)
    record(hospital, "round", run="1", round=9, participants=["hospital-1"])
    assert check_log(hospital).size == 9


def test_a_log_goes_on_under_a_new_root_of_the_authority(authority: Authority, agency: Path, hospital: Path) -> None:
    """Seen by reading: 90 days after `authority rotate`, when the former root is given up, no log held any more."""
    cosigned = watch(hospital, LogReader(agency).voucher, LogReader(agency).head(), ())
    keep_cosignature(agency, LogReader(hospital).voucher, LogReader(agency).voucher, cosigned)
    before, successor = LogReader(agency).voucher, Authority(authority.now)
    for home, names in (
        (agency, ServerNames(("agency.example",))),
        (hospital, InstitutionNames("hospital-1", "ab" * 32)),
    ):
        successor.write(home, names)
    record(agency, "round", run="2")

    voucher = LogReader(agency).voucher
    checked = check_log(agency)

    assert (voucher.log, voucher.witness) == (before.log, before.witness)
    assert (checked.size, checked.cosigned) == (8, {})  # by keys for which nobody vouches now
    record(hospital, "round", run="2")
    proof = tuple(LogReader(agency).consistency(7, 8))
    cosigned = watch(hospital, voucher, LogReader(agency).head(), proof)
    keep_cosignature(agency, LogReader(hospital).voucher, voucher, cosigned)
    assert check_log(agency).cosigned == {"sovfed/institution/hospital-1": 8}


def test_an_entry_of_a_run_names_the_one_before_it(hospital: Path) -> None:
    """Numbers by hand: seven entries of no run are there already."""
    for name in ("a", "b", "a", "a"):
        record(hospital, "model", name=name)
    with sqlite3.connect(hospital / FILE) as db:
        db.execute("DROP TABLE named")  # as a log of an older version has none
    db.close()
    record(hospital, "model", name="b")

    values = [read_entry(data) for _, data in LogReader(hospital).entries(7)]
    assert [entry["before"] for entry in values] == [-1, -1, 7, 9, 8]
    assert check_log(hospital).size == 12


def test_an_entry_that_names_another_before_it_than_there_is_is_named(hospital: Path) -> None:
    """By whoever has the log's key: a withdrawal that later entries of the run step over."""
    for kind in ("run", "withdrawal"):
        record(hospital, kind, name="a")
    _change(hospital, lambda db: db.execute("UPDATE named SET seq = 7"))
    record(hospital, "release", name="a")

    with pytest.raises(EvidenceError, match="entry 9: names another entry of 'a' before it"):
        check_log(hospital)
