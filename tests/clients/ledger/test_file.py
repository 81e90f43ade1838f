"""The ledger's file: every kind of damage is refused, a torn end is not damage, and one trainer at a time."""

from __future__ import annotations

import dataclasses
import errno
import json
import multiprocessing
import os
import shutil
import stat
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from tests.clients.ledger.crash import BUDGET, POPULATION, WitnessedLedger, gaussian_delta, plan, release

from sovfed.clients.ledger.book import PrivacyLedger, replay
from sovfed.clients.ledger.entries import Grant, Spent
from sovfed.clients.ledger.file import create_ledger, ledger_path, ledgers, read_ledger
from sovfed.federation.errors import IdentityError, PrivacyError, ServiceError


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A ledger of a grant and four releases; the head after the second is countersigned."""
    create_ledger(tmp_path, POPULATION, 1e9)
    ledger = opened(tmp_path)
    grant = ledger.authorise("r", plan())
    for step in range(4):
        receipt = ledger.spend(grant, release(grant.plan, step))
        if step == 1:
            ledger.countersign_head(receipt.head)
    ledger.unlock()
    return tmp_path


def opened(home: Path) -> WitnessedLedger:
    return WitnessedLedger(home, BUDGET, lambda: 1e9)


def lines(home: Path) -> list[bytes]:
    return ledger_path(home, POPULATION).read_bytes().splitlines(keepends=True)


def refused(home: Path, words: str) -> None:
    """Neither a trainer nor a reader accepts the files, and neither changes them."""
    before = ledger_path(home, POPULATION).read_bytes()
    for read in (opened, lambda home: read_ledger(home, POPULATION)):
        with pytest.raises(PrivacyError, match=words):
            read(home)
    assert ledger_path(home, POPULATION).read_bytes() == before


# --- damage --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda a: [*a[:3], a[3].replace(b'"clip":1.0', b'"clip":2.0'), *a[4:]], r"line 4 \(byte \d+\): its MAC"),
        (lambda a: [*a[:3], a[4], a[3], *a[5:]], "entry 4 stands where entry 3 should"),
        (lambda a: [*a[:3], *a[4:]], "entry 4 stands where entry 3 should: lines were removed or moved"),
        (lambda a: a[1:], "entry 1 stands where entry 0 should"),
        (lambda a: [*a[:3], a[2], *a[3:]], "entry 2 stands where entry 3 should"),
        (lambda a: [*a[:3], b"\n", *a[3:]], "line 4 .*its MAC"),
        (lambda a: [*a[:-1], a[-1][:-2] + b'"}\n'], "line 7 .*its MAC"),
        (lambda a: [*a[:-1], a[-1][:-1] + b"x"], "line 7 .*its MAC"),
        (lambda a: a[:4], "ends at entry 3, but the coordinator countersigned entry 4"),
        (lambda a: [*a[:4], a[4][:100]], "ends at entry 3, but the coordinator countersigned entry 4"),
        (lambda a: [], "has no first line"),
        (lambda a: [b"\0" * 4096], "has no first line"),
    ],
    ids=["edit", "swap", "delete", "behead", "repeat", "blank", "clip", "end", "truncate", "tear", "empty", "zero"],
)  # fmt: skip
def test_tampering_is_refused(home: Path, change: Callable[[list[bytes]], list[bytes]], words: str) -> None:
    ledger_path(home, POPULATION).write_bytes(b"".join(change(lines(home))))
    refused(home, words)


def test_every_changed_byte_is_refused(home: Path) -> None:
    path = ledger_path(home, POPULATION)
    content = path.read_bytes()
    for at in [*range(0, len(content), 11), *range(len(content) - 80, len(content))]:
        path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        with pytest.raises(PrivacyError):
            read_ledger(home, POPULATION)


def test_entries_of_another_history_are_refused(home: Path) -> None:
    """The same key, the same numbers, another past: the chain does not fit."""
    kept = lines(home)
    path = ledger_path(home, POPULATION)
    path.write_bytes(b"".join(kept[:3]))
    path.with_suffix(".head").rename(home / "head")
    ledger = opened(home)
    grant = ledger.authorise("r", plan())
    for step in range(3):
        ledger.spend(grant, release(grant.plan, step))
    ledger.unlock()
    path.write_bytes(b"".join(lines(home)[:4] + kept[4:]))
    refused(home, r"line 5 \(byte \d+\): it does not follow from the line before")
    path.write_bytes(b"".join(lines(home)[:4]))
    (home / "head").rename(path.with_suffix(".head"))
    refused(home, "countersigned entry 4")


def test_branch_beside_the_countersigned_one_is_refused(home: Path) -> None:
    path, kept = ledger_path(home, POPULATION), lines(home)
    head = path.with_suffix(".head").read_bytes()
    path.with_suffix(".head").unlink()
    path.write_bytes(b"".join(kept[:4]))
    ledger = opened(home)
    ledger.spend(ledger.authorise("r", plan()), release(plan(), 1))
    ledger.unlock()
    path.with_suffix(".head").write_bytes(head)
    path.with_suffix(".head").chmod(0o600)
    refused(home, "entry 4 is not the one that was countersigned")


def lungs(home: Path, tmp_path: Path) -> Path:
    """The ledger of another population, under the same key, in another home."""
    other = tmp_path / "other"
    create_ledger(other, "hearts", 1e9)
    (other / "privacy" / "mac.key").write_bytes((home / "privacy" / "mac.key").read_bytes())
    ledger_path(other, "hearts").unlink()
    create_ledger(other, "lungs", 1e9)
    return ledger_path(other, "lungs")


def test_ledger_of_another_population_is_refused(home: Path, tmp_path: Path) -> None:
    ledger_path(home, POPULATION).write_bytes(lungs(home, tmp_path).read_bytes())
    ledger_path(home, POPULATION).with_suffix(".head").unlink()
    refused(home, r"heart\.ledger: is the ledger of the population 'lungs'")


def test_second_ledger_in_a_home_is_refused_whatever_the_policy_calls_the_persons(home: Path, tmp_path: Path) -> None:
    """The same patients, read from another file or under another name, have one budget."""
    words = r"has the ledger 'heart', and policy\.yaml names the population 'lungs': .* ledger adopt heart` makes it"
    with pytest.raises(PrivacyError, match=words):
        create_ledger(home, "lungs", 1e9)
    there = ledger_path(home, "lungs")
    there.write_bytes(lungs(home, tmp_path).read_bytes())
    there.chmod(0o600)
    for name, other in (("heart", "lungs"), ("lungs", "heart")):
        with pytest.raises(PrivacyError, match=f"has the ledger '{other}', and policy"):
            WitnessedLedger(home, dataclasses.replace(BUDGET, population_name=name))


def test_ledger_that_is_gone_is_never_begun_anew(home: Path) -> None:
    ledger_path(home, POPULATION).rename(home / "ledger")
    for work in (opened, lambda home: create_ledger(home, POPULATION, 1e9), lambda home: read_ledger(home, POPULATION)):
        with pytest.raises(PrivacyError, match=r"ledger is missing, but a head|no privacy ledger; restore it"):
            work(home)
    assert ledgers(home) == [POPULATION]  # so that `verify` reports it


def test_trainer_makes_no_ledger(tmp_path: Path) -> None:
    with pytest.raises(PrivacyError, match=r"mac\.key is missing"):
        opened(tmp_path)
    create_ledger(tmp_path, POPULATION, 1e9)
    ledger_path(tmp_path, POPULATION).unlink()
    with pytest.raises(PrivacyError, match="no privacy ledger; restore it, or enrol"):
        opened(tmp_path)


@pytest.mark.parametrize("left", ["heart.ledger", "heart.head"])
def test_key_is_never_made_anew_beside_a_ledger_or_a_head(home: Path, left: str) -> None:
    for path in (home / "privacy").iterdir():
        if path.name != left:
            path.unlink()
    for work in (lambda home: create_ledger(home, POPULATION, 1e9), opened):
        with pytest.raises(PrivacyError, match=r"mac\.key is missing: restore it|is missing, but a head"):
            work(home)
    assert [path.name for path in (home / "privacy").iterdir()] == [left]


def test_another_key_does_not_fit(home: Path) -> None:
    (home / "privacy" / "mac.key").write_bytes(bytes(32))
    refused(home, "its MAC does not hold: it was changed, or written with another key")
    (home / "privacy" / "mac.key").write_bytes(bytes(31))
    refused(home, "31 bytes, expected 32")


@pytest.mark.parametrize("name", ["heart.ledger", "heart.head", "mac.key"])
def test_files_are_private_and_must_be(home: Path, name: str) -> None:
    path = home / "privacy" / name
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    path.chmod(0o640)
    with pytest.raises((PrivacyError, IdentityError), match="mode 0640, expected 0600"):
        opened(home)
    path.chmod(0o600)
    path.rename(home / "elsewhere")
    path.symlink_to(home / "elsewhere")
    with pytest.raises((PrivacyError, IdentityError)):
        opened(home)


def test_folder_that_others_may_enter_is_refused(home: Path) -> None:
    (home / "privacy").chmod(0o755)
    with pytest.raises(ServiceError, match="mode 0755, expected 0700"):
        opened(home)


@pytest.mark.parametrize("name", ["", "../heart", "Heart", "a/b", ".heart", "a" * 65, "heart\n"])
def test_name_that_is_no_file_name_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(PrivacyError, match="is no ledger's name: 1 to 64 of a-z"):
        create_ledger(tmp_path, name, 1e9)


def test_creating_again_changes_nothing(home: Path) -> None:
    before = {path.name: path.read_bytes() for path in (home / "privacy").iterdir()}
    create_ledger(home, POPULATION, 2e9)
    assert {path.name: path.read_bytes() for path in (home / "privacy").iterdir()} == before


# --- the end of the file -------------------------------------------------------------------------------------------


def test_torn_end_is_dropped_and_the_ledger_goes_on(home: Path) -> None:
    path = ledger_path(home, POPULATION)
    kept = lines(home)
    for length in range(len(kept[-1]) - 1):
        path.write_bytes(b"".join(kept[:-1]) + kept[-1][:length])
        if length % 40 == 0:
            assert len(read_ledger(home, POPULATION)[0]) == len(kept) - 1  # a reader leaves the trainer's file alone
            assert path.stat().st_size == sum(map(len, kept[:-1])) + length
            opened(home).unlock()
            assert path.read_bytes() == b"".join(kept[:-1])
    ledger = opened(home)
    ledger.spend(ledger.authorise("r", plan()), release(plan(), 3))
    ledger.verify()
    ledger.unlock()


def test_whole_last_entry_without_its_end_is_kept(home: Path) -> None:
    path, kept = ledger_path(home, POPULATION), b"".join(lines(home))
    path.write_bytes(kept[:-1])
    assert len(read_ledger(home, POPULATION)[0]) == 7
    opened(home).unlock()
    assert path.read_bytes() == kept


def test_disk_that_fails_stops_everything_until_the_ledger_is_opened_anew(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = opened(home)
    grant = ledger.authorise("r", plan())
    write = os.write
    for name, broken, words in (
        ("fsync", failing, "No space left on device"),
        ("write", failing, "No space left on device"),
        ("write", lambda file, data: write(file, data[:50]), "the disk is full; nothing was sent"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, broken)
            with pytest.raises(ServiceError, match=words):
                ledger.spend(grant, release(grant.plan, 6))
        with pytest.raises(ServiceError, match="an earlier write failed; restart the trainer"):
            ledger.spend(grant, release(grant.plan, 6))
        ledger.unlock()
        ledger = opened(home)
    ledger.unlock()
    spent = [line.entry for line in read_ledger(home, POPULATION)[0] if isinstance(line.entry, Spent)]
    assert len(spent) == 5  # what was written before fsync failed may be on disk, and counts


@pytest.mark.parametrize("how", ["replace", "remove", "append"])
def test_file_that_is_changed_behind_the_trainer_is_not_written_to(home: Path, how: str) -> None:
    path, content = ledger_path(home, POPULATION), b"".join(lines(home))
    ledger = opened(home)
    grant = ledger.authorise("r", plan())
    path.rename(home / "old")
    if how == "append":
        (home / "old").rename(path)
        path.write_bytes(content + b"\n")
    elif how == "replace":
        path.write_bytes(content)
        path.chmod(0o600)
    with pytest.raises(PrivacyError, match="was moved, replaced or changed while this trainer had it open"):
        ledger.spend(grant, release(grant.plan, 4))
    ledger.unlock()


def failing(*_: object) -> int:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_verify_sees_what_happens_while_the_ledger_is_open(home: Path) -> None:
    ledger = opened(home)
    ledger.verify()
    path, kept = ledger_path(home, POPULATION), lines(home)
    path.write_bytes(b"".join(kept[:-1]))
    with pytest.raises(PrivacyError, match="ends at line 6, 7 were written"):
        ledger.verify()
    path.write_bytes(b"".join(kept[:-1]) + kept[-1].replace(b'"attempt":0', b'"attempt":1'))
    with pytest.raises(PrivacyError, match="damaged at line 7"):
        ledger.verify()
    ledger.unlock()


# --- the countersigned head ----------------------------------------------------------------------------------------


def test_newest_countersigned_head_is_kept(home: Path) -> None:
    ledger = opened(home)
    with pytest.raises(PrivacyError, match=r"'head\.signature' length 0 is outside"):
        ledger.countersign("17", 6, ledger.head, b"", ours=True)
    assert read_ledger(home, POPULATION)[1].seq == 4  # type: ignore[union-attr]
    assert ledger.countersign("17", 6, ledger.head, b"signed", ours=True)
    first = read_ledger(home, POPULATION)[0][0].head
    assert ledger.countersign("18", 0, first, b"old", ours=True)  # an older one takes nothing back
    signed = read_ledger(home, POPULATION)[1]
    assert signed and (signed.seq, signed.head, signed.run) == (6, ledger.head, "17")
    assert bytes.fromhex(signed.signature) == b"signed"
    ledger.unlock()


def rolled_back(home: Path) -> tuple[int, str, dict[str, bytes]]:
    """Put the folder back to what it was before one more release: (entry, head) of that, and the folder that has it."""
    folder = home / "privacy"
    old = {path.name: path.read_bytes() for path in folder.iterdir()}
    ledger = opened(home)
    receipt = ledger.spend(ledger.authorise("r", plan()), release(plan(), 4))
    seq, _ = ledger.position()
    ledger.unlock()
    new = {path.name: path.read_bytes() for path in folder.iterdir()}
    put(home, old)
    return seq, receipt.head, new


def put(home: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        (home / "privacy" / name).write_bytes(content)


def test_rolled_back_ledger_does_nothing_more_whatever_is_restarted_until_it_is_restored(home: Path) -> None:
    """Ledger and head rolled back together are consistent; the coordinator's newest head is what tells."""
    seq, head, whole = rolled_back(home)
    ledger = opened(home)
    grant = ledger.authorise("r", plan())  # open, and of this ledger
    with pytest.raises(PrivacyError, match=f"this institution signed entry {seq}, head {head[:16]}…, which"):
        ledger.countersign("17", seq, head, b"signed", ours=True)
    for _ in range(2):
        for work in (
            partial(ledger.authorise, "new", plan()),
            partial(ledger.authorise, "r", plan()),
            partial(ledger.spend, grant, release(plan(), 4)),
            partial(ledger.enter_unbounded, "18", "train", "heart"),
            ledger.position,
            ledger.restored,
        ):
            with pytest.raises(PrivacyError, match="it was rolled back, or a copy of this home went on without it"):
                work()
        ledger.unlock()
        ledger = opened(home)  # the mark is on disk
    ledger.countersign("17", 4, read_ledger(home, POPULATION)[0][4].head, b"signed", ours=True)
    with pytest.raises(PrivacyError, match="rolled back"):
        ledger.authorise("new", plan())  # no head of this copy clears it
    ledger.unlock()

    put(home, whole)
    ledger = opened(home)
    with pytest.raises(PrivacyError, match="rolled back"):
        ledger.authorise("new", plan())  # the operator has not said so
    assert ledger.restored()
    assert ledger.restored() is None
    ledger.spend(ledger.authorise("r", plan()), release(plan(), 5))
    ledger.unlock()
    opened(home).unlock()


