"""Heads are exchanged with a real registry: who rolls back, forks or shows two logs is seen, and not cosigned again."""

from __future__ import annotations

import os
import secrets
import shutil
import sqlite3
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from tests.enrolment_fixture import make_agency

from sovfed.clients.node import heads
from sovfed.clients.node.agency import ask, mutual_channel
from sovfed.clients.node.heads import Exchange
from sovfed.clients.trainer.evidence import Evidence
from sovfed.federation.errors import EvidenceError, IdentityError, PolicyError
from sovfed.federation.evidence.checking import check_log
from sovfed.federation.evidence.keys import INSTITUTION, establish, read_voucher
from sovfed.federation.evidence.store import LogReader, record
from sovfed.federation.evidence.witness import SplitError, all_seen, cosignatures, forget, others, problems
from sovfed.federation.identity import load_roots
from sovfed.federation.wire import enrolment_pb2 as pb
from sovfed.federation.wire.enrolment import REGISTRY_SERVICE

NAMES = ("hospital-1", "hospital-2")


class Federation:
    """An agency and two institutions, each with a log of a few entries."""

    def __init__(self, folder: Path) -> None:
        self.agency = make_agency(folder)
        self.homes = [folder / name for name in NAMES]
        with self.agency.run():
            for home, name in zip(self.homes, NAMES, strict=True):
                self.agency.enrol(home, name)
                record(home, "policy", policy="00")

    def exchange(self, home: Path, exchange: Exchange | None = None) -> None:
        """Heads of `home` and the agency."""
        with self.agency.run() as where, mutual_channel(home, where.lane, None) as channel:
            (exchange or Exchange(home)).once(channel)

    def some_rounds(self, home: Path, count: int = 3) -> None:
        for _ in range(count):
            record(home, "round", run=secrets.token_hex(8))


@contextmanager
def rolled_back(home: Path) -> Iterator[None]:
    """What is logged in the block is forgotten after it."""
    copy = home.parent / "copy"
    shutil.copytree(home / "audit", copy)
    yield
    shutil.rmtree(home / "audit")
    copy.rename(home / "audit")


@pytest.fixture
def federation(tmp_path: Path) -> Federation:
    return Federation(tmp_path)


def test_both_sides_cosign_what_goes_on_and_learn_who_else_has(federation: Federation) -> None:
    first, second = federation.homes
    for home in (first, second, first):
        federation.some_rounds(federation.agency.home)
        federation.some_rounds(home)
        federation.exchange(home)

    checked = check_log(federation.agency.home)
    assert checked.cosigned[INSTITUTION + "hospital-1"] == checked.size
    assert checked.cosigned[INSTITUTION + "hospital-2"] == checked.size - 3
    assert [voucher.origin for voucher, _ in others(first)] == [INSTITUTION + "hospital-2"]
    assert check_log(first).cosigned == {"sovfed/agency/localhost": check_log(first).size}
    assert problems(first) == problems(second) == problems(federation.agency.home) == {}


def test_heads_that_have_not_changed_add_nothing_to_either_log(federation: Federation) -> None:
    exchange = Exchange(federation.homes[0])
    sizes = []
    for _ in range(3):
        federation.exchange(federation.homes[0], exchange)
        sizes.append((check_log(federation.homes[0]).size, check_log(federation.agency.home).size))

    assert len(set(sizes)) == 1


def test_nothing_is_written_on_either_side_while_nothing_happens(federation: Federation) -> None:
    """A cosignature has the time in it: the same head, cosigned again, is no news."""
    first, agency = federation.homes[0], federation.agency.home
    exchange = Exchange(first)
    for _ in range(2):
        federation.exchange(first, exchange)
    databases = [home / "witness" / "heads.db" for home in (first, agency)]
    before = [(path.stat().st_mtime_ns, path.read_bytes()) for path in databases]
    for _ in range(3):
        federation.exchange(first, exchange)
    assert [(path.stat().st_mtime_ns, path.read_bytes()) for path in databases] == before
    federation.some_rounds(first)
    federation.exchange(first, exchange)
    assert all(path.read_bytes() != content for path, (_, content) in zip(databases, before, strict=True))


