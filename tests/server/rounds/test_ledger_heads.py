"""Who pays when: real trainers with real ledgers, and an agency that is honest, forgetful, silent or a liar."""

from __future__ import annotations

import dataclasses
import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.server.rounds.secure_world import TASK, Place, World, fail

from sovfed.clients.ledger.book import PrivacyLedger, replay
from sovfed.clients.ledger.entries import Budget, History
from sovfed.clients.ledger.file import FOLDER, create_ledger, read_ledger
from sovfed.clients.trainer.masking import Store
from sovfed.federation.errors import CohortError
from sovfed.federation.messages import Bytes, LedgerReply, LedgerRequest, Refusal, Request
from sovfed.federation.secagg.files import MemoryStore
from sovfed.federation.secagg.keys import Identity, countersigned_head, told_head
from sovfed.federation.secagg.local import Authority
from sovfed.server.rounds import ledger_heads
from sovfed.server.rounds.ledger_heads import FILE, LedgerHeads, names_of
from sovfed.server.rounds.privacy import PrivacyPlan

BUDGET = Budget(max_share_per_run=1.0)
NAME = BUDGET.population_name
NOTHING = np.zeros(0, np.uint8)
PRIVATE = (
    "privacy=distributed", "privacy.epsilon=1", "privacy.population=400", "privacy.delta=1e-6", "privacy.colluders=0",
    "rounds=30",
)  # fmt: skip


class Ledgers(World):
    """`World` whose institutions have ledgers, and an agency that countersigns them as the coordinator does."""

    def __init__(self, folder: Path, count: int = 3) -> None:
        self.folder, self.run = folder, "7"
        self.identities: dict[int, Identity] = {}
        self.ledgers: dict[int, PrivacyLedger] = {}
        self.agency = folder / "agency"
        self.agency.mkdir(exist_ok=True)
        super().__init__(count, *PRIVATE)
        self.grid._names = {node: f"hospital-{node}" for node in range(1, 10)}
        self.rounds.plan = PrivacyPlan.make(self.config, "trial", TASK.parameters)
        self.speaker = self.authority.server("agency.test")
        self.heads = self.new_heads()
        self.rounds.before = partial(self.heads.before_round, self.grid, self.run)

    def add(self, node: int, store: Store, authority: Authority | None = None) -> Place:
        place = super().add(node, store, authority)
        self.open(node)
        return place

    def home(self, node: int) -> Path:
        return self.folder / f"hospital-{node}"

    def open(self, node: int, home: Path | None = None) -> None:
        """Open the ledger in `home` as a trainer does that starts; the workload in memory is gone too."""
        if node in self.ledgers:
            self.ledgers.pop(node).unlock()
        home = home or self.home(node)
        create_ledger(home, NAME, 1.8e9)
        self.ledgers[node] = PrivacyLedger(home, BUDGET, lambda: 1.8e9, lambda: 0.0)
        self.places[node].trainer._loaded.private = {}

    def ledger_of(self, node: int) -> PrivacyLedger | None:
        return self.ledgers[node]

    def new_heads(self) -> LedgerHeads:
        return LedgerHeads(self.agency, self.speaker)

    def history(self, node: int, home: Path | None = None) -> History:
        return replay(read_ledger(home or self.home(node), NAME)[0])

    def spends(self, node: int, home: Path | None = None) -> int:
        return len(self.history(node, home).spends)

    def request(
        self,
        node: int,
        *,
        seq: int | None = None,
        head: Bytes | None = None,
        own: Bytes | None = None,
        speaker: Identity | None = None,
    ) -> LedgerRequest:
        """An honest request for the newest head of `node`, but for what is given."""
        masking = self.places[node].trainer._masking
        assert masking is not None
        told, speaker = masking.tell(*self.ledgers[node].position()), speaker or self.speaker
        seq, head = told.seq if seq is None else seq, told.head if head is None else head
        signature = np.frombuffer(speaker.sign(countersigned_head(self.run, seq, head.tobytes())), np.uint8)
        certificate = np.frombuffer(speaker.certificate, np.uint8)
        return LedgerRequest(self.run, head, told.signature if own is None else own, certificate, signature, seq)

    def ask(self, node: int, request: Request) -> object:
        return self.places[node].answer(request)

    def shown(self, node: int) -> bool:
        """Whether the ledger of `node` pays in this run."""
        return self.run in self.ledgers[node]._shown


