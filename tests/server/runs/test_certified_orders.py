"""A release holds the order that its run was made under and the institutions' own words on it; none can be invented."""

from __future__ import annotations

import dataclasses
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from tests.packages import make_signer
from tests.release_fixture import NAMES, RUN, Released, finished_run, resealed, verified_bare, word_of

from sovfed.federation.archive import zipped
from sovfed.federation.certificates import (
    ServerNames,
    create_csr,
    create_key,
    key_from_pem,
    key_to_pem,
    make_crl,
    sign_csr,
    to_pem,
)
from sovfed.federation.errors import EvidenceError
from sovfed.federation.evidence.entries import canonical
from sovfed.federation.files import write_private
from sovfed.federation.identity import load_roots
from sovfed.federation.orders.answers import SIGNED, Answer, create_officer, load_officer
from sovfed.federation.orders.approving import approve as approved
from sovfed.federation.orders.order import Proposal, RunOrder, read_proposal
from sovfed.federation.release import lineage
from sovfed.federation.release.checking import MAX_BYTES, REVOKED, check_release
from sovfed.federation.release.ordered import ANSWERS, ORDER, summary_of
from sovfed.federation.revocation import crl_of, parse_crls
from sovfed.federation.secagg.files import load_identity
from sovfed.federation.text import to_base64
from sovfed.server.orders.making import ANSWERS as KEPT
from sovfed.server.orders.making import write_answers
from sovfed.server.orders.proposing import approve
from sovfed.server.registry import authority
from sovfed.server.runs.certificate import release
from sovfed.server.runs.logged import RunLog


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Released:
    return finished_run(tmp_path_factory.mktemp("federation"))


@pytest.fixture(scope="module")
def bundle(federation: Released) -> bytes:
    return release(federation.agency.home, RUN, wait_s=0.0)


def files_in(bundle: bytes) -> dict[str, bytes]:
    return zipped.read(bundle, most=MAX_BYTES)


def order_in(bundle: bytes) -> RunOrder:
    return read_proposal(files_in(bundle)[ORDER]).order


def answers_in(bundle: bytes) -> dict[str, Any]:
    return dict(json.loads(files_in(bundle)[ANSWERS]))


def reordered(federation: Released, bundle: bytes, **changes: Any) -> bytes:
    """The release with another order, which the agency proposes and states."""
    order = dataclasses.replace(order_in(bundle), **changes)
    identity = load_identity(federation.agency.home / "identity")
    proposal = Proposal(order).signed(identity.certificate, identity.sign(order.proposal_message))
    return resealed(federation, bundle, {ORDER: proposal.to_bytes()}, orders=[summary_of(order)])


def test_a_release_says_whose_word_its_run_rests_on(federation: Released, bundle: bytes) -> None:
    verdict = check_release(bundle, federation.roots)

    assert any("signed by an officer of hospital-1" in line for line in verdict.holds)
    assert any("standing consent of hospital-2: no person signed" in line for line in verdict.holds)
    assert not any("order" in line for line in verdict.missing)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"purpose": "something else"}, "log names another order"),
        ({"run": "another"}, "in: run"),
        ({"task_digest": "0" * 64}, "in: task"),
        ({"rounds": 1}, "in: rounds"),
        ({"strategy": "fedadam"}, "in: strategy"),
        ({"masked": False}, "in: secure aggregation"),
        ({"bits": 8}, "in: terms of secure aggregation"),
        ({"min_cohort": 4}, "in: terms of secure aggregation"),
        ({"cohort": ("hospital-1",)}, "in: cohort"),
        (
            {"start": "ef" * 32, "start_from": "the model of run x", "start_file": "ab" * 32},
            "in: the model that it began",
        ),
        (  # as orders were before the file had a field
            {"start": "ef" * 32, "start_from": f"the model of run x, file SHA-256 {'ab' * 32}"},
            "in: the model that it began",
        ),
    ],
)
def test_an_order_that_the_run_was_not_under_is_noticed(
    federation: Released, bundle: bytes, changes: dict[str, Any], what: str
) -> None:
    with pytest.raises(EvidenceError, match=what):
        check_release(reordered(federation, bundle, **changes), federation.roots)


def test_an_order_that_no_agency_of_the_authority_proposes_is_noticed(federation: Released, bundle: bytes) -> None:
    order, hospital = order_in(bundle), load_identity(federation.homes[0] / "identity")
    forged = Proposal(order).signed(hospital.certificate, hospital.sign(order.proposal_message))
    unsigned = Proposal(order).signed(hospital.certificate, b"\0" * 64)

    for proposal in (forged, unsigned):
        with pytest.raises(EvidenceError):
            check_release(resealed(federation, bundle, {ORDER: proposal.to_bytes()}), federation.roots)


