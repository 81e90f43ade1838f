"""The institution's rounds: agree to one, mask an update, and help to unmask one sum.

    begin   M1: checks the round before any training           → Permit
    mask    the trained update                                 → M2 and its payload, with a journal entry
    reveal  M3: checks the sum that is asked for               → M4, with a journal entry if it is the first time

Entries returned must be committed (`Journal.commit`) before the reply leaves. The rules that keep the coordinator to
one sum a round stand in `begin` and `reveal`; each names the attack that it stops in `docs/secure-aggregation.md`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from sovfed.federation.errors import PrivacyError, ProtocolError
from sovfed.federation.messages import Vector
from sovfed.federation.secagg import wire
from sovfed.federation.secagg.journal import Entry, History, Revealed, Spent, name_tag
from sovfed.federation.secagg.keys import Entropy, Signer, check_signature, digest, expand, seal, u16, unseal
from sovfed.federation.secagg.mask import SEGMENT_WORDS, Scratch, Stream, Words, apply, apply_header, for_segments, tag
from sovfed.federation.secagg.ring import Integers, Quantiser, pack_header
from sovfed.federation.secagg.roster import (
    chosen_digest,
    commit_pair,
    commit_self,
    commitments_digest,
    masked_message,
)
from sovfed.federation.secagg.session import Session
from sovfed.federation.secagg.shares import split
from sovfed.federation.secagg.terms import Terms, check_value_bits


class Purpose(IntEnum):
    """What is summed; sums of different purposes cannot be differenced with each other."""

    PROFILE = 0
    TRAIN = 1
    EVALUATE = 2
    STEP = 3  # of integers that carry their own noise: neither weighted nor rounded

    @property
    def dtype(self) -> type[np.float32 | np.int32]:
        """Of the vectors that are summed."""
        return np.int32 if self is Purpose.STEP else np.float32


@dataclass(frozen=True)
class Permit:
    """A round that this institution agreed to take part in, once."""

    begin: wire.Begin
    ctx: bytes


@dataclass(frozen=True, eq=False)
class Upload:
    """M2: `message` and its `payload`, the masked words; `clipped` values stay here, in the institution's log."""

    message: bytes
    payload: Words
    clipped: int


def begin(
    session: Session, history: History, terms: Terms, begin_bytes: bytes, model: bytes, task: bytes, now: float
) -> Permit:
    """Check M1 against the model and task that arrived with it (digests computed here), policy and history.

    Raises PrivacyError if this attempt was masked before, a later round was begun, or the round's sum is out
    already; ProtocolError, IdentityError or PolicyError on anything else that does not hold.
    """
    message, roster = wire.Begin.decode(begin_bytes), session.roster
    roster.check_begin(message)
    where = f"round {message.round}, attempt {message.attempt}"
    if now >= roster.offer.expires:
        raise ProtocolError(f"{where}: the run's keys have expired")
    if session.index not in message.cohort:
        raise ProtocolError(f"{where}: {session.name} is not in the cohort")
    if message.purpose not in set(Purpose):
        raise ProtocolError(f"{where}: unknown purpose {message.purpose}")
    if (message.model, message.task) != (model, task):
        raise ProtocolError(f"{where}: the model or the task is not the one that was announced")
    terms.check_cohort(len(message.cohort), roster.offer.min_cohort)
    check_value_bits(roster.ring(message))
    run = roster.offer.run
    if message.round < history.last_round.get(run, 0):
        raise PrivacyError(f"{where}: round {history.last_round[run]} was masked already")
    if (run, message.round) in history.revealed:
        raise PrivacyError(f"{where}: a sum of this round was revealed already")
    spent = history.spent.get((run, message.round), [])
    if any(entry.roster != roster.digest for entry in spent):
        raise PrivacyError(f"{where}: masked under another roster already")
    if any(entry.attempt >= message.attempt for entry in spent):
        raise PrivacyError(f"{where}: masked already; the attempt is burnt")
    return Permit(message, roster.context(message))


