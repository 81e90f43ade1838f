"""Children's settings lie in a file of their own user, and in no command line."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from sovfed.clients.node import up as client_up
from sovfed.federation.compose import compose
from sovfed.federation.config import ClientConfig, ServerConfig
from sovfed.federation.errors import ConfigError, IdentityError
from sovfed.federation.host.settings import passed_settings, settings_file
from sovfed.federation.schema import bind
from sovfed.server import up as server_up

SECRET = "s3cret-pw"


def test_what_is_passed_arrives_and_is_private(tmp_path: Path) -> None:
    for config in (ClientConfig(), ServerConfig(host="agency.example")):
        path = settings_file(tmp_path, config)
        assert path.stat().st_mode & 0o777 == 0o600
        assert bind(type(config), passed_settings(path)) == config
    path.chmod(0o640)
    with pytest.raises(IdentityError, match="expected 0600"):
        passed_settings(path)


@pytest.mark.parametrize("text", ["{", "[]", "1"])
def test_what_is_no_object_is_refused(tmp_path: Path, text: str) -> None:
    path = settings_file(tmp_path, ClientConfig())
    path.write_text(text)
    with pytest.raises(ConfigError, match=str(path)):
        passed_settings(path)


def test_no_command_line_names_data_site_or_address(tmp_path: Path) -> None:
    """Seen: the data's path and site, readable by every user of the machine in /proc/PID/cmdline."""
    config = compose(["data=csv", "data.path=/srv/oncology-hiv", "data.site=ward-7", "tracking.serve=true"]).config
    client = dataclasses.replace(config.client, home=str(tmp_path))
    children = client_up.processes(tmp_path, client)
    children += server_up.processes(tmp_path, dataclasses.replace(config.server, host="10.1.2.3"), config.tracking)
    assert len(children) == 7
    for child in children:
        line = " ".join(child.argv)
        assert not any(secret in line for secret in ("oncology", "ward-7", "10.1.2.3", "{")), line