def test_an_order_that_is_stated_or_shown_alone_is_noticed(federation: Released, bundle: bytes) -> None:
    with pytest.raises(EvidenceError, match="another order than the statement"):
        check_release(resealed(federation, bundle, orders=[]), federation.roots)
    with pytest.raises(EvidenceError, match="another order"):
        check_release(resealed(federation, bundle, orders=[{"sha256": "00"}]), federation.roots)


def test_consent_cannot_be_invented_exchanged_or_replayed(federation: Released, bundle: bytes) -> None:
    answers, digest = answers_in(bundle), order_in(bundle).digest
    first, second = federation.homes
    forged = json.loads(word_of(first, digest, NAMES[1], officer=True))  # by the other institution's officer and node
    replayed = json.loads(word_of(second, "0" * 64, NAMES[1], officer=True))
    unvouched = {**json.loads(word_of(second, digest, NAMES[1], officer=True)), "vouched": "", "node": ""}
    for changed in (
        {**answers, NAMES[1]: forged},
        {**answers, NAMES[1]: unvouched},
        {**answers, NAMES[1]: replayed},
        {**answers, NAMES[1]: {**answers[NAMES[1]], "at": 7}},
        {NAMES[0]: answers[NAMES[1]], NAMES[1]: answers[NAMES[0]]},
        [answers],
    ):
        with pytest.raises(EvidenceError):
            check_release(resealed(federation, bundle, {ANSWERS: canonical(changed)}), federation.roots)


def test_an_officer_whom_the_agency_made_up_gives_no_consent(federation: Released, tmp_path: Path) -> None:
    """With the institution's real certificate, which is no secret, and in the agency's own log."""
    copy = federation.copied(tmp_path / "copy")
    digest = read_proposal((copy.folder / "order.json").read_bytes()).order.digest
    create_officer(tmp_path / "made-up.pem")
    public, sign = load_officer(tmp_path / "made-up.pem", bytes)
    signed = Answer(digest, NAMES[1], SIGNED, "ito", key=public).signed(sign)
    node, stolen = (
        load_identity(copy.homes[1] / "identity"),
        signed.vouched_by(load_identity(copy.homes[0] / "identity")),
    )
    forged = dataclasses.replace(stolen, node=to_base64(node.certificate))
    kept = json.loads((copy.folder / KEPT).read_bytes())
    answers = {**kept, NAMES[1]: json.loads(forged.to_bytes())}
    spelled = {name: canonical(value) for name, value in answers.items()}
    RunLog(copy.agency.home, RUN, "1").answers(digest, write_answers(copy.folder, spelled))
    bundle = release(copy.agency.home, RUN, wait_s=0.0)

    assert any("consent to order" in line and NAMES[1] in line for line in check_release(bundle, copy.roots).missing)
    with pytest.raises(EvidenceError, match="node of hospital-2"):
        check_release(resealed(copy, bundle, {ANSWERS: canonical(answers)}), copy.roots)


def test_an_answer_that_the_agency_leaves_out_is_missing(federation: Released, bundle: bytes) -> None:
    left = {NAMES[0]: answers_in(bundle)[NAMES[0]]}

    verdict = check_release(resealed(federation, bundle, {ANSWERS: canonical(left)}), federation.roots)

    assert any("consent to order" in line and NAMES[1] in line for line in verdict.missing)


def test_a_refusal_is_not_shown_as_consent(tmp_path: Path) -> None:
    """The agency's log has another answer than its release: it has exchanged it since."""
    federation = finished_run(tmp_path)
    kept = json.loads((federation.folder / KEPT).read_bytes())
    order = read_proposal((federation.folder / "order.json").read_bytes()).order
    kept[NAMES[1]] = json.loads(word_of(federation.homes[1], order.digest, NAMES[1], "refused", officer=True))
    write_private(federation.folder / KEPT, json.dumps(kept).encode())

    with pytest.raises(EvidenceError, match="the log has another answer of hospital-2"):
        release(federation.agency.home, RUN, wait_s=0.0)