def mask(
    session: Session,
    permit: Permit,
    update: Vector | Integers,
    weight: int,
    metrics: Sequence[float],
    sign: Signer,
    entropy: Entropy,
) -> tuple[Upload, Spent]:
    """Weight, clip, round and mask `update` (shape [size]); share the seeds among the roster.

    Nothing that depends on records makes this fail: values and metrics saturate (`ring.py`), and so does the weight.
    """
    message, ctx, index, roster = permit.begin, permit.ctx, session.index, session.roster
    ring = roster.ring(message)
    dtype = np.dtype(Purpose(message.purpose).dtype)
    if update.shape != (message.size,) or update.dtype != dtype or len(metrics) != message.metrics:
        raise ProtocolError(f"round {message.round}: {update.dtype} {update.shape} and {len(metrics)} metrics, "
                            f"expected {dtype} ({message.size},) and {message.metrics}")  # fmt: skip
    weight = min(max(weight, 1 if message.size else 0), ring.max_weight)
    peers = [peer for peer in message.cohort if peer != index]
    own_seed, rounding = entropy(32), entropy(32)
    seeds = [pair_seed(session, ctx, peer) for peer in peers]
    streams = [Stream(own_seed), *(Stream(seed, peer > index) for peer, seed in zip(peers, seeds, strict=True))]

    commitment = commit_self(ctx, index, own_seed)
    commit_pairs = tuple(commit_pair(ctx, index, peer, seed) for peer, seed in zip(peers, seeds, strict=True))
    commitments = commitments_digest(ctx, index, commitment, commit_pairs)
    authentic = payload_cipher(session.upload, ctx, index, commitments)

    header = pack_header(weight, metrics, roster.offer.fraction_bits)
    apply_header(header, streams)
    payload: Words = np.empty(ring.words(message.size), np.uint64)
    tags = [b""] * -(-payload.size // SEGMENT_WORDS)
    workers: list[Quantiser] = []

    def worker() -> tuple[Quantiser, Scratch]:
        workers.append(Quantiser(ring, update, weight, rounding))
        return workers[-1], Scratch()

    def work(segment: int, where: slice, own: tuple[Quantiser, Scratch]) -> None:
        own[0].quantise(segment, payload[where])
        apply(payload[where], segment, streams, own[1])
        tags[segment] = tag(authentic, segment, payload[where])

    if payload.size:
        for_segments(payload.size, work, worker)
    summary = payload_digest(ctx, header.tobytes(), tags)
    shares = split(own_seed + b"".join(seeds), roster.threshold, len(roster.members), entropy)
    sealed = [_seal(session, ctx, holder, commitments, share) for holder, share in enumerate(shares)]
    signature = sign(masked_message(ctx, index, summary, commitments))
    reply = wire.Masked(
        ctx, index, header.tobytes(), summary, commitment, commit_pairs, tuple(own for own, _ in sealed),
        tuple(pairs for _, pairs in sealed), signature,
    )  # fmt: skip
    entry = Spent(roster.offer.run, roster.digest, message.round, message.attempt, ctx, summary)
    return Upload(reply.encode(), payload, sum(worker.clipped for worker in workers)), entry


def reveal(
    session: Session, history: History, terms: Terms, ask_bytes: bytes, sign: Signer
) -> tuple[bytes, tuple[Entry, ...]]:
    """This holder's shares for the sum over the survivors named in M3, if it may be revealed.

    Raises PrivacyError if another sum of the round was revealed, or one of the same model that differs by fewer than
    the minimum cohort; PolicyError, IdentityError or ProtocolError on anything else that does not hold.
    """
    ask, roster = wire.Ask.decode(ask_bytes), session.roster
    message = wire.Begin.decode(ask.begin)
    where, run, ctx = f"round {message.round}", roster.offer.run, roster.context(message)
    own = [entry for entry in history.spent.get((run, message.round), []) if entry.attempt == message.attempt]
    if message.roster != roster.digest or not any(entry.ctx == ctx for entry in own):
        roster.check_begin(message)  # a context that this member masked under was checked in `begin`
    check_signature(roster.server_key, ask.signed(), ask.signature, f"coordinator, round {message.round}")
    dropped = tuple(member for member in message.cohort if member not in ask.survivors)
    if ask.holder != session.index or not set(ask.survivors) <= set(message.cohort):
        raise ProtocolError(f"{where}: meant for holder {ask.holder}, or survivors outside the cohort")
    terms.check_cohort(len(ask.survivors), roster.offer.min_cohort)
    if (session.index in ask.survivors and not own) or any(entry.ctx != ctx for entry in own):
        raise PrivacyError(f"{where}: not the context that {session.name} masked under")
    expected = len(ask.items[0].sealed_pairs) == (32 * (len(message.cohort) - 1) + wire.TAG if dropped else 0)
    if not expected:
        raise ProtocolError(f"{where}: pairwise shares do not fit the cohort and its dropouts")

    own_shares, pair_shares = [], []
    for survivor, item in zip(ask.survivors, ask.items, strict=True):
        own_share, pairs = _unseal(session, ctx, survivor, item)
        own_shares.append(own_share)
        others = [member for member in message.cohort if member != survivor]
        for peer in dropped:
            at = 32 * others.index(peer)
            pair_shares.append(pairs[at : at + 32])

    chosen = chosen_digest(ctx, ask.survivors)
    names = tuple(sorted(name_tag(roster.names[survivor]) for survivor in ask.survivors))
    entry = Revealed(run, message.round, chosen, message.purpose, message.model, names)
    entries = _check_history(history, terms, entry, roster.offer.min_cohort, where)
    answer = wire.Reveal(b"", ctx, chosen, session.index, b"".join(own_shares + pair_shares))
    return answer.sign(sign).encode(), entries


def _check_history(history: History, terms: Terms, entry: Revealed, offered: int, where: str) -> tuple[Entry, ...]:
    """The entry to commit, none if this very sum was revealed before."""
    earlier = history.revealed.get((entry.run, entry.round))
    if earlier is not None:
        if earlier.chosen != entry.chosen:
            raise PrivacyError(f"{where}: another sum of this round was revealed already")
        return ()
    names, least = frozenset(entry.names), max(terms.min_cohort, offered)
    known = [sum_ for sum_ in history.sums.get((entry.run, entry.purpose, entry.model), []) if sum_ != names]
    if any(len(names ^ sum_) < least for sum_ in known):
        raise PrivacyError(f"{where}: the same model was summed over almost the same institutions before")
    if len(known) > 1:  # three sums can isolate one institution although every two differ enough
        raise PrivacyError(f"{where}: the same model was summed over two other cohorts before")
    return (entry,)


def pair_seed(session: Session, ctx: bytes, peer: int) -> bytes:
    """s_ij, the seed of this round's mask between this member and `peer`, 32 bytes."""
    return expand(session.keys[peer], "mask", ctx)


def payload_cipher(upload: bytes, ctx: bytes, index: int, commitments: bytes) -> AESGCM:
    """What tags the segments of one payload; with the commitments in its key, no two payloads share it."""
    return AESGCM(expand(upload, "payload", ctx, u16(index), commitments))


def payload_digest(ctx: bytes, header: bytes, tags: Sequence[bytes]) -> bytes:
    """The digest of a masked header and of the tags of the payload's segments."""
    return digest("payload", ctx, header, *tags)


def _share_key(
    session: Session, peer: int, what: str, ctx: bytes, dealer: int, holder: int, commitments: bytes
) -> bytes:
    """The key that seals a dealer's share for a holder: with the commitments in it, no two dealings share a key."""
    return expand(session.keys[peer], f"share-{what}", ctx, u16(dealer), u16(holder), commitments)


def _associated(ctx: bytes, dealer: int, holder: int, commitments: bytes) -> bytes:
    return digest("sealed", ctx, u16(dealer), u16(holder), commitments)


def _seal(session: Session, ctx: bytes, holder: int, commitments: bytes, share: bytes) -> tuple[bytes, bytes]:
    associated = _associated(ctx, session.index, holder, commitments)
    key = _share_key(session, holder, "self", ctx, session.index, holder, commitments)
    pairs_key = _share_key(session, holder, "pairs", ctx, session.index, holder, commitments)
    return seal(key, share[:32], associated), seal(pairs_key, share[32:], associated)


def _unseal(session: Session, ctx: bytes, dealer: int, item: wire.Survivor) -> tuple[bytes, bytes]:
    """The dealer's shares of its own seed, and of its pairwise seeds if they were sent."""
    holder, who = session.index, session.roster.names[dealer]
    associated = _associated(ctx, dealer, holder, item.commitments)
    key = _share_key(session, dealer, "self", ctx, dealer, holder, item.commitments)
    own = unseal(key, item.sealed_self, associated, who)
    if not item.sealed_pairs:
        return own, b""
    key = _share_key(session, dealer, "pairs", ctx, dealer, holder, item.commitments)
    return own, unseal(key, item.sealed_pairs, associated, who)
