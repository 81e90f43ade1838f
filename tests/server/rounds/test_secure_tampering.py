"""What is changed on its way, announced otherwise or asked for in the clear gets no sum."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.server.rounds.secure_world import (
    TASK,
    Place,
    World,
)

from sovfed.clients.home.policy import Policy
from sovfed.clients.node.app import make_client_app
from sovfed.clients.trainer.masking import Masking, Store
from sovfed.clients.trainer.rules import Rules
from sovfed.federation.errors import CohortError
from sovfed.federation.messages import (
    EvaluateRequest,
    MaskedReply,
    ProfileRequest,
    Refusal,
    Reply,
    Request,
    SecaggReply,
    TrainRequest,
)
from sovfed.federation.secagg import wire
from sovfed.federation.secagg.files import FileStore, create_journal
from sovfed.federation.secagg.keys import CLASSICAL, KEM_PUBLIC_BYTES, Signer
from sovfed.federation.wire.flower import from_records
from sovfed.server.rounds import secure_aggregation


def test_a_round_over_other_metrics_than_the_request_has_is_refused_before_any_record(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Seen: noticed only when masking; each time charged in a private run, and answered `failed`."""

    world = World(4)
    monkeypatch.setattr(secure_aggregation, "header_metrics", lambda _request, _width: 1)
    with pytest.raises(CohortError, match="protocol"):
        world.rounds.profile()
    assert all(not place.trainer._loaded.workloads for place in world.places.values())


def test_keys_that_are_not_signed_leave_out_whoever_sent_them_alone() -> None:
    """Seen: one flipped bit of an institution's key advertisement ended the run, with nobody named."""
    world = World(5)

    class Flipping(Place):
        def answer(self, request: Request) -> Reply:
            reply = super().answer(request)
            if isinstance(reply, SecaggReply) and reply.step == "offer":
                body = reply.body.copy()
                body[-1] ^= 1
                return dataclasses.replace(reply, body=body)
            return reply

    world.apps[2] = make_client_app(Flipping(world.places[2].trainer))
    world.rounds.profile()
    done = world.rounds.train(1)
    assert sorted(done.participants) == [1, 3, 4, 5]
    store = world.places[1].trainer._masking._open()[1]  # type: ignore[union-attr]
    pinned = store.history.pinned
    assert pinned is not None
    assert (pinned.clip, pinned.max_weight) == (world.config.secagg.clip, world.config.secagg.max_weight)


class Forging(Place):
    """An institution that changes its reply to a step of a setup, and signs what is signed."""

    def __init__(self, place: Place, step: str, change: Callable[[bytes, Signer], bytes]) -> None:
        super().__init__(place.trainer)
        self._step, self._change = step, change

    def answer(self, request: Request) -> Reply:
        reply = super().answer(request)
        if not isinstance(reply, SecaggReply) or reply.step != self._step:
            return reply
        sign = self.trainer._masking._open()[0].sign  # type: ignore[union-attr]
        return dataclasses.replace(reply, body=np.frombuffer(self._change(reply.body.tobytes(), sign), np.uint8))


@pytest.mark.parametrize(
    "fields",
    [
        {"expires": int(time.time()) + 3_600},
        {"exchange": bytes(32)},
        {"kem": b"\xff" * KEM_PUBLIC_BYTES},
        {"suite": CLASSICAL, "kem": b""},
    ],
    ids=["that_end_sooner", "of_small_order", "that_are_none", "without_ml_kem"],
)
def test_keys_that_all_others_would_refuse_leave_out_whoever_sent_them_alone(fields: dict[str, Any]) -> None:
    """Else all others are left out in its place, and the run ends with them blamed."""
    world = World(5)

    def change(body: bytes, sign: Signer) -> bytes:
        return dataclasses.replace(wire.KeyAd.decode(body), **fields).sign(sign).encode()

    world.apps[5] = make_client_app(Forging(world.places[5], "offer", change))
    world.rounds.profile()
    assert sorted(world.rounds.train(1).participants) == [1, 2, 3, 4]


@pytest.mark.parametrize(("step", "kind"), [("roster", wire.Capsules), ("capsules", wire.Confirmations)])
def test_a_step_of_the_setup_that_is_none_leaves_out_whoever_sent_it_alone(step: str, kind: type[Any]) -> None:
    world = World(5)

    def change(body: bytes, _: Signer) -> bytes:
        other: bytes = dataclasses.replace(kind.decode(body), roster=bytes(32)).encode()
        return other

    world.apps[3] = make_client_app(Forging(world.places[3], step, change))
    world.rounds.profile()
    assert sorted(world.rounds.train(1).participants) == [1, 2, 4, 5]


def junk_capsules(body: bytes, _: Signer) -> bytes:
    message = wire.Capsules.decode(body)
    return dataclasses.replace(
        message, items=tuple(dataclasses.replace(item, mac=bytes(32)) for item in message.items)
    ).encode()


def junk_confirmations(body: bytes, _: Signer) -> bytes:
    message = wire.Confirmations.decode(body)
    return dataclasses.replace(message, macs=(bytes(32),) * len(message.macs)).encode()


@pytest.mark.parametrize(
    ("node", "step", "change"),
    [
        (1, "roster", junk_capsules),
        (5, "capsules", junk_confirmations),
        (3, "capsules", lambda _body, _sign: wire.Complaint(2, 0).encode()),
        (3, "capsules", lambda _body, _sign: wire.Complaint(0, 1).encode()),
        (3, "capsules", lambda _body, _sign: wire.Complaint(2, 200).encode()),
        (3, "confirmations", lambda _body, _sign: wire.Complaint(2, 4).encode()),
    ],
    ids=["junk_capsules", "junk_confirmations", "false", "for_another", "of_nobody", "false_at_the_end"],
)
def test_keys_that_do_not_hold_and_false_complaints_leave_out_whoever_sent_them_alone(
    node: int, step: str, change: Callable[[bytes, Signer], bytes]
) -> None:
    """Those who were sent keys that do not hold say of whom, or they would be left out themselves, and the run end."""
    world = World(5)
    world.apps[node] = make_client_app(Forging(world.places[node], step, change))
    world.rounds.profile()
    assert sorted(world.rounds.train(1).participants) == [other for other in range(1, 6) if other != node]


