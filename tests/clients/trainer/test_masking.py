"""Masks that are made while the model trains: used once, for the sum that they were made for, or never."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.server.rounds.secure_world import TASK, World, fail, trained

from sovfed.clients.data import Records
from sovfed.clients.trainer.masking import MAX_SETUPS, Masking
from sovfed.federation.errors import CohortError, PrivacyError, ProtocolError
from sovfed.federation.messages import Refusal, Reply, Request, SecaggRequest, TrainReply, TrainRequest, Vector
from sovfed.federation.secagg import client, files, mask
from sovfed.federation.secagg.client import Upload
from sovfed.federation.secagg.compaction import OVER
from sovfed.federation.secagg.coordinator import Round
from sovfed.federation.secagg.files import FileStore, create_journal
from sovfed.federation.secagg.keys import Entropy
from sovfed.federation.secagg.local import Federation, found, random_updates
from sovfed.federation.secagg.mask import SEGMENT_WORDS, MakeDraft, hash_vector
from sovfed.federation.secagg.request import run_bytes
from sovfed.federation.secagg.session import Session
from sovfed.federation.stored import Draft, FileDraft, origin
from sovfed.server.rounds import secure_aggregation

SIZE = 5 * SEGMENT_WORDS + 77  # values: three segments at 32 bits, the last one short


def fixed_entropy() -> Entropy:
    generator = np.random.default_rng(5)
    return generator.bytes


def upload(
    federation: Federation, round_: Round, model: Vector, masks: Callable[[client.Permit], client.Masks | None]
) -> Upload:
    institution = federation.institutions[1]
    permit = institution.begin(round_.begin_bytes, hash_vector(model), federation.now)
    update = random_updates(2, model.size)[1]
    made, entropy = masks(permit), fixed_entropy()
    return client.mask(institution.session, permit, update, 10, (0.5,), lambda _: bytes(64), entropy, made)[0]


@pytest.mark.parametrize("draft", [Draft, FileDraft])
@pytest.mark.parametrize("made", [0, 1, 2, 3])
@pytest.mark.parametrize("bits", [16, 21, 32])
def test_masks_made_ahead_wholly_or_in_part_give_the_same_bytes(bits: int, made: int, draft: MakeDraft) -> None:
    size = SIZE * {16: 2, 21: 1, 32: 1}[bits]
    federation, model = found(3, bits=bits), np.zeros(size, np.float32)
    round_ = federation.open(1, model, metrics=1)

    def ahead(permit: client.Permit) -> client.Masks:
        entropy = fixed_entropy()
        masks = client.prepare(federation.institutions[1].session, permit, entropy, draft)
        masks.sums.run()
        masks.sums._done = min(made, masks.sums._done)  # as if the update had come before the rest
        masks.sums.words[made * SEGMENT_WORDS :] = 12345
        return masks

    expected, found_ = (upload(federation, round_, model, masks) for masks in (lambda _: None, ahead))
    assert found_.message == expected.message
    assert found_.payload.tobytes() == expected.payload.tobytes()
    assert (origin(found_.payload) is not None) == (draft is FileDraft)


def test_masks_are_used_once_and_for_their_own_context_only() -> None:
    federation, model = found(4), np.zeros(40, np.float32)
    institution, updates = federation.institutions[0], random_updates(4, 40)
    permits = [
        institution.begin(federation.open(number, model).begin_bytes, hash_vector(model), federation.now)
        for number in (1, 2)
    ]
    masks = institution.prepare(permits[0])
    with pytest.raises(PrivacyError, match="another round"):
        institution.mask(permits[1], updates[0], 10, (), masks)
    institution.mask(permits[0], updates[0], 10, (), masks)
    with pytest.raises(PrivacyError, match="used already"):
        institution.mask(permits[0], updates[1], 10, (), masks)
    dropped = institution.prepare(permits[0])
    dropped.drop()
    with pytest.raises(PrivacyError, match="used already"):
        institution.mask(permits[0], updates[0], 10, (), dropped)


@pytest.fixture
def prepared(monkeypatch: pytest.MonkeyPatch) -> list[client.Masks]:
    """All masks that are made from now on, even for short vectors by a thread."""
    honest, made = client.prepare, list[client.Masks]()

    def prepare(session: Session, permit: client.Permit, entropy: Entropy, draft: MakeDraft = Draft) -> client.Masks:
        made.append(honest(session, permit, entropy, draft))
        return made[-1]

    monkeypatch.setattr(client, "prepare", prepare)
    monkeypatch.setattr(mask, "_WORTH_AHEAD", 0)
    return made


def running() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "masks"]


def agrees_with_plain(world: World) -> None:
    plain = trained(World(4, "secagg=none"), rounds=1)
    np.testing.assert_allclose(world.rounds.model, plain.rounds.model, atol=1e-6 * world.config.secagg.clip)


def test_training_that_fails_drops_the_masks_and_the_next_try_has_others(prepared: list[client.Masks]) -> None:
    world = World(4)
    trainer, sent = world.places[1].trainer, list[Reply]()
    world.rounds.profile()
    source, workloads = trainer._loaded._source, trainer._loaded.workloads

    def unreadable(_: object) -> Records:
        raise OSError("the disk of the records is gone")

    def before(request: Request) -> None:
        if not isinstance(request, TrainRequest) or sent:
            return
        prepared.clear()
        trainer._loaded._source, trainer._loaded.workloads = replace(source, load=unreadable), {}
        sent.append(trainer.answer(request))
        assert isinstance(sent[0], Refusal)
        assert trainer._masking is not None and trainer._masking._agreed is None and not running()
        with pytest.raises(PrivacyError, match="used already"):
            prepared[0].spend(prepared[0].ctx)
        trainer._loaded._source, trainer._loaded.workloads = source, workloads

    world.places[1].before = before
    done = world.rounds.train(1)
    assert len(done.participants) == 4
    dropped, used = prepared[:2]
    assert dropped.ctx == used.ctx and dropped.commit_self != used.commit_self
    agrees_with_plain(world)


def test_a_permit_serves_one_upload_and_only_the_last_one_given(prepared: list[client.Masks]) -> None:
    world = World(4)
    masking, tried = world.places[1].trainer._masking, list[str]()
    assert masking is not None
    world.rounds.profile()

    def before(request: Request) -> None:
        if not isinstance(request, TrainRequest) or tried:
            return
        reply = TrainReply(
            1, 10, 0.0, 0.5, np.zeros(request.update_size, np.float32), np.zeros(TASK.evaluation_size), 1
        )
        void, valid = masking.permit(request, TASK.evaluation_size), masking.permit(request, TASK.evaluation_size)
        for permit, allowed in ((void, False), (valid, True), (valid, False), (void, False)):
            if allowed:
                masking.mask(request.run, permit, reply, lambda: 0.0)
                continue
            with pytest.raises(PrivacyError, match="permit was used already"):
                masking.mask(request.run, permit, reply, lambda: 0.0)
            tried.append("refused")

    world.places[1].before = before
    assert sorted(world.rounds.train(1).participants) == [2, 3, 4]  # its attempt is burnt: the trainer refuses
    assert tried == ["refused"] * 3 and not running()


@pytest.mark.parametrize("declared", [TASK.parameters - 1, TASK.parameters + 1, 1000 * TASK.parameters])
def test_an_m1_over_more_values_than_the_update_has_makes_no_masks(
    declared: int, prepared: list[client.Masks], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else M1, a few hundred bytes, would fill the institution's memory with masks."""
    world = World(4)
    world.rounds.profile()
    prepared.clear()
    aggregation = world.rounds.aggregation
    assert isinstance(aggregation, secure_aggregation.SecureAggregation)
    aggregation._max_size, aggregation._epoch = declared, None
    monkeypatch.setattr(secure_aggregation, "update_size", lambda _: declared)
    with pytest.raises(CohortError):
        world.rounds.train(1)
    refusals = [reply for place in world.places.values() for reply in place.replies if isinstance(reply, Refusal)]
    assert {refusal.reason for refusal in refusals} == {"protocol"} and not prepared


