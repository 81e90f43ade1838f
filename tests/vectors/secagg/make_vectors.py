"""Makes the known-answer vectors beside it, straight from the specification: nothing of the package is imported.

    python tests/vectors/secagg/make_vectors.py

Primitives come from `cryptography` and `hashlib`; GF(256), packing and all layouts are written out here a second time.
ML-KEM's encapsulation is random, so its ciphertext is kept from the file of an earlier run where there is one.
"""

import hashlib
import json
import struct
from fractions import Fraction
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ed25519, mlkem, x25519
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF, HKDFExpand

HERE = Path(__file__).parent


def fields(label: str, *parts: bytes) -> bytes:
    return b"".join(struct.pack(">Q", len(p)) + p for p in (b"sovfed/secagg/1/" + label.encode(), *parts))


def H(label: str, *parts: bytes) -> bytes:  # noqa: N802
    return hashlib.sha256(fields(label, *parts)).digest()


def expand(key: bytes, label: str, *parts: bytes) -> bytes:
    return HKDFExpand(hashes.SHA256(), 32, fields(label, *parts)).derive(key)


def pattern(name: str, size: int) -> bytes:
    return hashlib.shake_256(name.encode()).digest(size)


def bitmap(members: list[int]) -> bytes:
    return sum(1 << m for m in members).to_bytes(32, "big")


def save(name: str, content: object) -> None:
    (HERE / name).write_text(json.dumps(content, indent=1) + "\n")


# GF(256), bit by bit -------------------------------------------------------------------------------------------------


def gf(a: int, b: int) -> int:
    product = 0
    for bit in range(8):
        if b >> bit & 1:
            product ^= a << bit
    for bit in range(14, 7, -1):
        if product >> bit & 1:
            product ^= 0x11B << (bit - 8)
    return product


def shares(secret: bytes, threshold: int, holders: int, random: bytes) -> list[bytes]:
    """Holders 0 to t − 2 get random strings; the polynomial through them and the secret gives the others."""
    size = len(secret)
    known = {0: secret, **{x: random[(x - 1) * size : x * size] for x in range(1, threshold)}}
    inverse = {a: b for a in range(1, 256) for b in range(1, 256) if gf(a, b) == 1}
    result = [known[x] for x in range(1, threshold)]
    for x in range(threshold, holders + 1):
        share = bytearray(size)
        for node, string in known.items():
            weight = 1
            for other in known:
                if other != node:
                    weight = gf(weight, gf(x ^ other, inverse[node ^ other]))
            for byte in range(size):
                share[byte] ^= gf(weight, string[byte])
        result.append(bytes(share))
    return result


cases = []
for holders, threshold, size in ((3, 3, 32), (4, 3, 32), (5, 4, 64), (32, 22, 5)):
    secret, random = pattern(f"secret {holders}", size), pattern(f"random {holders}", size * (threshold - 1))
    cases.append({
        "holders": holders, "threshold": threshold, "secret": secret.hex(), "random": random.hex(),
        "shares": [share.hex() for share in shares(secret, threshold, holders, random)],
    })  # fmt: skip
save("shares.json", cases)

# K_ij ----------------------------------------------------------------------------------------------------------------

pairs = []
earlier = (
    {c["suite"]: c for c in json.loads((HERE / "pair_keys.json").read_text())}
    if (HERE / "pair_keys.json").exists()
    else {}
)
for suite in (1, 2):
    low, high = (x25519.X25519PrivateKey.from_private_bytes(pattern(f"exchange {k}", 32)) for k in (0, 1))
    seed, roster = pattern("kem seed", 64), pattern("roster", 32)
    kem = mlkem.MLKEM768PrivateKey.from_seed_bytes(seed)
    ciphertext = b""
    if suite == 2:
        known = earlier.get(2)
        ciphertext = bytes.fromhex(known["ciphertext"]) if known else kem.public_key().encapsulate()[1]
    secret = kem.decapsulate(ciphertext) if suite == 2 else b""
    info = fields("pair", b"\0\3", b"\0\7", hashlib.sha256(ciphertext).digest())
    key = HKDF(hashes.SHA256(), 32, roster, info).derive(low.exchange(high.public_key()) + secret)
    pairs.append({
        "suite": suite, "low": 3, "high": 7, "low_private": pattern("exchange 0", 32).hex(),
        "high_private": pattern("exchange 1", 32).hex(), "kem_seed": seed.hex(), "roster": roster.hex(),
        "ciphertext": ciphertext.hex(), "key": key.hex(),
        "confirmation": expand(key, "confirm", roster, b"\0\3", b"\0\7").hex(),
    })  # fmt: skip
