"""What a release waits for, and what it carries beside the model: audits, cosigners, declarations of content."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.release_fixture import NAMES, RUN, Released, finished_run, resealed

from sovfed.clients.home.folder import create
from sovfed.clients.home.policy import Policy
from sovfed.clients.models.declared import declare
from sovfed.federation.archive import zipped
from sovfed.federation.compose import compose
from sovfed.federation.config import ClientConfig
from sovfed.federation.content import ContentConfig
from sovfed.federation.errors import ConfigError, EvidenceError, IdentityError, PolicyError
from sovfed.federation.evidence.entries import canonical
from sovfed.federation.evidence.store import record
from sovfed.federation.orders.order import RunOrder, read_proposal
from sovfed.federation.release.checking import MAX_BYTES, check_release
from sovfed.federation.release.content import CONTENT, read_declaration
from sovfed.federation.secagg.files import load_identity
from sovfed.server.home import SETTINGS
from sovfed.server.runs import declarations, gates
from sovfed.server.runs.certificate import release
from sovfed.simulations.audit.of_run import audit_run

CONTENT_OF = ContentConfig(
    kind="digits", population="writers", period="1990", basis="CC BY 4.0", size="1,000 to 10,000"
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Released:
    return finished_run(tmp_path_factory.mktemp("finished"))


@pytest.fixture
def federation(finished: Released, tmp_path: Path) -> Released:
    return finished.copied(tmp_path / "copy")


def demand(federation: Released, **server: Any) -> None:
    """Have the agency's settings ask for it."""
    settings = {"server": dataclasses.asdict(compose([]).config.server) | server, "tracking": {}}
    (federation.agency.home / SETTINGS).write_text(json.dumps(settings))


def model_of(federation: Released) -> str:
    return str(json.loads((federation.folder / "summary.json").read_bytes())["model_sha256"])


def noted(federation: Released, **changes: Any) -> None:
    """An audit's result in the agency's log."""
    fields = {
        "audit": "imprint",
        "model": model_of(federation),
        "passed": True,
        "figure": 0.5,
        "power": "p",
        "quick": True,
    }
    record(federation.agency.home, "audit", name=RUN, **{**fields, **changes})


def test_a_release_waits_for_the_audits_that_the_agency_demands(federation: Released) -> None:
    demand(federation, release_audits=["imprint<=0.4", "canary"], release_audit_days=30)
    home = federation.agency.home
    for result, what in (
        ({}, r"found 0\.5, allowed 0\.4.*no canary audit"),
        ({"figure": 0.0, "model": "00" * 32}, "found 0.5"),  # of another model
        ({"figure": 0.0, "passed": False}, "contradicts the claim"),
        ({"figure": 0.0}, "no canary audit"),
    ):
        noted(federation, **result)
        with pytest.raises(PolicyError, match=what):
            release(home, RUN, wait_s=0.0)
    noted(federation, audit="canary")

    verdict = check_release(release(home, RUN, wait_s=0.0), federation.roots)

    assert sum(line.startswith("audit ") for line in verdict.holds) == 3  # with the one that failed before
    assert not any("audits" in line for line in verdict.missing)


def test_a_result_that_is_too_old_is_none(federation: Released, monkeypatch: pytest.MonkeyPatch) -> None:
    demand(federation, release_audits=["imprint"], release_audit_days=1)
    noted(federation)
    monkeypatch.setattr(gates, "DAY_S", -1)

    with pytest.raises(PolicyError, match="within 1 days"):
        release(federation.agency.home, RUN, wait_s=0.0)


def test_a_demand_that_names_no_audit_lets_nothing_be_released(federation: Released) -> None:
    demand(federation, release_audits=["imprint<=x"])
    with pytest.raises(ConfigError, match="is none of canary"):
        release(federation.agency.home, RUN, wait_s=0.0)


def test_an_audit_that_the_log_does_not_have_is_noticed(federation: Released) -> None:
    noted(federation, passed=False)
    bundle = release(federation.agency.home, RUN, wait_s=0.0)
    (audit,) = check_release(bundle, federation.roots).predicate["audits"]
    with pytest.raises(EvidenceError, match="an audit of the model that the log does not have"):
        check_release(resealed(federation, bundle, audits=[{**audit, "passed": True}]), federation.roots)