@pytest.fixture
def world(tmp_path: Path) -> Ledgers:
    return Ledgers(tmp_path)


def test_whole_run_is_paid_and_the_agency_keeps_heads_that_the_institutions_signed(world: Ledgers) -> None:
    for number in (1, 2):
        assert len(world.rounds.train(number).participants) == 3
    assert [world.spends(node) for node in (1, 2, 3)] == [2, 2, 2]
    done = world.heads.countersign(world.grid, world.run, names_of(world.grid))
    kept = json.loads((world.agency / FILE).read_text())
    for node in (1, 2, 3):
        lines, signed = read_ledger(world.home(node), NAME)
        name = f"hospital-{node}"
        assert signed and signed.head == lines[-1].head == done[name] == kept[name]["head"]
        assert kept[name]["seq"] == lines[-1].seq


def test_agency_that_shows_no_head_is_paid_nothing(world: Ledgers) -> None:
    world.rounds.before = None
    with pytest.raises(CohortError, match="privacy"):
        world.rounds.train(1)
    assert [world.spends(node) for node in (1, 2, 3)] == [0, 0, 0]
    assert "has not countersigned, in this run" in world.history(1).refusals[0][1].reason


def test_late_comer_and_a_trainer_that_was_restarted_are_shown_a_head_before_they_pay(world: Ledgers) -> None:
    world.rounds.train(1)
    world.add(4, MemoryStore())
    assert len(world.rounds.train(2).participants) == 4
    assert world.spends(4) == 1
    world.open(2)
    done = world.rounds.train(3)
    assert done.refused == {2: "privacy"} and world.spends(2) == 2
    assert len(world.rounds.train(4).participants) == 4
    assert world.spends(2) == 3


def test_ledger_rolled_back_between_runs_is_refused_in_the_next_and_after_any_restart(world: Ledgers) -> None:
    old = world.home(1).parent / "old"
    shutil.copytree(world.home(1) / FOLDER, old)
    world.rounds.train(1)
    world.heads.countersign(world.grid, world.run, names_of(world.grid))
    world.ledgers.pop(1).unlock()
    shutil.rmtree(world.home(1) / FOLDER)
    shutil.copytree(old, world.home(1) / FOLDER)
    world.heads = world.new_heads()
    world.rounds.before = partial(world.heads.before_round, world.grid, world.run)
    for _ in range(2):
        world.open(1)
        with pytest.raises(CohortError, match="privacy"):
            world.rounds.train(2)
        assert world.spends(1) == 0
        assert "it was rolled back, or a copy of this home went on without it" in str(world.ledgers[1].mark)