def test_mark_of_a_rolled_back_ledger_cannot_be_edited(home: Path) -> None:
    seq, head, _ = rolled_back(home)
    ledger = opened(home)
    with pytest.raises(PrivacyError):
        ledger.countersign("17", seq, head, b"signed", ours=True)
    ledger.unlock()
    mark = home / "privacy" / f"{POPULATION}.rolled-back"
    mark.write_bytes(mark.read_bytes().replace(b'"seq":', b'"seq": '))
    with pytest.raises(PrivacyError, match=r"heart\.rolled-back: its MAC does not hold"):
        opened(home)


def test_clone_of_a_home_is_noticed_before_it_spends(home: Path, tmp_path: Path) -> None:
    """The original goes on; the copy is shown what the original told, in the next run or after any start."""
    copy = tmp_path / "copy"
    shutil.copytree(home, copy)
    original, clone = opened(home), PrivacyLedger(copy, BUDGET, lambda: 1e9)
    original.spend(original.authorise("r", plan()), release(plan(), 4))
    seq, head = original.position()
    with pytest.raises(PrivacyError, match="has not countersigned, in this run"):
        clone.authorise("r", plan(), asked_in="18")
    with pytest.raises(PrivacyError, match="a copy of this home went on without it"):
        clone.countersign("18", seq, head.hex(), b"signed", ours=True)
    assert not [one for one in read_ledger(copy, POPULATION)[0][7:] if isinstance(one.entry, Spent)]
    original.countersign("18", seq, head.hex(), b"signed", ours=True)
    original.spend(original.authorise("r", plan()), release(plan(), 5))
    original.unlock()
    clone.unlock()


