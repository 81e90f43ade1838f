"""A journal that is compacted forgets the rounds of runs that are over, and nothing that later sums are judged by."""

from __future__ import annotations

import dataclasses
import os
import resource
import signal
from contextlib import nullcontext
from pathlib import Path

import pytest

from sovfed.federation.certificates import ServerNames
from sovfed.federation.errors import ProtocolError, ServiceError
from sovfed.federation.secagg import files, setup
from sovfed.federation.secagg.compaction import OVER, essence
from sovfed.federation.secagg.files import FileStore, create_journal
from sovfed.federation.secagg.history import Dated, Entry, History, Joined, Pinned, Revealed, Spent, name_tag
from sovfed.federation.secagg.journal import Journal
from sovfed.federation.secagg.local import Authority, make_offer
from sovfed.federation.secagg.purpose import Purpose
from sovfed.federation.secagg.terms import LEAST_COHORT, RECORD, Terms
from sovfed.federation.secagg.wire import RUN_BYTES

NAMES = tuple(f"hospital-{number}" for number in range(1, 6))


def run_id(number: int) -> bytes:
    return number.to_bytes(RUN_BYTES, "big")


def digest(number: int, of: int) -> bytes:
    return bytes((number, of)) * 16


def run_entries(
    number: int, names: tuple[str, ...] = NAMES, purpose: int = Purpose.TRAIN, rounds: int = 30
) -> list[Entry]:
    """What the journal has of a run of so many rounds; the last sum lacks the last institution."""
    run, roster = run_id(number), digest(number, 1)
    entries: list[Entry] = [Joined(run, 1, roster, f"run-{number}", names)]
    for round_ in range(1, rounds + 1):
        model, present = digest(round_, number), names[: len(names) - (round_ == rounds)]
        tags = tuple(sorted(map(name_tag, present)))
        entries += [
            Spent(run, roster, round_, 1, purpose, model, digest(0, 0), digest(round_, 2), digest(round_, 3)),
            Revealed(run, round_, digest(round_, 4), purpose, model, digest(0, 0), 3, tags),
        ]
    return entries


def folded(entries: list[Entry]) -> History:
    history = History()
    for entry in entries:
        history.add(entry)
    return history


@pytest.fixture
def years() -> list[Entry]:
    """Three runs without privacy, of two rosters, and a private one; the last is going on."""
    bounds, private = Pinned(digest(0, 0), 8.0, 100), run_entries(3, purpose=Purpose.STEP)
    return [*run_entries(1), bounds, *run_entries(2, NAMES[:4]), *private, *run_entries(4)]


def test_what_later_sums_are_judged_by_stays_whole(years: list[Entry]) -> None:
    before, after = folded(years), folded(essence(years, {run_id(4)}))
    assert list(after.cohorts.items()) == list(before.cohorts.items())
    assert after.rosters_masked == before.rosters_masked
    assert after.pinned == before.pinned
    for cohort, revealed in after.cohorts.items():
        assert after.describe(revealed) == before.describe(revealed)
        assert after.list_names(cohort) == before.list_names(cohort)


def test_tables_judge_by_their_day_after_compaction() -> None:
    """Of each run's tables those of one cohort are kept once, with the day; rosters too."""
    entries = [*run_entries(1, purpose=Purpose.COUNT), Dated(run_id(1), 20_000), *run_entries(2, purpose=Purpose.COUNT)]
    before, after = folded(entries), folded(essence(entries, set()))
    assert after.tables.keys() == before.tables.keys() and len(after.tables) == 2
    assert {entry.run for entry in after.tables.values()} == {run_id(2)}
    assert after.rosters_counted == before.rosters_counted and after.days == {run_id(1): 20_000}
    assert after.recent(run_id(1), 20_364, 365) and not after.recent(run_id(1), 20_365, 365)
    assert after.recent(run_id(2), 20_365, 365)  # its day is not known
    assert len(essence(entries, set())) < 14


def test_a_live_run_keeps_every_entry(years: list[Entry]) -> None:
    kept = [entry for entry in essence(years, {run_id(4)}) if getattr(entry, "run", b"") == run_id(4)]
    assert kept == [entry for entry in years if getattr(entry, "run", b"") == run_id(4)]


def test_a_run_that_is_over_is_never_joined_again(years: list[Entry]) -> None:
    history = folded(essence(years, {run_id(4)}))
    assert [history.epoch(run_id(number)) for number in (1, 2, 3, 4)] == [OVER, OVER, OVER, 1]
    authority, terms = Authority(), Terms(min_cohort=LEAST_COHORT, colluders=0, differencing=RECORD)
    certificate, sign = authority.certify(ServerNames(("agency.test",)))
    for number, refused in ((1, True), (5, False)):
        offered = make_offer(authority, certificate, run=run_id(number), epoch=OVER)
        offer = setup.make_offer(dataclasses.replace(offered, max_size=1000), sign)
        with pytest.raises(ProtocolError, match=f"{OVER} was joined before") if refused else nullcontext():
            setup.join(
                offer, authority.institution("hospital-1"), terms, history, authority.now.timestamp(), os.urandom
            )


def test_compacting_twice_changes_nothing_more(years: list[Entry]) -> None:
    once = essence(years, {run_id(4)})
    assert essence(once, {run_id(4)}) == once
    assert len(once) < len(years) / 2


def test_a_store_compacts_its_journal_and_goes_on(
    tmp_path: Path, years: list[Entry], monkeypatch: pytest.MonkeyPatch
) -> None:
    create_journal(tmp_path)
    store = FileStore(tmp_path)
    store.commit(years)
    path = tmp_path / files.FOLDER / files.JOURNAL
    whole = path.stat().st_size
    monkeypatch.setattr(files, "COMPACT_BYTES", 1_000)
    store.close()
    store = FileStore(tmp_path)  # no run has a session: all are over
    assert path.stat().st_size < whole / 4
    store.save_session(run_id(5), b"session")
    store.commit(run_entries(5))
    store.close()
    history = FileStore(tmp_path).history
    assert history.epoch(run_id(4)) == OVER and history.epoch(run_id(5)) == 1
    with pytest.raises(ServiceError, match="another trainer"):
        Journal(path)  # the lock moved with the file


def test_a_full_disk_leaves_the_journal_as_it_was(tmp_path: Path, years: list[Entry]) -> None:
    create_journal(tmp_path)
    journal = Journal(tmp_path / files.FOLDER / files.JOURNAL)
    journal.commit(years)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, before[1]))
    try:
        with pytest.raises(ServiceError, match="goes on as it is"):
            journal.rewrite(essence(journal.entries(), ()))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    journal.commit(run_entries(6))
    assert journal.entries() == years + run_entries(6)
    assert sorted(path.name for path in (tmp_path / files.FOLDER).iterdir()) == [files.JOURNAL]
