"""What old entries say goes by rule, from the disk too; what they were still holds, and any other deletion shows."""

from __future__ import annotations

import hashlib
import json
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from tests.federation.evidence.conftest import make_home
from tests.lane_fixture import Authority

from sovfed.clients.cli.institution import cli
from sovfed.clients.home.policy import Policy
from sovfed.federation.archive import zipped
from sovfed.federation.config import LEAST_LOG_DAYS, ServerConfig
from sovfed.federation.errors import EvidenceError, PolicyError
from sovfed.federation.evidence import merkle, retention
from sovfed.federation.evidence.checking import check_log
from sovfed.federation.evidence.entries import canonical, read_entry
from sovfed.federation.evidence.notes import read_checkpoint
from sovfed.federation.evidence.retention import DAY_S, NEWEST, Retention, Rule, Terms, plan, prune
from sovfed.federation.evidence.store import FILE, LogReader, delete_contents, record, shrink
from sovfed.federation.evidence.tiles import export
from sovfed.federation.evidence.witness import keep_cosignature, note_split, watch
from sovfed.federation.host import landlock
from sovfed.federation.identity import load_roots
from sovfed.federation.release import lineage, sealed
from sovfed.federation.release.incident import MAX_BYTES, REPORT, check_bundle, make_bundle, told

OLD_S = 500 * DAY_S
SECRET = "Quittenbaum"
RULE = Rule(400, "log_retention_days")
OLD = range(3, 39)  # numbers of the entries that a rule may let go


def nothing(values: Mapping[str, Any]) -> str:
    return ""