@pytest.mark.parametrize("rounds_after", [0, 3, 9], ids=["rolled back", "forked", "forked and longer"])
def test_an_agency_that_rewrites_its_past_is_not_cosigned_again_and_its_runs_are_refused(
    federation: Federation, rounds_after: int
) -> None:
    agency, home = federation.agency.home, federation.homes[0]
    with rolled_back(agency):
        federation.some_rounds(agency)
        federation.exchange(home)
        Evidence(home).require_whole()
    federation.some_rounds(agency, rounds_after)

    with pytest.raises(SplitError, match="log sovfed/agency/"):
        federation.exchange(home)

    with pytest.raises(PolicyError, match="log sovfed/agency/"):
        Evidence(home).require_whole()
    Evidence(home, on_split="record").require_whole()
    assert next(LogReader(home).newest())["kind"] == "split"
    with pytest.raises(EvidenceError, match="log trust"):
        federation.exchange(home)
    assert forget(home, "sovfed/agency/localhost")
    federation.exchange(home)
    Evidence(home).require_whole()


def test_who_put_a_home_back_from_a_copy_is_told_at_the_agency_with_what_to_type(
    federation: Federation, caplog: pytest.LogCaptureFixture
) -> None:
    """Seen: institutions alone knew why the agency's runs were refused, and the command that they named was none."""
    agency, home = federation.agency.home, federation.homes[0]
    with rolled_back(agency):
        federation.some_rounds(agency)
        federation.exchange(home)
    with pytest.raises(SplitError):
        federation.exchange(home)
    told = "hospital-1 says that it has seen"
    assert told in caplog.text and "`sovfed client log trust sovfed/agency/localhost`" in caplog.text
    assert forget(home, "sovfed/agency/localhost")
    with rolled_back(home):
        federation.some_rounds(home)
        federation.exchange(home)
    caplog.clear()
    federation.exchange(home)
    assert "`sovfed server log trust sovfed/institution/hospital-1` at the agency" in caplog.text


def test_an_agency_that_shows_two_institutions_two_logs_is_told_by_what_one_of_them_cosigned(
    federation: Federation,
) -> None:
    agency, (first, second) = federation.agency.home, federation.homes
    with rolled_back(agency):
        record(agency, "round", refused=["hospital-1"])
        federation.exchange(first)
    federation.some_rounds(agency, 4)

    with pytest.raises(SplitError, match="hospital-1 has cosigned"):
        federation.exchange(second)

    with pytest.raises(PolicyError, match="hospital-1"):
        Evidence(second).require_whole()


def test_an_agency_that_begins_a_new_log_is_told(federation: Federation) -> None:
    federation.exchange(federation.homes[0])
    for folder in ("audit", "audit-key", "witness"):
        shutil.rmtree(federation.agency.home / folder)
    federation.some_rounds(federation.agency.home, 9)

    with pytest.raises(SplitError, match="another key"):
        federation.exchange(federation.homes[0])


def test_an_institution_that_rewrites_its_past_is_not_cosigned_and_the_agency_logs_it(federation: Federation) -> None:
    agency, home = federation.agency.home, federation.homes[0]
    with rolled_back(home):
        federation.some_rounds(home)
        federation.exchange(home)
    federation.exchange(home)

    origin = INSTITUTION + "hospital-1"
    assert "rolled back" in problems(agency)[origin]
    assert next(LogReader(agency).newest())["log"] == origin
    federation.some_rounds(home, 9)
    federation.exchange(home)
    assert [voucher.origin for voucher, _ in cosignatures(home)] == ["sovfed/agency/localhost"]
    with pytest.raises(EvidenceError, match=r"missing|written anew"):
        check_log(home)
    assert forget(agency, origin)


def test_an_institution_cannot_show_the_log_of_another(federation: Federation) -> None:
    first, second = federation.homes
    for folder in ("audit", "audit-key"):
        shutil.rmtree(first / folder)
        shutil.copytree(second / folder, first / folder)

    with pytest.raises(IdentityError, match="refused"):
        federation.exchange(first)

    assert not all_seen(federation.agency.home)  # nothing was cosigned under the other's name


def test_keys_are_made_once(federation: Federation) -> None:
    home = federation.homes[0]

    assert establish(home) == establish(home) == LogReader(home).voucher


class Late(Exchange):
    """Its first request reaches the agency after what another process of this institution has said."""

    def __init__(self, home: Path, meanwhile: Callable[[], None]) -> None:
        super().__init__(home)
        self._meanwhile: list[Callable[[], None]] = [meanwhile]

    def _request(self) -> pb.HeadsRequest:
        request = super()._request()
        while self._meanwhile:
            self._meanwhile.pop()()
        return request


def test_a_head_that_was_under_way_while_a_newer_one_arrived_is_no_rollback(federation: Federation) -> None:
    """A gateway that is started again while the last one's request is under way, or a slow network."""
    agency, home = federation.agency.home, federation.homes[0]
    with federation.agency.run() as where, mutual_channel(home, where.lane, None) as channel:
        Exchange(home).once(channel)

        def newer() -> None:
            federation.some_rounds(home)
            federation.some_rounds(agency)
            Exchange(home).once(channel)

        Late(home, newer).once(channel)

    assert problems(agency) == problems(home) == {}
    assert check_log(home).cosigned == {"sovfed/agency/localhost": check_log(home).size}
    Evidence(home).require_whole()


