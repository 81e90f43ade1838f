"""The verified roster of a run, and the context that every round's secrets are bound to."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache

from sovfed.federation.errors import IdentityError, ProtocolError
from sovfed.federation.secagg import wire
from sovfed.federation.secagg.keys import Named, PublicKey, check_public, check_signature, digest, public_key, u16
from sovfed.federation.secagg.ring import Ring
from sovfed.federation.secagg.terms import threshold


@dataclass(frozen=True)
class Member:
    """An institution in the roster; `ad` is its key advertisement as received."""

    index: int
    name: str
    key: PublicKey
    ad: wire.KeyAd


@dataclass(frozen=True)
class Roster:
    """The members in the order of their names. `digest` is R, which binds the offer and every advertisement."""

    offer: wire.Offer
    members: tuple[Member, ...]
    digest: bytes
    server_key: PublicKey

    @cached_property
    def threshold(self) -> int:
        return threshold(len(self.members))

    @cached_property
    def suite(self) -> int:
        """The key agreement in use: what the least of the signed advertisements offers, nothing the server says."""
        return min(member.ad.suite for member in self.members)

    @cached_property
    def names(self) -> tuple[str, ...]:
        return tuple(member.name for member in self.members)

    def ring(self, begin: wire.Begin) -> Ring:
        return _ring(self.offer.bits, self.offer.clip, self.offer.max_weight, len(begin.cohort))

    def check_begin(self, begin: wire.Begin) -> None:
        """Raise unless `begin` is the coordinator's, of this roster, and within the offer."""
        if begin.roster != self.digest:
            raise ProtocolError(f"round {begin.round}: begun under another roster")
        check_signature(self.server_key, begin.signed(), begin.signature, f"coordinator, round {begin.round}")
        if not begin.cohort or begin.cohort[-1] >= len(self.members):
            raise ProtocolError(f"round {begin.round}: the cohort is not within the roster")
        if begin.size > self.offer.max_size or begin.metrics > self.offer.max_metrics:
            raise ProtocolError(
                f"round {begin.round}: {begin.size} values and {begin.metrics} metrics exceed the offer"
            )

    def context(self, begin: wire.Begin) -> bytes:
        """ctx, 32 bytes: roster, run, epoch, round, attempt, cohort, what is summed, shape and ring parameters."""
        ring = self.ring(begin)
        return digest(
            "ctx", self.digest, self.offer.run, wire.number(self.offer.epoch, 4), wire.number(begin.round, 4),
            u16(begin.attempt), bytes((begin.purpose,)), wire.bitmap(begin.cohort), begin.model, begin.task,
            begin.subject, wire.number(begin.size, 8), u16(begin.metrics), bytes((ring.bits, ring.value_bits)),
            struct.pack(">d", ring.clip), wire.number(ring.max_weight, 8), bytes((self.offer.fraction_bits,)),
        )  # fmt: skip


@lru_cache(maxsize=64)
def _ring(bits: int, clip: float, max_weight: int, cohort: int) -> Ring:
    """The ring of these terms, which works out what follows from them once."""
    return Ring(bits, clip, max_weight, cohort)


def masked_message(ctx: bytes, index: int, payload: bytes, commitments: bytes) -> bytes:
    """What member `index` signs when it uploads: `payload` and `commitments` are digests."""
    return digest("masked", ctx, u16(index), payload, commitments)


def commitments_digest(ctx: bytes, index: int, commit_self: bytes, commit_pairs: tuple[bytes, ...]) -> bytes:
    return digest("commitments", ctx, u16(index), commit_self, *commit_pairs)


def commit_self(ctx: bytes, index: int, seed: bytes) -> bytes:
    """The commitment to a member's own seed, 32 bytes."""
    return digest("commit-self", ctx, u16(index), seed)


def commit_pair(ctx: bytes, index: int, peer: int, seed: bytes) -> bytes:
    """Member `index`'s commitment to its seed with `peer`, 16 bytes."""
    return digest("commit-pair", ctx, u16(index), u16(peer), seed)[: wire.COMMITMENT]


def chosen_digest(ctx: bytes, survivors: tuple[int, ...]) -> bytes:
    """H(ctx, U1): the one thing that a holder answers for in a round."""
    return digest("chosen", ctx, wire.bitmap(survivors))


def read_ad(offer_bytes: bytes, data: bytes, verify: Callable[[bytes], Named], now: float, index: int = 0) -> Member:
    """The member that advertises `data` in answer to the offer.

    Raises IdentityError on a certificate that `verify` refuses, a signature that does not hold, or an advertisement
    that is for another offer or does not last as long; ProtocolError on bytes that are none, and keys that nobody can
    use. What all others would refuse the whole roster for is found out here, while its sender alone is left out.
    """
    offer, ad = wire.Offer.decode(offer_bytes), wire.KeyAd.decode(data)
    name, key = verify(ad.certificate).institution, public_key(ad.certificate)
    check_signature(key, ad.signed(), ad.signature, name)
    if ad.offer != digest("offer", offer_bytes):
        raise IdentityError(f"{name}: its keys are for another run or epoch")
    check_public(ad.exchange, ad.kem)
    if not now < ad.expires == offer.expires:
        raise IdentityError(f"{name}: its keys expire at {ad.expires}, the run at {offer.expires}, it is {now:.0f}")
    return Member(index, name, key, ad)


def make_roster(
    offer_bytes: bytes, listing: wire.RosterList, verify: Callable[[bytes], Named], now: float, server_key: PublicKey
) -> Roster:
    """The roster, once every certificate and signature holds.

    Raises IdentityError on a certificate that `verify` refuses, an expired or foreign advertisement, and an
    institution, key or nonce that appears twice; ProtocolError unless the names are in order.
    """
    offer, offered = wire.Offer.decode(offer_bytes), digest("offer", offer_bytes)
    members = [read_ad(offer_bytes, data, verify, now, index) for index, data in enumerate(listing.ads)]
    names = [member.name for member in members]
    for kind, values in (
        ("institution", names),
        ("key", [member.ad.exchange for member in members]),
        ("key", [member.ad.kem for member in members if member.ad.kem]),
        ("nonce", [member.ad.nonce for member in members]),
    ):
        if len(set(values)) != len(values):
            raise IdentityError(f"roster: one {kind} appears twice")
    if names != sorted(names):
        raise ProtocolError("roster: the institutions are not in the order of their names")
    return Roster(offer, tuple(members), digest("roster", offered, *listing.ads), server_key)
