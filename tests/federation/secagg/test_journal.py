"""The journal under kill −9 at every point where the trainer touches the disk, and under damage."""

from __future__ import annotations

import errno
import os
import resource
import signal
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from sovfed.federation.errors import PrivacyError, ServiceError
from sovfed.federation.secagg import client
from sovfed.federation.secagg.coordinator import Round
from sovfed.federation.secagg.history import History, Joined, Revealed, Spent
from sovfed.federation.secagg.journal import Journal
from sovfed.federation.secagg.local import SUBJECT, TASK, Federation, found, random_updates
from sovfed.federation.secagg.mask import hash_vector
from sovfed.federation.secagg.purpose import Purpose

MODEL = np.zeros(50, np.float32)
H = bytes(32)


class Killer:
    """Kills its own process at the n-th point: before, within and after each write, before and after each fsync."""

    def __init__(self, point: int) -> None:
        self._left = point
        self._write, self._fsync = os.write, os.fsync
        os.write, os.fsync = self.write, self.fsync  # type: ignore[assignment]

    def pass_point(self) -> None:
        if self._left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        self._left -= 1

    def write(self, file: int, data: bytes) -> int:
        self.pass_point()
        if self._left == 0:
            self._write(file, data[: len(data) // 2])
        self.pass_point()
        written = self._write(file, data)
        self.pass_point()
        return written

    def fsync(self, file: int) -> None:
        self.pass_point()
        self._fsync(file)
        self.pass_point()


def in_a_process(work: Callable[[], bytes], sent: Path, kill_at: int | None) -> str:
    """Run `work` in a child that then "sends" its reply to `sent`: "sent", "refused" or "killed"."""
    child = os.fork()
    if child == 0:
        try:
            killer = Killer(kill_at) if kill_at is not None else None
            reply = work()
            if killer:
                killer.pass_point()
            sent.write_bytes(reply)
            os._exit(0)
        except PrivacyError:
            os._exit(3)
        except BaseException:
            os._exit(4)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return "killed"
    return {0: "sent", 3: "refused", 4: "crashed"}[os.WEXITSTATUS(status)]


def mask_once(federation: Federation, round_: Round, path: Path) -> Callable[[], bytes]:
    """What the trainer does on M1, from a fresh start."""
    institution = federation.institutions[0]

    def work() -> bytes:
        journal = Journal(path)
        permit = client.begin(
            institution.session,
            journal.history,
            institution.terms,
            round_.begin_bytes,
            hash_vector(MODEL),
            TASK,
            SUBJECT,
            federation.now,
        )
        upload, entry = client.mask(institution.session, permit, MODEL, 10, (), institution.identity.sign, os.urandom)
        journal.commit([entry])
        return upload.message + upload.payload.tobytes()

    return work


def joined(federation: Federation, path: Path, *more: Spent) -> None:
    """The journal of an institution that has finished the setup."""
    Journal.create(path)
    journal, roster = Journal(path), federation.roster
    journal.commit([Joined(roster.offer.run, 1, roster.digest, "run", roster.names), *more])
    journal.close()


def reveal_once(federation: Federation, ask: bytes, path: Path) -> Callable[[], bytes]:
    """What the trainer does on M3, from a fresh start."""
    institution = federation.institutions[0]

    def work() -> bytes:
        journal = Journal(path)
        answer, entries = client.reveal(
            institution.session, journal.history, institution.terms, ask, institution.identity.sign, federation.now
        )
        journal.commit(entries)
        return answer

    return work


def test_a_context_is_never_masked_under_twice_whenever_the_trainer_is_killed(tmp_path: Path) -> None:
    federation = found(4)
    outcomes = []
    for point in range(100):
        path, sent, again = (tmp_path / f"{name}-{point}" for name in ("journal", "sent", "again"))
        joined(federation, path)
        round_ = federation.open(1, MODEL)
        first = in_a_process(mask_once(federation, round_, path), sent, point)
        second = in_a_process(mask_once(federation, round_, path), again, None)
        outcomes.append((first, second))
        assert not (sent.exists() and again.exists())  # nothing ever left twice
        assert second == ("refused" if first == "sent" else second) in ("sent", "refused")
        third = in_a_process(mask_once(federation, federation.open(1, MODEL, attempt=2), path), again, None)
        assert third == "sent"  # the attempt is burnt, the round is not
        if first == "sent":
            break
    killed = outcomes[:-1]
    assert [first for first, _ in killed] == ["killed"] * 6  # 3 around the write, 2 around the fsync, 1 before sending
    assert [second for _, second in killed] == ["sent", "sent", "refused", "refused", "refused", "refused"]
    assert outcomes[-1] == ("sent", "refused")


def test_no_second_sum_is_revealed_whenever_the_trainer_is_killed(tmp_path: Path) -> None:
    federation, updates = found(5), random_updates(5, MODEL.size)
    round_ = federation.open(1, MODEL)
    uploads = [federation.upload(round_, index, MODEL, updates[index], 10) for index in range(5)]
    spent = federation.institutions[0].history.spent[federation.roster.offer.run, 1]
    asks = []
    for members in (range(5), range(4)):
        one = federation.open(1, MODEL)
        for index in members:
            one.add(uploads[index].message, uploads[index].payload)
        asks.append(one.ask()[0])
    for point in range(100):
        path, sent, other, same = (tmp_path / f"{name}-{point}" for name in ("journal", "sent", "other", "same"))
        joined(federation, path, *spent)
        first = in_a_process(reveal_once(federation, asks[0], path), sent, point)
        second = in_a_process(reveal_once(federation, asks[1], path), other, None)
        third = in_a_process(reveal_once(federation, asks[0], path), same, None)
        assert not (sent.exists() and other.exists())
        assert {second, third} == {"sent", "refused"}  # exactly one of the two sums is ever answered for
        if first == "sent":
            assert (second, third) == ("refused", "sent")
            assert sent.read_bytes()[:-64] == same.read_bytes()[:-64]  # the same shares; ECDSA signs afresh
            break
    assert point == 6


def entries(count: int) -> list[Joined | Spent | Revealed]:
    return [Joined(bytes(16), 1, H, "run", ("a", "b")),
            *(Spent(bytes(16), H, k, 1, 1, H, H, H, H) for k in range(count)),
            Revealed(bytes(16), 1, H, 1, H, H, 3, (bytes(8),) * 3)]  # fmt: skip


def written(path: Path, count: int = 3) -> bytes:
    Journal.create(path)
    journal = Journal(path)
    journal.commit(entries(count))
    journal.close()
    return path.read_bytes()


def test_a_journal_is_read_back(tmp_path: Path) -> None:
    written(tmp_path / "journal")
    history = Journal(tmp_path / "journal").history
    assert history.epoch(bytes(16)) == 1
    assert [len(history.spent[bytes(16), k]) for k in range(3)] == [1, 1, 1]
    assert history.revealed[bytes(16), 1] == entries(0)[-1]
    assert history.last_round[bytes(16)] == 2


def test_a_round_takes_as_little_memory_with_many_institutions_as_with_few() -> None:
    """Seen: 2 kB with three, 22 kB with 255, which names each of them twice in every round."""

    def grown(institutions: int) -> int:
        history, names = History(), tuple(f"hospital-{number}" for number in range(institutions))
        history.add(Joined(bytes(16), 1, H, "run", names))
        tags = tuple(sorted(history.rosters[H]))
        tracemalloc.start()
        for number in range(1, 101):
            model = bytes([number]) * 32
            for entry in (
                Spent(bytes(16), H, number, 1, Purpose.TRAIN, model, H, model, model),
                Revealed(bytes(16), number, model, Purpose.TRAIN, model, H, 3, tags),
            ):
                history.add(type(entry).decode(entry.encode()))  # nothing of it is known yet
        taken, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert history.sums[bytes(16), Purpose.TRAIN, model] == frozenset(tags)
        assert history.masked[bytes(16), Purpose.TRAIN, model] == (frozenset(tags),)
        return taken // 100

    assert grown(3) < 2_000 and grown(255) < 2_000


def test_every_torn_end_is_cut_off_and_writing_goes_on(tmp_path: Path) -> None:
    whole = written(tmp_path / "whole")
    for size in range(len(whole) - 1, 24, -37):
        path = tmp_path / f"torn-{size}"
        path.write_bytes(whole[:size])
        journal = Journal(path)
        journal.commit([Joined(bytes(16), 9, H, "run", ())])
        journal.close()
        assert Journal(path).history.epoch(bytes(16)) == 9


def test_damage_before_the_end_is_refused(tmp_path: Path) -> None:
    whole = written(tmp_path / "whole")
    for place in range(0, len(whole) - 400, 41):
        path = tmp_path / f"damaged-{place}"
        path.write_bytes(whole[:place] + bytes((whole[place] ^ 1,)) + whole[place + 1 :])
        with pytest.raises(ServiceError, match=r"enrol anew|not a journal"):
            Journal(path)


def test_a_removed_entry_is_noticed(tmp_path: Path) -> None:
    whole = written(tmp_path / "whole", 3)
    shorter = written(tmp_path / "shorter", 2)
    size = len(whole) - len(shorter)
    start = 24 + len(entries(0)[0].encode()) + 24
    path = tmp_path / "spliced"
    path.write_bytes(whole[:start] + whole[start + size :])
    with pytest.raises(ServiceError, match="damaged"):
        Journal(path)


def test_a_disk_that_is_full_for_a_while_leaves_a_journal_that_can_be_read(tmp_path: Path) -> None:
    """A real limit on the size of files: the write is cut short at each place in turn, then refused outright."""
    whole = written(tmp_path / "whole")
    for room in (0, 1, 7, 8, 9, 60, 119):
        path = tmp_path / f"full-{room}"
        path.write_bytes(whole)
        path.chmod(0o600)

        def full(path: Path = path, room: int = room) -> bytes:
            journal = Journal(path)
            resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) + room, resource.RLIM_INFINITY))
            for _ in range(2):
                with pytest.raises(ServiceError, match="nothing was sent"):
                    journal.commit([Spent(bytes(16), H, 9, 1, 1, H, H, H, H)])
            assert (bytes(16), 9) not in journal.history.spent
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            journal.commit([Spent(bytes(16), H, 10, 1, 1, H, H, H, H)])
            return b"written"

        assert in_a_process(full, tmp_path / f"sent-{room}", None) == "sent"
        history = Journal(path).history
        assert (bytes(16), 9) not in history.spent and len(history.spent[bytes(16), 10]) == 1


