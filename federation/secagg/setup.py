"""Agreeing on pairwise keys, once per run and membership: both roles.

coordinator                                   institution
make_offer            ── Offer ──▶            join       checks its own terms; makes keys for this run
gather                ◀── KeyAd ──
                      ── RosterList ──▶       encapsulate  verifies everybody, itself included
                      ◀── Capsules ──
route_capsules        ── CapsulesFor ──▶      confirm    to every member below: proof of the same key
                      ◀── Confirmations ──
route_confirmations   ── ConfirmationsFor ──▶ finish     → Session, and a journal entry
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from hmac import compare_digest

from sovfed.federation.errors import IdentityError, PolicyError, ProtocolError
from sovfed.federation.secagg import wire
from sovfed.federation.secagg.history import History, Joined
from sovfed.federation.secagg.keys import (
    HYBRID,
    Entropy,
    Ephemeral,
    Identity,
    Named,
    Signer,
    check_signature,
    confirmation,
    decapsulate,
    digest,
    fingerprint,
    generate,
    pair_key,
    public_key,
    u16,
    upload_key,
)
from sovfed.federation.secagg.keys import (
    encapsulate as kem_encapsulate,
)
from sovfed.federation.secagg.ring import Ring
from sovfed.federation.secagg.roster import Member, Roster, make_roster
from sovfed.federation.secagg.session import Session
from sovfed.federation.secagg.terms import Terms


@dataclass(frozen=True)
class Joining:
    """An institution that has advertised its keys and knows nobody yet."""

    offer: bytes
    ad: bytes
    own: Ephemeral = field(repr=False)


@dataclass(frozen=True)
class Pairing:
    """An institution that knows the roster and some of its pairwise keys (peer → K)."""

    roster: Roster
    ads: tuple[bytes, ...]
    offer: bytes
    index: int
    own: Ephemeral = field(repr=False)
    keys: Mapping[int, bytes] = field(repr=False)


def make_offer(offer: wire.Offer, sign: Signer) -> bytes:
    return offer.sign(sign).encode()


def join(
    offer_bytes: bytes,
    identity: Identity,
    terms: Terms,
    history: History,
    now: float,
    entropy: Entropy,
    *,
    config: bytes | None = None,
    post_quantum: bool = True,
) -> tuple[Joining, bytes]:
    """Check the offer against local terms (and the run's configuration digest, where known); advertise fresh keys."""
    offer = wire.Offer.decode(offer_bytes)
    identity.verify_server(offer.certificate)
    check_signature(public_key(offer.certificate), offer.signed(), offer.signature, "coordinator's offer")
    ring = Ring(offer.bits, offer.clip, offer.max_weight, offer.min_cohort)
    terms.check_offer(
        ring=ring, fraction_bits=offer.fraction_bits, min_cohort=offer.min_cohort, max_size=offer.max_size,
        max_metrics=offer.max_metrics, expires=offer.expires, now=now,
    )  # fmt: skip
    if config is not None and offer.config != config:
        raise PolicyError("secure aggregation: the offer is for another configuration than the run's")
    check_epoch(offer, history)
    own = generate(entropy, post_quantum=post_quantum)
    ad = wire.KeyAd(
        b"", digest("offer", offer_bytes), own.suite, own.exchange_public, own.kem_public, entropy(32), offer.expires,
        identity.certificate,
    ).sign(identity.sign).encode()  # fmt: skip
    return Joining(offer_bytes, ad, own), ad


def check_epoch(offer: wire.Offer, history: History) -> None:
    """Raise ProtocolError unless the offer is for a later epoch than the run's last; none is later once it is over.

    To be asked when a setup begins and when it ends: what is forgotten of a run in between was closed for good.
    """
    if (last := history.epoch(offer.run)) is not None and offer.epoch <= last:
        raise ProtocolError(f"offer: epoch {offer.epoch} of this run, but {last} was joined before")


def encapsulate(
    joining: Joining, roster_bytes: bytes, identity: Identity, terms: Terms, now: float
) -> tuple[Pairing, bytes]:
    """Verify the whole roster, then agree on a key with every member above."""
    listing = wire.RosterList.decode(roster_bytes)
    if listing.ads.count(joining.ad) != 1:
        raise IdentityError("roster: this institution's own keys are missing or replaced")
    server_key = public_key(wire.Offer.decode(joining.offer).certificate)
    roster = make_roster(joining.offer, listing, identity.verify, now, server_key)
    terms.check_roster(roster.names, roster.suite)
    terms.check_keys({member.name: fingerprint(member.key) for member in roster.members} if terms.member_keys else {})
    index = listing.ads.index(joining.ad)
    keys: dict[int, bytes] = {}
    capsules: list[wire.Capsule] = []
    for peer in roster.members[index + 1 :]:
        secret, ciphertext = kem_encapsulate(peer.ad.kem) if roster.suite == HYBRID else (b"", b"")
        key = pair_key(joining.own, peer.ad.exchange, secret, ciphertext, roster.digest, index, peer.index)
        keys[peer.index] = key
        signature = identity.sign(_capsule_message(roster, index, peer.index, ciphertext))
        capsules.append(wire.Capsule(ciphertext, confirmation(key, roster.digest, index, peer.index), signature))
    pairing = Pairing(roster, listing.ads, joining.offer, index, joining.own, keys)
    return pairing, wire.Capsules(roster.digest, index, roster.suite, tuple(capsules)).encode()


def confirm(pairing: Pairing, capsules_bytes: bytes) -> tuple[Pairing, bytes]:
    """Agree on a key with every member below, check that it holds the same, and prove ours.

    Raises wire.PeerError where one does not, ProtocolError on bytes that are none.
    """
    roster, index = pairing.roster, pairing.index
    message = wire.CapsulesFor.decode(capsules_bytes)
    if (message.roster, message.index, message.suite, len(message.items)) != (
        roster.digest,
        index,
        roster.suite,
        index,
    ):
        raise ProtocolError(f"{roster.names[index]}: capsules of another roster, member, suite or number")
    keys, macs = dict(pairing.keys), []
    for peer, item in zip(roster.members, message.items, strict=False):
        capsule = _capsule_message(roster, peer.index, index, item.ciphertext)
        try:
            check_signature(peer.key, capsule, item.signature, peer.name)
        except IdentityError as error:
            raise wire.PeerError(str(error), wire.Complaint(index, peer.index)) from error
        secret = decapsulate(pairing.own, item.ciphertext) if roster.suite == HYBRID else b""
        key = pair_key(pairing.own, peer.ad.exchange, secret, item.ciphertext, roster.digest, peer.index, index)
        _check_mac(key, roster, peer, index, item.mac)
        keys[peer.index] = key
        macs.append(confirmation(key, roster.digest, index, peer.index))
    confirmed = Pairing(roster, pairing.ads, pairing.offer, index, pairing.own, keys)
    return confirmed, wire.Confirmations(roster.digest, index, tuple(macs)).encode()


def finish(pairing: Pairing, confirmations_bytes: bytes, entropy: Entropy, title: str = "") -> tuple[Session, Joined]:
    """The session, once every member above has proved its key too. Store it, then append the entry, then go on.

    `title` is what the institution's own people know the run by. Raises as `confirm`.

    The ephemeral secrets are not in the session; dropping `pairing` erases them as far as Python can.
    """
    roster, index = pairing.roster, pairing.index
    message = wire.ConfirmationsFor.decode(confirmations_bytes)
    above = roster.members[index + 1 :]
    if (message.roster, message.index, len(message.macs)) != (roster.digest, index, len(above)):
        raise ProtocolError(f"{roster.names[index]}: confirmations of another roster, member or number")
    for peer, mac in zip(above, message.macs, strict=True):
        _check_mac(pairing.keys[peer.index], roster, peer, index, mac)
    keys = {**pairing.keys, index: entropy(32)}  # the last one seals this member's shares to itself
    upload = upload_key(pairing.own, roster.offer.exchange, roster.digest, index)
    pairwise = tuple(keys[peer] for peer in range(len(roster.members)))
    session = Session(roster, index, pairing.offer, pairing.ads, pairwise, upload)
    return session, Joined(roster.offer.run, roster.offer.epoch, roster.digest, title, roster.names)


def gather(
    offer_bytes: bytes, ads: Sequence[bytes], verify: Callable[[bytes], Named], now: float
) -> tuple[Roster, bytes]:
    """The roster of the institutions that answered the offer, and the message that tells them."""
    named = sorted(
        ((verify(wire.KeyAd.decode(ad).certificate).institution, ad) for ad in ads), key=lambda pair: pair[0]
    )
    listing = wire.RosterList(tuple(ad for _, ad in named))
    server_key = public_key(wire.Offer.decode(offer_bytes).certificate)
    return make_roster(offer_bytes, listing, verify, now, server_key), listing.encode()


def upload_keys(roster: Roster, secret: Ephemeral) -> tuple[bytes, ...]:
    """The coordinator's keys for checking payloads, by member; `secret` is the one behind the offer's `exchange`."""
    return tuple(upload_key(secret, m.ad.exchange, roster.digest, m.index) for m in roster.members)


def route_capsules(roster: Roster, replies: Mapping[int, bytes]) -> dict[int, bytes]:
    """For every member, the capsules of the members below it, from the replies by index."""
    sent: list[tuple[wire.Capsule, ...]] = []
    for index, reply in _complete(roster, replies):
        sent.append(read_capsules(roster, index, reply))
    return {
        j: wire.CapsulesFor(roster.digest, j, roster.suite, tuple(sent[i][j - i - 1] for i in range(j))).encode()
        for j in range(len(roster.members))
    }


def route_confirmations(roster: Roster, replies: Mapping[int, bytes]) -> dict[int, bytes]:
    """For every member, the confirmations of the members above it, from the replies by index."""
    sent: list[tuple[bytes, ...]] = []
    for index, reply in _complete(roster, replies):
        sent.append(read_confirmations(roster, index, reply))
    count = len(roster.members)
    return {
        i: wire.ConfirmationsFor(roster.digest, i, tuple(sent[j][i] for j in range(i + 1, count))).encode()
        for i in range(count)
    }


def read_capsules(roster: Roster, index: int, reply: bytes) -> tuple[wire.Capsule, ...]:
    """What member `index` sends to those above it. Raises ProtocolError."""
    message = wire.Capsules.decode(reply)
    expected = (roster.digest, index, roster.suite, len(roster.members) - 1 - index)
    if (message.roster, message.index, message.suite, len(message.items)) != expected:
        raise ProtocolError(f"{roster.names[index]}: capsules of another roster, member, suite or number")
    return message.items


def read_confirmations(roster: Roster, index: int, reply: bytes) -> tuple[bytes, ...]:
    """What member `index` sends to those below it. Raises ProtocolError."""
    message = wire.Confirmations.decode(reply)
    if (message.roster, message.index, len(message.macs)) != (roster.digest, index, index):
        raise ProtocolError(f"{roster.names[index]}: confirmations of another roster, member or number")
    return message.macs


def _complete(roster: Roster, replies: Mapping[int, bytes]) -> list[tuple[int, bytes]]:
    absent = [name for index, name in enumerate(roster.names) if index not in replies]
    if absent:
        raise ProtocolError(f"setup: no answer from {', '.join(absent)}; start a new epoch without them")
    return [(index, replies[index]) for index in range(len(roster.members))]


def _capsule_message(roster: Roster, sender: int, recipient: int, ciphertext: bytes) -> bytes:
    return digest("capsule", roster.digest, u16(sender), u16(recipient), ciphertext)


def _check_mac(key: bytes, roster: Roster, peer: Member, index: int, mac: bytes) -> None:
    if not compare_digest(confirmation(key, roster.digest, peer.index, index), mac):
        complaint = wire.Complaint(index, peer.index)
        raise wire.PeerError(f"{peer.name}: does not hold the same pairwise key", complaint)
