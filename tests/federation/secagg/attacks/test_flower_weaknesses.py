"""Each known weakness of Flower's SecAgg+ (1.42): the attack succeeds on its installed code and fails on ours.

Flower's half runs its real `secaggplus_mod` and helpers; a coordinator here is whoever calls them.
"""

from __future__ import annotations

import base64
import os
from typing import Any

import numpy as np
import pytest

pytest.importorskip("flwr.client.mod")

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.app.message_type import MessageType
from flwr.client.mod import secaggplus_mod
from flwr.common import Code, FitRes, Status, bytes_to_ndarray, ndarrays_to_parameters
from flwr.common.secure_aggregation.crypto.shamir import combine_shares
from flwr.common.secure_aggregation.crypto.symmetric_encryption import decrypt, encrypt, generate_shared_key
from flwr.common.secure_aggregation.secaggplus_constants import RECORD_KEY_CONFIGS, Key, Stage
from flwr.common.secure_aggregation.secaggplus_utils import (
    pseudo_rand_gen,
    share_keys_plaintext_concat,
    share_keys_plaintext_separate,
)
from flwr.compat.common import recorddict_compat
from flwr.supercore.primitives.asymmetric import (
    bytes_to_private_key,
    bytes_to_public_key,
    generate_key_pairs,
    public_key_to_bytes,
)

from sovfed.federation.certificates import ServerNames
from sovfed.federation.errors import IdentityError, PolicyError, PrivacyError, ProtocolError
from sovfed.federation.messages import Vector
from sovfed.federation.secagg import setup, wire
from sovfed.federation.secagg.history import History
from sovfed.federation.secagg.keys import Identity, Signer
from sovfed.federation.secagg.local import Authority, found, make_offer
from sovfed.federation.secagg.mask import Scratch, Stream, apply
from sovfed.federation.secagg.terms import Terms
from sovfed.federation.wire.flower import new_message

SETUP = {
    Key.SAMPLE_NUMBER: 3, Key.SHARE_NUMBER: 3, Key.THRESHOLD: 2, Key.CLIPPING_RANGE: 8.0, Key.TARGET_RANGE: 2**22,
    Key.MOD_RANGE: 2**32, Key.MAX_WEIGHT: 1000.0,
}  # fmt: skip
MODEL: Vector = np.zeros(8, np.float32)
TERMS = Terms(min_cohort=3, colluders=0, max_size=2**40)
UPDATE: Vector = np.array([0.5, -0.25, 1.0, 2.0, -3.0, 0.125, 7.0, -7.5], np.float32)


class Node:
    """One Flower client: the mod, its context and a fixed result of training."""

    def __init__(self, number: int, update: Vector = UPDATE, weight: int = 1000) -> None:
        self.number, self.update, self.weight = number, update, weight
        self.context = Context(1, number, {}, RecordDict(), {})

    def send(self, stage: str, configs: dict[str, Any]) -> dict[str, Any]:
        content = RecordDict({RECORD_KEY_CONFIGS: ConfigRecord({**configs, Key.STAGE: stage})})
        message = new_message(content, run_id=1, node_id=self.number, kind=MessageType.TRAIN, group="1")

        def train(_: Message, __: Context) -> Message:
            result = FitRes(Status(Code.OK, ""), ndarrays_to_parameters([self.update]), self.weight, {})
            return Message(recorddict_compat.fitres_to_recorddict(result, keep_input=True), reply_to=message)

        return dict(secaggplus_mod(message, self.context, train).content.config_records[RECORD_KEY_CONFIGS])


class Trio:
    """Three Flower clients whose coordinator has gone through all stages but the last."""

    def __init__(self, configs: dict[str, Any], nodes: list[Node]) -> None:
        self.nodes = {node.number: node for node in nodes}
        self.keys = {
            n: [r[Key.PUBLIC_KEY_1], r[Key.PUBLIC_KEY_2]] for n, r in self.each(Stage.SETUP, lambda _: configs)
        }
        dealt = self.each(Stage.SHARE_KEYS, lambda _: {str(n): pair for n, pair in self.keys.items()})
        inbox: dict[int, list[tuple[int, bytes]]] = {number: [] for number in self.nodes}
        for source, record in dealt:
            for target, ciphertext in zip(record[Key.DESTINATION_LIST], record[Key.CIPHERTEXT_LIST], strict=True):
                inbox[target].append((source, ciphertext))
        collected = self.each(Stage.COLLECT_MASKED_VECTORS, lambda n: {
            Key.SOURCE_LIST: [source for source, _ in inbox[n]], Key.CIPHERTEXT_LIST: [data for _, data in inbox[n]],
        })  # fmt: skip
        self.masked = {n: [bytes_to_ndarray(data) for data in record[Key.MASKED_PARAMETERS]] for n, record in collected}

    def each(self, stage: str, configs: Any) -> list[tuple[int, dict[str, Any]]]:
        return [(number, node.send(stage, configs(number))) for number, node in self.nodes.items()]


