"""The audits in their quick form: claims hold, and what is broken on purpose is found."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from sovfed.simulations.audit.canary import audit_canaries, lower_bound, p_value
from sovfed.simulations.audit.imprint import audit_imprint
from sovfed.simulations.audit.membership import LEARNT, audit_membership, likelihood_ratios
from sovfed.simulations.audit.noise import audit_noise
from sovfed.simulations.cli_audit import audit


@pytest.mark.parametrize("mechanism", ["distributed", "institution"])
def test_an_opened_sum_has_the_noise_that_is_claimed(mechanism: str) -> None:
    result = audit_noise(mechanism)
    assert result.p_value > 1e-7  # chance fails one run in ten million
    assert 0.8 < result.ratio < 1.2


def test_too_little_noise_is_found() -> None:
    assert audit_noise("distributed", claimed=2.4).contradicted


def test_canaries_stay_below_the_claim_and_find_missing_shares() -> None:
    """A bound that holds with 95 % confidence is above a true claim once in 700 times: thrice in a row, once in 3e8."""
    result = min((audit_canaries(2_000, 5.0) for _ in range(3)), key=lambda each: each.lower)
    assert result.lower < result.claimed < result.ceiling
    assert result.p_value > 1e-7
    bare = audit_canaries(2_000, 2.0, shares_present=0)  # all 800 boldest guesses are right, whatever chance does
    assert bare.contradicted
    assert bare.lower > 4.9


def test_a_third_less_noise_than_claimed_is_found() -> None:
    result = audit_canaries(10_000, 2.0, actual=4 / 3)
    assert result.contradicted
    assert result.detectable > 2 / 3  # chance fails less than one run in a hundred million
    assert result.allowed == pytest.approx(0.598706, abs=1e-6)  # Φ(0.25)


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


@pytest.mark.timeout(300)  # dozens of models
def test_members_are_found_by_lira_but_not_in_a_private_model() -> None:
    plain, wrong = audit_membership(models=24)
    assert (plain.persons, wrong.persons, plain.bound) == ("as they are", "mislabelled", 1.0)
    assert LEARNT < plain.threshold.auc < plain.lira.auc  # measured .73 and .79
    assert plain.lira.share > 2 * plain.threshold.share
    assert wrong.lira.auc > 0.9
    for private in audit_membership(1.0, models=24):
        assert not private.contradicted
        assert private.bound < 0.2
        assert private.lira.auc < 0.65  # of the mislabelled 0.52, deviation 0.022; without privacy above 0.9


@pytest.mark.timeout(300)  # dozens of models
def test_a_model_with_too_little_noise_is_found() -> None:
    """Of 48 models: of 24, one run in five thousand would not find it."""
    _, wrong = audit_membership(40.0, models=48, claimed=1.0)
    assert wrong.contradicted


def test_the_likelihood_ratio_of_known_gaussians() -> None:
    """Two groups a mile apart are told apart; a person whose margin depends on nothing is not."""
    inside = np.tile([[True, True], [False, False]], (8, 1))
    noise = np.tile([[0.1], [-0.1], [-0.1], [0.1]], (4, 2))
    margins = np.where(inside, 5.0, -5.0) * [1.0, 0.0] + noise
    ratios = likelihood_ratios(margins, inside)
    assert (ratios[::2, 0] > 100).all()
    assert (ratios[1::2, 0] < -100).all()
    assert np.abs(ratios[:, 1]).max() < 1


def test_the_command_writes_what_it_prints_and_teaches(tmp_path: Path) -> None:
    done = CliRunner().invoke(audit, ["imprint", "--quick", "--json", str(tmp_path / "found.json")])
    assert (done.exit_code, done.output.count("✓")) == (0, 2)
    written = json.loads((tmp_path / "found.json").read_text())
    assert [row["mechanism"] for row in written["rows"]] == ["distributed", "none"]
    assert "sovfed audit imprint" in CliRunner().invoke(audit, ["--help"]).output