def test_nothing_is_paid_in_a_run_in_which_the_agency_has_shown_no_head(home: Path) -> None:
    """A silent agency, one that shows what it invents, one that shows an older head than it signed, and a restart."""
    words = "the agency has not countersigned, in this run, a head that this ledger has"
    ledger = PrivacyLedger(home, BUDGET, lambda: 1e9)
    grant = opened_grant(home)
    seq, head = ledger.position()
    assert not ledger.countersign("17", seq, "00" * 32, b"signed", ours=False)  # invented: of no consequence
    assert not ledger.countersign("17", seq + 9, head.hex(), b"signed", ours=False)
    assert ledger.countersign("17", 0, read_ledger(home, POPULATION)[0][0].head, b"old", ours=True)
    assert ledger.countersign("16", seq, head.hex(), b"another run's", ours=True)
    for asked in (lambda: ledger.authorise("r", plan(), asked_in="17"),
                  lambda: ledger.spend(grant, release(plan(), 4), asked_in="17")):  # fmt: skip
        with pytest.raises(PrivacyError, match=words):
            asked()
    assert ledger.countersign("17", seq, head.hex(), b"signed", ours=True)
    ledger.spend(ledger.authorise("r", plan(), asked_in="17"), release(plan(), 4), asked_in="17")
    ledger.unlock()
    ledger = PrivacyLedger(home, BUDGET, lambda: 1e9)
    with pytest.raises(PrivacyError, match=words):
        ledger.authorise("r", plan(), asked_in="17")
    ledger.unlock()