def test_an_audit_that_was_repeated_until_it_passed_is_told_with_what_it_found_before(federation: Released) -> None:
    noted(federation, passed=False, figure=3.0, quick=False)
    noted(federation, quick=True)
    verdict = check_release(release(federation.agency.home, RUN, wait_s=0.0), federation.roots)
    assert [("(quick)" in line, "CONTRADICTED, 3" in line) for line in verdict.holds if line.startswith("audit ")] == [
        (True, False), (False, True),
    ]  # fmt: skip


def test_an_audit_of_the_run_is_of_its_model_and_in_the_log(federation: Released) -> None:
    audit_run(federation.agency.home, RUN, "imprint", quick=True)

    (entry,) = gates.audits_of(federation.agency.home, RUN, model_of(federation))

    assert entry["passed"] is False and entry["figure"] > 0  # the run has no privacy, and images can be read
    with pytest.raises(ConfigError, match="no differential privacy"):
        audit_run(federation.agency.home, RUN, "canary", quick=True)


def test_a_release_that_too_few_have_cosigned_is_not_made(federation: Released) -> None:
    demand(federation, release_cosigners=1)
    with pytest.raises(PolicyError, match="cosigned by nobody; release_cosigners is 1"):
        release(federation.agency.home, RUN, wait_s=0.0)


def order_of(federation: Released) -> RunOrder:
    return read_proposal((federation.folder / "order.json").read_bytes()).order


def described(home: Path, content: ContentConfig, **policy: Any) -> Path:
    """The institution's home with a description of its data."""
    create(home, ClientConfig(content=content), Policy(("digits_linear",), **policy))
    return home


def test_what_institutions_declare_of_their_records_is_in_the_release(federation: Released) -> None:
    home = described(federation.homes[0], CONTENT_OF)
    file = federation.folder / "x.declaration"
    file.write_bytes(declare(home, order_of(federation)).to_bytes())
    assert "1,000" not in file.read_text()  # declare_size is false
    assert declarations.take(federation.agency.home, RUN, file) == NAMES[0]

    verdict = check_release(release(federation.agency.home, RUN, wait_s=0.0), federation.roots)

    assert any("hospital-1 declares: kind digits; population writers" in line for line in verdict.holds)
    assert any("declaration of training content by hospital-2" in line for line in verdict.missing)


def test_a_size_is_declared_where_the_policy_lets_it_be(federation: Released) -> None:
    home = described(federation.homes[0], CONTENT_OF, declare_size=True)
    assert declare(home, order_of(federation)).content.size == CONTENT_OF.size


def test_a_study_that_is_not_described_declares_nothing(federation: Released) -> None:
    home = described(federation.homes[0], ContentConfig())
    assert yaml.safe_load((home / "client.yaml").read_text())["content"]["kind"] == ""
    with pytest.raises(ConfigError, match="content says nothing"):
        declare(home, order_of(federation))


def test_a_declaration_cannot_be_changed_replayed_or_made_for_another(federation: Released) -> None:
    home, agency = described(federation.homes[0], CONTENT_OF), federation.agency.home
    order, other = order_of(federation), load_identity(federation.homes[1] / "identity")
    good = declare(home, order)
    file = federation.folder / "x.declaration"
    for bad in (
        dataclasses.replace(good, content=ContentConfig(kind="other")),
        dataclasses.replace(good, institution=NAMES[1]),
        dataclasses.replace(good, institution=NAMES[0]).signed(other),
        declare(home, dataclasses.replace(order, purpose="another run")),
    ):
        file.write_bytes(bad.to_bytes())
        with pytest.raises(IdentityError):
            declarations.take(agency, RUN, file)
    file.write_bytes(good.to_bytes())
    declarations.take(agency, RUN, file)
    bundle = release(agency, RUN, wait_s=0.0)
    value = json.loads(zipped.read(bundle, most=MAX_BYTES)[CONTENT])
    value[NAMES[0]]["content"]["kind"] = "something else"
    with pytest.raises(EvidenceError):
        check_release(resealed(federation, bundle, {CONTENT: canonical(value)}), federation.roots)
    with pytest.raises(EvidenceError, match="other declarations than"):
        check_release(resealed(federation, bundle, training_content=list(NAMES)), federation.roots)
    with pytest.raises(IdentityError):
        read_declaration(b"[]", "x")
