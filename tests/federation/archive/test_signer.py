"""A person's key and certificate, for signing tasks and nothing else."""

from __future__ import annotations

import stat
from datetime import UTC, datetime
from pathlib import Path

import pytest

from sovfed.federation.archive.signer import SigningKey, create_signer, install_signer
from sovfed.federation.certificates import SignerNames, create_csr, create_key, to_pem
from sovfed.federation.errors import ConfigError, IdentityError
from sovfed.federation.identity import Trust
from sovfed.server.registry import authority


def test_a_signer_s_certificate_is_no_institution_s_and_no_server_s(
    authority_home: Path, publisher: SigningKey
) -> None:
    trust = Trust(authority_home)
    assert str(trust.verify_signer(publisher.certificate)) == "pat of vendor"
    for verify in (trust.verify, trust.verify_server):
        with pytest.raises(IdentityError, match="extended key usage"):
            verify(publisher.certificate)


def test_an_institution_s_request_is_not_signed_as_a_signer_s_nor_the_other_way(authority_home: Path) -> None:
    request = to_pem(create_csr(create_key(), SignerNames("ann", "north")))
    with pytest.raises(IdentityError, match="it is signer's, expected institution's"):
        authority.sign(authority_home, request)
    with pytest.raises(IdentityError, match="it is signer's, expected server's"):
        authority.sign(authority_home, request, server=True)


@pytest.mark.parametrize(("person", "organisation"), [("Ann", "north"), ("ann", ""), ("../ann", "north"), ("", "x")])
def test_names_are_plain(person: str, organisation: str) -> None:
    with pytest.raises(IdentityError, match="name"):
        create_csr(create_key(), SignerNames(person, organisation))


def test_the_key_is_private_and_is_not_written_over(authority_home: Path, tmp_path: Path) -> None:
    create_signer(tmp_path / "home", "zoe", "north")
    assert stat.S_IMODE((tmp_path / "home" / "key.pem").stat().st_mode) == 0o600
    with pytest.raises(ConfigError, match="already"):
        create_signer(tmp_path / "home", "zoe", "north")


def test_a_certificate_for_another_key_is_not_installed(authority_home: Path, tmp_path: Path) -> None:
    create_signer(tmp_path / "home", "tom", "north")
    request = to_pem(create_csr(create_key(), SignerNames("tom", "north")))
    certificate = authority.sign(authority_home, request, signer=True)
    root, crl = (authority_home / "root.pem").read_bytes(), (authority_home / "crl.pem").read_bytes()
    with pytest.raises(IdentityError, match="for another key"):
        install_signer(tmp_path / "home", certificate, root, crl, datetime.now(UTC))
