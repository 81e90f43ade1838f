"""Known answers from `tests/vectors/secagg/make_vectors.py`, which shares no code with the package."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519, mlkem, x25519

from sovfed.federation.secagg import client, keys, mask, ring, shares, wire
from sovfed.federation.secagg.roster import Member, Roster
from sovfed.federation.secagg.session import Session

VECTORS = Path(__file__).parents[2] / "vectors" / "secagg"


def load(name: str) -> Any:
    return json.loads((VECTORS / name).read_text())


def roster_of(case: dict[str, Any], members: int, signing: ed25519.Ed25519PrivateKey) -> Roster:
    ad = wire.KeyAd(bytes(64), bytes(32), keys.CLASSICAL, bytes(32), b"", bytes(32), 0, b"")
    offer = wire.Offer(
        bytes(64), bytes.fromhex(case["run"]), case["epoch"], bytes(32), case["bits"], case["clip"], case["max_weight"],
        case["fraction_bits"], 3, 1000, 64, 0, bytes(32), b"",
    )  # fmt: skip
    listed = tuple(Member(index, f"member-{index}", signing.public_key(), ad) for index in range(members))
    return Roster(offer, listed, bytes.fromhex(case["roster"]), signing.public_key())


def begin_of(case: dict[str, Any]) -> wire.Begin:
    return wire.Begin(
        bytes(64), bytes.fromhex(case["roster"]), case["number"], case["attempt"], case["purpose"],
        tuple(case["cohort"]), case["size"], case["metrics"], bytes.fromhex(case["model"]), bytes.fromhex(case["task"]),
        bytes.fromhex(case["subject"]),
    )  # fmt: skip


@pytest.mark.parametrize("case", load("pair_keys.json"), ids=lambda case: keys.SUITES[case["suite"]])
def test_pair_key_at_both_ends(case: dict[str, Any]) -> None:
    low, high = (
        x25519.X25519PrivateKey.from_private_bytes(bytes.fromhex(case[f"{end}_private"])) for end in ("low", "high")
    )
    kem = mlkem.MLKEM768PrivateKey.from_seed_bytes(bytes.fromhex(case["kem_seed"]))
    ciphertext, roster = bytes.fromhex(case["ciphertext"]), bytes.fromhex(case["roster"])
    secret = keys.decapsulate(keys.Ephemeral(high, kem), ciphertext) if case["suite"] == keys.HYBRID else b""
    found = {
        keys.pair_key(
            keys.Ephemeral(own, None),
            peer.public_key().public_bytes_raw(),
            secret,
            ciphertext,
            roster,
            case["low"],
            case["high"],
        ).hex()
        for own, peer in ((low, high), (high, low))
    }
    assert found == {case["key"]}
    mac = keys.confirmation(bytes.fromhex(case["key"]), roster, case["low"], case["high"])
    assert mac.hex() == case["confirmation"]


@pytest.mark.parametrize("case", load("contexts.json"), ids=lambda case: f"{case['bits']} bits")
def test_context_and_pair_seed(case: dict[str, Any]) -> None:
    roster = roster_of(case, 201, ed25519.Ed25519PrivateKey.generate())
    ctx = roster.context(begin_of(case))
    assert ctx.hex() == case["ctx"]
    session = Session(roster, 0, b"", (), (b"", bytes.fromhex(case["pair_key"])), b"")
    assert client.pair_seed(session, ctx, 1).hex() == case["pair_seed"]


@pytest.mark.parametrize("case", load("keystream.json"), ids=lambda case: f"segment {case['segment']}")
def test_keystream(case: dict[str, Any]) -> None:
    words = np.zeros(8, np.uint64)
    mask.apply(words, int(case["segment"]), [mask.Stream(bytes.fromhex(case["key"]))], mask.Scratch())
    assert words.tobytes().hex() == case["keystream"]


@pytest.mark.parametrize("case", load("shares.json"), ids=lambda case: f"{case['threshold']} of {case['holders']}")
def test_shares(case: dict[str, Any]) -> None:
    random, secret = bytes.fromhex(case["random"]), bytes.fromhex(case["secret"])
    dealt = shares.split(secret, case["threshold"], case["holders"], lambda size: random[:size])
    assert [share.hex() for share in dealt] == case["shares"]
    last = range(case["holders"] - case["threshold"], case["holders"])
    assert shares.interpolate({holder: dealt[holder] for holder in last}) == secret


@pytest.mark.parametrize("case", load("packing.json"), ids=lambda case: f"{case['bits']} bits")
def test_packing(case: dict[str, Any]) -> None:
    words = np.empty(len(case["words"]), np.uint64)
    ring.pack(np.array(case["values"], np.uint32), case["bits"], words)
    assert [str(word) for word in words] == case["words"]
    assert ring.unpack(words, case["bits"], len(case["values"])).tolist() == case["values"]


@pytest.mark.parametrize("case", load("decoding.json"), ids=lambda case: f"{case['bits']} bits")
def test_decoding(case: dict[str, Any]) -> None:
    encoding = ring.Ring(case["bits"], case["clip"], case["max_weight"], case["cohort"])
    assert int(encoding.limit) == case["limit"]
    words = np.zeros(encoding.words(4), np.uint64)
    ring.pack(np.array(case["sums"], np.uint32), case["bits"], words)
    mean = ring.dequantise(encoding, words, 4, case["survivors"], case["weight"])
    np.testing.assert_allclose(mean, case["means"], rtol=2e-7)


def test_masked_upload_of_member_1_of_3() -> None:
    case = load("masked.json")
    signing = ed25519.Ed25519PrivateKey.from_private_bytes(bytes.fromhex(case["signing"]))
    roster, begin = roster_of(case, 3, signing), begin_of(case)
    pairwise = tuple(bytes.fromhex(key) for key in case["keys"])
    session = Session(roster, case["index"], b"", (), pairwise, bytes.fromhex(case["upload"]))
    stream = iter(bytes.fromhex(case["entropy"]))
    permit = client.Permit(begin, roster.context(begin))
    upload, entry = client.mask(
        session, permit, np.zeros(3, np.float32), case["weight"], [case["metric"]], keys.signer(signing),
        lambda size: bytes(next(stream) for _ in range(size)),
    )  # fmt: skip
    assert upload.payload.tobytes().hex() == case["payload"]
    assert upload.message.hex() == case["message"]
    assert hashlib.sha256(upload.message + upload.payload.tobytes()).hexdigest() == case["sha256"]
    assert (entry.ctx, entry.round, entry.attempt) == (permit.ctx, 1, 1)
    assert next(stream, None) is None
