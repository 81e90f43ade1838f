"""An institution's own terms, and the same bound where a run is configured."""

from __future__ import annotations

import pytest

from sovfed.clients.home.policy import Policy
from sovfed.federation.compose import compose
from sovfed.federation.errors import ConfigError, PolicyError
from sovfed.federation.schema import bind
from sovfed.federation.secagg.ring import Ring
from sovfed.federation.secagg.terms import REFUSE, Terms, shared_holders


@pytest.mark.parametrize("colluders", [0, 1, 4])
def test_the_minimum_cohort_leaves_three_that_do_not_collude(colluders: int) -> None:
    assert Terms(min_cohort=colluders + 3, colluders=colluders).min_cohort == colluders + 3
    with pytest.raises(ValueError, match=rf"min_cohort {colluders + 2} is below colluders \+ 3"):
        Terms(min_cohort=colluders + 2, colluders=colluders)


def test_a_policy_that_leaves_fewer_is_not_read() -> None:
    with pytest.raises(PolicyError, match="min_cohort 5 is below"):
        bind(Policy, {"secure_aggregation": {"colluders": 3}}, "policy.yaml", PolicyError)


@pytest.mark.parametrize("mechanism", ["distributed", "silo", "institution"])
def test_a_run_that_leaves_fewer_is_not_configured(mechanism: str) -> None:
    asked = [f"privacy={mechanism}", "privacy.colluders=2", "server.min_cohort=5"]
    assert compose(asked).config.server.min_cohort == 5
    with pytest.raises(ConfigError, match="expected at least 5"):
        compose([*asked, "server.min_cohort=4"])


def test_production_refuses_differencing_and_repeats_nothing_exactly() -> None:
    assert Terms().differencing == REFUSE
    assert Policy().reproducible is False


def test_quorums_of_two_rosters() -> None:
    """By hand: 16 need 11, 5 need 4; within 16 they may share none. 6 and 5 of them: 5 + 4 − 6."""
    assert shared_holders(range(16), range(5)) == -1
    assert shared_holders(range(6), range(5)) == 3
    assert shared_holders(range(5), range(5, 10)) == -2


@pytest.mark.parametrize("change", [{"fraction_bits": 46}, {"clip": 0.5}, {"max_weight": 999}])
def test_bounds_that_would_tell_records_apart_are_no_choice_of_the_agency(change: dict[str, float]) -> None:
    """Few bits left before the point make Σ min(nᵢ, 2^k) of a sum of counts; a small clip, the sign of each value."""
    given = {"fraction_bits": 24, "clip": 1.0, "max_weight": 1_000, **change}
    fraction_bits = int(given.pop("fraction_bits"))
    ring = Ring(32, float(given["clip"]), int(given["max_weight"]), 5)
    with pytest.raises(PolicyError, match="this institution's terms"):
        Terms().check_offer(
            ring=ring, fraction_bits=fraction_bits, min_cohort=5, max_size=10, max_metrics=10, expires=200, now=100.0
        )
