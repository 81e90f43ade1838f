"""The whole protocol in one process, in the order in which it happens: for benchmarks, tests and reading.

The same functions run at the institutions and at the agency; here they call each other without a network or a disk.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import numpy as np

from sovfed.federation import certificates
from sovfed.federation.identity import verify_peer, verify_server
from sovfed.federation.messages import Vector
from sovfed.federation.secagg import client, setup, wire
from sovfed.federation.secagg.client import Masks, Permit, Upload
from sovfed.federation.secagg.coordinator import Aggregate, Round, open_round
from sovfed.federation.secagg.history import History
from sovfed.federation.secagg.keys import Identity, Named, Signer, generate, signer
from sovfed.federation.secagg.mask import hash_vector
from sovfed.federation.secagg.opened import dated
from sovfed.federation.secagg.purpose import Purpose
from sovfed.federation.secagg.ring import Integers
from sovfed.federation.secagg.roster import Roster
from sovfed.federation.secagg.session import Session
from sovfed.federation.secagg.terms import LEAST_COHORT, RECORD, Terms

TASK = hashlib.sha256(b"task").digest()
SUBJECT = hashlib.sha256(b"subject").digest()
CONFIG = hashlib.sha256(b"configuration").digest()


class Authority:
    """A root, its revocation list, and the identities that it certifies; everybody is judged at `now`."""

    def __init__(self, now: datetime | None = None) -> None:
        self.now = now or datetime.now(UTC)
        self.key, self.root = certificates.create_root("test authority", self.now)
        self.revoked: list[tuple[int, datetime]] = []

    def certify(self, names: certificates.Names, days: int = 30) -> tuple[bytes, Signer]:
        key = certificates.create_key()
        request = certificates.to_pem(certificates.create_csr(key, names))
        certificate = certificates.sign_csr(self.key, self.root, request, self.now, days)
        return certificates.to_der(certificate), signer(key)

    def institution(self, name: str, days: int = 30) -> Identity:
        names = certificates.InstitutionNames(name, hashlib.sha256(name.encode()).hexdigest())
        return Identity(*self.certify(names, days), self.peers(), self.servers())

    def server(self, name: str) -> Identity:
        """The coordinator's."""
        return Identity(*self.certify(certificates.ServerNames((name,))), self.peers(), self.servers())

    def peers(self) -> Callable[[bytes], Named]:
        crl = certificates.make_crl(self.key, self.root, self.revoked, 1, self.now, days=7)
        return lambda certificate: verify_peer(certificate, self.root, crl, self.now)

    def servers(self) -> Callable[[bytes], object]:
        crl = certificates.make_crl(self.key, self.root, self.revoked, 1, self.now, days=7)
        return lambda certificate: verify_server(certificate, self.root, crl, self.now)


@dataclass
class Institution:
    """One institution's state between messages."""

    identity: Identity
    terms: Terms
    history: History
    session: Session

    @property
    def index(self) -> int:
        return self.session.index

    def begin(self, message: bytes, model: bytes, now: float, task: bytes = TASK) -> Permit:
        return client.begin(self.session, self.history, self.terms, message, model, task, SUBJECT, now)

    def prepare(self, permit: Permit) -> Masks:
        return client.prepare(self.session, permit, os.urandom)

    def mask(
        self,
        permit: Permit,
        update: Vector | Integers,
        weight: int,
        metrics: Sequence[float],
        masks: Masks | None = None,
    ) -> Upload:
        upload, entry = client.mask(
            self.session, permit, update, weight, metrics, self.identity.sign, os.urandom, masks
        )
        for earlier in dated(self.history, entry.purpose, entry.run, time.time()):
            self.history.add(earlier)
        self.history.add(entry)
        return upload

    def reveal(self, ask: bytes) -> bytes:
        answer, entries = client.reveal(self.session, self.history, self.terms, ask, self.identity.sign, time.time())
        for entry in entries:
            self.history.add(entry)
        return answer