def test_an_agency_whose_certificate_names_another_of_its_hosts_first_still_releases(
    federation: Released, tmp_path: Path
) -> None:
    copy = federation.copied(tmp_path / "copy")
    identity = copy.agency.home / "identity"
    key = key_from_pem((identity / "key.pem").read_bytes(), "key.pem")
    for hosts, holds in ((("a.example", "localhost"), True), (("a.example",), False)):
        request = to_pem(create_csr(key, ServerNames(hosts)))
        write_private(identity / "cert.pem", authority.sign(copy.agency.authority, request, server=True))
        if holds:
            assert check_release(release(copy.agency.home, RUN, wait_s=0.0), copy.roots).agency == "localhost"
        else:
            with pytest.raises(EvidenceError, match=r"signed by a\.example, and the log is that of localhost"):
                release(copy.agency.home, RUN, wait_s=0.0)


def test_verify_needs_cryptography_and_little_else(federation: Released, bundle: bytes, tmp_path: Path) -> None:
    done = verified_bare(bundle, federation.agency.authority / "root.pem", tmp_path)

    assert done.returncode == 0, done.stderr
    assert "✓ signed by the agency" in done.stdout


def test_who_was_revoked_before_the_log_had_it_has_approved_nothing(
    federation: Released, bundle: bytes, tmp_path: Path
) -> None:
    """An agency approves its order with the stolen key of a person whom the authority has revoked long ago."""
    copy = federation.copied(tmp_path / "copy")
    ann = make_signer(tmp_path, copy.agency.authority, "ann", "ministry")
    forged = approved(read_proposal(files_in(bundle)[ORDER]), ann).to_bytes()
    held = check_release(resealed(copy, bundle, {ORDER: forged}), copy.roots)
    path = copy.folder / "order.json"
    approve(path, read_proposal(path.read_bytes()).order, ann)
    logged = release(copy.agency.home, RUN, wait_s=0.0)
    key = key_from_pem((copy.agency.authority / "root.key").read_bytes(), "root.key")
    serial, now = x509.load_der_x509_certificate(ann.certificate).serial_number, datetime.now(UTC)
    before, since = (
        to_pem(make_crl(key, copy.roots[0], [(serial, now + timedelta(hours=hours))], 9, now, 30)) for hours in (-1, 1)
    )

    false = check_release(resealed(copy, bundle, {ORDER: forged, REVOKED: before}), copy.roots)
    true = check_release(resealed(copy, logged, {REVOKED: since}), copy.roots)

    for verdict, holds in ((held, True), (false, False), (true, True)):
        assert any("approved by ann of ministry" in line for line in verdict.holds) is holds
        assert any("approval of the order by ann of ministry" in line for line in verdict.missing) is not holds


def test_lists_of_one_root_hide_nobody_who_was_revoked_under_the_other(tmp_path: Path) -> None:
    """Between two roots the agency leaves out the list that revokes an institution whose key it has."""
    federation = finished_run(tmp_path)
    federation.cosign(*federation.homes)
    agency, former = federation.agency, (federation.agency.authority / "root.pem").read_bytes()
    authority.rotate(agency.authority, overlap=timedelta(days=40))
    identity = agency.home / "identity"
    identity.joinpath("root.pem").write_bytes((agency.authority / "root.pem").read_bytes() + former)
    identity.joinpath("crl.pem").write_bytes((agency.authority / "crl.pem").read_bytes())
    roots, both = load_roots(identity / "root.pem"), parse_crls((identity / "crl.pem").read_bytes(), "lists")
    of_new = next(to_pem(crl) for crl in both if crl == crl_of(roots[0], both))
    key, pem = renewed_under(agency.authority / "root.key", roots[0], ServerNames(("localhost",)))
    write_private(identity / "key.pem", key)
    write_private(identity / "cert.pem", pem)
    bundle = release(agency.home, RUN, wait_s=0.0)

    assert sorted(check_release(bundle, roots).log.cosigned) == list(NAMES)
    with pytest.raises(EvidenceError, match="no revocation list of the authority that certified"):
        check_release(resealed(federation, bundle, {REVOKED: of_new}), roots)
    assert not lineage.check(files_in(bundle), roots, revoked=of_new).cosigned


def renewed_under(root_key: Path, root: x509.Certificate, names: ServerNames) -> tuple[bytes, bytes]:
    """Key and certificate (PEM) that the root signs now."""
    key = create_key()
    request = to_pem(create_csr(key, names))
    signing = key_from_pem(root_key.read_bytes(), "root.key")
    return key_to_pem(key), to_pem(sign_csr(signing, root, request, datetime.now(UTC), 30))
