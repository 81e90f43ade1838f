"""The agency's settings under a run's own."""

from __future__ import annotations

import dataclasses

import pytest

from sovfed.federation.compose import compose
from sovfed.federation.errors import ConfigError
from sovfed.server.home import Settings, with_settings


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
