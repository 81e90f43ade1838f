"""A node's identity is kept fresh while everything runs: registry, authority and institution for real, lives short."""

from __future__ import annotations

import dataclasses
import os
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from tests.enrolment_fixture import Agency, make_agency

from sovfed.clients.home.folder import NEXT_CERTIFICATE
from sovfed.clients.node import renewal
from sovfed.clients.node.enrol import enrol
from sovfed.clients.node.renewal import (
    NEXT_KEY,
    complete,
    keep_fresh,
    last_contact,
    refresh_crl,
    renew_if_due,
)
from sovfed.federation.config import ServerConfig
from sovfed.federation.errors import IdentityError, ServiceError
from sovfed.federation.files import private_directory, write_atomic
from sovfed.federation.identity import install_crl, load_certificate, load_roots, read_pair
from sovfed.federation.renewal import KEY_DAYS
from sovfed.federation.roots import adopt, read_handover
from sovfed.federation.secagg.files import FollowingIdentity, FreshIdentity
from sovfed.federation.secagg.keys import check_signature, public_key
from sovfed.server.registry import authority
from sovfed.server.registry.tending import tend

SECONDS = 1 / 86_400  # in days


@pytest.fixture
def agency(tmp_path: Path) -> Iterator[Agency]:
    made = make_agency(tmp_path)
    with made.run():
        yield made


def enrolled(agency: Agency, home: Path, days: float) -> Path:
    """An institution whose certificate is good for `days`."""
    helper = threading.Thread(target=agency.certify, args=("hospital-1", days))
    helper.start()
    enrol(home, agency.invite("hospital-1"), 20)
    helper.join()
    return home


