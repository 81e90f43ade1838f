"""A malicious coordinator during the setup: invented, swapped, dropped and doubled peers, other terms, weaker keys."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import x25519

from sovfed.federation import certificates
from sovfed.federation.errors import IdentityError, PolicyError, ProtocolError
from sovfed.federation.secagg import setup, wire
from sovfed.federation.secagg.history import History
from sovfed.federation.secagg.keys import Identity, Signer, digest, generate
from sovfed.federation.secagg.local import CONFIG, Authority, establish, make_offer
from sovfed.federation.secagg.roster import Roster
from sovfed.federation.secagg.terms import Terms

TERMS = Terms(min_cohort=3, colluders=0)


class World:
    """Four institutions that have answered an offer, and the coordinator's means."""

    def __init__(self, count: int = 4, **offered: Any) -> None:
        self.authority = Authority()
        self.now = self.authority.now.timestamp()
        self.identities = [self.authority.institution(f"hospital-{index}") for index in range(count)]
        certificate, self.sign = self.authority.certify(certificates.ServerNames(("agency.test",)))
        self.offer = replace(make_offer(self.authority, certificate, **offered), max_size=10**6)
        self.message = setup.make_offer(self.offer, self.sign)

    def join(self, index: int, terms: Terms = TERMS, **changed: Any) -> tuple[setup.Joining, bytes]:
        arguments: dict[str, Any] = {
            "history": History(),
            "now": self.now,
            "entropy": os.urandom,
            "config": CONFIG,
            **changed,
        }
        return setup.join(self.message, self.identities[index], terms, **arguments)

    def ads(self) -> tuple[setup.Joining, list[bytes]]:
        joined = [self.join(index) for index in range(len(self.identities))]
        return joined[0][0], [ad for _, ad in joined]

    def advertise(self, identity: Identity, sign: Signer | None = None) -> bytes:
        own = generate(os.urandom)
        ad = wire.KeyAd(
            b"", digest("offer", self.message), own.suite, own.exchange_public, own.kem_public, os.urandom(32),
            self.offer.expires, identity.certificate,
        )  # fmt: skip
        return ad.sign(sign or identity.sign).encode()

    def show(self, joining: setup.Joining, ads: list[bytes], terms: Terms = TERMS) -> Callable[[], Any]:
        listing = wire.RosterList(tuple(ads)).encode()
        return lambda: setup.encapsulate(joining, listing, self.identities[0], terms, self.now)


def test_peers_of_the_coordinators_own_making_are_refused() -> None:
    world, foreign = World(), Authority()
    joining, ads = world.ads()
    invented = [world.advertise(foreign.institution(f"hospital-{index}")) for index in (1, 2, 3)]
    with pytest.raises(IdentityError):
        world.show(joining, [ads[0], *invented])()


def test_the_coordinators_own_certificate_is_no_institution() -> None:
    world = World()
    joining, ads = world.ads()
    own = Identity(world.offer.certificate, world.sign, world.identities[0].verify, world.identities[0].verify_server)
    with pytest.raises(IdentityError, match=r"purpose|usage|names"):
        world.show(joining, [*ads, world.advertise(own)])()


def test_an_institution_cannot_be_the_coordinator() -> None:
    world = World()
    offer = replace(world.offer, certificate=world.identities[1].certificate).sign(world.identities[1].sign)
    with pytest.raises(IdentityError):
        setup.join(offer.encode(), world.identities[0], TERMS, History(), world.now, os.urandom)


def test_swapped_keys_under_a_true_certificate_are_refused() -> None:
    world = World()
    joining, ads = world.ads()
    ad = wire.KeyAd.decode(ads[2])
    exchange = x25519.X25519PrivateKey.generate().public_key().public_bytes_raw()
    for changed in (
        replace(ad, exchange=exchange),
        replace(ad, kem=generate(os.urandom).kem_public),
        replace(ad, nonce=bytes(32)),
    ):
        with pytest.raises(IdentityError, match="hospital-2: the signature"):
            world.show(joining, [*ads[:2], changed.encode(), ads[3]])()


def test_own_keys_replaced_or_left_out_are_noticed() -> None:
    world = World()
    joining, ads = world.ads()
    for shown in (ads[1:], [world.advertise(world.identities[0]), *ads[1:]], [ads[0], *ads]):
        with pytest.raises(IdentityError, match="own keys"):
            world.show(joining, shown)()


