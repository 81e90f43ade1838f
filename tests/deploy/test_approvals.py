"""An agency that has bound itself to its people's approvals, and permits that end, between real processes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from tests.deploy.conftest import finished, make_config, make_federation
from tests.deploy.test_orders import sovfed
from tests.packages import make_signer

from sovfed.clients.home.policy import POLICY
from sovfed.clients.orders.book import OrderBook
from sovfed.clients.orders.rules import DataPermit
from sovfed.federation.errors import PolicyError
from sovfed.federation.evidence.store import LogReader
from sovfed.federation.identity import load_roots
from sovfed.federation.orders.receipts import read_receipt
from sovfed.server.runs import folders
from sovfed.simulations.deployment import LocalFederation

pytestmark = pytest.mark.deploy
WORDS = ("task=breast_cancer", "rounds=2", "server.min_cohort=3", "privacy.colluders=0", "order.permit=p-12")


@pytest.fixture(scope="module")
def bound(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalFederation]:
    """An agency whose runs two of its people have to approve; three institutions that consent within a permit."""
    config = make_config("server.min_approvers=2", "server.start_cohort=3", "simulation.institutions=3")
    permits = {"p-12": DataPermit(without_privacy=True, expires="2999-12-31")}
    folder = tmp_path_factory.mktemp("approvals")
    with make_federation(folder, config, permits=permits, purge_ended_permits=True) as running:
        yield running


def approve(federation: LocalFederation, person: str) -> str:
    make_signer(federation.folder, federation.authority_home, person, "agency")
    signer = federation.folder / f"signer-{person}-agency"
    order = federation.home / "runs" / "study" / "order.json"
    return sovfed("run", "approve", str(order), "--yes", "--signer", str(signer))


def test_a_run_is_refused_with_one_approver_and_goes_with_two(bound: LocalFederation) -> None:
    home = str(bound.home)
    with pytest.raises(PolicyError, match="no order that people have read"):
        bound.start_run("alone", dataclasses.replace(bound.config, rounds=2))
    told = sovfed("run", "propose", *WORDS, "run_name=study", "--home", home)
    assert "approved by nobody, of 2 people of agency" in told
    assert "still: approved by ann@agency, of 2 people of agency" in approve(bound, "ann")
    with pytest.raises(PolicyError, match="approved by ann@agency, of 2 people"):
        folders.start_run(bound.control, bound.home, "study", bound.config, resume=False)
    for member in bound.institutions:
        assert OrderBook(bound.client_home(member.name)).proposals() == []  # nobody was shown anything
    assert f"next: `sovfed run start --proposed study --home {home}`" in approve(bound, "bob")
    sovfed("run", "start", "--proposed", "study", "--no-follow", "--home", home)
    lines = finished(bound, "study")
    assert [len(line["participants"]) for line in lines] == [3, 3]


def test_what_a_permit_left_is_erased_at_the_first_start_after_its_last_day(bound: LocalFederation) -> None:
    """By the setting of policy.yaml, as by the command, with a receipt that is verified."""
    name = bound.institutions[0].name
    home, yesterday = bound.client_home(name), datetime.now(UTC).date() - timedelta(days=1)
    sessions = [*(home / "secagg").glob("*.session")]
    assert sessions and not OrderBook(home).is_purged("p-12")
    policy = home / POLICY
    policy.write_text(policy.read_text().replace("2999-12-31", f"{yesterday}"))
    bound.supervisors.pop(name).stop()
    bound.start_institution(name)
    assert not any(path.exists() for path in sessions)
    path = home / "orders" / "receipts" / "p-12.json"
    receipt = read_receipt(path.read_bytes(), load_roots(bound.authority_home / "root.pem"))
    assert (receipt.permit, receipt.institution, receipt.runs) == ("p-12", name, ("study",))
    assert any(entry.get("event") == "purged" for entry in LogReader(home).newest())
