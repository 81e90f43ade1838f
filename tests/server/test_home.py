"""The agency's settings under a run's own."""

from __future__ import annotations

import dataclasses

import pytest

from sovfed.federation.compose import compose
from sovfed.federation.errors import ConfigError
from sovfed.server.home import Settings, behind_cohort, with_settings


def test_settings_of_the_agency_hold_unless_the_run_names_them() -> None:
    config = compose(["server.min_cohort=4", "secagg=none"]).config
    own = Settings(dataclasses.replace(config.server, min_cohort=7, lane_timeout_s=3.0), config.tracking)
    found = with_settings(config, own, ["server.min_cohort=4", "secagg=none"]).server
    assert (found.min_cohort, found.lane_timeout_s) == (4, 3.0)


def test_settings_that_do_not_fit_the_run_are_refused_in_words() -> None:
    config = compose([]).config
    own = Settings(dataclasses.replace(config.server, min_cohort=1), config.tracking)
    with pytest.raises(ConfigError, match=r"min_cohort is 1; secure aggregation needs at least 3.*server\.json"):
        with_settings(config, own, [])


def test_a_cohort_asked_for_is_judged_by_the_agencys_own_minimum() -> None:
    """Seen: start_cohort=4 was refused for the package's min_cohort of 5 by an agency whose own is 3."""
    config = compose(["server.min_cohort=3"]).config
    own = Settings(dataclasses.replace(config.server, min_cohort=3), config.tracking)
    overrides = ["server.start_cohort=4"]
    found = with_settings(compose(behind_cohort(own, overrides)).config, own, overrides).server
    assert (found.min_cohort, found.start_cohort) == (3, 4)
    with pytest.raises(ConfigError, match="start_cohort 2 is below min_cohort 3"):
        compose(behind_cohort(own, ["server.start_cohort=2"]))
