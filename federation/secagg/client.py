"""The institution's rounds: agree to one, mask an update, and help to unmask one sum.

    begin    M1: checks the round before any training          → Permit
    prepare  seeds, their sealed shares, and masks, while the update is trained   → Masks, to be used once
    mask     the trained update                                → M2 and its payload, with a journal entry
    reveal   M3: checks the sum that is asked for              → M4, with a journal entry if it is the first time

Entries returned must be committed (`Journal.commit`) before the reply leaves. The rules that keep the coordinator to
one sum a round stand in `begin` and `reveal`, those about earlier sums in `opened.py`; each names the attack that it
stops in `docs/secure-aggregation.md`.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from sovfed.federation.errors import PrivacyError, ProtocolError
from sovfed.federation.messages import Vector
from sovfed.federation.secagg import wire
from sovfed.federation.secagg.history import Entry, History, Revealed, Spent, name_tag
from sovfed.federation.secagg.keys import (
    Entropy,
    Signer,
    check_signature,
    digest,
    encode_fields,
    encode_more,
    expand,
    expand_encoded,
    seal,
    u16,
    unseal,
)
from sovfed.federation.secagg.mask import (
    SEGMENT_WORDS,
    MakeDraft,
    MaskSum,
    Scratch,
    Stream,
    Words,
    apply,
    apply_header,
    for_segments,
    tag,
)
from sovfed.federation.secagg.opened import (
    check_apart,
    check_bounds,
    check_differencing,
    check_once,
    check_rosters,
    dated,
    day_of,
    is_judged,
)
from sovfed.federation.secagg.purpose import Purpose
from sovfed.federation.secagg.ring import Integers, Quantiser, header_size, pack_header
from sovfed.federation.secagg.roster import (
    Roster,
    chosen_digest,
    commit_pair,
    commit_self,
    commitments_digest,
    masked_message,
)
from sovfed.federation.secagg.session import Session
from sovfed.federation.secagg.shares import split
from sovfed.federation.secagg.terms import Terms, check_value_bits
from sovfed.federation.stored import Draft


@dataclass(frozen=True)
class Permit:
    """A round that this institution agreed to take part in, once."""

    begin: wire.Begin
    ctx: bytes


@dataclass(frozen=True, eq=False)
class Masks:
    """All of M2 that does not depend on the update: `header` (its mask), `sums` (the payload's), `sealed` shares."""

    ctx: bytes
    commit_self: bytes
    commit_pairs: tuple[bytes, ...]
    commitments: bytes
    header: Words = field(repr=False)
    sums: MaskSum = field(repr=False)
    sealed: tuple[tuple[bytes, bytes], ...] = field(repr=False)
    rounding: bytes = field(repr=False)
    _spent: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def spend(self, ctx: bytes) -> int:
        """Segments of `sums` that are made. Raises PrivacyError if `ctx` is another's, or on a second call.

        Two updates under the same masks would show their difference to whoever sees both.
        """
        if ctx != self.ctx or not self._spent.acquire(blocking=False):
            raise PrivacyError("masks of another round, or used already")
        return self.sums.stop()

    def drop(self) -> None:
        """Never to be used; nothing runs afterwards."""
        self._spent.acquire(blocking=False)
        self.sums.stop()


@dataclass(frozen=True, eq=False)
class Upload:
    """M2: `message` and its `payload`, the masked words; `clipped` values stay here, in the institution's log."""

    message: bytes
    payload: Words
    clipped: int


def begin(
    session: Session,
    history: History,
    terms: Terms,
    begin_bytes: bytes,
    model: bytes,
    task: bytes,
    subject: bytes,
    now: float,
) -> Permit:
    """Check M1 against the model, task and subject that arrived with it (digests computed here), policy and history.

    Raises PrivacyError if this attempt was masked before, a later round was begun, the round's sum is out already, or
    the model's over others; PolicyError if the cohort is almost that of an earlier sum; ProtocolError, IdentityError
    or PolicyError on anything else that does not hold.
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
    if (message.model, message.task, message.subject) != (model, task, subject):
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
    today = day_of(now)
    _check_earlier(roster, history, terms, message, message.cohort, where, today, announced=True)
    everybody = _tags(roster, range(len(roster.members)))
    check_rosters(history, terms, (run, message.purpose, model), everybody, where)
    if is_judged(Purpose(message.purpose), terms):
        check_apart(history, terms, everybody, where, today)
    if message.purpose == Purpose.TRAIN:
        check_bounds(history, terms, roster.ring(message), where)
    return Permit(message, roster.context(message))


def prepare(session: Session, permit: Permit, entropy: Entropy, draft: MakeDraft = Draft) -> Masks:
    """Fresh seeds for one upload under `permit`, shared among the roster; `sums.start()` then makes the long masks.

    `draft` makes room for these, and so for the payload.
    """
    message, ctx, index, roster = permit.begin, permit.ctx, session.index, session.roster
    peers = [peer for peer in message.cohort if peer != index]
    own_seed, rounding = entropy(32), entropy(32)
    seeds = [pair_seed(session, ctx, peer) for peer in peers]
    streams = [Stream(own_seed), *(Stream(seed, peer > index) for peer, seed in zip(peers, seeds, strict=True))]
    commitment = commit_self(ctx, index, own_seed)
    commit_pairs = tuple(commit_pair(ctx, index, peer, seed) for peer, seed in zip(peers, seeds, strict=True))
    commitments = commitments_digest(ctx, index, commitment, commit_pairs)
    header: Words = np.zeros(header_size(message.metrics), np.uint64)
    sums = MaskSum(roster.ring(message).words(message.size), streams, draft=draft)
    apply_header(header, streams, sums.scratch)
    shares = split(own_seed + b"".join(seeds), roster.threshold, len(roster.members), entropy)
    seal_keys = _ShareKeys(session, ctx, index)
    sealed = tuple(seal_keys.seal(holder, commitments, share) for holder, share in enumerate(shares))
    return Masks(ctx, commitment, commit_pairs, commitments, header, sums, sealed, rounding)


def mask(
    session: Session,
    permit: Permit,
    update: Vector | Integers,
    weight: int,
    metrics: Sequence[float],
    sign: Signer,
    entropy: Entropy,
    masks: Masks | None = None,
    owed: Vector | None = None,
) -> tuple[Upload, Spent]:
    """Weight, clip, round and mask `update` (shape [size]) with `masks`, or with some that are made now.

    What rounding takes from each value is put into `owed`, shape [size], if there is one (`Quantiser`).
    Nothing that depends on records makes this fail: values and metrics saturate (`ring.py`), and so does the weight.
    Raises PrivacyError on masks that are not this permit's or were used before.
    """
    message, ctx, index, roster = permit.begin, permit.ctx, session.index, session.roster
    ring = roster.ring(message)
    dtype = np.dtype(Purpose(message.purpose).dtype)
    if update.shape != (message.size,) or update.dtype != dtype or len(metrics) != message.metrics:
        raise ProtocolError(f"round {message.round}: {update.dtype} {update.shape} and {len(metrics)} metrics, "
                            f"expected {dtype} ({message.size},) and {message.metrics}")  # fmt: skip
    weight = min(max(weight, 1 if message.size else 0), ring.max_weight)
    prepared = masks or prepare(session, permit, entropy)
    ready = prepared.spend(ctx)
    header = pack_header(weight, metrics, roster.offer.fraction_bits) + prepared.header
    authentic = payload_cipher(session.upload, ctx, index, prepared.commitments)
    quantiser = partial(Quantiser, ring, update, weight, prepared.rounding, owed)
    tags, clipped = _hide(prepared.sums, ready, quantiser, authentic)
    payload = prepared.sums.finish()
    summary = payload_digest(ctx, header.tobytes(), tags)
    signature = sign(masked_message(ctx, index, summary, prepared.commitments))
    reply = wire.Masked(
        ctx, index, header.tobytes(), summary, prepared.commit_self, prepared.commit_pairs,
        tuple(own for own, _ in prepared.sealed), tuple(pairs for _, pairs in prepared.sealed), signature,
    )  # fmt: skip
    entry = Spent(
        roster.offer.run, roster.digest, message.round, message.attempt, message.purpose, message.model,
        message.subject, ctx, summary,
    )  # fmt: skip
    return Upload(reply.encode(), payload, clipped), entry


def _hide(sums: MaskSum, ready: int, quantiser: Callable[[], Quantiser], authentic: AESGCM) -> tuple[list[bytes], int]:
    """Add the update to the words of `sums`, of which `ready` segments are made: the tags, and the clipped values."""
    payload, streams = sums.words, sums.streams
    tags = [b""] * -(-payload.size // SEGMENT_WORDS)
    workers: list[Quantiser] = []
    spare = [sums.scratch]  # it has the streams' ciphers already

    def worker() -> tuple[Quantiser, Scratch]:
        workers.append(quantiser())
        return workers[-1], spare.pop() if spare else Scratch()

    def work(segment: int, where: slice, own: tuple[Quantiser, Scratch]) -> None:
        (quantiser, scratch), words = own, payload[where]
        if segment < ready:
            values = scratch.words[: words.size]
            quantiser.quantise(segment, values)
            np.add(words, values, words)
        else:
            quantiser.quantise(segment, words)
            apply(words, segment, streams, scratch)
        tags[segment] = tag(authentic, segment, words)

    if payload.size:
        for_segments(payload.size, work, worker)
    return tags, sum(worker.clipped for worker in workers)


def reveal(
    session: Session, history: History, terms: Terms, ask_bytes: bytes, sign: Signer, now: float
) -> tuple[bytes, tuple[Entry, ...]]:
    """This holder's shares for the sum over the survivors named in M3, if it may be revealed.

    Raises PrivacyError if another sum of the round was revealed, or one of the same model over others; PolicyError if
    its survivors are almost those of an earlier sum; ShareError where a survivor's share does not open; PolicyError,
    IdentityError or ProtocolError on anything else that does not hold.
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
        try:
            own_share, pairs = _unseal(session, ctx, survivor, item)
        except ProtocolError as error:
            raise wire.ShareError(f"{where}: {error}", wire.Complaint(session.index, survivor)) from error
        own_shares.append(own_share)
        peers = [member for member in message.cohort if member != survivor]
        for peer in dropped:
            at = 32 * peers.index(peer)
            pair_shares.append(pairs[at : at + 32])

    chosen = chosen_digest(ctx, ask.survivors)
    earlier = history.revealed.get((run, message.round))
    entries: tuple[Entry, ...] = ()
    if earlier is None:
        _check_earlier(roster, history, terms, message, ask.survivors, where, day_of(now), announced=False)
        names = tuple(sorted(_tags(roster, ask.survivors)))
        least = max(terms.min_cohort, roster.offer.min_cohort)
        entries = (
            *dated(history, message.purpose, run, now),
            Revealed(run, message.round, chosen, message.purpose, message.model, message.subject, least, names),
        )
    elif earlier.chosen != chosen:
        raise PrivacyError(f"{where}: another sum of this round was revealed already")
    answer = wire.Reveal(b"", ctx, chosen, session.index, b"".join(own_shares + pair_shares))
    return answer.sign(sign).encode(), entries


def _check_earlier(
    roster: Roster,
    history: History,
    terms: Terms,
    message: wire.Begin,
    members: Collection[int],
    where: str,
    today: int,
    *,
    announced: bool,
) -> None:
    """Raise unless a sum over `members`, the announced cohort or the survivors, may be opened beside earlier ones."""
    names = _tags(roster, members)
    check_once(history, (roster.offer.run, message.purpose, message.model), names, where, announced=announced)
    if is_judged(Purpose(message.purpose), terms):
        least = max(terms.min_cohort, roster.offer.min_cohort)
        check_differencing(history, terms, names, least, where, today)


def _tags(roster: Roster, members: Collection[int]) -> frozenset[bytes]:
    return frozenset(name_tag(roster.names[member]) for member in members)


def pair_seed(session: Session, ctx: bytes, peer: int) -> bytes:
    """s_ij, the seed of this round's mask between this member and `peer`, 32 bytes."""
    return expand(session.keys[peer], "mask", ctx)


def payload_cipher(upload: bytes, ctx: bytes, index: int, commitments: bytes) -> AESGCM:
    """What tags the segments of one payload; with the commitments in its key, no two payloads share it."""
    return AESGCM(expand(upload, "payload", ctx, u16(index), commitments))


def payload_digest(ctx: bytes, header: bytes, tags: Sequence[bytes]) -> bytes:
    """The digest of a masked header and of the tags of the payload's segments."""
    return digest("payload", ctx, header, *tags)


class _ShareKeys:
    """The keys that seal a dealer's shares, at the end that has `session`; what all have in common is encoded once.

    With the commitments in a key, no two dealings share one.
    """

    def __init__(self, session: Session, ctx: bytes, dealer: int) -> None:
        self._keys, self._dealer = session.keys, session.roster.names[dealer]
        self._own, self._pairs, self._associated = (
            encode_fields(label, ctx, u16(dealer)) for label in ("share-self", "share-pairs", "sealed")
        )

    def seal(self, holder: int, commitments: bytes, share: bytes) -> tuple[bytes, bytes]:
        """The holder's shares of the dealer's own seed and of its pairwise seeds, each under a key of its own."""
        key, suffix = self._keys[holder], encode_more(u16(holder), commitments)
        associated = hashlib.sha256(self._associated + suffix).digest()
        own, pairs = expand_encoded(key, self._own + suffix), expand_encoded(key, self._pairs + suffix)
        return seal(own, share[:32], associated), seal(pairs, share[32:], associated)

    def unseal(self, peer: int, holder: int, item: wire.Survivor) -> tuple[bytes, bytes]:
        """What `seal` was given, by the key with `peer`; of the pairwise seeds only if they were sent."""
        key, suffix = self._keys[peer], encode_more(u16(holder), item.commitments)
        associated = hashlib.sha256(self._associated + suffix).digest()
        own = unseal(expand_encoded(key, self._own + suffix), item.sealed_self, associated, self._dealer)
        if not item.sealed_pairs:
            return own, b""
        return own, unseal(expand_encoded(key, self._pairs + suffix), item.sealed_pairs, associated, self._dealer)


def _unseal(session: Session, ctx: bytes, dealer: int, item: wire.Survivor) -> tuple[bytes, bytes]:
    """The dealer's shares of its own seed, and of its pairwise seeds if they were sent."""
    return _ShareKeys(session, ctx, dealer).unseal(dealer, session.index, item)