def test_a_dropped_peer_is_noticed_where_policy_expects_it() -> None:
    world = World()
    joining, ads = world.ads()
    with pytest.raises(PolicyError, match="hospital-3"):
        world.show(joining, ads[:3], Terms(min_cohort=3, colluders=0, expected=("hospital-1", "hospital-3")))()
    with pytest.raises(PolicyError, match="not on the list of members: hospital-3"):
        world.show(joining, ads, Terms(min_cohort=3, colluders=0, members=("hospital-0", "hospital-1", "hospital-2")))()


def test_one_institution_with_two_certificates_counts_once() -> None:
    """Sybil: a second certificate of hospital-1, truly signed, does not fill the cohort."""
    world = World()
    joining, ads = world.ads()
    sybil = world.advertise(world.authority.institution("hospital-1"))
    with pytest.raises(IdentityError, match="institution appears twice"):
        world.show(joining, [ads[0], ads[1], sybil, ads[2]])()


def test_an_expired_certificate_is_refused() -> None:
    world = World()
    joining, ads = world.ads()
    world.authority.now += timedelta(days=40)
    world.identities[0] = replace(world.identities[0], verify=world.authority.peers())
    with pytest.raises(IdentityError, match=r"not hold|valid|expired|verif"):
        world.show(joining, ads)()


def test_a_revoked_certificate_is_refused() -> None:
    world = World()
    joining, ads = world.ads()
    serial = x509.load_der_x509_certificate(world.identities[2].certificate).serial_number
    world.authority.revoked.append((serial, world.authority.now))
    world.identities[0] = replace(world.identities[0], verify=world.authority.peers())
    with pytest.raises(IdentityError, match="revoked"):
        world.show(joining, ads)()


def test_keys_of_another_run_or_epoch_are_refused() -> None:
    world = World()
    joining, ads = world.ads()
    world.message = setup.make_offer(replace(world.offer, epoch=2), world.sign)
    with pytest.raises(IdentityError, match="another run or epoch"):
        world.show(joining, [*ads[:3], world.advertise(world.identities[3])])()


def test_expired_keys_are_refused() -> None:
    world = World()
    joining, ads = world.ads()
    world.now += 7200
    with pytest.raises(IdentityError, match="expire"):
        world.show(joining, ads)()


@pytest.mark.parametrize(
    ("offered", "terms", "reason"),
    [
        ({"bits": 16}, Terms(min_cohort=3, colluders=0, bits=(32,)), "ring"),
        ({"bits": 64}, TERMS, "ring"),
        ({"bits": 1}, TERMS, "ring"),
        ({"clip": 1e9}, TERMS, "clip"),
        ({"clip": 1e-30}, TERMS, "clip"),
        ({"clip": float("nan")}, TERMS, "clip"),
        ({"max_weight": 2**40}, TERMS, "weight"),
        ({"min_cohort": 2}, TERMS, "cohort"),
        ({"min_cohort": 4}, Terms(), "cohort"),
    ],
)
def test_the_coordinator_cannot_set_terms_beyond_local_policy(
    offered: dict[str, Any], terms: Terms, reason: str
) -> None:
    with pytest.raises(PolicyError, match=reason):
        World(**offered).join(0, terms)


def test_the_coordinator_has_no_say_in_the_threshold() -> None:
    """No message carries one: it follows from the roster that all have verified."""
    names = {name for cls in (wire.Offer, wire.RosterList, wire.Begin, wire.Ask) for name in cls.__dataclass_fields__}
    assert not any("threshold" in name for name in names)
    world = World()
    federation = establish(world.authority, world.sign, world.offer, world.identities, TERMS)
    assert {institution.session.roster.threshold for institution in federation.institutions} == {3}


def test_an_offer_for_another_configuration_is_refused() -> None:
    with pytest.raises(PolicyError, match="configuration"):
        World().join(0, config=bytes(32))


def test_an_offer_changed_on_its_way_is_refused() -> None:
    world = World()
    world.message = replace(wire.Offer.decode(world.message), min_cohort=200).encode()
    with pytest.raises(IdentityError, match="offer"):
        world.join(0)


