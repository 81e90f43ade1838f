"""A run for which too few institutions are admitted is refused before it starts, with the settings to change."""

from __future__ import annotations

import pytest

from sovfed.federation.compose import compose
from sovfed.federation.errors import ConfigError
from sovfed.server.runs.control import NodeRecord
from sovfed.server.runs.enough import require_enough

NAMES = ("ahorn", "birke", "eiche", "fichte")


def nodes(*online: str, gone: str = "") -> list[NodeRecord]:
    status = {name: "online" if name in online else "offline" for name in NAMES} | {gone: "unregistered"}
    return [NodeRecord(number, name, status[name], b"", 0.0) for number, name in enumerate(status)]


def check(*overrides: str, online: tuple[str, ...] = NAMES, gone: str = "ulme") -> str:
    return require_enough(compose(["task=heart", *overrides]).config, nodes(*online, gone=gone))


def test_four_institutions_are_told_of_both_settings_at_once() -> None:
    with pytest.raises(ConfigError) as told:
        check()
    words = str(told.value)
    assert "4 institutions are admitted, server.min_cohort is 5" in words
    assert "server.min_cohort=4" in words and "secure_aggregation.min_cohort 4 or less" in words
    assert "--min-cohort 4" in words and "colluders" not in words


def test_three_of_a_private_run_are_told_of_colluders_too() -> None:
    with pytest.raises(ConfigError, match=r"server\.min_cohort=3 privacy\.colluders=0"):
        check("privacy=distributed", gone="fichte")


def test_two_are_told_that_no_setting_helps() -> None:
    config = compose(["task=heart"]).config
    with pytest.raises(ConfigError, match="secure aggregation needs 3 at least") as told:
        require_enough(config, nodes(*NAMES)[:2])
    assert "server.min_cohort=2" not in str(told.value)


def test_enough_are_waited_for_by_name() -> None:
    assert check("server.min_cohort=4") == ""
    told = check("server.min_cohort=4", online=NAMES[1:])
    assert "3 of 4 institutions are connected" in told and "not connected: ahorn" in told


def test_a_cohort_names_institutions_that_there_are_and_enough_of_them() -> None:
    with pytest.raises(ConfigError, match=r"no institution 'birk' is admitted \(did you mean 'birke'\?\)"):
        check("server.min_cohort=4", "order.cohort=[ahorn,birk]")
    with pytest.raises(ConfigError, match=r"2 institutions are named in order\.cohort, server\.min_cohort is 4"):
        check("server.min_cohort=4", "order.cohort=[ahorn,birke]")