def test_an_answer_that_was_under_way_while_a_newer_one_arrived_is_no_rollback(federation: Federation) -> None:
    agency, home = federation.agency.home, federation.homes[0]
    with federation.agency.run() as where, mutual_channel(home, where.lane, None) as channel:
        Exchange(home).once(channel)
        late = Exchange(home)
        answer = ask(channel, f"/{REGISTRY_SERVICE}/Heads", late._request(), pb.HeadsReply, "heads")
        federation.some_rounds(agency)
        Exchange(home).once(channel)
        assert late._take(answer)

    assert problems(home) == {}


def test_an_agency_that_says_less_than_it_was_told_to_have_said_is_told(federation: Federation) -> None:
    """The same answer, to a request that knew of more: that is a log which was rolled back."""
    agency, home = federation.agency.home, federation.homes[0]
    with federation.agency.run() as where, mutual_channel(home, where.lane, None) as channel:
        old = ask(channel, f"/{REGISTRY_SERVICE}/Heads", Exchange(home)._request(), pb.HeadsReply, "heads")
        federation.some_rounds(agency)
        exchange = Exchange(home)
        exchange.once(channel)
        exchange._request()
        with pytest.raises(SplitError, match="rolled back"):
            exchange._take(old)


@pytest.mark.parametrize("signature", ["A", "AAA=", "é"])
def test_keys_that_nobody_can_read_end_no_watch(federation: Federation, signature: str) -> None:
    """Seen: base64 that ends early raised what nothing caught, and the thread that watches the agency's log ended."""
    voucher = replace(LogReader(federation.homes[0]).voucher, signature=signature)

    with pytest.raises(EvidenceError):
        voucher.check(load_roots(federation.homes[0] / "identity" / "root.pem"))


def test_the_watch_over_the_agencys_log_goes_on_whatever_it_answers(
    federation: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heads, "AGAIN_S", 0.01)
    tries, stop = list[int](), threading.Event()

    def answer(*_: object) -> None:
        tries.append(1)
        if len(tries) == 3:
            stop.set()
        raise KeyError("no error of ours")

    monkeypatch.setattr(Exchange, "once", answer)
    with federation.agency.run():
        heads.keep_exchanging(federation.homes[0], 0.01, stop, threading.Event())
    assert len(tries) == 3


def test_what_one_institution_cosigned_and_nobody_can_read_keeps_no_other_from_the_exchange(
    federation: Federation,
) -> None:
    agency, (first, second) = federation.agency.home, federation.homes
    federation.exchange(first)
    with sqlite3.connect(agency / "witness" / "heads.db") as db:
        (keys,) = db.execute("SELECT keys FROM own").fetchone()
        text = read_voucher(bytes(keys))
        db.execute("UPDATE own SET keys = ?", (replace(text, signature="AAAA").to_bytes(),))

    federation.exchange(second)

    assert others(second) == [] and problems(second) == {}
    assert INSTITUTION + "hospital-2" in check_cosigners(agency)
    Evidence(second).require_whole()


def check_cosigners(home: Path) -> list[str]:
    return [voucher.origin for voucher, _ in cosignatures(home)]


def test_a_cosignature_that_is_refused_hides_no_rollback(federation: Federation) -> None:
    """Seen by reading: the institution would show the same again and again, and never be shown the log."""
    agency, home = federation.agency.home, federation.homes[0]
    exchange = Exchange(home)
    with rolled_back(agency):
        federation.some_rounds(agency)
        with federation.agency.run() as where, mutual_channel(home, where.lane, None) as channel:
            answer = ask(channel, f"/{REGISTRY_SERVICE}/Heads", exchange._request(), pb.HeadsReply, "heads")
            exchange._take(answer)  # cosigned, and not shown yet

    with pytest.raises(IdentityError, match="refused"):
        federation.exchange(home, exchange)
    with pytest.raises(SplitError, match="rolled back"):
        federation.exchange(home, exchange)


def test_a_draft_of_a_key_that_somebody_left_is_in_nobodys_way(federation: Federation) -> None:
    home = federation.homes[0]
    shutil.rmtree(home / "audit-key")
    (home / "audit" / "keys.json").unlink()
    (home / "audit-key").mkdir(mode=0o700)
    (home / "audit-key" / f"log.{os.getpid()}").write_bytes(b"")
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: establish(home), range(8)))

    assert len({str(voucher) for voucher in made}) == 1
    record(home, "round", run="1")