TERMS = Terms(RULE, lambda: nothing)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Homes of an institution and of the agency, which has cosigned all of its log, old and new entries.

    Numbers of the institution's: 0 to 6 rounds, 7 a model, 8 an order, 9 a policy, 10 to 38 rounds; then NEWEST + 16
    rounds and a policy of today.
    """
    folder, patch = tmp_path_factory.mktemp("retention"), pytest.MonkeyPatch()
    authority, now = Authority(datetime.now(UTC)), time.time()
    with patch.context() as past:
        past.setattr(time, "time", lambda: now - OLD_S)
        hospital = make_home(authority, folder, "hospital-1")
        record(hospital, "model", name="lasting", sha256="00")
        record(hospital, "order", event="signed", name=SECRET, order="12" * 32, by="")
        record(hospital, "policy", policy="00")
        for number in range(29):
            record(hospital, "round", run=f"{SECRET}-{number}", round=number, request="train")
    agency = make_home(authority, folder, "agency")
    for number in range(NEWEST + 16):
        record(hospital, "round", run="9", round=number, request="train")
    record(hospital, "policy", policy="01")
    cosign(hospital, agency)
    return folder


@pytest.fixture
def hospital(built: Path, tmp_path: Path) -> Path:
    shutil.copytree(built, tmp_path / "homes")
    return tmp_path / "homes" / "hospital-1"


def cosign(home: Path, other: Path, old: int = 0) -> None:
    own, their = LogReader(home), LogReader(other)
    proof = own.consistency(old, read_checkpoint(own.head()).size)
    keep_cosignature(home, their.voucher, own.voucher, watch(other, own.voucher, own.head(), proof))


def pruned(home: Path) -> int:
    return prune(home, plan(home, TERMS, time.time()))


def change(home: Path, *statements: str) -> None:
    with sqlite3.connect(home / FILE) as db:
        for statement in statements:
            db.execute(statement)
    db.close()


def bytes_of(home: Path) -> bytes:
    """All that is on disk of the log."""
    return b"".join(path.read_bytes() for path in sorted((home / "audit").glob("log.db*")))


def test_what_is_old_goes_and_the_log_holds_and_says_so(hospital: Path) -> None:
    before, head = LogReader(hospital).extent(), LogReader(hospital).head()

    seq = pruned(hospital)

    assert seq == before
    checked = check_log(hospital, [head])
    (retired,) = checked.retired
    assert (checked.size, retired.seq, retired.days) == (before + 1, before, 400)
    assert retired.ranges == ((0, 6), (8, 38)) and retired.count == 38  # by hand: the model lasts
    assert checked.cosigned == {"sovfed/agency/agency.example": before}
    said = CliRunner().invoke(cli, ["log", "verify", "--home", str(hospital)])
    assert said.exit_code == 0
    text = " ".join(said.output.split())
    assert f"the content of 38 entries, 0 to 38, is no longer kept: entry {seq}" in text and "400 days" in text
    kept = [number for number, _ in LogReader(hospital).entries()]
    assert kept == [7, *range(39, seq + 1)]


def test_it_is_gone_from_the_disk_and_the_file_is_smaller(hospital: Path) -> None:
    size = (hospital / FILE).stat().st_size
    assert bytes_of(hospital).count(SECRET.encode()) > 30

    delete_contents(hospital, [(0, 6), (8, 38)], days=400, before=0, count=38)
    assert SECRET.encode() not in bytes_of(hospital)  # before the file is written anew
    assert shrink(hospital) and not shrink(hospital)

    assert SECRET.encode() not in bytes_of(hospital)
    assert (hospital / FILE).stat().st_size < size
    with sqlite3.connect(hospital / FILE) as db:
        assert db.execute("PRAGMA freelist_count").fetchone() == (0,)
    db.close()


def test_a_later_entry_of_a_run_is_linked_to_one_that_is_gone(hospital: Path) -> None:
    """Also where an agency calls another run by the digest of its name."""
    pruned(hospital)
    record(hospital, "order", event="signed", name=hashlib.sha256(SECRET.encode()).hexdigest(), order="34" * 32, by="")
    seq = record(hospital, "order", event="withdrawn", name=SECRET, order="12" * 32, by="")

    ((_, data),) = LogReader(hospital).entries(seq)
    assert read_entry(data)["before"] == 8
    assert check_log(hospital).size == seq + 1


@pytest.mark.parametrize(
    ("days", "allowed"), [(0, True), (1, False), (LEAST_LOG_DAYS - 1, False), (LEAST_LOG_DAYS, True)]
)
def test_no_setting_keeps_it_for_less_than_a_year(days: int, allowed: bool) -> None:
    for settings in (Policy, ServerConfig):
        if allowed:
            assert settings(log_retention_days=days).log_retention_days == days
        else:
            with pytest.raises(ValueError, match=f"at least {LEAST_LOG_DAYS}"):
                settings(log_retention_days=days)


def test_nothing_goes_beyond_the_rule(hospital: Path, built: Path) -> None:
    now = time.time()
    with pytest.raises(PolicyError, match="for ever"):
        plan(hospital, Terms(Rule(0, "x"), TERMS.needed), now)
    with pytest.raises(PolicyError, match="keeps 400 days"):
        plan(hospital, TERMS, now, before=int(now) - 300 * DAY_S)
    assert plan(hospital, TERMS, now, before=int(now) - 600 * DAY_S).count == 0
    assert plan(hospital, Terms(Rule(501, "x"), TERMS.needed), now).count == 0
    everything = plan(hospital, TERMS, now + 900 * DAY_S)  # a clock that was set ahead: the other's has not been
    assert everything.count == plan(hospital, TERMS, now).count == 38
    needed = plan(hospital, Terms(RULE, lambda: lambda values: "is needed" if "order" in values else ""), now)
    assert needed.ranges == [(0, 6), (9, 38)] and needed.stays["is needed"] == 1
    note_split(hospital, "sovfed/agency/agency.example", "rolled back", b"")
    with pytest.raises(PolicyError, match="rolled back"):
        plan(hospital, TERMS, now)


def test_what_nobody_has_cosigned_stays(hospital: Path) -> None:
    shutil.rmtree(hospital / "witness")
    made = plan(hospital, TERMS, time.time())
    assert made.count == 0 and any("nobody has cosigned" in line for line in made.told())


def test_the_newest_entries_stay_whatever_their_age(hospital: Path) -> None:
    """With clocks of both sides two years later; a policy is compared with the newest, which stays too."""
    other, now = hospital.parent / "agency", time.time() + 900 * DAY_S
    with pytest.MonkeyPatch.context() as later:
        later.setattr(time, "time", lambda: now)
        record(hospital, "round", run="10")
        cosign(hospital, other, LogReader(hospital).extent() - 1)
        made = plan(hospital, TERMS, now)
        seq = prune(hospital, made)
    assert made.ranges[-1][1] == seq - NEWEST - 1
    assert check_log(hospital).size == seq + 1


def test_a_deletion_that_no_entry_tells_of_is_named(hospital: Path) -> None:
    change(hospital, "DELETE FROM entries WHERE seq BETWEEN 20 AND 30")
    with pytest.raises(EvidenceError, match="entry 20 is missing"):
        check_log(hospital)
    with pytest.raises(EvidenceError, match=r"entry 20: .* gone already"):  # nor can it be made one by the rule later
        delete_contents(hospital, [(10, 38)], days=400, before=0, count=29)


def test_a_deletion_beside_one_by_rule_is_named(hospital: Path) -> None:
    pruned(hospital)
    change(hospital, "DELETE FROM entries WHERE seq IN (50, 7)")
    with pytest.raises(EvidenceError, match="entry 7 is missing"):
        check_log(hospital)


def _told(**changes: object) -> dict[str, Any]:
    now = int(time.time())
    return {"rule": "x", "days": 400, "before": now - 400 * DAY_S, "count": 1, **changes}


@pytest.mark.parametrize(
    ("ranges", "fields"),
    [
        ([(10, 10)], _told(days=LEAST_LOG_DAYS - 1)),
        ([(10, 10)], _told(before=int(time.time()) - 300 * DAY_S)),
        ([(10, 10)], _told(before=int(time.time()) + DAY_S)),
        ([(10, 10)], _told(count=2)),
        ([(10, 10)], _told(days="many")),
        ([(41, 41)], _told()),  # of today: entries before it are younger than the rule
        ([(3, 5), (44, 44)], _told(count=4)),
        ([(100, 100)], _told()),  # the newest stay
    ],
)
def test_a_deletion_outside_of_the_rule_is_named_by_whoever_has_the_key(
    hospital: Path, ranges: list[tuple[int, int]], fields: dict[str, Any]
) -> None:
    seq = delete_contents(hospital, ranges, **fields)
    with pytest.raises(EvidenceError, match=f"entry {ranges[0][0]} is missing"):
        check_log(hospital)
    assert seq == LogReader(hospital).extent() - 1


def test_an_entry_that_tells_of_a_deletion_that_was_none_is_named(hospital: Path) -> None:
    seq = record(hospital, "retention", ranges=[[10, 12]], **_told(count=3))
    with pytest.raises(EvidenceError, match=f"entry {seq}: says that the contents of 10 to 12 were deleted"):
        check_log(hospital)


@pytest.mark.parametrize(
    ("statements", "said"),
    [
        (("UPDATE entries SET data = x'7b7d' WHERE seq = 60",), "entry 60"),
        (("UPDATE nodes SET hash = zeroblob(32) WHERE level = 0 AND position = 10",), "entry 10"),
        (("DELETE FROM nodes WHERE level = 0 AND position = 10",), "entry 10 is missing"),
        (("UPDATE entries SET seq = -1 WHERE seq = 60", "UPDATE entries SET seq = 60 WHERE seq = 61",
          "UPDATE entries SET seq = 61 WHERE seq = -1"), "entry 60"),
        (("UPDATE entries SET seq = 10 WHERE seq = 60",), "entry 10"),
        (("UPDATE entries SET data = 'text' WHERE seq = 60",), "entry 60"),
        (("DELETE FROM entries WHERE seq >= 110",), "entry 0 is missing"),
        (("DELETE FROM entries WHERE seq >= 110", "DELETE FROM heads WHERE size > 110"), "entry 0 is missing"),
        (("DELETE FROM heads WHERE size = 20",), "entry 19"),
        (("UPDATE heads SET note = (SELECT note FROM heads WHERE size = 21) WHERE size = 20",), "entry 19"),
        (("INSERT INTO entries VALUES (1000000000, '{}')",), "is missing"),
    ],
)  # fmt: skip
def test_whoever_changes_a_log_of_which_old_contents_are_gone_is_noticed(
    hospital: Path, statements: tuple[str, ...], said: str
) -> None:
    pruned(hospital)
    change(hospital, *statements)
    with pytest.raises(EvidenceError, match=said):
        check_log(hospital)


def test_a_log_whose_entry_of_the_deletion_is_cut_off_is_missed(hospital: Path) -> None:
    """Also by whoever has the key, and writes on: the others have cosigned it."""
    seq = pruned(hospital)
    cosign(hospital, hospital.parent / "agency", seq)
    last = "(SELECT max(seq) FROM entries)"
    change(
        hospital, f"DELETE FROM nodes WHERE (position + 1) << level > {last}",  # noqa: S608 - ours
        f"DELETE FROM heads WHERE size > {last}", f"DELETE FROM entries WHERE seq = {last}",  # noqa: S608 - ours
    )  # fmt: skip
    record(hospital, "round", run="9")
    with pytest.raises(EvidenceError, match="entry 0 is missing"):
        check_log(hospital)


def test_a_deletion_while_the_log_is_checked_is_no_alarm(hospital: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, done = LogReader.entries, list[int]()

    def meanwhile(log: LogReader, *arguments: int) -> Iterator[tuple[int, bytes]]:
        if len(done) == 0:
            done.append(-1)
            done.append(pruned(hospital))
        return read(log, *arguments)

    monkeypatch.setattr(LogReader, "entries", meanwhile)
    assert len(check_log(hospital).retired) == 1


def test_what_was_proven_to_somebody_stays_proven(hospital: Path) -> None:
    """Entries, with their proofs, that another has: the log goes on from the head that they are under."""
    roots = load_roots(hospital / "identity" / "root.pem")
    files = lineage.show(hospital, lambda seq, _: seq in OLD)
    pruned(hospital)

    shown = lineage.check(files, roots, of="sovfed/institution/")
    log = LogReader(hospital)
    head = read_checkpoint(log.head())
    assert shown.seqs == tuple(OLD)
    assert merkle.consistent(shown.size, shown.root, head.size, head.root, log.consistency(shown.size, head.size))
    for seq, entry in zip(shown.seqs, shown.entries, strict=True):
        path = log.inclusion(seq, head.size)
        assert merkle.includes(merkle.leaf_hash(canonical(entry)), seq, head.size, path, head.root)


def test_a_bundle_for_a_regulator_says_what_is_no_longer_kept(hospital: Path) -> None:
    roots, now = load_roots(hospital / "identity" / "root.pem"), int(time.time())
    whole = check_bundle(make_bundle(hospital, 0, now + 9, "", early=False), roots)
    assert whole.report["no_longer_kept"] == 0
    seq = pruned(hospital)

    begin, end = now - OLD_S - DAY_S, now - OLD_S + DAY_S
    data = make_bundle(hospital, begin, end, "", early=False)
    checked = check_bundle(data, roots)

    assert [entry["kind"] for entry in checked.entries] == ["model"]
    assert checked.report["no_longer_kept"] == 38
    text = "\n".join(told(checked))
    assert "what 38 entries said is no longer kept" in text and f"entry {seq}" in text
    early = check_bundle(make_bundle(hospital, begin, end, "", early=True), roots)
    assert "what 38 entries said is no longer kept" in "\n".join(told(early))
    with pytest.MonkeyPatch.context() as later:
        later.setattr(time, "time", lambda: now + 1_000.0)
        record(hospital, "round", run="9")
    today = check_bundle(make_bundle(hospital, now + 900, now + 1_100, "", early=False), roots)
    assert today.report["no_longer_kept"] == 0 and len(today.entries) == 1

    files = zipped.read(data, most=MAX_BYTES)
    report, entries = json.loads(sealed.read_envelope(files[REPORT]).payload), json.loads(files[lineage.ENTRIES])
    silent = [entry for entry in entries if entry["seq"] != seq]
    for shown, changes in ((silent, {}), (silent, {"no_longer_kept": 0}), (entries, {"no_longer_kept": 0})):
        with pytest.raises(EvidenceError, match="incident bundle"):
            check_bundle(_signed(hospital, {**files, lineage.ENTRIES: canonical(shown)}, {**report, **changes}), roots)
    assert check_bundle(_signed(hospital, files, report), roots).entries


def _signed(home: Path, files: dict[str, bytes], report: dict[str, Any]) -> bytes:
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in files.items() if name != REPORT}
    payload = canonical({**report, "files": digests})
    envelope = sealed.Envelope(payload, (sealed.sign(payload, home),)).to_bytes()
    return zipped.write({**files, REPORT: envelope}, most=MAX_BYTES)


def test_tiles_have_the_hash_of_what_is_gone(hospital: Path, tmp_path: Path) -> None:
    export(LogReader(hospital), tmp_path / "before")
    pruned(hospital)
    assert export(LogReader(hospital), tmp_path / "after") == (LogReader(hospital).extent(), 38)
    hashes, hashes_after = (_only(tmp_path / name / "tile/0") for name in ("before", "after"))
    assert hashes_after.startswith(hashes)
    entries = _only(tmp_path / "after/tile/entries")
    assert SECRET.encode() not in entries and entries.startswith(b"\0" * 14)  # seven lengths of 0


def _only(folder: Path) -> bytes:
    (path,) = (path for path in folder.rglob("*") if path.is_file())
    return path.read_bytes()


def test_a_command_shows_what_would_go_and_deletes_it_once_told(hospital: Path) -> None:
    (hospital / "policy.yaml").write_text("log_retention_days: 400\n")
    words = ["log", "prune", "--home", str(hospital)]

    shown = CliRunner().invoke(cli, [*words, "--dry-run"])
    assert "38 entries to go" in shown.output and "1 stay: of a kind that is kept for ever" in shown.output
    assert not check_log(hospital).retired
    assert "Delete" in CliRunner().invoke(cli, words, input="n\n").output and not check_log(hospital).retired
    assert CliRunner().invoke(cli, [*words, "--yes"]).exit_code == 0
    assert check_log(hospital).retired[0].count == 38
    assert "0 entries to go" in CliRunner().invoke(cli, [*words, "--yes"]).output
    later = CliRunner().invoke(cli, [*words, "--before", "2099-01-01", "--yes"])
    assert isinstance(later.exception, PolicyError)
    (hospital / "policy.yaml").write_text("log_retention_days: 30\n")
    assert CliRunner().invoke(cli, words).exception is not None


def test_it_happens_by_itself_once_a_week_and_a_bounded_part_at_a_time(
    hospital: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "MOST", 20)
    now = [0.0]
    keeper = Retention(hospital, TERMS, lambda: now[0])
    keeper.look()
    assert not check_log(hospital).retired
    now[0] += 601
    keeper.look()
    assert [retired.count for retired in check_log(hospital).retired] == [20]
    now[0] += 2 * DAY_S
    keeper.look()
    assert len(check_log(hospital).retired) == 1  # by the log's own dates it is the same week
    assert plan(hospital, TERMS, time.time()).count == 18
    Retention(hospital, Terms(Rule(0, "x"), TERMS.needed), lambda: 1e9).look()


@pytest.mark.skipif(landlock.version() == 0, reason="this kernel has no Landlock")
def test_a_trainer_does_it_with_what_it_is_left(hospital: Path) -> None:
    """It may not write what others have cosigned, nor anywhere but in its own folders."""
    script = (
        "import sys, time\nfrom pathlib import Path\nfrom sovfed.clients.node.sandbox import seal_as\n"
        "from sovfed.clients.orders.retained import terms_of\n"
        "from sovfed.federation.evidence.retention import plan, prune\nhome = Path(sys.argv[1])\n"
        "seal_as('trainer', home)\nprune(home, plan(home, terms_of(home, 400), time.time()))\n"
    )
    subprocess.run([sys.executable, "-c", script, str(hospital)], check=True, timeout=60)
    assert check_log(hospital).retired[0].count == 38
    assert SECRET.encode() not in bytes_of(hospital)


KILLED = """
import os, shutil, sqlite3, sys, time
from pathlib import Path
from sovfed.federation.evidence.retention import Rule, Terms, plan, prune