@pytest.mark.parametrize("repaired", [True, False])
def test_a_failed_fsync_leaves_a_journal_that_can_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, repaired: bool
) -> None:
    """The record may or may not be on the disk: it is taken back, or nothing more is written until a restart."""
    written(tmp_path / "journal")
    journal, fsync = Journal(tmp_path / "journal"), os.fsync
    failing = [True] if repaired else [True, True]

    def failed(file: int) -> None:
        if failing:
            failing.pop()
            raise OSError(errno.EIO, "Input/output error")
        fsync(file)

    monkeypatch.setattr(os, "fsync", failed)
    with pytest.raises(ServiceError, match="Input/output error"):
        journal.commit([Spent(bytes(16), H, 9, 1, 1, H, H, H, H)])
    assert (bytes(16), 9) not in journal.history.spent
    after = Spent(bytes(16), H, 10, 1, 1, H, H, H, H)
    if repaired:
        journal.commit([after])
    else:
        with pytest.raises(ServiceError, match="restart the trainer"):
            journal.commit([after])
    journal.close()
    again = Journal(tmp_path / "journal")
    assert ((bytes(16), 10) in again.history.spent) == repaired
    again.commit([Joined(bytes(16), 9, H, "run", ())])
    again.close()
    assert Journal(tmp_path / "journal").history.epoch(bytes(16)) == 9


def test_a_missing_journal_is_not_made_up(tmp_path: Path) -> None:
    with pytest.raises(ServiceError, match="enrol anew"):
        Journal(tmp_path / "journal")


def test_an_existing_journal_is_not_replaced_and_has_one_owner(tmp_path: Path) -> None:
    written(tmp_path / "journal")
    assert (tmp_path / "journal").stat().st_mode & 0o777 == 0o600
    with pytest.raises(ServiceError, match="exists"):
        Journal.create(tmp_path / "journal")
    held = Journal(tmp_path / "journal")
    with pytest.raises(ServiceError, match="in use"):
        Journal(tmp_path / "journal")
    held.close()
