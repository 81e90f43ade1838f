"""Renewals that nobody signs by hand: what the authority takes without asking, and what it never does."""

from __future__ import annotations

import base64
import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from sovfed.federation.certificates import InstitutionNames, create_csr, create_key, key_fingerprint, to_der, to_pem
from sovfed.federation.errors import IdentityError
from sovfed.federation.identity import Trust, parse_certificate
from sovfed.federation.renewal import Renewal, check_renewal, endorse, is_due, make_renewal, read_renewal
from sovfed.federation.revocation import crl_number, load_crl
from sovfed.server.registry import authority
from sovfed.server.registry.tending import CERTIFICATES, exchange_folder, tend

DAY = timedelta(days=1)
NOW = datetime.now(UTC)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    authority.init(tmp_path / "authority", "Ministry of Health")
    return tmp_path / "authority"


def request(key: ec.EllipticCurvePrivateKey, name: str = "hospital-1", digest: str = "ab" * 32) -> bytes:
    return to_pem(create_csr(key, InstitutionNames(name, digest)))


def renewal(
    certificate: bytes, old: ec.EllipticCurvePrivateKey, new: ec.EllipticCurvePrivateKey | None = None
) -> Renewal:
    csr = request(new or old)
    return make_renewal(csr, certificate, endorse(old, csr))


def test_the_key_that_is_certified_renews_itself_and_brings_another(home: Path) -> None:
    first, second = create_key(), create_key()
    certificate = authority.sign(home, request(first))
    again = authority.sign_renewal(home, renewal(certificate, first), now=NOW + 16 * DAY)
    rolled = authority.sign_renewal(home, renewal(again, first, second), now=NOW + 32 * DAY)
    for pem, key in ((again, first), (rolled, second)):
        parsed = parse_certificate(pem, "renewed")
        assert parsed.public_key() == key.public_key()
        assert parsed.not_valid_after_utc - parsed.not_valid_before_utc < 31 * DAY
    authority.refresh_crl(home)
    assert Trust(home, lambda: NOW + 33 * DAY - 4 * DAY).root == Trust(home).root
    register = authority.read_register(home)
    assert authority.key_age(register, key_fingerprint(first.public_key()), NOW + 40 * DAY).days in (39, 40)
    assert authority.key_age(register, key_fingerprint(second.public_key()), NOW + 40 * DAY).days == 8


def test_no_key_is_certified_for_longer_than_a_year(home: Path) -> None:
    key, pem, when = create_key(), b"", NOW
    pem = authority.sign(home, request(key), now=when)
    while when < NOW + 360 * DAY:
        when += 20 * DAY
        pem = authority.sign_renewal(home, renewal(pem, key), now=when)
    with pytest.raises(IdentityError, match=r"36[6-9] days old.*--new-key|3[78]\d days old.*--new-key"):
        authority.sign_renewal(home, renewal(pem, key), now=NOW + 367 * DAY)
    assert authority.sign_renewal(home, renewal(pem, key, create_key()), now=NOW + 367 * DAY)


def test_what_the_key_did_not_endorse_is_not_signed(home: Path) -> None:
    key, thief = create_key(), create_key()
    certificate = authority.sign(home, request(key))
    csr = request(thief)
    with pytest.raises(IdentityError, match="not endorsed"):
        make_renewal(csr, certificate, endorse(thief, csr))
    for other in (request(key, "hospital-2"), request(key, digest="cd" * 32)):
        endorsement = endorse(key, other)
        with pytest.raises(IdentityError, match="other names"):
            make_renewal(other, certificate, endorsement)
    good = renewal(certificate, key)
    forged = Renewal(csr.decode(), good.certificate, good.endorsement)
    for function in (check_renewal, lambda wrong: authority.sign_renewal(home, wrong)):
        with pytest.raises(IdentityError, match="not endorsed"):
            function(forged)
    for junk in (b"", b"[]", b"{}", b"x" * 40_000):
        with pytest.raises(IdentityError):
            read_renewal(junk)


def test_a_certificate_that_is_revoked_expired_or_of_another_authority_renews_nothing(
    home: Path, tmp_path: Path
) -> None:
    key = create_key()
    certificate = authority.sign(home, request(key))
    with pytest.raises(IdentityError, match="revoked, expired"):
        authority.sign_renewal(home, renewal(certificate, key), now=NOW + 31 * DAY)
    authority.init(tmp_path / "other", "Ministry of Health")
    with pytest.raises(IdentityError, match="not signed here"):
        authority.sign_renewal(tmp_path / "other", renewal(certificate, key))
    authority.revoke(home, "hospital-1")
    with pytest.raises(IdentityError, match="revoked, expired"):
        authority.sign_renewal(home, renewal(certificate, key))


def test_a_folder_is_tended(home: Path, tmp_path: Path) -> None:
    agency = tmp_path / "agency"
    (agency / "registry" / "requests").mkdir(parents=True)
    key, forger = create_key(), create_key()
    certificate = authority.sign(home, request(key))
    waiting = agency / "registry" / "requests"
    good = renewal(certificate, key)
    (waiting / "hospital-1.renewal").write_bytes(good.to_json())
    (waiting / "hospital-2.csr").write_bytes(request(create_key(), "hospital-2"))
    forged = Renewal(request(forger).decode(), good.certificate, good.endorsement)
    (waiting / "hospital-3.renewal").write_bytes(forged.to_json())
    folder = exchange_folder(agency)
    number = crl_number(load_crl(home / "crl.pem"))
    assert tend(home, folder) == ["renewed hospital-1"]
    assert tend(home, folder) == [], "the agency has not taken it in yet"
    assert [path.name for path in (folder / CERTIFICATES).iterdir()] == ["hospital-1.pem"]
    signed = (folder / CERTIFICATES / "hospital-1.pem").read_bytes()
    assert Trust(home).verify(to_der(parse_certificate(signed, "signed"))).institution == "hospital-1"
    authority.refresh_crl(home, days=1, now=NOW - timedelta(hours=13))
    assert tend(home, folder) == ["signed a new revocation list"]
    assert crl_number(load_crl(home / "crl.pem")) == number + 2