def test_a_downgrade_to_classical_keys_is_refused() -> None:
    """The suite follows from what every member signed; one member without ML-KEM shows, whoever arranged it."""
    world = World()
    joining, ads = world.ads()
    _, classical = world.join(3, post_quantum=False)
    with pytest.raises(PolicyError, match="ML-KEM-768"):
        world.show(joining, [*ads[:3], classical])()
    pairing, _ = world.show(joining, [*ads[:3], classical], Terms(min_cohort=3, colluders=0, post_quantum=False))()
    assert pairing.roster.suite == 1
    stripped = replace(wire.KeyAd.decode(ads[3]), suite=1, kem=b"")
    with pytest.raises(IdentityError, match="signature"):
        world.show(joining, [*ads[:3], stripped.encode()])()


def paired(world: World) -> tuple[Roster, list[setup.Pairing], dict[int, bytes]]:
    joined = [world.join(index) for index in range(len(world.identities))]
    roster, listing = setup.gather(world.message, [ad for _, ad in joined], world.authority.peers(), world.now)
    pairings, capsules = [], {}
    for index, (joining, _) in enumerate(joined):
        pairing, capsules[index] = setup.encapsulate(joining, listing, world.identities[index], TERMS, world.now)
        pairings.append(pairing)
    return roster, pairings, capsules


def test_two_rosters_for_two_institutions_agree_on_no_key() -> None:
    """Split roster: hospital-3 is shown a different list; capsules of one roster do not open under the other."""
    world = World()
    joined = [world.join(index) for index in range(4)]
    other_ad = world.advertise(world.identities[2])
    shown = wire.RosterList((joined[0][1], joined[1][1], other_ad, joined[3][1])).encode()
    victim, _ = setup.encapsulate(joined[3][0], shown, world.identities[3], TERMS, world.now)
    roster, _, capsules = paired(world)
    routed = setup.route_capsules(roster, capsules)
    with pytest.raises(ProtocolError, match="another roster"):
        setup.confirm(victim, routed[3])
    forged = replace(wire.CapsulesFor.decode(routed[3]), roster=victim.roster.digest).encode()
    with pytest.raises(IdentityError):
        setup.confirm(victim, forged)


def test_a_swapped_capsule_is_noticed() -> None:
    world = World()
    roster, pairings, capsules = paired(world)
    routed = wire.CapsulesFor.decode(setup.route_capsules(roster, capsules)[2])
    ciphertext = bytes((routed.items[0].ciphertext[0] ^ 1,)) + routed.items[0].ciphertext[1:]
    for changed in (
        (replace(routed.items[0], ciphertext=ciphertext), routed.items[1]),
        (replace(routed.items[0], mac=bytes(32)), routed.items[1]),
        (routed.items[1], routed.items[0]),
    ):
        with pytest.raises(IdentityError):
            setup.confirm(pairings[2], replace(routed, items=changed).encode())


def test_a_false_confirmation_is_noticed() -> None:
    world = World()
    roster, pairings, capsules = paired(world)
    confirmations = {}
    for index, message in setup.route_capsules(roster, capsules).items():
        pairings[index], confirmations[index] = setup.confirm(pairings[index], message)
    routed = wire.ConfirmationsFor.decode(setup.route_confirmations(roster, confirmations)[0])
    with pytest.raises(IdentityError, match="same pairwise key"):
        setup.finish(
            pairings[0], replace(routed, macs=(routed.macs[1], routed.macs[0], routed.macs[2])).encode(), os.urandom
        )


def test_the_setup_cannot_be_run_again_in_the_same_epoch() -> None:
    world, histories = World(), [History() for _ in range(4)]
    establish(world.authority, world.sign, world.offer, world.identities, TERMS, histories)
    with pytest.raises(ProtocolError, match="epoch 1"):
        establish(world.authority, world.sign, world.offer, world.identities, TERMS, histories)
    establish(world.authority, world.sign, replace(world.offer, epoch=2), world.identities, TERMS, histories)


def test_seven_members_cannot_bear_three_colluders() -> None:
    world = World(7)
    joining, ads = world.ads()
    with pytest.raises(PolicyError, match="bears 2 colluders"):
        world.show(joining, ads, Terms(min_cohort=6, colluders=3))()
