"""Who counts as a reviewer, and what a certificate that ended or was revoked is worth."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from tests.packages import make_signer

from sovfed.federation.archive.archive import Archive
from sovfed.federation.archive.packing import pack
from sovfed.federation.archive.review import Rule, require_reviews, vouched
from sovfed.federation.archive.signer import SigningKey, install_signer, load_signer
from sovfed.federation.archive.signing import PUBLISHER, REVIEWER
from sovfed.federation.errors import IdentityError, PolicyError
from sovfed.federation.identity import Trust
from sovfed.server.registry import authority

TWO = Rule(2, 2)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """An authority of this test alone: what it revokes is revoked for no other."""
    home = tmp_path / "authority"
    authority.init(home, "Authority")
    return home


@pytest.fixture
def people(root: Path, tmp_path: Path) -> dict[str, SigningKey]:
    organisations = {"pat": "vendor", "ann": "north", "bob": "south", "amy": "north"}
    return {person: make_signer(tmp_path, root, person, name) for person, name in organisations.items()}


def reviewed(packed: Archive, people: dict[str, SigningKey], *names: str) -> Archive:
    archive = Archive(packed.manifest, packed.content, {}).signed(people["pat"].sign(packed.text, PUBLISHER))
    for name in names:
        archive = archive.signed(people[name].sign(packed.text, REVIEWER))
    return archive


def require(archive: Archive, root: Path, rule: Rule) -> None:
    require_reviews(archive, vouched(archive, Trust(root)), rule)


def test_two_reviewers_of_two_organisations_are_enough(
    packed: Archive, people: dict[str, SigningKey], root: Path
) -> None:
    require(reviewed(packed, people, "ann", "bob"), root, TWO)
    require(reviewed(packed, people, "ann"), root, Rule())


@pytest.mark.parametrize(
    ("names", "said"),
    [((), "min_reviewers is 2"), (("ann",), "min_reviewers is 2"), (("ann", "ann"), "min_reviewers is 2"),
     (("ann", "pat"), "min_reviewers is 2"), (("ann", "amy"), "min_reviewing_organisations is 2")],
)  # fmt: skip
def test_fewer_are_not(
    packed: Archive, people: dict[str, SigningKey], root: Path, names: tuple[str, ...], said: str
) -> None:
    """The publisher is no reviewer, a person counts once, an organisation counts once."""
    with pytest.raises(PolicyError, match=said):
        require(reviewed(packed, people, *names), root, TWO)


def test_only_reviewers_of_ones_own_choice_count_where_they_are_named(
    packed: Archive, people: dict[str, SigningKey], root: Path
) -> None:
    archive = reviewed(packed, people, "ann", "bob")
    require(archive, root, Rule(1, 1, ("south",)))
    require(archive, root, Rule(1, 1, ("ann@north",)))
    with pytest.raises(PolicyError, match="only reviews of east, amy@north count"):
        require(archive, root, Rule(1, 1, ("east", "amy@north")))


def test_a_package_that_nobody_published_is_refused(packed: Archive, people: dict[str, SigningKey], root: Path) -> None:
    archive = Archive(packed.manifest, packed.content, {}).signed(people["ann"].sign(packed.text, REVIEWER))
    with pytest.raises(IdentityError, match="no publisher"):
        vouched(archive, Trust(root))


def test_a_certificate_of_another_authority_makes_the_whole_refused(
    packed: Archive, people: dict[str, SigningKey], root: Path, tmp_path: Path
) -> None:
    """Nobody adds a signature that does not belong there and goes unseen."""
    other = tmp_path / "other"
    authority.init(other, "Authority")
    stranger = make_signer(tmp_path / "elsewhere", other, "eve", "east")
    archive = reviewed(packed, people, "ann", "bob").signed(stranger.sign(packed.text, REVIEWER))
    with pytest.raises(IdentityError, match="no chain to the root"):
        vouched(archive, Trust(root))


def test_an_institution_s_or_the_server_s_certificate_signs_no_task(
    packed: Archive, people: dict[str, SigningKey], root: Path
) -> None:
    from sovfed.federation.archive.archive import signature_name
    from sovfed.federation.archive.signing import sign
    from sovfed.federation.certificates import InstitutionNames, ServerNames, create_csr, create_key, to_der, to_pem
    from sovfed.federation.identity import parse_certificate

    for names, server in ((InstitutionNames("north", "ab" * 32), False), (ServerNames(("localhost",)), True)):
        key = create_key()
        certificate = authority.sign(root, to_pem(create_csr(key, names)), server=server)
        signature = sign(packed.text, REVIEWER, to_der(parse_certificate(certificate, "it")), key)
        with pytest.raises(IdentityError, match="not that of a person"):
            signature_name(signature)


def test_who_was_revoked_no_longer_counts_and_the_others_do(
    packed: Archive, people: dict[str, SigningKey], root: Path
) -> None:
    archive = reviewed(packed, people, "ann", "bob")
    authority.revoke(root, "bob", "signer")
    vouchers = vouched(archive, Trust(root))
    assert [signer.person for signer in vouchers.reviewers] == ["ann"]
    assert "bob of south: certificate" in vouchers.lapsed[0] and "revoked" in vouchers.lapsed[0]
    with pytest.raises(PolicyError, match="revoked"):
        require(archive, root, TWO)
    authority.revoke(root, "pat", "signer")
    with pytest.raises(IdentityError, match=r"no publisher .*revoked"):
        vouched(archive, Trust(root))


def test_who_signed_under_the_former_root_and_was_revoked_counts_no_longer_and_spoils_nothing(
    packed: Archive, people: dict[str, SigningKey], root: Path, tmp_path: Path
) -> None:
    """One former reviewer could keep a task from every institution while one root took over from the other."""
    archive = reviewed(packed, people, "ann", "bob")
    former = (root / "root.pem").read_bytes()
    authority.rotate(root)
    authority.revoke(root, "bob", "signer")
    trusting = tmp_path / "trusting"
    trusting.mkdir()
    (trusting / "root.pem").write_bytes((root / "root.pem").read_bytes() + former)
    (trusting / "crl.pem").write_bytes((root / "crl.pem").read_bytes())

    vouchers = vouched(archive, Trust(trusting))

    assert [signer.person for signer in vouchers.reviewers] == ["ann"]
    assert "bob of south: certificate" in vouchers.lapsed[0] and "revoked" in vouchers.lapsed[0]


def test_a_signer_installs_the_lists_of_either_root(people: dict[str, SigningKey], root: Path, tmp_path: Path) -> None:
    former, home = (root / "root.pem").read_bytes(), tmp_path / "signer-ann-north"
    authority.rotate(root)
    lists = (root / "crl.pem").read_bytes()

    assert install_signer(home, (home / "cert.pem").read_bytes(), former, lists, datetime.now(UTC)).person == "ann"
    assert load_signer(home).identity.person == "ann"


def test_a_certificate_that_ended_counts_no_longer_until_its_owner_signs_again(
    packed: Archive, people: dict[str, SigningKey], root: Path
) -> None:
    later = datetime.now(UTC) + timedelta(days=400)
    authority.refresh_crl(root, now=later)
    with pytest.raises(IdentityError, match=r"no publisher .*valid"):
        vouched(reviewed(packed, people, "ann"), Trust(root, lambda: later))


def test_without_a_fresh_revocation_list_nobody_counts(
    packed: Archive, people: dict[str, SigningKey], root: Path
) -> None:
    later = datetime.now(UTC) + timedelta(days=31)
    with pytest.raises(IdentityError, match="stale"):
        Trust(root, lambda: later)
    trust = Trust(root)
    trust._clock = lambda: later
    with pytest.raises(IdentityError, match="stale"):
        vouched(reviewed(packed, people, "ann"), trust)


def test_a_person_is_certified_under_one_key_at_a_time(
    root: Path, people: dict[str, SigningKey], tmp_path: Path
) -> None:
    """Else one person could review as two."""
    with pytest.raises(IdentityError, match="revoke that one first"):
        make_signer(tmp_path / "again", root, "ann", "elsewhere")


def test_a_key_without_a_certificate_that_holds_signs_nothing(
    root: Path, people: dict[str, SigningKey], tmp_path: Path
) -> None:
    authority.revoke(root, "ann", "signer")
    home = tmp_path / "signer-ann-north"
    (home / "crl.pem").write_bytes((root / "crl.pem").read_bytes())
    with pytest.raises(IdentityError, match="revoked"):
        load_signer(home)
    with pytest.raises(IdentityError, match="holds no certificate"):
        load_signer(tmp_path / "nowhere")


def test_a_task_file_needs_no_review_unless_the_policy_says_so(
    people: dict[str, SigningKey], root: Path, tmp_path: Path
) -> None:
    (tmp_path / "birth.yaml").write_text(
        "name: birth\ntitle: Birth\nperson: one row a person\ncolumns: {age: {kind: number, low: 0, high: 99}}\n"
        'target: {kind: binary, column: ill, classes: ["no", "yes"]}\nmodel: {family: linear}\n'
    )
    archive, _ = pack(tmp_path / "birth.yaml", people["pat"])
    require(archive, root, TWO)
    with pytest.raises(PolicyError, match="min_reviewers is 2"):
        require(archive, root, Rule(2, 2, task_files=True))