def opened_grant(home: Path) -> Grant:
    return next(line.entry for line in read_ledger(home, POPULATION)[0] if isinstance(line.entry, Grant))


@pytest.mark.parametrize(
    ("old", "new"),
    [(b'"seq":4', b'"seq":3'), (b'"dataset":"heart"', b'"dataset":"lungs"'), (b"{", b""), (b"}\n", b"}")],
)
def test_changed_head_is_refused(home: Path, old: bytes, new: bytes) -> None:
    path = ledger_path(home, POPULATION).with_suffix(".head")
    path.write_bytes(path.read_bytes().replace(old, new))
    refused(home, r"heart\.head: its MAC does not hold")


def test_head_of_another_population_is_refused(home: Path, tmp_path: Path) -> None:
    other = lungs(home, tmp_path)
    os.link(ledger_path(home, POPULATION).with_suffix(".head"), other.with_suffix(".head"))
    with pytest.raises(PrivacyError, match="is of the population 'heart'"):
        read_ledger(tmp_path / "other", "lungs")


def test_lines_are_plain_json_that_names_no_secret(home: Path) -> None:
    found = [json.loads(line) for line in lines(home)]
    assert [entry["kind"] for entry in found] == ["open", "budget", "grant", "spend", "spend", "spend", "spend"]
    key = (home / "privacy" / "mac.key").read_bytes()
    assert all(key not in line and key.hex().encode() not in line for line in lines(home))


