"""An agency that has bound itself begins no run before enough of its own people have approved the order."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from tests.clients.orders.house import CONFIG, House, planned, whole
from tests.server.agency import Authority, server_config

from sovfed.federation.archive.signing import Signature, sign
from sovfed.federation.certificates import SignerNames, create_csr, create_key, sign_csr, to_der, to_pem
from sovfed.federation.config import Config, TrackingConfig, stored
from sovfed.federation.errors import ConfigError, PolicyError, ServiceError
from sovfed.federation.files import private_directory, write_atomic, write_private
from sovfed.federation.orders.approving import bound_line
from sovfed.federation.orders.order import DOMAIN, Proposal, RunOrder, read_proposal
from sovfed.federation.text import from_base64
from sovfed.federation.wire.loopback import ensure_secret
from sovfed.server.cli.run import cli
from sovfed.server.cli.server import cli as server
from sovfed.server.home import SETTINGS, Settings, load_settings
from sovfed.server.orders.making import FILE, Ordering, write_order
from sovfed.server.runs.control import ControlClient
from sovfed.server.runs.folders import start_run, write_state
from sovfed.server.runs.recovery import resume_run


class Agency(House):
    """A house whose agency has settings of its own in `server.json`."""

    def __init__(self, folder: Path, **settings: object) -> None:
        super().__init__(folder)
        self.at = folder / "agency"
        for name in ("runs", "secrets"):
            private_directory(self.at / name)
        ensure_secret(self.at / "secrets" / "loopback.secret")
        values = dataclasses.asdict(Settings(server_config(self.at, **settings), TrackingConfig()))
        write_private(self.at / SETTINGS, json.dumps(values).encode())
        self.request = whole(CONFIG)
        self.asked = self.proposal(self.request, CONFIG)

    def put(self, *approvals: Signature, proposal: Proposal | None = None) -> None:
        """Run `study` is proposed, and approved so."""
        folder = private_directory(self.at / "runs" / "study")
        write_order(folder, dataclasses.replace(proposal or self.asked, approvals=approvals))

    def shown(self, config: Config = CONFIG) -> RunOrder:
        """The order that the coordinator shows institutions before anything else."""
        ordering = Ordering(config, "study", self.at / "runs" / "study", self.agency, self.at)
        return read_proposal(ordering(self.request).tobytes()).order

    def begin(self, config: Config = CONFIG) -> None:
        """As every command that starts a run does; ServiceError where only the superlink is missing."""
        with ControlClient(self.at, 1) as control:
            start_run(control, self.at, "study", config, resume=False)

    def approval(
        self, name: str, *, of: str = "agency", key: ec.EllipticCurvePrivateKey | None = None,
        authority: Authority | None = None, order: RunOrder | None = None, role: str = "reviewer",
    ) -> Signature:  # fmt: skip
        """What `name` signs of the order, each time by another certificate and, unless told, another key."""
        by, own = authority or self.authority, key or create_key()
        request = to_pem(create_csr(own, SignerNames(name, of)))
        certificate = sign_csr(by.key, by.root, request, by.now, 30)
        text = (order or self.asked.order).text
        return sign(text, role, to_der(certificate), own, domain=DOMAIN)  # type: ignore[arg-type]


@pytest.fixture
def agency(tmp_path: Path) -> Agency:
    return Agency(tmp_path, min_approvers=2)


def damaged(approval: Signature) -> Signature:
    return dataclasses.replace(approval, signature=approval.signature[:20] + "AAAA" + approval.signature[24:])


def by_one_key(agency: Agency) -> list[Signature]:
    key = create_key()
    return [agency.approval("ann", key=key), agency.approval("bob", key=key)]


def of_another_order(agency: Agency) -> list[Signature]:
    other = dataclasses.replace(agency.asked.order, purpose="another")
    return [agency.approval("ann"), agency.approval("bob", order=other)]


NOT_ENOUGH: dict[str, Callable[[Agency], list[Signature]]] = {
    "nobody": lambda agency: [],
    "one person": lambda agency: [agency.approval("ann")],
    "one person with two certificates": lambda agency: [agency.approval("ann"), agency.approval("ann")],
    "two persons with one key": by_one_key,
    "a person of another house": lambda agency: [agency.approval("ann"), agency.approval("eve", of="clinic")],
    "one whom a stranger certified": lambda agency: [
        agency.approval("ann"),
        agency.approval("bob", authority=Authority()),
    ],
    "one who published a task": lambda agency: [agency.approval("ann"), agency.approval("bob", role="publisher")],
    "a signature that was changed": lambda agency: [agency.approval("ann"), damaged(agency.approval("bob"))],
    "a certificate that is none": lambda agency: [agency.approval("ann"), Signature("AAAA", "AAAA")],
    "not even base64": lambda agency: [agency.approval("ann"), Signature("no certificate", "no signature")],
    "another order's": of_another_order,
}


@pytest.mark.parametrize("signed", NOT_ENOUGH.values(), ids=NOT_ENOUGH)
def test_a_bound_agency_shows_no_order_before_its_people_have_approved_it(
    agency: Agency, signed: Callable[[Agency], list[Signature]]
) -> None:
    """Whatever started the coordinator: this is the one place that a run begins at."""
    agency.put(*signed(agency))
    with pytest.raises(PolicyError, match=r"of 2 people of agency \(server.min_approvers\)"):
        agency.shown()
    with pytest.raises(PolicyError, match="sovfed run approve"):
        agency.begin()
    assert not (agency.at / "runs" / "study" / "run.json").exists()


def test_who_approves_is_told_who_is_missing_and_the_last_one_what_is_next(agency: Agency) -> None:
    agency.put()
    order = str(agency.at / "runs" / "study" / FILE)
    for name, said in (("ann", "still: approved by ann@agency"), ("bob", "next: `sovfed run start --proposed study")):
        agency.person(name)
        signer = str(agency.folder / "people" / name)
        done = CliRunner().invoke(cli, ["approve", order, "--yes", "--signer", signer])
        assert done.exit_code == 0 and said in done.output, done.output


def test_two_of_its_people_are_enough_whatever_stands_beside_them(agency: Agency) -> None:
    agency.put(agency.approval("ann"), damaged(agency.approval("cid")), agency.approval("bob"))
    assert agency.shown() == agency.asked.order
    with pytest.raises(ServiceError):  # the superlink, which is not here
        agency.begin()


def test_who_was_revoked_since_counts_no_more(agency: Agency) -> None:
    approval = agency.approval("bob")
    agency.put(agency.approval("ann"), approval)
    assert agency.shown() == agency.asked.order
    serial = x509.load_der_x509_certificate(from_base64(approval.certificate, "bob", ConfigError)).serial_number
    agency.authority.revoked.append((serial, agency.authority.now))
    write_atomic(agency.at / "identity" / "crl.pem", agency.authority.crl())
    with pytest.raises(PolicyError, match="approved by ann@agency"):
        agency.shown()


def test_without_a_proposal_nothing_begins(agency: Agency) -> None:
    """`run start`, `evaluate` and counts without `--proposed` make their order as they begin: nobody has read it."""
    with pytest.raises(PolicyError, match="sovfed run propose"):
        agency.begin()
    private_directory(agency.at / "runs" / "study")
    with pytest.raises(PolicyError, match="no order that people have read"):
        agency.shown()
    assert not (agency.at / "runs" / "study" / FILE).exists()


def test_no_command_of_a_bound_agency_begins_or_takes_up_a_run(agency: Agency) -> None:
    agency.put(agency.approval("ann"))
    with pytest.raises(PolicyError, match="approved by ann@agency"):
        agency.begin()
    state = {"name": "study", "flower_run_id": 1, "started": 0.0, "config": stored(CONFIG)}
    write_state(agency.at / "runs" / "study", state, "failed")
    with ControlClient(agency.at, 1) as control, pytest.raises(PolicyError, match="approved by ann@agency"):
        resume_run(control, agency.at, "study")


def test_words_of_a_run_bind_the_agency_further_and_never_unbind_it(tmp_path: Path, agency: Agency) -> None:
    loose = planned("server.min_approvers=0", "server.approvers=[agency,clinic]")
    agency.put(agency.approval("ann"), agency.approval("eve", of="clinic"))
    for config in (loose, planned("server.min_approvers=1")):
        with pytest.raises(PolicyError, match="approved by ann@agency, of 2"):
            agency.shown(config)
        with pytest.raises(PolicyError, match="approved by ann@agency, of 2"):
            agency.begin(config)
    unbound = Agency(tmp_path / "unbound")
    unbound.put()
    assert unbound.shown() == unbound.asked.order
    with pytest.raises(PolicyError, match="of 1 people"):
        unbound.shown(planned("server.min_approvers=1"))


def test_what_was_approved_is_not_run_by_another_strategy(agency: Agency) -> None:
    agency.put(agency.approval("ann"), agency.approval("bob"))
    assert agency.shown() == agency.asked.order
    with pytest.raises(ConfigError, match="for strategy fedavg, the run's is fedadam; propose the run anew"):
        agency.shown(planned("strategy=fedadam"))


def test_the_agency_is_told_what_binds_it_and_what_is_missing(tmp_path: Path) -> None:
    home, run = tmp_path / "home", CliRunner()
    made = run.invoke(server, ["init", "server.min_approvers=2", "--home", str(home)])
    assert "no run begins before 2 people of agency have approved it" in made.output + made.stderr
    other = run.invoke(server, ["init", "--home", str(tmp_path / "other")])
    assert "server.min_approvers in server.json asks for people" in other.output + other.stderr
    assert bound_line(load_settings(home).server) in made.output + made.stderr
    asked = run.invoke(cli, ["propose", "task=breast_cancer", "run_name=study", "--home", str(home)])
    assert "approved by nobody, of 2 people of agency" in asked.output, asked.exception
    assert "approved by nobody, of 2" in run.invoke(cli, ["explain", "study", "--home", str(home)]).output


def test_a_bound_agency_names_its_people() -> None:
    with pytest.raises(ConfigError, match="name the agency's people"):
        planned("server.min_approvers=2", "server.approvers=[]")