def decoded(quantised: Any) -> Vector:
    """Flower's dequantisation of one client's own vector (weight 1000 of 1000)."""
    return ((np.asarray(quantised) * (16.0 / 2**22)) - 8.0).astype(np.float32)


def trio() -> Trio:
    return Trio(SETUP, [Node(1), Node(2, -UPDATE), Node(3, UPDATE * np.float32(0.5))])


# 1. seeds of 28 bits -------------------------------------------------------------------------------------------------


def test_pairwise_masks_of_28_bits() -> None:
    """Flower folds 44 base64 characters to 32 bits, of which every byte's top bit is 0: 2^28 masks in all. Any of the
    2^228 other secrets with the same fold gives the victim's mask; given the upper bits, trying finds the rest."""
    secret = base64.urlsafe_b64encode(os.urandom(32))
    folds = [int.from_bytes(base64.urlsafe_b64encode(os.urandom(32))[k : k + 4], "little") for k in range(0, 44, 4)]
    assert all(fold & 0x80808080 == 0 for fold in folds)
    folded = 0
    for k in range(0, 44, 4):
        folded ^= int.from_bytes(secret[k : k + 4], "little")
    mask = pseudo_rand_gen(secret, 2**32, [(16,)])[0]
    high = (
        folded & ~0xF7F
    )  # a search over 11 of the 28 bits here; all 28 have been searched in half a minute on one core
    guesses = (high | a << 8 | b for a in range(16) for b in range(128))
    hit = next(
        g for g in guesses if np.array_equal(pseudo_rand_gen(g.to_bytes(4, "little"), 2**32, [(4,)])[0], mask[:4])
    )
    assert np.array_equal(pseudo_rand_gen(hit.to_bytes(4, "little"), 2**32, [(16,)])[0], mask)

    ours = os.urandom(32)
    same_fold = bytes(28) + fold32(ours)
    assert fold32(same_fold) == fold32(ours) and same_fold != ours
    assert not np.any(stream(ours) == stream(same_fold))


def fold32(key: bytes) -> bytes:
    folded = 0
    for k in range(0, len(key), 4):
        folded ^= int.from_bytes(key[k : k + 4], "little")
    return folded.to_bytes(4, "little")


def stream(key: bytes, size: int = 2048) -> np.ndarray[Any, np.dtype[np.uint64]]:
    words = np.zeros(size, np.uint64)
    apply(words, 0, [Stream(key)], Scratch())
    return words


# 2. MT19937 is linear ------------------------------------------------------------------------------------------------


def untemper(word: int) -> int:
    """Invert MT19937's tempering."""
    word ^= word >> 18
    word ^= word << 15 & 0xEFC60000
    value = word
    for _ in range(5):
        value = word ^ (value << 7 & 0x9D2C5680)
    word = value & 0xFFFFFFFF
    for _ in range(3):
        value = word ^ value >> 11
    return value & 0xFFFFFFFF


def predict(known: Any, count: int) -> Any:
    """The `count` numbers that follow 624 outputs of MT19937."""
    state = np.array([untemper(int(word)) for word in known], np.uint32)
    generator = np.random.RandomState(0)
    generator.set_state(("MT19937", state, 624, 0, 0.0))
    return generator.randint(0, 2**32 - 1, count, dtype=np.int64)


def test_masks_predicted_from_known_parameters() -> None:
    """A coordinator that knows 624 of the victim's values (frozen layers, say) knows the mask there, and the rest."""
    mask = pseudo_rand_gen(base64.urlsafe_b64encode(os.urandom(32)), 2**32, [(5000,)])[0]
    assert np.array_equal(predict(mask[:624], 4376), mask[624:])

    words = stream(os.urandom(32)).view(np.uint32).astype(np.int64)
    assert not np.any(predict(words[:624], 1000) == words[624:1624])