home, copies, every = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
made = plan(home, Terms(Rule(400, "x"), lambda: lambda values: ""), time.time())
connect = sqlite3.connect

def dying(steps):
    left = [steps]
    def step():
        left[0] -= 1
        if left[0] < 0:
            os.kill(os.getpid(), 9)
        return 0
    def connected(*arguments, **options):
        db = connect(*arguments, **options)
        db.set_progress_handler(step, every)
        db.execute("PRAGMA cache_size = 1")  # so that pages go to the disk before the end
        return db
    return connected

for steps in range(400):
    copy = copies / str(steps)
    shutil.copytree(home, copy)
    child = os.fork()
    if child == 0:
        sqlite3.connect = dying(steps)
        prune(copy, made)
        os._exit(0)
    if os.waitpid(child, 0)[1] == 0:
        print(steps)
        break
"""


def test_killed_at_any_moment_it_leaves_a_log_that_holds(hospital: Path, tmp_path: Path) -> None:
    copies = tmp_path / "copies"
    copies.mkdir()
    command = [sys.executable, "-c", KILLED, str(hospital), str(copies), "120"]
    done = int(subprocess.run(command, check=True, capture_output=True, text=True, timeout=300).stdout)

    counts = []
    for home in sorted(copies.iterdir(), key=lambda path: int(path.name)):
        counts.append(sum(retired.count for retired in check_log(home).retired))
        assert (SECRET.encode() in _compacted(home)) == (counts[-1] == 0)
    assert done > 10 and {0, 38} == set(counts)


def _compacted(home: Path) -> bytes:
    shrink(home)
    record(home, "round", run="9")  # whoever writes next
    return bytes_of(home)


def test_an_entry_that_was_changed_is_not_let_go(hospital: Path) -> None:
    """Else whoever had changed one would wait until the rule takes the trace away."""
    change(hospital, "UPDATE entries SET data = x'7b7d' WHERE seq = 20")
    with pytest.raises(EvidenceError, match="entry 20"):
        delete_contents(hospital, [(0, 6), (8, 38)], **_told(count=38))
    with pytest.raises(EvidenceError, match="entry 20"):
        check_log(hospital)
