"""The audits in their quick form: claims hold, and what is broken on purpose is found."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from sovfed.simulations.audit.canary import audit_canaries, lower_bound, p_value
from sovfed.simulations.audit.imprint import audit_imprint
from sovfed.simulations.audit.membership import LEARNT, MembershipAudit, audit_membership
from sovfed.simulations.audit.noise import audit_noise
from sovfed.simulations.cli_audit import audit


@pytest.mark.parametrize("mechanism", ["distributed", "institution"])
def test_an_opened_sum_has_the_noise_that_is_claimed(mechanism: str) -> None:
    found = audit_noise(mechanism)
    assert found.p_value > 1e-6  # chance fails one run in a million
    assert 0.8 < found.ratio < 1.2


def test_too_little_noise_is_found() -> None:
    assert audit_noise("distributed", claimed=2.4).contradicted


def test_canaries_stay_below_the_claim_and_find_missing_shares() -> None:
    found = audit_canaries(2_000, 5.0)
    assert found.lower < found.claimed < found.ceiling  # chance fails far less than one run in a thousand
    bare = audit_canaries(2_000, 2.0, shares_present=0)  # all 800 boldest guesses are right, whatever chance does
    assert bare.contradicted
    assert bare.lower > 4.9


def test_the_bound_of_one_run_audits() -> None:
    """At δ = 0 it is the binomial tail, and no guess right or all right are its ends."""
    assert p_value(100, 10, 10, 0.0, 0.0) == pytest.approx(2.0**-10)
    assert p_value(100, 10, 0, 1.0, 1e-5) == 1.0
    assert lower_bound(100, 10, 5, 1e-5, 0.05) == 0.0
    levels = [lower_bound(1_000, 200, right, 1e-5, 0.05) for right in (120, 150, 190)]
    assert 0 < levels[0] < levels[1] < levels[2]
    assert np.isfinite(levels).all()


def test_records_are_read_out_of_a_secure_sum_unless_it_is_private() -> None:
    plain, private = audit_imprint("none"), audit_imprint("distributed")
    assert plain.recovered > plain.records // 2
    assert private.recovered == 0


def test_members_are_found_by_their_loss_but_not_in_a_private_model() -> None:
    plain, private = audit_membership("none"), audit_membership("distributed")
    assert plain.auc > private.auc
    assert plain.auc > LEARNT
    assert not private.contradicted
    assert private.bound < 0.2
    assert MembershipAudit("distributed", 1.0, 100, 0.9, 0.6, 0.14).contradicted


def test_the_command_writes_what_it_prints_and_teaches(tmp_path: Path) -> None:
    done = CliRunner().invoke(audit, ["imprint", "--quick", "--json", str(tmp_path / "found.json")])
    assert (done.exit_code, done.output.count("✓")) == (0, 2)
    written = json.loads((tmp_path / "found.json").read_text())
    assert [row["mechanism"] for row in written["rows"]] == ["distributed", "none"]
    assert "sovfed audit imprint" in CliRunner().invoke(audit, ["--help"]).output
