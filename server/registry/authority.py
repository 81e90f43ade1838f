"""The certificate authority: a role of its own, on another machine or offline, never the aggregation server's key.

Its home (0700) holds root.key (0600, PKCS#8, optionally under a passphrase), root.pem, crl.pem, issued/ and
authority.json, the register of everything it has signed. A certificate is in the register before it is handed out, so
whatever exists can be revoked. The authority must compare the key fingerprint with the institution itself: the
agency, which carries the requests, is the one that could swap a key.
"""

from __future__ import annotations

import contextlib
import json
import os
import typing
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, Literal, TypeAlias

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from sovfed.federation.certificates import (
    Names,
    ServerNames,
    SignerNames,
    check_csr,
    create_root,
    key_fingerprint,
    key_from_pem,
    key_to_pem,
    make_crl,
    sign_csr,
    to_pem,
)
from sovfed.federation.errors import IdentityError
from sovfed.federation.files import alone, private_directory, read_bounded, read_private, write_atomic, write_private
from sovfed.federation.identity import load_certificate, parse_certificate
from sovfed.federation.renewal import MAX_KEY_DAYS, Renewal, check_renewal, is_due, names_of
from sovfed.federation.roots import FILE as HANDOVER
from sovfed.federation.roots import Handover, make_handover, read_handover
from sovfed.federation.schema import bind, bounded, choice

Kind: TypeAlias = Literal["institution", "server", "signer"]
KINDS: Final = typing.get_args(Kind)
LEAF_DAYS: Final = 30  # institutions and servers renew by themselves; a person who signs tasks does not
SIGNER_DAYS: Final = 365
CRL_DAYS: Final = 30
REGISTER: Final = "authority.json"
OVERLAP_DAYS: Final = 90  # of two roots: thrice the life of a certificate
SOONER, LATER = 0.1, 0.5  # of the overlap: from when on the new root signs renewals of institutions, and all else
FORMER, FORMER_KEY, NEXT_KEY = "former.pem", "former.key", "next.key"


@dataclass(frozen=True)
class Issued:
    """One certificate in the register; `name` is the institution's, the server's first one, or the signer's person."""

    serial: str = bounded(low=1, high=40, doc="hexadecimal")
    name: str = bounded(low=1, high=253)
    key: str = bounded(low=64, high=64, doc="fingerprint of the public key")
    until: str = bounded(low=1, high=40, doc="end of validity, ISO 8601")
    kind: str = choice("institution", KINDS)
    revoked: str | None = bounded(None, 1, 40, doc="when, ISO 8601")
    at: str = bounded("", 0, 40, doc="when it was signed, ISO 8601; empty for those of the first version")

    def valid(self, now: datetime) -> bool:
        """Whether the certificate is neither revoked nor expired."""
        return self.revoked is None and now < datetime.fromisoformat(self.until)

    def revoked_since(self, other: Issued) -> bool:
        """Whether this one was revoked after `other` was signed."""
        if self.revoked is None:
            return False
        return not other.at or datetime.fromisoformat(self.revoked) >= datetime.fromisoformat(other.at)


@dataclass(frozen=True)
class Register:
    """What the authority has done so far."""

    name: str = bounded(low=1, high=64)
    crl_number: int = bounded(0, 0)
    issued: tuple[Issued, ...] = field(default=())


def init(home: Path, name: str, *, passphrase: bytes | None = None, now: datetime | None = None) -> x509.Certificate:
    """Make an authority in `home`; its root certificate. Refuses a home that already has one."""
    now = now or datetime.now(UTC)
    private_directory(home)
    with _locked(home):
        if (home / "root.key").exists():
            raise IdentityError(f"{home}: already holds an authority; its key is never overwritten")
        key, root = create_root(name, now)
        (home / "issued").mkdir(mode=0o700, exist_ok=True)
        _write_register(home, Register(name, 1))
        write_atomic(home / "root.pem", to_pem(root))
        write_atomic(home / "crl.pem", to_pem(make_crl(key, root, [], 1, now, CRL_DAYS)))
        write_private(home / "root.key", key_to_pem(key, passphrase))  # last: its presence says that the rest is there
    return root