save("pair_keys.json", pairs)

# ctx, s_ij -----------------------------------------------------------------------------------------------------------

roster, run, model, task, subject = (
    pattern(name, size) for name, size in (("roster", 32), ("run", 16), ("model", 32), ("task", 32), ("subject", 32))
)


def context(epoch: int, number: int, attempt: int, purpose: int, cohort: list[int], size: int, metrics: int, bits: int,
            clip: float, max_weight: int, fraction_bits: int) -> bytes:  # fmt: skip
    value_bits = bits - (len(cohort) - 1).bit_length()
    return H(
        "ctx", roster, run, struct.pack(">I", epoch), struct.pack(">I", number), struct.pack(">H", attempt),
        bytes([purpose]), bitmap(cohort), model, task, subject, struct.pack(">Q", size), struct.pack(">H", metrics),
        bytes([bits, value_bits]), struct.pack(">d", clip), struct.pack(">Q", max_weight), bytes([fraction_bits]),
    )  # fmt: skip


SHAPES: list[dict[str, Any]] = [
    {
        "epoch": 1, "number": 1, "attempt": 1, "purpose": 1, "cohort": [0, 1, 2], "size": 10, "metrics": 2, "bits": 32,
        "clip": 1.0, "max_weight": 1000, "fraction_bits": 24,
    },
    {
        "epoch": 2, "number": 300, "attempt": 4, "purpose": 2, "cohort": [0, 5, 8, 31, 200], "size": 0, "metrics": 6,
        "bits": 16, "clip": 0.125, "max_weight": 2**40, "fraction_bits": 0,
    },
]  # fmt: skip
contexts = []
for arguments in SHAPES:
    ctx = context(**arguments)
    seed = expand(bytes.fromhex(str(pairs[1]["key"])), "mask", ctx)
    contexts.append({**arguments, "roster": roster.hex(), "run": run.hex(), "model": model.hex(), "task": task.hex(),
                     "subject": subject.hex(),
                     "ctx": ctx.hex(), "pair_key": pairs[1]["key"], "pair_seed": seed.hex()})  # fmt: skip
save("contexts.json", contexts)

# keystream -----------------------------------------------------------------------------------------------------------

streams = []
for segment in (0, 1, 2**96 - 1):
    key, nonce = pattern("keystream", 32), segment.to_bytes(12, "big")
    ctr = Cipher(algorithms.AES256(key), modes.CTR(nonce + struct.pack(">I", 2))).encryptor().update(bytes(64))
    gcm = AESGCM(key).encrypt(nonce, bytes(64), None)[:64]
    assert ctr == gcm
    streams.append({"segment": str(segment), "key": key.hex(), "keystream": ctr.hex()})
save("keystream.json", streams)

# packing, and a sum by hand ------------------------------------------------------------------------------------------

packing = []
for bits, lanes in ((12, 5), (16, 4), (21, 3), (32, 2)):
    values = [int.from_bytes(pattern(f"{bits} {k}", 4), "big") % 2**bits for k in range(2 * lanes + 1)]
    groups = [values[start : start + lanes] for start in range(0, len(values), lanes)]
    words = [sum(value << (bits * lane) for lane, value in enumerate(group)) for group in groups]
    packing.append({"bits": bits, "values": values, "words": [str(word) for word in words]})
save("packing.json", packing)

decoding = []
for bits, cohort, survivors, clip, max_weight, weight in (
    (16, 4, 3, 1.0, 1000, 700),
    (32, 5, 5, 0.5, 64, 300),
    (12, 3, 3, 2.0, 10, 30),
):
    q = bits - (cohort - 1).bit_length()
    half = 2 ** (q - 1)
    limit = int(struct.unpack(">f", struct.pack(">f", half - 2))[0])  # to float32, downwards
    while limit > half - 2:
        limit = int(struct.unpack(">f", struct.pack(">I", struct.unpack(">I", struct.pack(">f", limit))[0] - 1))[0])
    sums = [survivors * half, survivors * half + limit, survivors * half - 2 * limit, survivors * half + 12]
    means = [float(Fraction(s - survivors * half, limit) * Fraction(clip) * max_weight / weight) for s in sums]
    decoding.append({"bits": bits, "cohort": cohort, "survivors": survivors, "clip": clip, "max_weight": max_weight,
                     "weight": weight, "limit": limit, "sums": sums, "means": means})  # fmt: skip