# 3. overlapping lists ------------------------------------------------------------------------------------------------


def test_a_member_in_both_lists() -> None:
    """Flower: named active and dead at once, node 1 has both secrets revealed, and its update with them."""
    world = trio()
    shares: dict[int, list[bytes]] = {}
    for number in (2, 3):
        reply = world.nodes[number].send(Stage.UNMASK, {Key.ACTIVE_NODE_ID_LIST: [1, 2, 3], Key.DEAD_NODE_ID_LIST: [1]})
        own = [share for n, share in zip(reply[Key.NODE_ID_LIST], reply[Key.SHARE_LIST], strict=True) if n == 1]
        shares[number] = own
    seed, private = (combine_shares([shares[2][k], shares[3][k]]) for k in (0, 1))
    shapes = [part.shape for part in world.masked[1]]
    plain = [part.copy() for part in world.masked[1]]
    for k, part in enumerate(pseudo_rand_gen(seed, 2**32, shapes)):
        plain[k] = plain[k] - part
    for peer in (2, 3):  # node 1 subtracts the mask it shares with higher nodes
        shared = generate_shared_key(bytes_to_private_key(private), bytes_to_public_key(world.keys[peer][0]))
        for k, part in enumerate(pseudo_rand_gen(shared, 2**32, shapes)):
            plain[k] = plain[k] + part
    assert np.abs(decoded(plain[1] % 2**32) - UPDATE).max() < 1e-5

    assert not {"dropped", "dead"} & set(wire.Ask.__dataclass_fields__)  # ours derives it: cohort without survivors


# 4. unauthenticated keys ---------------------------------------------------------------------------------------------


def test_a_coordinator_that_invents_every_peer() -> None:
    victim = Node(1)
    public = victim.send(Stage.SETUP, SETUP)
    invented = {n: (generate_key_pairs(), generate_key_pairs()) for n in (2, 3)}
    listing = {"1": [public[Key.PUBLIC_KEY_1], public[Key.PUBLIC_KEY_2]]}
    for n, pairs in invented.items():
        listing[str(n)] = [public_key_to_bytes(pair[1]) for pair in pairs]
    dealt = victim.send(Stage.SHARE_KEYS, listing)
    seed_shares, ciphertexts = [], []
    own_public = bytes_to_public_key(public[Key.PUBLIC_KEY_2])
    for target, data in zip(dealt[Key.DESTINATION_LIST], dealt[Key.CIPHERTEXT_LIST], strict=True):
        shared = generate_shared_key(invented[target][1][0], own_public)
        seed_shares.append(share_keys_plaintext_separate(decrypt(shared, data))[2])
        ciphertexts.append(encrypt(shared, share_keys_plaintext_concat(target, 1, b"x", b"y")))
    record = victim.send(Stage.COLLECT_MASKED_VECTORS, {Key.SOURCE_LIST: [2, 3], Key.CIPHERTEXT_LIST: ciphertexts})
    plain = [bytes_to_ndarray(data) for data in record[Key.MASKED_PARAMETERS]]
    shapes = [part.shape for part in plain]
    masks = [(pseudo_rand_gen(combine_shares(seed_shares), 2**32, shapes), -1)]
    for pairs in invented.values():
        shared = generate_shared_key(pairs[0][0], bytes_to_public_key(public[Key.PUBLIC_KEY_1]))
        masks.append((pseudo_rand_gen(shared, 2**32, shapes), 1))
    for parts, sign in masks:
        plain = [a + sign * b for a, b in zip(plain, parts, strict=True)]
    assert np.abs(decoded(plain[1] % 2**32) - UPDATE).max() < 1e-5

    authority, invention = Authority(), Authority()
    certificate, signer = server_of(authority)
    message = setup.make_offer(make_offer(authority, certificate), signer)
    ours = authority.institution("victim")
    joining, own = setup.join(
        message,
        ours,
        TERMS,
        History(),
        authority.now.timestamp(),
        os.urandom,
    )
    fake = [invention.institution(f"peer-{k}") for k in range(3)]
    ads = [own, *(setup.join(message, with_servers(f, authority), TERMS, History(),
                             authority.now.timestamp(), os.urandom)[1] for f in fake)]  # fmt: skip
    with pytest.raises(IdentityError):
        setup.encapsulate(
            joining,
            wire.RosterList(tuple(ads)).encode(),
            ours,
            TERMS,
            authority.now.timestamp(),
        )