def sign(
    home: Path,
    csr_pem: bytes,
    *,
    server: bool = False,
    signer: bool = False,
    days: float | None = None,
    passphrase: bytes | None = None,
    now: datetime | None = None,
) -> bytes:
    """The certificate (PEM) for the request `csr_pem`: an institution's, with `server` the agency's, or a `signer`'s.

    Institutions and signers hold one key at a time: another one for the name is refused until the old certificate is
    revoked. So a person is in the register once, whatever organisations the person works for.
    The same key again is a renewal. Raises IdentityError.
    """
    now, days = now or datetime.now(UTC), days or (SIGNER_DAYS if signer else LEAF_DAYS)
    kind, name, fingerprint = describe(csr_pem)
    expected = "server" if server else "signer" if signer else "institution"
    if kind != expected:
        raise IdentityError(f"signing request of {name!r}: it is {kind}'s, expected {expected}'s")
    with _locked(home):
        register = read_register(home)
        for issued in register.issued:
            if not server and issued.kind == kind and issued.name == name and issued.valid(now):
                _check_renewal(issued, fingerprint)
        return _issue(home, register, csr_pem, days, passphrase, now, 0.0 if signer else LATER)


def sign_renewal(
    home: Path, renewal: Renewal, *, days: float = LEAF_DAYS, passphrase: bytes | None = None,
    now: datetime | None = None,
) -> bytes:  # fmt: skip
    """The certificate (PEM) for a request that the key of a certificate in force has endorsed: nobody need be asked.

    Asked again, as by an agency that keeps requests, it is the one signed then, until half of its life is over.
    Raises IdentityError unless that certificate is in the register, neither revoked nor expired, and the endorsement
    holds; if a certificate of either key was revoked since; and if the key to certify is older than a year, by what
    this authority signed for it before.
    """
    now = now or datetime.now(UTC)
    names, certificate = check_renewal(renewal)
    csr, serial = renewal.csr.encode(), f"{certificate.serial_number:x}"
    _, name, fingerprint = describe(csr)
    with _locked(home):
        register = read_register(home)
        record = next((issued for issued in register.issued if issued.serial == serial), None)
        if record is None or to_pem(certificate) != read_bounded(home / "issued" / f"{serial}.pem"):
            raise IdentityError(f"renewal of {name!r}: certificate {serial} was not signed here")
        if isinstance(names, SignerNames) or not record.valid(now):
            raise IdentityError(f"renewal of {name!r}: certificate {serial} is revoked, expired or a signer's")
        if any(issued.key in (record.key, fingerprint) and issued.revoked_since(record) for issued in register.issued):
            raise IdentityError(f"renewal of {name!r}: a certificate of its key was revoked; a person has to sign")
        if (pem := _signed_before(home, register, record, names, fingerprint, now)) is not None:
            return pem
        if (age := key_age(register, fingerprint, now)) > timedelta(days=MAX_KEY_DAYS):
            raise IdentityError(f"renewal of {name!r}: its key is {age.days} days old; `sovfed client renew --new-key`")
        share = LATER if isinstance(names, ServerNames) else SOONER
        return _issue(home, register, csr, days, passphrase, now, share)


def _signed_before(
    home: Path, register: Register, record: Issued, names: Names, fingerprint: str, now: datetime
) -> bytes | None:
    """The certificate that a renewal of `record` got before, while it is fresh."""
    for issued in reversed(register.issued[register.issued.index(record) + 1 :]):
        if (issued.kind, issued.name, issued.key) != (record.kind, record.name, fingerprint) or not issued.valid(now):
            continue
        pem = read_bounded(home / "issued" / f"{issued.serial}.pem")
        certificate = parse_certificate(pem, issued.serial)
        if not is_due(certificate, now) and names_of(certificate) == names:
            return pem
    return None


def key_age(register: Register, fingerprint: str, now: datetime) -> timedelta:
    """For how long the authority has been certifying the key; nothing for one that it has not seen."""
    dates = [datetime.fromisoformat(issued.at) for issued in register.issued if issued.key == fingerprint and issued.at]
    return max(now - min(dates, default=now), timedelta(0))


