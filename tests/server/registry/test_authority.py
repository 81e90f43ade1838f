"""The authority: what it signs, what it refuses, and that whatever it signed can be revoked."""

from __future__ import annotations

import json
import stat
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from sovfed.federation.certificates import (
    InstitutionNames,
    ServerNames,
    create_csr,
    create_key,
    key_fingerprint,
    to_der,
    to_pem,
)
from sovfed.federation.errors import IdentityError
from sovfed.federation.files import write_atomic
from sovfed.federation.identity import Trust, parse_certificate, verify_server
from sovfed.server.cli.authority import cli
from sovfed.server.registry import authority


@pytest.fixture
def home(tmp_path: Path) -> Path:
    authority.init(tmp_path / "authority", "Ministry of Health")
    return tmp_path / "authority"


def request(name: str = "hospital-1", key: ec.EllipticCurvePrivateKey | None = None) -> bytes:
    return to_pem(create_csr(key or create_key(), InstitutionNames(name, "ab" * 32)))


def server_request() -> bytes:
    return to_pem(create_csr(create_key(), ServerNames(("agency.example", "127.0.0.1"))))


def der(pem: bytes) -> bytes:
    return to_der(parse_certificate(pem, "test"))


def test_what_it_signs_is_trusted(home: Path) -> None:
    assert Trust(home).verify(der(authority.sign(home, request()))).institution == "hospital-1"
    server = Trust(home).verify_server(der(authority.sign(home, server_request(), server=True)))
    assert server.hosts == ("agency.example", "127.0.0.1")


def test_its_files_are_private(home: Path) -> None:
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (home, *home.iterdir())}
    assert (modes["authority"], modes["root.key"], modes["authority.json"]) == (0o700, 0o600, 0o600)


def test_a_root_key_that_others_can_read_is_not_used(home: Path) -> None:
    (home / "root.key").chmod(0o644)
    with pytest.raises(IdentityError, match="expected 0600"):
        authority.sign(home, request())


def test_an_authority_is_never_overwritten(home: Path) -> None:
    before = (home / "root.key").read_bytes()
    with pytest.raises(IdentityError, match="already holds an authority"):
        authority.init(home, "again")
    assert (home / "root.key").read_bytes() == before


def test_the_kind_must_be_the_one_that_was_meant(home: Path) -> None:
    with pytest.raises(IdentityError, match="expected server's"):
        authority.sign(home, request(), server=True)
    with pytest.raises(IdentityError, match="expected institution's"):
        authority.sign(home, server_request())


def test_a_second_key_for_a_name_waits_for_the_revocation_of_the_first(home: Path) -> None:
    key = create_key()
    authority.sign(home, request(key=key))
    assert authority.sign(home, request(key=key)), "the same key again is a renewal"
    with pytest.raises(IdentityError, match="revoke that one first"):
        authority.sign(home, request())
    authority.revoke(home, "hospital-1")
    assert authority.sign(home, request())


def test_an_expired_certificate_does_not_hold_its_name(home: Path) -> None:
    past = datetime.now(UTC) - timedelta(days=60)
    authority.sign(home, request(), days=30, now=past)
    assert authority.sign(home, request())


def test_revoking_a_name_revokes_all_its_certificates_and_no_others(home: Path) -> None:
    key = create_key()
    first, second = authority.sign(home, request(key=key)), authority.sign(home, request(key=key))
    other = authority.sign(home, request("hospital-2"))
    trust = Trust(home)
    for pem in (first, second, other):
        trust.verify(der(pem))
    crl = authority.revoke(home, "hospital-1")
    assert crl == (home / "crl.pem").read_bytes()
    for pem in (first, second):
        with pytest.raises(IdentityError, match="revoked"):
            trust.verify(der(pem))
    assert trust.verify(der(other)).institution == "hospital-2"


def test_one_serial_can_be_revoked_alone(home: Path) -> None:
    key = create_key()
    first, second = authority.sign(home, request(key=key)), authority.sign(home, request(key=key))
    authority.revoke(home, f"{parse_certificate(first, 'first').serial_number:x}")
    with pytest.raises(IdentityError, match="revoked"):
        Trust(home).verify(der(first))
    assert Trust(home).verify(der(second)).institution == "hospital-1"


def test_a_server_is_revoked_too(home: Path) -> None:
    server = authority.sign(home, server_request(), server=True)
    authority.revoke(home, "agency.example", "server")
    with pytest.raises(IdentityError, match="revoked"):
        Trust(home).verify_server(der(server))


def test_an_unknown_name_cannot_be_revoked(home: Path) -> None:
    authority.sign(home, request())
    with pytest.raises(IdentityError, match="issued: hospital-1"):
        authority.revoke(home, "hospital-9")