save("decoding.json", decoding)

# M2 of member 1 of 3; the update is zero, since rounding is random ----------------------------------------------------

n, t, index = 3, 3, 1
signing = ed25519.Ed25519PrivateKey.from_private_bytes(pattern("signing", 32))
keys = [pattern(f"pair with {peer}", 32) for peer in range(n)]
upload_key = pattern("upload", 32)
random = pattern("entropy", 32 + 32 + 96 * (t - 1))  # own seed, rounding, then the free shares
own_seed, free = random[:32], random[64:]
message = {**SHAPES[0], "size": 3, "metrics": 1}
ctx = context(**message)
i = struct.pack(">H", index)
peers = [0, 2]
seeds = [expand(keys[peer], "mask", ctx) for peer in peers]
commit_self = H("commit-self", ctx, i, own_seed)
commit_pairs = [H("commit-pair", ctx, i, struct.pack(">H", p), s)[:16] for p, s in zip(peers, seeds, strict=True)]
commitments = H("commitments", ctx, i, commit_self, *commit_pairs)


def stream(key: bytes, segment: int, words: int) -> list[int]:
    nonce = segment.to_bytes(12, "big") + struct.pack(">I", 2)
    data = Cipher(algorithms.AES256(key), modes.CTR(nonce)).encryptor().update(bytes(8 * words))
    return list(struct.unpack(f"<{words}Q", data))


def masked(plain: list[int], segment: int) -> bytes:
    result = list(plain)
    for key, sign in ((own_seed, 1), (seeds[0], -1), (seeds[1], 1)):
        result = [(a + sign * b) % 2**64 for a, b in zip(result, stream(key, segment, len(plain)), strict=True)]
    return struct.pack(f"<{len(plain)}Q", *result)


weight, metric = 250, -1.5
header = masked([1, weight, int(metric * 2**24) % 2**64, 0, 0, 0, 0, 0], 2**96 - 1)
half = 2 ** (32 - 2 - 1)  # zero is not rounded: ⌊0 + u⌋ = 0 for u in [0, 1)
payload = masked([half + (half << 32), half], 0)
tag = AESGCM(expand(upload_key, "payload", ctx, i, commitments)).encrypt(bytes(12), b"", payload)
summary = H("payload", ctx, header, tag)
dealt = shares(own_seed + b"".join(seeds), t, n, free)
sealed_self, sealed_pairs = [], []
for holder, share in enumerate(dealt):
    h = struct.pack(">H", holder)
    associated = H("sealed", ctx, i, h, commitments)
    sealed_self.append(
        AESGCM(expand(keys[holder], "share-self", ctx, i, h, commitments)).encrypt(bytes(12), share[:32], associated)
    )
    sealed_pairs.append(
        AESGCM(expand(keys[holder], "share-pairs", ctx, i, h, commitments)).encrypt(bytes(12), share[32:], associated)
    )
signature = signing.sign(H("masked", ctx, i, summary, commitments))
m2 = b"".join((
    b"svsa", bytes([1, 9]), ctx, bytes([index]), struct.pack(">H", 8), header, summary, commit_self, bytes([2]),
    *commit_pairs, bytes([n]), *sealed_self, *sealed_pairs, signature,
))  # fmt: skip
save("masked.json", {
    **message, "roster": roster.hex(), "run": run.hex(), "model": model.hex(), "task": task.hex(),
    "subject": subject.hex(), "index": index,
    "keys": [key.hex() for key in keys], "upload": upload_key.hex(), "signing": pattern("signing", 32).hex(),
    "entropy": random.hex(), "weight": weight, "metric": metric, "payload": payload.hex(), "message": m2.hex(),
    "sha256": hashlib.sha256(m2 + payload).hexdigest(),
})  # fmt: skip