def _issue(
    home: Path, register: Register, csr_pem: bytes, days: float, passphrase: bytes | None, now: datetime, share: float
) -> bytes:
    """The certificate for a request that has been judged; by the former root until `share` of a rotation is over."""
    kind, name, fingerprint = describe(csr_pem)
    key, root, end = _signing_pair(home, share, passphrase, now)
    days = min(days, (end - now) / timedelta(days=1)) if end is not None else days
    certificate = sign_csr(key, root, csr_pem, now, days)
    serial = f"{certificate.serial_number:x}"
    until, at = certificate.not_valid_after_utc.isoformat(), now.isoformat(timespec="seconds")
    record = Issued(serial, name, fingerprint, until, kind, None, at)
    pem = to_pem(certificate)
    _write_register(home, replace(register, issued=(*register.issued, record)))
    write_atomic(home / "issued" / f"{serial}.pem", pem)
    return pem


def revoke(
    home: Path,
    target: str,
    kind: Kind | None = None,
    *,
    passphrase: bytes | None = None,
    now: datetime | None = None,
) -> bytes:
    """Revoke every certificate of the name, or the one of the serial, `target`; the new revocation list (PEM).

    Raises IdentityError if there is no such certificate. Repeating a revocation changes nothing.
    """
    now = now or datetime.now(UTC)
    with _locked(home):
        register = read_register(home)
        hit = [
            record
            for record in register.issued
            if target in (record.name, record.serial) and kind in (None, record.kind)
        ]
        if not hit:
            issued_names = ", ".join(sorted({record.name for record in register.issued})) or "none"
            raise IdentityError(
                f"revoke {target[:80]!r}: no certificate of that name or serial (issued: {issued_names})"
            )
        serials = {record.serial for record in hit}
        issued = tuple(
            replace(record, revoked=record.revoked or now.isoformat()) if record.serial in serials else record
            for record in register.issued
        )
        return _publish(home, replace(register, issued=issued), passphrase, now, CRL_DAYS)


def refresh_crl(
    home: Path, *, days: int = CRL_DAYS, passphrase: bytes | None = None, now: datetime | None = None
) -> bytes:
    """The revocation list (PEM) signed again, good for `days` from now. Without a fresh one nobody is trusted."""
    with _locked(home):
        return _publish(home, read_register(home), passphrase, now or datetime.now(UTC), days)


def rotate(
    home: Path, *, overlap: timedelta = timedelta(days=OVERLAP_DAYS), passphrase: bytes | None = None,
    now: datetime | None = None,
) -> x509.Certificate:  # fmt: skip
    """A new root, that takes over from the present one in the course of `overlap`, while both are trusted.

    The old root vouches for the new (`handover.json`), so that agency and institutions take it up by themselves.
    Raises IdentityError while an earlier overlap lasts.
    """
    now = now or datetime.now(UTC)
    with _locked(home):
        register, former = read_register(home), load_certificate(home / "root.pem")
        if (earlier := _handover(home)) is not None and now < earlier.ends:
            raise IdentityError(f"{home}: the last rotation lasts until {earlier.ends:%F}; two at once are not trusted")
        if overlap <= timedelta(0):
            raise IdentityError(f"overlap of {overlap}: expected more than nothing")
        former_key = _root_key(home, passphrase)
        key, root = create_root(register.name, now)
        handover = make_handover(former_key, former, root, now, now + overlap)
        write_private(home / FORMER_KEY, key_to_pem(former_key, passphrase))
        write_atomic(home / FORMER, to_pem(former))
        write_private(home / NEXT_KEY, key_to_pem(key, passphrase))
        write_atomic(home / HANDOVER, handover.to_json())  # from here on it has happened
        _complete(home)
        _publish(home, register, passphrase, now, CRL_DAYS)
    return root