def server_of(authority: Authority) -> tuple[bytes, Signer]:
    return authority.certify(ServerNames(("agency.test",)))


def with_servers(identity: Identity, authority: Authority) -> Identity:
    return Identity(identity.certificate, identity.sign, identity.verify, authority.servers())


# 5. the coordinator dictates the parameters --------------------------------------------------------------------------


def test_threshold_one_and_masks_that_are_all_zero() -> None:
    world = Trio({**SETUP, Key.THRESHOLD: 1, Key.MOD_RANGE: 2}, [Node(1), Node(2), Node(3)])
    assert not any(part.any() for part in pseudo_rand_gen(os.urandom(32), 2, [(1000,)]))
    state = world.nodes[1].context.state.config_records["secaggplus_state"]
    assert (state["threshold"], state["mod_range"]) == (1, 2)

    authority = Authority()
    certificate, sign = server_of(authority)
    for bits, min_cohort in ((1, 3), (2, 3), (32, 1)):
        offer = make_offer(authority, certificate, bits=bits, min_cohort=min_cohort)
        message = setup.make_offer(offer, sign)
        with pytest.raises(PolicyError):
            setup.join(
                message,
                authority.institution("a"),
                TERMS,
                History(),
                authority.now.timestamp(),
                os.urandom,
            )


# 6. the setup may be restarted at any stage --------------------------------------------------------------------------


def test_a_restart_in_the_middle_of_a_round() -> None:
    """Flower masks the same update again under new keys, as often as it is asked to, in one and the same round."""
    world = trio()
    world.nodes[1].send(Stage.SETUP, SETUP)
    assert world.nodes[1].context.state.config_records["secaggplus_state"]["current_stage"] == Stage.SETUP
    again = Trio(SETUP, list(world.nodes.values()))
    assert not np.array_equal(again.masked[1][1], world.masked[1][1])

    federation = found(4)
    federation.upload(federation.open(1, MODEL), 0, MODEL, UPDATE * np.float32(0.1), 10)
    with pytest.raises(PrivacyError, match="burnt"):
        federation.upload(federation.open(1, MODEL), 0, MODEL, UPDATE * np.float32(0.1), 10)
    institution = federation.institutions[0]
    with pytest.raises(ProtocolError, match="epoch"):
        setup.join(
            institution.session.offer,
            institution.identity,
            institution.terms,
            institution.history,
            federation.now,
            os.urandom,
        )


# 7. values that are not finite ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_finite(bad: float) -> None:
    update = UPDATE.copy()
    update[0] = bad
    with np.errstate(invalid="ignore"):
        world = Trio(SETUP, [Node(1, update), Node(2), Node(3)])
    assert len(world.masked) == 3  # accepted, and now part of the sum

    federation = found(4)
    round_ = federation.open(1, MODEL)
    for index in range(4):
        upload = federation.upload(round_, index, MODEL, update if index == 0 else MODEL, 10)
        round_.add(upload.message, upload.payload)
    for index, ask in round_.ask().items():
        round_.answer(federation.institutions[index].reveal(ask))
    solved = round_.solve()
    assert (
        solved is not None and solved.mean is not None and np.isfinite(solved.mean).all()
    )  # the value counts as 0 there, and nothing else is touched


# 8. weights ----------------------------------------------------------------------------------------------------------


def test_weights_beyond_the_maximum() -> None:
    world = Trio(SETUP, [Node(1, weight=10**9), Node(2), Node(3)])
    assert len(world.masked) == 3  # a warning in the log, and the sum overflows

    federation = found(4)
    round_ = federation.open(1, MODEL)
    for index in range(4):
        upload = federation.upload(round_, index, MODEL, UPDATE, 10**9 if index == 0 else 10)
        round_.add(upload.message, upload.payload)
    for index, ask in round_.ask().items():
        round_.answer(federation.institutions[index].reveal(ask))
    solved = round_.solve()
    assert solved is not None and solved.weight == 1000 + 30  # it counts as the maximum
    tiny = Trio(SETUP, [Node(1, UPDATE * np.float32(0.1), weight=1), Node(2), Node(3)])
    assert len(tiny.masked) == 3