def test_an_update_that_cannot_be_masked_spends_its_masks(prepared: list[client.Masks]) -> None:
    world = World(4)
    masking, tried = world.places[1].trainer._masking, list[str]()
    assert masking is not None
    world.rounds.profile()

    def before(request: Request) -> None:
        if not isinstance(request, TrainRequest) or tried:
            return
        reply = TrainReply(
            1, 10, 0.0, 0.5, np.zeros(request.update_size, np.float64), np.zeros(TASK.evaluation_size), 1
        )
        permit = masking.permit(request, TASK.evaluation_size)
        with pytest.raises(ProtocolError, match="float64"):
            masking.mask(request.run, permit, reply, lambda: 0.0)
        masking.forget()
        tried.append(request.run)

    world.places[1].before = before
    assert len(world.rounds.train(1).participants) == 4  # nothing had left, so the attempt was not burnt
    agrees_with_plain(world)


def test_after_a_restart_between_permit_and_upload_the_own_seed_is_another(
    tmp_path: Path, prepared: list[client.Masks]
) -> None:
    homes = [tmp_path / str(node) for node in range(1, 5)]
    for home in homes:
        home.mkdir(mode=0o700)
        create_journal(home)
    stores = [FileStore(home) for home in homes]
    world = World(4, stores=list(stores))
    world.rounds.profile()
    trainer, killed = world.places[1].trainer, list[bytes]()

    def before(request: Request) -> None:
        if not isinstance(request, TrainRequest) or killed:
            return
        assert trainer._masking is not None
        identity = trainer._masking._open()[0]
        prepared.clear()
        trainer._masking.permit(request, TASK.evaluation_size)
        trainer._masking.forget()  # the process ends; only the journal and the session are left
        stores[0]._journal.close()
        stores[0] = again = FileStore(homes[0])
        trainer._masking = Masking(lambda: identity, lambda: again, world.terms)
        killed.append(prepared[0].ctx)

    world.places[1].before = before
    assert len(world.rounds.train(1).participants) == 4
    lost, used = prepared[:2]
    assert lost.ctx == used.ctx == killed[0] and lost.commit_self != used.commit_self
    spent = [entry for entries in stores[0].history.spent.values() for entry in entries if entry.ctx == lost.ctx]
    assert len(spent) == 1
    agrees_with_plain(world)