def until(done: Callable[[], bool], what: str, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


def serial(home: Path) -> int:
    return load_certificate(home / "identity" / "cert.pem").serial_number


def test_certificates_of_institution_and_server_are_renewed_and_nothing_restarts(
    agency: Agency, tmp_path: Path
) -> None:
    life = 60 * SECONDS
    home = enrolled(agency, tmp_path / "hospital", life)
    csr = authority.sign(agency.authority, _server_csr(agency), server=True, days=life)
    write_atomic(agency.home / "identity" / "cert.pem", csr)
    private_directory(home / "state")
    first = {place: serial(place) for place in (home, agency.home)}
    stop = threading.Event()

    def tending() -> None:
        while not stop.wait(0.3):
            tend(agency.authority, agency.home / "registry", days=life)

    threads = [threading.Thread(target=tending), threading.Thread(target=keep_fresh, args=(home, 0.5, stop))]
    for thread in threads:
        thread.start()
    try:
        until(lambda: all(serial(place) != first[place] for place in first), "a renewal of both")
        until(lambda: (contact := last_contact(home)) is not None and not contact.problem, "the last look went well")
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert len(agency.registered) == 1, "the node is not registered anew"
    assert not list((agency.home / "registry" / "requests").glob("hospital-1.*"))


def _server_csr(agency: Agency) -> bytes:
    from sovfed.federation.certificates import ServerNames, create_csr, key_from_pem, to_pem
    from sovfed.federation.files import read_private

    key = key_from_pem(read_private(agency.home / "identity" / "key.pem"), "key.pem")
    return to_pem(create_csr(key, ServerNames(("127.0.0.1", "localhost"))))


def test_an_old_key_gives_way_to_a_new_one_and_what_it_signed_stays_its_own(agency: Agency, tmp_path: Path) -> None:
    home = enrolled(agency, tmp_path / "hospital", 30)
    identity, fresh = home / "identity", FreshIdentity(home / "identity")
    following = FollowingIdentity(identity)
    before, key = fresh(), (home / "identity" / "key.pem").read_bytes()
    signature = before.sign(b"told head")
    assert renew_if_due(home) is None, "it is not due"
    old = (datetime.now(UTC) - timedelta(days=KEY_DAYS + 1)).timestamp()
    os.utime(identity / "key.pem", (old, old))
    later = datetime.now(UTC) + timedelta(days=16)
    assert renew_if_due(home, now=later) is None, "the authority has not signed"
    tend(agency.authority, agency.home / "registry", days=40)
    until(lambda: renew_if_due(home, now=later) is not None, "the renewal")
    after = fresh()
    assert (identity / "key.pem").read_bytes() != key
    assert not (identity / NEXT_KEY).exists() and not (identity / NEXT_CERTIFICATE).exists()
    assert (following.certificate, following.former) == (after.certificate, after.former)
    check_signature(public_key(after.certificate), b"m", following.sign(b"m"), "the key in place")
    assert after.former == (before.certificate,) and after.certificate != before.certificate
    check_signature(public_key(after.former[0]), b"told head", signature, "the former key")
    read_pair(identity)


def test_an_institution_that_has_lost_its_renewal_gets_it_again(agency: Agency, tmp_path: Path) -> None:
    """As one whose identity was restored from before: the authority signs no further one for the same certificate."""
    home = enrolled(agency, tmp_path / "hospital", 10)
    path = home / "identity" / "cert.pem"
    before, serials = path.read_bytes(), list[int]()
    for _ in range(2):
        write_atomic(path, before)
        with pytest.raises(ServiceError, match="not signed yet"):
            renewal.renew(home, 0.2)
        tend(agency.authority, agency.home / "registry")
        renewal.renew(home, 20)
        serials.append(serial(home))
    assert serials[0] == serials[1] != load_serial(before)


def load_serial(pem: bytes) -> int:
    return x509.load_pem_x509_certificate(pem).serial_number


def test_a_renewal_that_was_cut_off_is_completed(
    agency: Agency, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = enrolled(agency, tmp_path / "hospital", 1)
    identity = home / "identity"
    with pytest.raises(ServiceError, match="not signed yet"):
        renewal.renew(home, 0.2, new_key=True)
    tend(agency.authority, agency.home / "registry")
    written = write_atomic

    def cut(path: Path, data: bytes, *rest: object) -> None:
        if path.name == "cert.pem":
            raise OSError("the power fails")
        written(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(renewal, "write_atomic", cut)
        with pytest.raises(OSError, match="power"):
            renewal.renew(home, 20)
    complete(identity)
    read_pair(identity)
    complete(identity)


def test_a_new_root_takes_over_while_everything_runs(tmp_path: Path) -> None:
    """The overlap lasts a minute here; at its end the former root counts nowhere, and nobody was cut off."""
    agency, overlap = make_agency(tmp_path), timedelta(seconds=60)
    config = ServerConfig(enrolment_port=0, lane_port=0, crl_source=str(agency.authority / "crl.pem"))
    stop, problems = threading.Event(), []

    def tending() -> None:
        while not stop.wait(0.3):
            tend(agency.authority, agency.home / "registry")

    with agency.run(config):
        homes = [enrolled(agency, tmp_path / "hospital", 365)]
        first = load_roots(agency.home / "identity" / "root.pem")
        private_directory(homes[0] / "state")
        threads = [threading.Thread(target=tending), threading.Thread(target=keep_fresh, args=(homes[0], 0.5, stop))]
        for thread in threads:
            thread.start()
        try:
            root = authority.rotate(agency.authority, overlap=overlap)
            with pytest.raises(IdentityError, match="two at once"):
                authority.rotate(agency.authority, overlap=overlap)
            identities = [home / "identity" for home in (agency.home, homes[0])]
            until(lambda: all(load_roots(place / "root.pem") == (root, *first) for place in identities), "both trusted")
            late = tmp_path / "late"
            helper = threading.Thread(target=agency.certify, args=("hospital-2", 30))
            helper.start()
            enrol(late, agency.invite("hospital-2"), 30)
            helper.join()
            assert load_roots(late / "identity" / "root.pem") == (root, *first), "who joins meanwhile learns of both"

            def over() -> bool:
                contact = last_contact(homes[0])
                problems.extend([contact.problem] if contact and contact.problem else [])
                return all(load_roots(place / "root.pem") == (root,) for place in identities)

            until(over, "the former root is given up", 120)
            for place in identities:
                assert issued_by(place, root)
            assert refresh_crl(homes[0]) > 1, "and all goes on"
        finally:
            stop.set()
            for thread in threads:
                thread.join()
    assert not problems, problems


def issued_by(identity: Path, root: x509.Certificate) -> bool:
    load_certificate(identity / "cert.pem").verify_directly_issued_by(root)
    return True


def test_a_list_of_two_roots_is_not_taken_apart_to_bring_back_an_older_one(tmp_path: Path) -> None:
    """The agency carries the lists: it drops the former root's, and follows it up with one from before a revocation."""
    home, identity = tmp_path / "authority", private_directory(tmp_path / "identity")
    authority.init(home, "Ministry of Health")
    write_atomic(identity / "root.pem", (home / "root.pem").read_bytes())
    authority.rotate(home)
    adopt(identity, (home / "handover.json").read_bytes())
    older = (home / "crl.pem").read_bytes()
    authority.refresh_crl(home)
    newer = (home / "crl.pem").read_bytes()
    end = b"-----END X509 CRL-----\n"
    (old_of_former, new_of_next) = older.split(end)[1] + end, newer.split(end)[0] + end
    number = install_crl(identity, newer)
    for shown in (new_of_next, newer.split(end)[1] + end, new_of_next + old_of_former):
        with pytest.raises(IdentityError, match=r"other root|already in place"):
            install_crl(identity, shown)
    assert (identity / "crl.pem").read_bytes() == newer and install_crl(identity, newer) == number


def test_a_root_is_taken_from_nobody_but_the_one_that_is_pinned(tmp_path: Path) -> None:
    authority.init(tmp_path / "a", "Ministry of Health")
    authority.init(tmp_path / "b", "Ministry of Health")
    authority.rotate(tmp_path / "b")
    identity = private_directory(tmp_path / "identity")
    write_atomic(identity / "root.pem", (tmp_path / "a" / "root.pem").read_bytes())
    foreign = (tmp_path / "b" / "handover.json").read_bytes()
    with pytest.raises(IdentityError, match="not from the root"):
        adopt(identity, foreign)
    authority.rotate(tmp_path / "a")
    good = read_handover((tmp_path / "a" / "handover.json").read_bytes())
    stolen = dataclasses.replace(good, root=read_handover(foreign).root)
    longer = dataclasses.replace(good, until="2999-01-01T00:00:00+00:00")
    for forged in (stolen, longer, dataclasses.replace(good, since=good.until)):
        with pytest.raises(IdentityError, match="not signed by the former root"):
            adopt(identity, forged.to_json())
    assert len(load_roots(identity / "root.pem")) == 1
    assert adopt(identity, good.to_json())
    assert not adopt(identity, good.to_json())


def test_no_answer_of_the_agency_ends_the_watch_over_its_revocation_list(agency: Agency, tmp_path: Path) -> None:
    """Seen: what it said of its roots, nested deep, ended the thread, and no list was fetched any more."""
    home = enrolled(agency, tmp_path / "hospital", 30)
    private_directory(home / "state")
    said = agency.home / "identity" / "handover.json"
    said.write_bytes(b"[" * 30_000)
    stop = threading.Event()
    watch = threading.Thread(target=keep_fresh, args=(home, 0.2, stop))
    watch.start()
    try:
        until(lambda: "handover" in getattr(last_contact(home), "problem", ""), "it is told")
        assert watch.is_alive()
        said.unlink()
        until(lambda: getattr(last_contact(home), "problem", "?") == "", "it goes on")
    finally:
        stop.set()
        watch.join()