def test_whose_shares_open_nowhere_is_named_at_the_coordinator(caplog: pytest.LogCaptureFixture) -> None:
    """All holders refuse the sum: without their word they alone would be named."""
    world = World(4)
    world.rounds.profile()

    class Dealing(Place):
        def answer(self, request: Request) -> Reply:
            reply = super().answer(request)
            if not isinstance(reply, MaskedReply):
                return reply
            message = wire.Masked.decode(reply.message.tobytes())
            junk = dataclasses.replace(message, sealed_self=(bytes(wire.SEALED),) * len(message.sealed_self))
            return dataclasses.replace(reply, message=np.frombuffer(junk.encode(), np.uint8))

    world.apps[2] = make_client_app(Dealing(world.places[2].trainer))
    with pytest.raises(CohortError):
        world.rounds.train(1)
    told = [record.message for record in caplog.records if "complains" in record.message]
    assert len(told) >= 3 and all("a key or share of node 2 does" in line for line in told)


def test_a_coordinator_that_sends_another_model_than_it_announced_gets_no_sum() -> None:
    world = World(4)
    world.rounds.profile()
    other = world.rounds.model + np.float32(1)

    class Swapping(Place):
        def answer(self, request: Request) -> Reply:
            changed = dataclasses.replace(request, model=other) if isinstance(request, TrainRequest) else request
            return super().answer(changed)

    for node in (1, 2):
        world.apps[node] = make_client_app(Swapping(world.places[node].trainer))
    with pytest.raises(CohortError, match="protocol"):
        world.rounds.train(1)


def test_plain_requests_are_refused_unless_the_policy_allows_them() -> None:
    world = World(3)
    place = world.places[1]
    place.trainer._rules = Rules(Policy(allowed_tasks=("breast_cancer",)).check)
    scale, digest = TASK.transform.public_scale, TASK.digest
    train = TrainRequest("7", 1, "breast_cancer", 0, 1, 32, 0.1, 0.0, world.rounds.model, scale, digest=digest)
    plain: list[Request] = [
        ProfileRequest("7", "breast_cancer", digest=digest), train,
        EvaluateRequest("7", 1, "breast_cancer", world.rounds.model, scale, digest=digest),
    ]  # fmt: skip
    assert [place.answer(request) for request in plain] == [Refusal("bound")] * 3


def test_a_trainer_that_starts_again_goes_on_in_its_session_and_burns_a_masked_attempt(tmp_path: Path) -> None:
    homes = [tmp_path / str(node) for node in range(1, 5)]
    for home in homes:
        home.mkdir(mode=0o700)
        create_journal(home)
    stores: list[Store] = [FileStore(home) for home in homes]
    world = World(4, stores=stores)
    world.rounds.profile()
    world.rounds.train(1)

    def restart(node: int) -> None:
        """As after kill -9: nothing in memory, the journal and the session on the disk."""
        store = stores[node - 1]
        assert isinstance(store, FileStore)
        store._journal.close()
        stores[node - 1] = again = FileStore(homes[node - 1])
        identity = world.authority.institution(f"hospital-{node}")
        world.places[node].trainer._masking = Masking(lambda: identity, lambda: again, world.terms)
        world.places[node].trainer._replies.clear()

    first_certificate = world.places[2].trainer._masking._open()[0]  # type: ignore[union-attr]
    restart(2)
    world.places[2].trainer._masking._open_identity = lambda: first_certificate  # type: ignore[union-attr]
    done = world.rounds.train(2)
    assert len(done.participants) == 4 and done.attempts == 1  # no new setup was needed

    lost: list[Reply] = []

    def killed_after_masking(request: Request) -> None:
        if isinstance(request, TrainRequest) and not lost:
            lost.append(world.places[2].trainer.answer(request))
            restart(2)
            world.places[2].trainer._masking._open_identity = lambda: first_certificate  # type: ignore[union-attr]
            again = world.places[2].trainer.answer(request)
            assert again == Refusal("privacy")  # the attempt is burnt: no second masking under one context
            raise ConnectionError

    world.places[2].before = killed_after_masking
    done = world.rounds.train(3)
    assert isinstance(lost[0], MaskedReply)
    assert sorted(done.participants) == [1, 3, 4]
    assert len(world.rounds.train(4).participants) == 4


def test_an_institution_without_a_journal_takes_no_part(tmp_path: Path) -> None:
    world = World(4)
    place = world.places[1]
    place.trainer._masking = Masking(
        lambda: world.authority.institution("hospital-1"), lambda: FileStore(tmp_path), world.terms
    )
    done_with = [2, 3, 4]
    world.rounds.profile()
    assert sorted(world.rounds.train(1).participants) == done_with
    assert {r.reason for r in place.replies if isinstance(r, Refusal)} == {"service"}


def test_the_messages_survive_flower_s_records() -> None:
    from sovfed.federation.wire.flower import to_records

    world = World(3)
    world.rounds.profile()
    masked = next(reply for reply in world.places[1].replies if isinstance(reply, MaskedReply))
    found = from_records(to_records(masked))
    assert isinstance(found, MaskedReply)
    np.testing.assert_array_equal(found.message, masked.message)
    np.testing.assert_array_equal(found.payload, masked.payload)