def test_a_setup_in_progress_does_not_open_a_run_again_that_the_journal_has_closed_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the sums of that run are forgotten, and the same model is summed over others."""
    monkeypatch.setattr(files, "MAX_SESSIONS", 1)
    homes = [tmp_path / str(node) for node in range(5)]
    for home in homes:
        home.mkdir(mode=0o700)
        create_journal(home)
    stores = [FileStore(home) for home in homes]
    world = World(4, stores=list(stores))
    trained(world, rounds=1)
    world.add(5, stores[4])  # so that the run is set up anew
    begun = list[str]()

    def begin_others(request: Request) -> None:
        if isinstance(request, SecaggRequest) and request.step == "confirmations" and not begun:
            begun.append(request.run)
            monkeypatch.setattr(files, "COMPACT_BYTES", 0)
            for store in stores:
                store._next_compaction = 0
            world.another_run("8").profile()

    world.places[1].before = begin_others
    with contextlib.suppress(CohortError):
        world.rounds.train(2)
    assert begun == ["7"]
    closed = [store.history.epoch(run_bytes("7")) for store in stores[:4]]
    assert closed == [OVER] * 4


@pytest.mark.parametrize("step", ["roster", "capsules", "confirmations"])
def test_two_runs_that_are_set_up_at_the_same_moment_do_not_disturb_each_other(step: str) -> None:
    """The second run is set up and trained while the first waits in the midst of its own setup."""
    world, undisturbed = World(4), trained(World(4), rounds=1)
    other = world.another_run("8")
    started = list[str]()

    def begin_another(request: Request) -> None:
        if isinstance(request, SecaggRequest) and request.step == step and request.run == "7" and not started:
            started.append(step)
            other.profile()
            other.train(1)

    world.places[2].before = begin_another
    trained(world, rounds=1)
    assert started == [step]
    for model in (world.rounds.model, other.model):
        np.testing.assert_allclose(model, undisturbed.rounds.model, atol=1e-6 * world.config.secagg.clip)


def test_setups_that_nobody_goes_on_with_are_bounded() -> None:
    world = World(4)
    masking = world.places[1].trainer._masking
    assert masking is not None
    offers = [world.another_run(str(number)) for number in range(100, 100 + MAX_SETUPS + 3)]
    world.places[2].before = fail(SecaggRequest, times=1000, step="roster")
    world.places[3].before = fail(SecaggRequest, times=1000, step="roster")
    for rounds in offers:
        with pytest.raises(CohortError):
            rounds.profile()
    assert len(masking._setups) == MAX_SETUPS