@dataclass
class Federation:
    """A roster that has been set up, with the coordinator's signer."""

    authority: Authority
    sign: Signer
    upload_keys: tuple[bytes, ...]
    roster: Roster
    institutions: list[Institution]

    @property
    def now(self) -> float:
        return self.authority.now.timestamp()

    def open(
        self,
        number: int,
        model: Vector,
        *,
        attempt: int = 1,
        cohort: Collection[int] | None = None,
        metrics: int = 0,
        purpose: Purpose = Purpose.TRAIN,
    ) -> Round:
        members = sorted(range(len(self.institutions)) if cohort is None else cohort)
        return open_round(
            self.roster,
            self.sign,
            self.upload_keys,
            number=number,
            attempt=attempt,
            purpose=purpose,
            cohort=members,
            size=model.size,
            metrics=metrics,
            model=hash_vector(model),
            task=TASK,
            subject=SUBJECT,
        )

    def upload(
        self, round_: Round, index: int, model: Vector, update: Vector, weight: int, metrics: Sequence[float] = ()
    ) -> Upload:
        """Institution `index` answers M1 with M2; the coordinator has not taken it yet."""
        institution = self.institutions[index]
        permit = institution.begin(round_.begin_bytes, hash_vector(model), self.now)
        return institution.mask(permit, update, weight, metrics)

    def run(
        self,
        number: int,
        model: Vector,
        updates: Mapping[int, Vector],
        weights: Mapping[int, int],
        metrics: Mapping[int, Sequence[float]] | None = None,
        *,
        lost_before_upload: Collection[int] = (),
        lost_after_upload: Collection[int] = (),
    ) -> Aggregate | None:
        """One round; None if too few holders were left to unmask."""
        cohort = sorted(updates)
        width = len(metrics[cohort[0]]) if metrics else 0
        round_ = self.open(number, model, cohort=cohort, metrics=width)
        for index in cohort:
            if index not in lost_before_upload:
                upload = self.upload(
                    round_, index, model, updates[index], weights[index], metrics[index] if metrics else ()
                )
                round_.take(upload.message, upload.payload)
        gone = {*lost_before_upload, *lost_after_upload}
        for holder, ask in round_.ask().items():
            if holder not in gone:
                round_.answer(self.institutions[holder].reveal(ask))
        return round_.solve()


def make_offer(
    authority: Authority,
    certificate: bytes,
    *,
    bits: int = 32,
    clip: float = 1.0,
    max_weight: int = 1000,
    min_cohort: int = 3,
    epoch: int = 1,
    run: bytes | None = None,
) -> wire.Offer:
    """An offer with test parameters, unsigned and without the coordinator's key, which `establish` makes."""
    return wire.Offer(
        b"", run or os.urandom(wire.RUN_BYTES), epoch, CONFIG, bits, clip, max_weight, 24, min_cohort, 2**40 - 1, 64,
        int(authority.now.timestamp()) + 3600, bytes(32), certificate,
    )  # fmt: skip


def found(
    count: int,
    *,
    bits: int = 32,
    clip: float = 1.0,
    max_weight: int = 1000,
    min_cohort: int = 3,
    terms: Terms | None = None,
    post_quantum: bool = True,
) -> Federation:
    """`count` certified institutions that have finished the setup."""
    authority = Authority()
    identities = [authority.institution(f"hospital-{index:03d}") for index in range(count)]
    certificate, sign = authority.certify(certificates.ServerNames(("agency.test",)))
    offer = make_offer(authority, certificate, bits=bits, clip=clip, max_weight=max_weight, min_cohort=min_cohort)
    accepted = terms or Terms(
        min_cohort=min_cohort, colluders=min(1, min_cohort - LEAST_COHORT), max_size=2**40, post_quantum=post_quantum,
        differencing=RECORD,
    )  # fmt: skip
    return establish(authority, sign, offer, identities, accepted, post_quantum=post_quantum)


def establish(
    authority: Authority,
    sign: Signer,
    offer: wire.Offer,
    identities: Sequence[Identity],
    terms: Terms,
    histories: Sequence[History] | None = None,
    *,
    post_quantum: bool = True,
) -> Federation:
    """The setup, message by message."""
    secret = generate(os.urandom, post_quantum=False)
    offer = replace(offer, exchange=secret.exchange_public)
    now, journals = authority.now.timestamp(), list(histories or [History() for _ in identities])
    message = setup.make_offer(offer, sign)
    joinings = [
        setup.join(message, identity, terms, history, now, os.urandom, config=CONFIG, post_quantum=post_quantum)
        for identity, history in zip(identities, journals, strict=True)
    ]
    roster, listing = setup.gather(message, [ad for _, ad in joinings], authority.peers(), now)
    pairings, capsules = [], {}
    for (joining, _), identity in zip(joinings, identities, strict=True):
        pairing, reply = setup.encapsulate(joining, listing, identity, terms, now)
        pairings.append(pairing)
        capsules[pairing.index] = reply
    routed, confirmations = setup.route_capsules(roster, capsules), {}
    for position, pairing in enumerate(pairings):
        pairings[position], confirmations[pairing.index] = setup.confirm(pairing, routed[pairing.index])
    confirmed = setup.route_confirmations(roster, confirmations)
    institutions = []
    for pairing, identity, history in zip(pairings, identities, journals, strict=True):
        session, entry = setup.finish(pairing, confirmed[pairing.index], os.urandom)
        history.add(entry)
        institutions.append(Institution(identity, terms, history, session))
    institutions.sort(key=lambda institution: institution.index)
    return Federation(authority, sign, setup.upload_keys(roster, secret), roster, institutions)


def random_updates(count: int, size: int, seed: int = 0, scale: float = 0.01) -> dict[int, Vector]:
    """Normal updates of standard deviation `scale`, one per institution; test data only."""
    generator = np.random.default_rng(seed)
    return {index: (scale * generator.standard_normal(size)).astype(np.float32) for index in range(count)}