# --- two trainers --------------------------------------------------------------------------------------------------


def test_second_trainer_is_refused_and_a_reader_is_not(home: Path) -> None:
    ledger = opened(home)
    process = multiprocessing.get_context("fork").Process(target=expect_in_use, args=(home,))
    process.start()
    process.join()
    assert process.exitcode == 0
    assert len(read_ledger(home, POPULATION)[0]) == 7
    ledger.unlock()
    opened(home).unlock()


def expect_in_use(home: Path) -> None:
    with pytest.raises(ServiceError, match="in use by another trainer"):
        opened(home)


def contend(home: Path, name: str, sent: Path) -> None:
    """Open when nobody else has it, ask for a run, spend all of it; until nothing more fits."""
    with sent.open("w") as out:
        for number in range(1_000):
            while True:
                try:
                    ledger = opened(home)
                    break
                except ServiceError:
                    time.sleep(0.001)
            try:
                grant = ledger.authorise(f"{name}-{number}", plan(9))
                for step in range(9):
                    paid = release(grant.plan, step)
                    ledger.spend(grant, paid)
                    out.write(f"{paid.digest}\n")
            except PrivacyError:
                return
            finally:
                ledger.unlock()


def test_two_processes_share_one_budget(home: Path, tmp_path: Path) -> None:
    context, names = multiprocessing.get_context("fork"), ("a", "b")
    processes = [context.Process(target=contend, args=(home, name, tmp_path / name)) for name in names]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    history = replay(read_ledger(home, POPULATION)[0])
    sent = {line for name in names for line in (tmp_path / name).read_text().split()}
    assert sent <= {spent.release.digest for _, spent in history.spends}
    steps = sum(event.count for event in history.spent() + history.reserved())
    assert len(sent) % 9 == 0 and steps == 7 + len(sent)
    assert gaussian_delta(BUDGET.epsilon, steps) <= BUDGET.delta < gaussian_delta(BUDGET.epsilon, steps + 9)