def test_a_request_that_is_kept_and_shown_again_gets_no_further_certificate(home: Path) -> None:
    """An agency that carries it may keep it; else it fills the authority's register and disk."""
    key, new = create_key(), create_key()
    certificate = authority.sign(home, request(key))
    for kept in (renewal(certificate, key), renewal(certificate, key, new)):
        first = authority.sign_renewal(home, kept, now=NOW + 10 * DAY)
        assert {authority.sign_renewal(home, kept, now=NOW + day * DAY) for day in (11, 12)} == {first}
    assert len(authority.read_register(home).issued) == 3
    assert authority.sign_renewal(home, kept, now=NOW + 28 * DAY) != first, "half of its life is over"


def test_a_key_that_was_revoked_is_certified_by_no_earlier_request(home: Path) -> None:
    """The agency has kept what the former key endorsed; whoever has the revoked one would be in again."""
    first, stolen = create_key(), create_key()
    certificate = authority.sign(home, request(first))
    kept = renewal(certificate, first, stolen)
    rolled = authority.sign_renewal(home, kept)
    later = authority.sign_renewal(home, renewal(rolled, stolen), now=NOW + 16 * DAY)
    authority.revoke(home, f"{parse_certificate(rolled, 'rolled').serial_number:x}", now=NOW + 17 * DAY)
    by_the_thief = renewal(later, stolen, create_key())
    for replayed in (kept, renewal(certificate, first, stolen), renewal(later, stolen), by_the_thief):
        with pytest.raises(IdentityError, match="revoked"):
            authority.sign_renewal(home, replayed, now=NOW + 18 * DAY)
    assert authority.sign_renewal(home, renewal(certificate, first, create_key()), now=NOW + 18 * DAY)


def _lay_a_pipe(path: Path) -> None:
    os.mkfifo(path)


def _lay_what_is_nested(path: Path) -> None:
    path.write_bytes(b"[" * 30_000)


def _lay_a_certificate_of_nobody(path: Path) -> None:
    """Without alternative names, as `openssl req -x509` makes one."""
    key, name = create_key(), x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "hospital-1")])
    made = x509.CertificateBuilder(name, name, key.public_key(), 5, NOW, NOW + DAY).sign(key, hashes.SHA256())
    csr = request(key)
    shown = Renewal(csr.decode(), to_pem(made).decode(), base64.b64encode(endorse(key, csr)).decode())
    path.write_bytes(shown.to_json())


@pytest.mark.parametrize("name", ["a.renewal", "\x1b[2Jb.renewal", "a b\n.renewal", "..renewal"])
@pytest.mark.parametrize(
    "lay",
    [
        _lay_a_pipe,
        _lay_what_is_nested,
        _lay_a_certificate_of_nobody,
        lambda path: path.symlink_to("/dev/zero"),
        lambda path: path.mkdir(),
    ],
)
def test_whatever_the_agency_lays_down_the_list_and_the_others_are_signed(
    home: Path, tmp_path: Path, name: str, lay: Callable[[Path], None]
) -> None:
    folder, key = tmp_path / "registry", create_key()
    for part in ("requests", CERTIFICATES):
        (folder / part).mkdir(parents=True, mode=0o700)
    lay(folder / "requests" / name)
    lay(folder / CERTIFICATES / "handover.json")
    good = renewal(authority.sign(home, request(key)), key).to_json()
    (folder / "requests" / "hospital-1.renewal").write_bytes(good)
    (folder / "requests" / "\x1b[31m.renewal").write_bytes(good)
    authority.refresh_crl(home, days=1, now=NOW - timedelta(hours=13))
    assert {"signed a new revocation list", "renewed hospital-1"} <= set(done := tend(home, folder))
    assert all(line.isprintable() for line in done)
    assert {path.name for path in (folder / CERTIFICATES).glob("*.pem")} == {"hospital-1.pem"}


def test_what_is_signed_is_written_through_no_link_that_came_with_the_folder(home: Path, tmp_path: Path) -> None:
    folder, key = tmp_path / "registry", create_key()
    (folder / "requests").mkdir(parents=True)
    (folder / CERTIFICATES).symlink_to(home / "issued")
    before = authority.sign(home, request(key))
    (folder / "requests" / "next.renewal").write_bytes(renewal(before, key).to_json())
    authority.refresh_crl(home, days=1, now=NOW - timedelta(hours=13))
    assert tend(home, folder) == ["signed a new revocation list"]
    assert not (home / "issued" / "next.pem").exists()


def test_half_of_a_life(home: Path) -> None:
    certificate = parse_certificate(authority.sign(home, request(create_key()), days=30), "new")
    assert not is_due(certificate, NOW + 14 * DAY)
    assert is_due(certificate, NOW + 16 * DAY)
