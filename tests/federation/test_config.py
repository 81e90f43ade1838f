"""The configuration's dataclasses: complete, consistent, and equal to what the code they choose from offers."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from sovfed.clients.data import sources
from sovfed.federation.compose import schema
from sovfed.federation.config import Config, ServerConfig
from sovfed.federation.errors import ConfigError
from sovfed.federation.schema import bind
from sovfed.federation.tasks.registry import names


def options(key: str) -> set[str]:
    return set(schema()[key][1].metadata["options"])


def test_every_key_is_documented_and_every_number_has_a_range() -> None:
    for key, (kind, field) in schema().items():
        assert field.metadata["doc"], key
        if kind in (int, float):
            assert field.metadata["low"] is not None, key
            assert field.metadata["high"] is not None, key


def test_every_duration_and_size_says_its_unit() -> None:
    for key, (_, field) in schema().items():
        for ending, unit in (("_s", "s"), ("_bytes", "bytes")):
            assert not key.endswith(ending) or field.metadata["unit"] == unit, key


def test_defaults_lie_inside_their_own_ranges() -> None:
    assert bind(Config, dataclasses.asdict(Config())) == Config()


def test_configuration_survives_json_as_processes_receive_it() -> None:
    config = bind(Config, {"server": {"names": ["agency.example", "10.0.0.1"]}, "seed": 2**63 - 1})
    assert bind(Config, json.loads(json.dumps(dataclasses.asdict(config)))) == config


@pytest.mark.parametrize("key", ["task.name", "data.source", "client.data.source"])
def test_tasks_and_connectors_are_open_to_what_is_installed(key: str) -> None:
    """Their names are looked up where they are used: a configuration closes neither list, and names no code."""
    _, field = schema()[key]
    assert not field.metadata.get("options")
    assert field.default in {*names(), *sources()}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"round": 3}, "unknown key 'round' (did you mean 'rounds'?)"),
        ({"task": {"learning_rat": 0.1}}, "unknown key 'task.learning_rat' (did you mean 'learning_rate'?)"),
        ({"rounds": "ten"}, "'rounds' must be int, got 'ten' (str)"),
        ({"rounds": True}, "'rounds' must be int, got True (bool)"),
        ({"rounds": 0}, "'rounds' 0 is outside [1, 100000]"),
        ({"seed": -1}, "'seed' -1 is outside"),
        ({"seed": 2**63}, "'seed' 9223372036854775808 is outside"),
        ({"task": {"learning_rate": float("nan")}}, "'task.learning_rate' must be finite"),
        ({"task": {"name": "a.b:c d"}}, "'task.name'"),
        ({"task": {"normalisation": "grop"}}, "'task.normalisation' is 'grop' (did you mean 'group'?)"),
        ({"client": {"data": {"sites": 0}}}, "'client.data.sites' 0 is outside [1, 1000]"),
        ({"server": {"fleet_port": 70_000}}, "'server.fleet_port' 70000 is outside [0, 65535]"),
        ({"server": "agency"}, "'server' must be a group of settings"),
    ],
)
def test_wrong_values_are_refused_with_the_full_key(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        bind(Config, values)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"secagg": {"bits": 24}}, "bits is 24, expected one of"),
        ({"server": {"min_cohort": 2}}, "secure aggregation needs at least 3"),
        ({"privacy": {"mechanism": "gaussian"}}, "'privacy.mechanism' is 'gaussian'"),
        ({"strategy": {"proximal_mu": 0.1}}, "only strategy=fedprox uses it"),
        ({"server": {"min_cohort": 4, "start_cohort": 3}}, "start_cohort 3 is below min_cohort 4"),
        ({"server": {"lane_port": 8443}}, "two services share a port"),
    ],
)
def test_a_setting_that_would_be_ignored_or_clash_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        bind(Config, values)


def test_any_number_of_ports_may_be_left_to_choose() -> None:
    assert ServerConfig(fleet_port=0, enrolment_port=0, lane_port=0, control_port=0).fleet_port == 0


@pytest.mark.parametrize(
    ("server", "address"),
    [
        (ServerConfig(), "127.0.0.1:8445"),
        (ServerConfig(names=("agency.example", "10.0.0.1"), lane_port=99), "agency.example:99"),
        (ServerConfig(lane_address="gate.example:1"), "gate.example:1"),
    ],
)
def test_institutions_are_told_a_lane_address_that_the_certificate_carries(server: ServerConfig, address: str) -> None:
    assert server.announced_lane_address == address
