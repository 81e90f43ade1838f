"""Addresses are written and read in one form, IPv6 in brackets."""

from __future__ import annotations

import pytest

from sovfed.federation.addresses import host_port, split_host_port
from sovfed.federation.config import ServerConfig
from sovfed.federation.errors import ConfigError


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
