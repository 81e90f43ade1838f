"""The coordinator's rounds: add up what arrives masked, ask the holders once, and take the masks off the sum.

Memory is O(d): payloads are authenticated and added segment by segment, up to four in one pass over the sum, then
forgotten. What a member sends is checked before it counts; a member that fails is left out, and named. `solve` names
whom the commitments show to lie: a dealer whose shares fit no polynomial, or a dealer and a holder of whom one lies.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations, islice

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from sovfed.federation.errors import CohortError, IdentityError, ProtocolError
from sovfed.federation.messages import Vector
from sovfed.federation.secagg import wire
from sovfed.federation.secagg.client import payload_cipher, payload_digest
from sovfed.federation.secagg.keys import Signer, check_signature
from sovfed.federation.secagg.mask import SEGMENT_WORDS, Stream, Words, apply_all, apply_header, for_segments, tag
from sovfed.federation.secagg.purpose import Purpose
from sovfed.federation.secagg.ring import (
    HEADER_COUNT,
    HEADER_METRICS,
    HEADER_WEIGHT,
    dequantise,
    header_size,
    integer_sums,
    unpack_metrics,
)
from sovfed.federation.secagg.roster import (
    Roster,
    chosen_digest,
    commit_pair,
    commit_self,
    commitments_digest,
    masked_message,
)
from sovfed.federation.secagg.shares import interpolate
from sovfed.federation.secagg.terms import check_value_bits
from sovfed.federation.stored import Pieces

TOGETHER = 4  # payloads added in a pass: the sum, too long for a cache, is then read and written a quarter as often
WAITING_BYTES = 64e6  # of payloads that wait for others to be added with; longer ones are added at once
_TRIES = 5_000  # sets of holders to try before a dealer is given up


@dataclass(frozen=True)
class Lie:
    """Evidence against `dealer`, or against `dealer` or `holder` when only that holder's share does not fit."""

    dealer: str
    holder: str | None = None


@dataclass(frozen=True, eq=False)
class Aggregate:
    """What a round reveals: the weighted mean (shape [size]), and sums over `survivors`.

    Of a round of integers `integers`, their sum, stands in place of `mean`.
    """

    mean: Vector
    weight: int
    metrics: npt.NDArray[np.float64]
    survivors: tuple[str, ...]
    lies: tuple[Lie, ...]
    integers: npt.NDArray[np.int64] | None = None


@dataclass(frozen=True, eq=False)
class _Waiting:
    """An upload that its member signed; whether `payload` is what was signed is seen while it is added."""

    upload: wire.Masked
    payload: Pieces
    authentic: AESGCM
    sender: str