def _complete(home: Path) -> None:
    """Put the root that a handover names in place, also after an interruption."""
    handover = _handover(home)
    if handover is not None and (home / NEXT_KEY).exists():
        write_atomic(home / "root.pem", handover.root.encode())
        (home / NEXT_KEY).replace(home / "root.key")


def _handover(home: Path) -> Handover | None:
    path = home / HANDOVER
    return read_handover(read_bounded(path)) if path.exists() else None


def _signing_pair(
    home: Path, until_share: float, passphrase: bytes | None, now: datetime
) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate, datetime | None]:
    """Key and certificate of the root to sign with, and when what it signs ends at the latest.

    During a rotation it is the former one until `until_share` of the overlap is over: those who verify must know the
    new one before they meet it.
    """
    handover = _handover(home)
    if handover is not None and now < handover.ends and handover.share(now) < until_share:
        key = key_from_pem(read_private(home / FORMER_KEY), str(home / FORMER_KEY), passphrase)
        return key, load_certificate(home / FORMER), handover.ends
    return _root_key(home, passphrase), load_certificate(home / "root.pem"), None


def describe(csr_pem: bytes) -> tuple[Kind, str, str]:
    """Kind, name and key fingerprint of a request: what the authority confirms before signing."""
    names, key = check_csr(csr_pem)
    if isinstance(names, ServerNames):
        return "server", names.hosts[0], key_fingerprint(key)
    if isinstance(names, SignerNames):
        return "signer", names.person, key_fingerprint(key)
    return "institution", names.institution, key_fingerprint(key)


def organisation_of(csr_pem: bytes) -> str:
    """The words " of ORGANISATION" for a signer's request, "" for others."""
    names, _ = check_csr(csr_pem)
    return f" of {names.organisation}" if isinstance(names, SignerNames) else ""


def read_register(home: Path) -> Register:
    """The register in `home`; IdentityError if there is no authority."""
    try:
        values = json.loads((home / REGISTER).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise IdentityError(f"{home}: no authority here; `sovfed authority init --home {home}` makes one") from error
    return bind(Register, values, REGISTER, IdentityError)


def _check_renewal(issued: Issued, fingerprint: str) -> None:
    if issued.key != fingerprint:
        raise IdentityError(
            f"{issued.kind} {issued.name!r}: key {fingerprint[:16]}… but certificate {issued.serial} is valid "
            f"for key {issued.key[:16]}…; revoke that one first if the key has really changed"
        )


def _publish(home: Path, register: Register, passphrase: bytes | None, now: datetime, days: int) -> bytes:
    """Write the register, then the revocation list that follows from it. A crash between is made good by the next."""
    number = register.crl_number + 1
    if days < 1:
        raise IdentityError(f"revocation list: good for {days} days, expected at least 1")
    key, root = _root_key(home, passphrase), load_certificate(home / "root.pem")
    former, former_root, end = _signing_pair(home, 1.0, passphrase, now)
    revoked = [
        (int(record.serial, 16), datetime.fromisoformat(record.revoked))
        for record in register.issued
        if record.revoked and now < datetime.fromisoformat(record.until) + timedelta(days=1)
    ]
    pem = to_pem(make_crl(key, root, revoked, number, now, days))
    if end is not None:  # a list for each root that is trusted
        pem += to_pem(make_crl(former, former_root, revoked, number, now, days))
    _write_register(home, replace(register, crl_number=number))
    write_atomic(home / "crl.pem", pem)
    return pem


def _root_key(home: Path, passphrase: bytes | None) -> ec.EllipticCurvePrivateKey:
    return key_from_pem(read_private(home / "root.key"), str(home / "root.key"), passphrase)


def _write_register(home: Path, register: Register) -> None:
    write_private(home / REGISTER, json.dumps(asdict(register), indent=2).encode() + b"\n")


@contextlib.contextmanager
def _locked(home: Path) -> Iterator[None]:
    """One signer at a time: the lock is the folder's own, and ends with the process."""
    if not (home.is_dir() and os.access(home, os.R_OK)):
        raise IdentityError(f"{home}: no authority here; `sovfed authority init --home {home}` makes one")
    with alone(home):
        _complete(home)
        yield