def test_a_revocation_stays_in_every_later_list(home: Path) -> None:
    pem = authority.sign(home, request())
    authority.revoke(home, "hospital-1")
    when = authority.read_register(home).issued[0].revoked
    authority.revoke(home, "hospital-1")
    assert authority.read_register(home).issued[0].revoked == when
    later = datetime.now(UTC) + timedelta(days=20)
    number = authority.read_register(home).crl_number
    crl = x509.load_pem_x509_crl(authority.refresh_crl(home, now=later))
    assert crl.get_revoked_certificate_by_serial_number(parse_certificate(pem, "").serial_number) is not None
    assert crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number == number + 1
    assert crl.next_update_utc == later.replace(microsecond=0) + timedelta(days=authority.CRL_DAYS)


def test_a_passphrase_is_needed_from_then_on(tmp_path: Path) -> None:
    home = tmp_path / "authority"
    authority.init(home, "Ministry", passphrase=b"correct horse")
    assert b"ENCRYPTED" in (home / "root.key").read_bytes()
    for wrong in (None, b"wrong"):
        with pytest.raises(IdentityError, match="passphrase"):
            authority.sign(home, request(), passphrase=wrong)
    assert authority.read_register(home).issued == ()
    assert authority.sign(home, request(), passphrase=b"correct horse")


def test_signers_at_the_same_time_lose_nothing(home: Path) -> None:
    requests = [request(f"hospital-{number}") for number in range(12)]
    with ThreadPoolExecutor(6) as pool:
        certificates = list(pool.map(lambda pem: authority.sign(home, pem), requests))
    serials = {f"{parse_certificate(pem, '').serial_number:x}" for pem in certificates}
    assert {issued.serial for issued in authority.read_register(home).issued} == serials
    assert {path.stem for path in (home / "issued").iterdir()} == serials


def test_a_folder_without_an_authority_is_named(tmp_path: Path) -> None:
    with pytest.raises(IdentityError, match="no authority here"):
        authority.sign(tmp_path / "nowhere", request())


def run(*arguments: str, typed: str = "") -> tuple[int, str]:
    result = CliRunner().invoke(cli, list(arguments), input=typed)
    text = result.output + (str(result.exception) if result.exception else "")
    return result.exit_code, text


def test_the_commands_do_the_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOVFED_AUTHORITY_PASSPHRASE", "correct horse")
    home, csr, out = tmp_path / "a", tmp_path / "h.csr", tmp_path / "h.pem"
    key = create_key()
    write_atomic(csr, request(key=key))
    code, text = run("init", "--home", str(home), "--name", "Ministry")
    root = parse_certificate((home / "root.pem").read_bytes(), "root")
    assert (code, Trust(home).root) == (0, root)
    code, text = run("sign", str(csr), "--home", str(home), "--out", str(out), typed="n\n")
    assert code != 0
    assert not out.exists()
    assert key_fingerprint(key.public_key()) in text
    code, text = run("sign", str(csr), "--home", str(home), "--out", str(out), typed="y\n")
    assert (code, Trust(home).verify(der(out.read_bytes())).institution) == (0, "hospital-1")
    assert run("crl", "--home", str(home), "--days", "9")[0] == 0
    shown = json.loads(run("show", "--home", str(home), "--json")[1])
    assert [issued["name"] for issued in shown["issued"]] == ["hospital-1"]
    assert run("revoke", "hospital-1", "--home", str(home))[0] == 0
    assert "revoked" in run("show", "--home", str(home))[1]
    with pytest.raises(IdentityError, match="revoked"):
        Trust(home).verify(der(out.read_bytes()))


def test_the_folder_of_a_new_authority_may_be_named_by_itself_but_not_twice(tmp_path: Path) -> None:
    one, other = str(tmp_path / "one"), str(tmp_path / "other")
    code, text = run("init", one, "--home", other, "--name", "Ministry")
    assert code == 2 and "two folders" in text and list(tmp_path.iterdir()) == []
    assert run("init", one, "--name", "Ministry")[0] == 0 and (tmp_path / "one" / "root.key").exists()
    assert run("init", other, "--home", other, "--name", "Ministry")[0] == 0


def test_a_server_request_needs_the_server_flag(tmp_path: Path, home: Path) -> None:
    csr, out = tmp_path / "s.csr", tmp_path / "s.pem"
    write_atomic(csr, server_request())
    arguments = ("sign", str(csr), "--home", str(home), "--out", str(out), "--yes")
    assert run(*arguments)[0] != 0
    assert not out.exists()
    assert run(*arguments, "--server")[0] == 0
    trust = Trust(home)
    found = verify_server(der(out.read_bytes()), trust.root, trust.crl, datetime.now(UTC))
    assert found.hosts == ("agency.example", "127.0.0.1")
