"""While one root of the authority takes over from another, a release may bear signatures under both."""

from __future__ import annotations

import base64
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from tests.lane_fixture import Authority

from sovfed.federation.certificates import InstitutionNames, ServerNames, to_der
from sovfed.federation.errors import IdentityError
from sovfed.federation.identity import load_roots, parse_certificate, verify_lapsed, verify_peer
from sovfed.federation.release import sealed
from sovfed.federation.release.checking import signers
from sovfed.federation.revocation import load_crl


def test_each_signature_is_held_to_the_list_of_its_own_root(tmp_path: Path) -> None:
    """Seen by reading: an institution that had renewed under the new root spoilt every release."""
    now = datetime.now(UTC)
    former, following = Authority(now), Authority(now)
    agency, hospital = tmp_path / "agency", tmp_path / "hospital"
    former.write(agency, ServerNames(("agency.example",)))
    certificate = following.write(hospital, InstitutionNames("hospital-1", "ab" * 32))
    envelope = sealed.Envelope(b"{}", tuple(sealed.sign(b"{}", home) for home in (agency, hospital)))
    both = tmp_path / "roots.pem"
    both.write_bytes(b"".join((home / "identity" / "root.pem").read_bytes() for home in (hospital, agency)))
    roots, lists = load_roots(both), [(home / "identity" / "crl.pem").read_bytes() for home in (agency, hospital)]

    assert signers(envelope, roots, b"".join(lists)) == (("agency.example",), ("hospital-1",))
    assert signers(envelope, roots, b"".join(lists[::-1])) == (("agency.example",), ("hospital-1",))
    for one in lists:
        with pytest.raises(IdentityError, match="no revocation list of the authority that certified"):
            signers(envelope, roots, one)
    following.now += timedelta(minutes=1)
    following.revoke(hospital, certificate.serial_number)
    with pytest.raises(IdentityError, match="hospital-1 was revoked"):
        signers(envelope, roots, lists[0] + (hospital / "identity" / "crl.pem").read_bytes())
    with pytest.raises(IdentityError, match="hospital-1 was revoked"):  # of two of one root the newest, in any order
        signers(envelope, roots, (hospital / "identity" / "crl.pem").read_bytes() + lists[0] + lists[1])


def test_a_certificate_of_a_version_that_there_is_not_is_refused_in_plain_words(tmp_path: Path) -> None:
    """Seen by chance: such a one in a release, by one bit turned, ended `sovfed verify` with a traceback."""
    authority = Authority(datetime.now(UTC))
    der = to_der(authority.write(tmp_path, InstitutionNames("h1", "ab" * 32)))
    roots, crl = load_roots(tmp_path / "identity" / "root.pem"), load_crl(tmp_path / "identity" / "crl.pem")
    odd = der.replace(bytes.fromhex("a003020102"), bytes.fromhex("a00302010a"), 1)
    pem = b"-----BEGIN CERTIFICATE-----\n" + base64.encodebytes(odd) + b"-----END CERTIFICATE-----\n"

    for refused in (lambda: verify_lapsed(odd, roots), lambda: verify_lapsed(odd, roots * 2),
                    lambda: parse_certificate(pem, "here"), sealed.Envelope(b"{}", (sealed.Signed(b"", odd),)).to_bytes,
                    lambda: verify_peer(odd, roots[0], crl, authority.now)):  # fmt: skip
        with pytest.raises(IdentityError):
            refused()