def test_copy_of_a_home_that_takes_over_within_a_run_is_noticed(
    world: Ledgers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two supernodes of one identity: what the agency last countersigned was the original's."""
    monkeypatch.setattr(ledger_heads, "EVERY_ROUNDS", 2)
    world.add(4, MemoryStore())
    copy = world.folder / "copy"
    shutil.copytree(world.home(1), copy)
    for number in (1, 2, 3):
        world.rounds.train(number)
    spent = world.spends(1)
    world.open(1, copy)
    for number in (4, 5, 6):
        assert 1 not in world.rounds.train(number).participants
    assert world.spends(1, copy) == 0 and world.spends(1) == spent
    world.open(1)
    world.heads = world.new_heads()
    world.rounds.before = partial(world.heads.before_round, world.grid, world.run)
    assert 1 in world.rounds.train(7).participants  # the original was never in doubt


def test_invented_head_neither_stops_payment_nor_accuses_the_institution(world: Ledgers) -> None:
    """Signed by the agency, but never by the institution: garbage, another institution's, or with a changed number."""
    world.rounds.train(1)
    other = world.request(2)
    seq, head = world.ledgers[1].position()
    garbage = np.full(64, 7, np.uint8)
    for request in (
        world.request(1, seq=99, head=np.full(32, 1, np.uint8), own=garbage),
        world.request(1, seq=99, head=np.full(32, 1, np.uint8), own=np.zeros(0, np.uint8)),
        world.request(1, seq=other.seq + 50, head=other.head, own=other.own),
        world.request(1, seq=seq + 1),
    ):
        reply = world.ask(1, request)
        assert isinstance(reply, LedgerReply) and reply.head.tobytes() == head
    assert world.ledgers[1].mark is None
    world.rounds.train(2)
    assert world.spends(1) == 2


@pytest.mark.parametrize("who", ["peer", "stranger"])
def test_only_the_agency_can_show_a_head(world: Ledgers, who: str) -> None:
    """An enrolled peer's certificate is no server's, and a stranger's root is not ours."""
    speaker = world.authority.institution("hospital-2") if who == "peer" else Authority().server("agency.test")
    assert world.ask(1, world.request(1, speaker=speaker)) == Refusal("identity")
    assert not world.shown(1)
    assert isinstance(world.ask(1, world.request(1)), LedgerReply)
    assert world.shown(1)


@pytest.mark.parametrize("field", ["run", "seq", "head", "signature"])
def test_countersignature_is_for_one_run_and_one_entry(world: Ledgers, field: str) -> None:
    honest = world.request(1)
    changed: dict[str, Any] = {
        "run": "8", "seq": honest.seq + 1, "head": honest.head ^ 1, "signature": np.roll(honest.signature, 1),
    }  # fmt: skip
    assert world.ask(1, dataclasses.replace(honest, **{field: changed[field]})) == Refusal("identity")
    assert not world.ledgers[1]._shown


def test_reply_in_another_institutions_name_is_not_kept(world: Ledgers) -> None:
    """A forged or replayed reply would make the agency show what its institution cannot recognise."""
    stolen = world.ask(2, LedgerRequest("7", NOTHING, NOTHING, NOTHING, NOTHING))
    assert isinstance(stolen, LedgerReply)
    changed = dataclasses.replace(stolen, seq=stolen.seq + 1)
    for reply in (stolen, changed):
        world.places[1].trainer.answer = lambda request, reply=reply: reply  # type: ignore[method-assign,misc]
        assert "hospital-1" not in world.heads.countersign(world.grid, world.run, {1: "hospital-1"})
    assert not (world.agency / FILE).exists()
    world.heads.countersign(world.grid, world.run, {2: "hospital-2"})
    assert list(json.loads((world.agency / FILE).read_text())) == ["hospital-2"]


def test_institutions_that_enrolled_anew_are_not_held_to_their_old_keys(world: Ledgers) -> None:
    world.rounds.train(1)
    world.heads.countersign(world.grid, world.run, names_of(world.grid))
    for node in (1, 2, 3):
        world.ledgers[node].unlock()
        shutil.rmtree(world.home(node))
    anew = Ledgers(world.folder)  # other keys, another root
    assert len(anew.rounds.train(1).participants) == 3
    assert json.loads((world.agency / FILE).read_text())["hospital-1"]["seq"] == 1


def test_heads_of_an_older_version_are_no_obstacle(world: Ledgers) -> None:
    (world.agency / FILE).write_text(json.dumps({"hospital-1": {"breast_cancer": "ab" * 32}}))
    assert len(world.rounds.train(1).participants) == 3


def test_institution_whose_ledger_does_not_answer_is_not_asked_before_each_round(world: Ledgers) -> None:
    world.add(4, MemoryStore())
    asked: list[Request] = []
    broken = fail(LedgerRequest, times=1_000)

    def hook(request: Request) -> None:
        if isinstance(request, LedgerRequest):
            asked.append(request)
        broken(request)

    world.places[4].before = hook
    for number in range(1, 9):
        assert len(world.rounds.train(number).participants) == 3
    assert len(asked) == 3
    assert told_head(1, b"a") != countersigned_head("", 1, b"a")
