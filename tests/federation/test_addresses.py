"""Addresses are written and read in one form, IPv6 in brackets."""

from __future__ import annotations

from pathlib import Path

import pytest

from sovfed.clients.home.folder import create
from sovfed.clients.home.policy import Policy
from sovfed.federation.addresses import host_port, socket_path, split_host_port
from sovfed.federation.compose import compose
from sovfed.federation.config import ClientConfig, ServerConfig
from sovfed.federation.errors import ConfigError
from sovfed.federation.host.processes import listening
from sovfed.server.home import init


@pytest.mark.parametrize(
    ("host", "text"), [("agency.example", "agency.example:8443"), ("10.0.0.1", "10.0.0.1:8443"), ("::1", "[::1]:8443")]
)
def test_what_is_written_is_read_again(host: str, text: str) -> None:
    assert host_port(host, 8443) == text
    assert split_host_port(text) == (host, 8443)


@pytest.mark.parametrize("text", ["", "host", "host:", ":1", "::1:8443", "[::1]", "[host]:1", "host:0", "host:65536"])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="HOST:PORT"):
        split_host_port(text)


def test_the_lane_of_an_agency_with_an_ipv6_address_can_be_dialled() -> None:
    config = ServerConfig(names=("2001:db8::1",), lane_port=8445)
    assert config.announced_lane_address == "[2001:db8::1]:8445"


def test_a_home_too_deep_for_a_unix_socket_is_refused_when_it_is_made(tmp_path: Path) -> None:
    deep = tmp_path / ("x" * 100)
    for make in (
        lambda: create(deep, ClientConfig(), Policy()),
        lambda: init(deep, compose([]).config),
        lambda: listening(deep / "a.sock"),
    ):
        with pytest.raises(ConfigError, match=r"longer than 107 bytes.*at least \d+ shorter"):
            make()
    assert not deep.exists()
    assert socket_path(tmp_path / "a.sock") == tmp_path / "a.sock"