@dataclass
class Round:
    """One attempt at a round. `begin_bytes` is M1; then `take` and `settle`, `ask`, `answer`, `solve`, in this order.

    `refused` says by index why the payload of a member is not in the sum; it may send another.
    """

    roster: Roster
    sign: Signer
    upload_keys: Sequence[bytes]
    begin: wire.Begin
    begin_bytes: bytes
    ctx: bytes
    _words: Words
    _header: Words
    refused: dict[int, ProtocolError] = field(default_factory=dict)
    _waiting: dict[int, _Waiting] = field(default_factory=dict)
    _uploads: dict[int, wire.Masked] = field(default_factory=dict)
    _survivors: tuple[int, ...] = ()
    _answers: dict[int, bytes] = field(default_factory=dict)
    _solved: Aggregate | None = None

    @property
    def survivors(self) -> tuple[str, ...]:
        """The institutions whose updates are in the sum so far."""
        return tuple(self.roster.names[index] for index in sorted(self._uploads))

    @property
    def answers(self) -> int:
        return len(self._answers)

    @property
    def waiting(self) -> int:
        """Uploads that were taken and not settled, `TOGETHER` at most."""
        return len(self._waiting)

    def add(self, message: bytes, payload: Words) -> None:
        """`take` and `settle`; raises ProtocolError or IdentityError, and then this upload has changed nothing."""
        index = self.take(message, payload)
        self.settle()
        if index in self.refused:
            raise self.refused[index]

    def take(self, message: bytes, payload: Words, index: int | None = None) -> int:
        """Check a member's M2 and keep it, with its payload, until `settle`; the member's index, which must be `index`.

        Settles by itself when `TOGETHER` are waiting. Raises ProtocolError or IdentityError, and then nothing changed.
        """
        upload = wire.Masked.decode(message)
        if index not in (None, upload.index):
            raise IdentityError(f"round {self.begin.round}: an upload in another member's name")
        if upload.ctx != self.ctx or upload.index not in self.begin.cohort:
            raise ProtocolError(f"round {self.begin.round}: an upload of another context or cohort")
        sender = f"round {self.begin.round}, {self.roster.names[upload.index]}"
        if self._survivors or upload.index in self._uploads or upload.index in self._waiting:
            raise ProtocolError(f"{sender}: an upload too late, or a second one")
        shape = (len(upload.header), payload.dtype, payload.shape, len(upload.commit_pairs), len(upload.sealed_self))
        expected = (8 * self._header.size, np.dtype(np.uint64), self._words.shape, len(self.begin.cohort) - 1,
                    len(self.roster.members))  # fmt: skip
        if shape != expected:
            raise ProtocolError(f"{sender}: header, payload, commitments and shares are {shape}, expected {expected}")
        commitments = commitments_digest(self.ctx, upload.index, upload.commit_self, upload.commit_pairs)
        signed = masked_message(self.ctx, upload.index, upload.payload, commitments)
        check_signature(self.roster.members[upload.index].key, signed, upload.signature, sender)
        authentic = payload_cipher(self.upload_keys[upload.index], self.ctx, upload.index, commitments)
        self.refused.pop(upload.index, None)
        self._waiting[upload.index] = _Waiting(upload, Pieces(payload), authentic, sender)
        if len(self._waiting) == TOGETHER or len(self._waiting) * payload.nbytes > WAITING_BYTES:
            self.settle()
        return upload.index

    def settle(self) -> None:
        """Add what is waiting to the sum, in one pass; a payload that was not signed is taken off again and refused."""
        waiting, self._waiting = self._waiting, {}
        if not waiting:
            return
        tags = {index: [b""] * -(-self._words.size // SEGMENT_WORDS) for index in waiting}

        def work(segment: int, where: slice, _: object) -> None:
            words = self._words[where]
            for index, entry in waiting.items():
                payload = entry.payload[where]
                tags[index][segment] = tag(entry.authentic, segment, payload)
                np.add(words, payload, words)

        for_segments(self._words.size, work, lambda: None, threads=1)  # bound by memory, not by the processor
        for index, entry in waiting.items():
            if payload_digest(self.ctx, entry.upload.header, tags[index]) == entry.upload.payload:
                self._header += np.frombuffer(entry.upload.header, "<u8")
                self._uploads[index] = entry.upload
            else:
                for_segments(self._words.size, partial(self._take_off, entry.payload), lambda: None, threads=1)
                self.refused[index] = ProtocolError(f"{entry.sender}: the payload is not the one that was signed")

    def _take_off(self, payload: Pieces, _segment: int, where: slice, _: object) -> None:
        self._words[where] -= payload[where]

    def ask(self) -> dict[int, bytes]:
        """Settle, and close the cohort: M3 for every holder in the roster (send it to all online; resend it freely).

        Raises CohortError if too few uploads came; nothing is revealed then.
        """
        self.settle()
        if len(self._uploads) < self.roster.offer.min_cohort:
            raise CohortError(
                f"round {self.begin.round}: {len(self._uploads)} uploads, minimum {self.roster.offer.min_cohort}"
            )
        self._survivors = tuple(sorted(self._uploads))
        commitments = {
            index: commitments_digest(
                self.ctx, index, self._uploads[index].commit_self, self._uploads[index].commit_pairs
            )
            for index in self._survivors
        }
        return {holder: self._ask(holder, commitments) for holder in range(len(self.roster.members))}

    def _ask(self, holder: int, commitments: Mapping[int, bytes]) -> bytes:
        items, dropped = [], bool(self._dropped)
        for index in self._survivors:
            upload = self._uploads[index]
            pairs = upload.sealed_pairs[holder] if dropped else b""
            items.append(wire.Survivor(commitments[index], upload.sealed_self[holder], pairs))
        return wire.Ask(b"", self.begin_bytes, holder, self._survivors, tuple(items)).sign(self.sign).encode()

    @property
    def _dropped(self) -> tuple[int, ...]:
        return tuple(member for member in self.begin.cohort if member not in self._survivors)

    def answer(self, message: bytes) -> None:
        """Take a holder's M4. Raises ProtocolError or IdentityError on one that does not hold; a repeat is ignored."""
        reveal = wire.Reveal.decode(message)
        if reveal.holder >= len(self.roster.members) or reveal.chosen != chosen_digest(self.ctx, self._survivors):
            raise ProtocolError(f"round {self.begin.round}: an answer about another sum")
        sender = f"round {self.begin.round}, {self.roster.names[reveal.holder]}"
        check_signature(self.roster.members[reveal.holder].key, reveal.signed(), reveal.signature, sender)
        if reveal.ctx != self.ctx or len(reveal.shares) != 32 * len(self._survivors) * (1 + len(self._dropped)):
            raise ProtocolError(f"{sender}: {len(reveal.shares)} bytes of shares for another number of members")
        self._answers.setdefault(reveal.holder, reveal.shares)

    def solve(self) -> Aggregate | None:
        """The aggregate, or None while more answers are needed. To be called once the answers reach the threshold.

        Raises ProtocolError if every holder answered and a dealer's shares fit nothing, or the sum is inconsistent.
        """
        if self._solved is not None or len(self._answers) < self.roster.threshold:
            return self._solved
        seeds, lies = self._seeds()
        if seeds is None:
            if len(self._answers) < len(self.roster.members):
                return None
            liars = ", ".join(lie.dealer for lie in lies)
            raise ProtocolError(f"round {self.begin.round}: the shares dealt by {liars} fit no secret; round abandoned")
        streams = []
        for index, (own, *pairs) in zip(self._survivors, seeds, strict=True):
            streams.append(Stream(own, add=False))
            streams += [Stream(seed, peer < index) for peer, seed in zip(self._dropped, pairs, strict=True)]
        words, header = self._words, self._header
        apply_all(words, streams)
        apply_header(header, streams)
        self._solved = self._aggregate(words, header, lies)
        return self._solved

    def suspects(self) -> tuple[Lie, ...]:
        """Whom the answers so far show to lie; for the log of a round that is abandoned."""
        return self._seeds()[1] if len(self._answers) >= self.roster.threshold else ()

    def _aggregate(self, words: Words, header: Words, lies: tuple[Lie, ...]) -> Aggregate:
        count, weight = int(header[HEADER_COUNT]), int(header[HEADER_WEIGHT])
        most = len(self._survivors) * self.roster.offer.max_weight
        spare = header[HEADER_METRICS + self.begin.metrics :]
        if count != len(self._survivors) or spare.any() or not (1 if self.begin.size else 0) <= weight <= most:
            raise ProtocolError(f"round {self.begin.round}: the unmasked header is inconsistent; sum discarded")
        ring = self.roster.ring(self.begin)
        metrics = unpack_metrics(header, self.begin.metrics, self.roster.offer.fraction_bits)
        if Purpose(self.begin.purpose).dtype is np.int32:
            integers = integer_sums(ring, words, self.begin.size, count)
            return Aggregate(np.empty(0, np.float32), weight, metrics, self.survivors, lies, integers)
        mean = dequantise(ring, words, self.begin.size, count, weight or 1)
        return Aggregate(mean, weight, metrics, self.survivors, lies)

    def _seeds(self) -> tuple[list[list[bytes]] | None, tuple[Lie, ...]]:
        """Every survivor's own seed and its seeds with the dropped; None if some dealer's cannot be found."""
        size, spread = 32, len(self._dropped)
        quorum = dict(islice(self._answers.items(), self.roster.threshold))
        secret = interpolate(quorum)
        recovered: list[list[bytes]] = []
        lies: list[Lie] = []
        failed = False
        for position, dealer in enumerate(self._survivors):
            places = [position, *(len(self._survivors) + position * spread + k for k in range(spread))]
            seeds = [secret[index * size : (index + 1) * size] for index in places]
            if not self._committed(dealer, seeds):
                honest = self._honest(dealer, places)
                if honest is None:
                    lies.append(Lie(self.roster.names[dealer]))
                    failed = True
                    continue
                seeds, liars = honest
                lies += [Lie(self.roster.names[dealer], self.roster.names[holder]) for holder in liars]
            recovered.append(seeds)
        return (None if failed else recovered), tuple(lies)

    def _honest(self, dealer: int, places: Sequence[int]) -> tuple[list[bytes], list[int]] | None:
        """The dealer's seeds from some quorum that meets its commitments, and the holders whose shares do not fit."""
        shares = {
            holder: b"".join(answer[32 * index : 32 * index + 32] for index in places)
            for holder, answer in self._answers.items()
        }
        for quorum in islice(self._quorums(list(shares)), _TRIES):
            chosen = {holder: shares[holder] for holder in quorum}
            secret = interpolate(chosen)
            seeds = [secret[at : at + 32] for at in range(0, len(secret), 32)]
            if self._committed(dealer, seeds):
                return seeds, [h for h in shares if h not in chosen and interpolate(chosen, h + 1) != shares[h]]
        return None

    def _quorums(self, holders: list[int]) -> Iterator[tuple[int, ...]]:
        """Quorums that leave out no holder (beyond the surplus), then any one, any two and so on."""
        for absent in range(len(holders) - self.roster.threshold + 1):
            for left_out in combinations(holders, absent):
                yield tuple(holder for holder in holders if holder not in left_out)[: self.roster.threshold]

    def _committed(self, dealer: int, seeds: Sequence[bytes]) -> bool:
        upload, (own, *pairs) = self._uploads[dealer], seeds
        peers = [peer for peer in self.begin.cohort if peer != dealer]
        return commit_self(self.ctx, dealer, own) == upload.commit_self and all(
            commit_pair(self.ctx, dealer, peer, seed) == upload.commit_pairs[peers.index(peer)]
            for peer, seed in zip(self._dropped, pairs, strict=True)
        )


def open_round(
    roster: Roster,
    sign: Signer,
    upload_keys: Sequence[bytes],
    *,
    number: int,
    attempt: int,
    purpose: Purpose,
    cohort: Sequence[int],
    size: int,
    metrics: int,
    model: bytes,
    task: bytes,
    subject: bytes,
) -> Round:
    """M1 and an empty sum for the members `cohort` (roster indices); `upload_keys` from `setup.upload_keys`."""
    begin = wire.Begin(
        b"",
        roster.digest,
        number,
        attempt,
        int(purpose),
        tuple(sorted(cohort)),
        size,
        metrics,
        model,
        task,
        subject,
    ).sign(sign)
    roster.check_begin(begin)
    ring = roster.ring(begin)
    check_value_bits(ring)
    words = np.zeros(ring.words(size), np.uint64)
    header = np.zeros(header_size(metrics), np.uint64)
    return Round(roster, sign, upload_keys, begin, begin.encode(), roster.context(begin), words, header)
