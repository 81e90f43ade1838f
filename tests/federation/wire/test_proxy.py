"""Which proxy is on the way: the setting, else the environment; its password is nowhere but in a private file."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.connect_proxy import proxy_identity

from sovfed.federation.errors import ConfigError, IdentityError
from sovfed.federation.wire.proxy import CREDENTIALS, ROOTS, Proxy, Tls, keep_credentials, keep_roots, proxy_for

AGENCY = "agency.example:8445"
VARIABLE = {"HTTPS_PROXY": "http://proxy.example:8080"}


def test_the_environment_names_it_and_the_setting_has_the_last_word(tmp_path: Path) -> None:
    assert proxy_for(AGENCY, None, tmp_path, {}) is None
    assert proxy_for(AGENCY, None, tmp_path, VARIABLE) == Proxy("proxy.example", 8080)
    assert proxy_for(AGENCY, "direct", tmp_path, VARIABLE) is None
    assert proxy_for(AGENCY, "http://other:1", tmp_path, VARIABLE) == Proxy("other", 1)
    assert proxy_for(AGENCY, "[::1]:3128", tmp_path, {}) == Proxy("::1", 3128)


@pytest.mark.parametrize(
    ("listed", "address", "exempt"),
    [
        ("agency.example", AGENCY, True), (".example", AGENCY, True), ("*.example", AGENCY, True), ("*", AGENCY, True),
        ("other, agency.example", AGENCY, True), ("ency.example", AGENCY, False), ("", AGENCY, False),
        ("10.0.0.0/8", "10.1.2.3:1", True), ("10.0.0.0/8", "11.1.2.3:1", False),
        ("2001:db8::/32", "[2001:db8::1]:1", True),
        ("", "127.0.0.1:1", True), ("", "[::1]:1", True),
    ],
)  # fmt: skip
def test_no_proxy(tmp_path: Path, listed: str, address: str, exempt: bool) -> None:
    assert (proxy_for(address, None, tmp_path, {**VARIABLE, "NO_PROXY": listed}) is None) == exempt


def test_a_login_comes_from_its_file_or_the_variable_and_is_not_shown(tmp_path: Path) -> None:
    named = proxy_for(AGENCY, None, tmp_path, {"https_proxy": "http://ann:p%40ss@proxy:1"})
    assert named == Proxy("proxy", 1, "ann", "p@ss") and named.url == "http://ann:p%40ss@proxy:1"
    keep_credentials(tmp_path, "ann:p@ss:word\n")
    kept = proxy_for(AGENCY, "http://proxy:1", tmp_path, {})
    assert kept == Proxy("proxy", 1, "ann", "p@ss:word")
    assert "p@ss" not in repr(kept) + kept.address
    (tmp_path / CREDENTIALS).chmod(0o644)
    with pytest.raises(IdentityError, match="expected 0600"):
        proxy_for(AGENCY, "http://proxy:1", tmp_path, {})


def test_a_proxy_that_wants_tls_is_asked_under_the_systems_authorities_or_the_homes_own(tmp_path: Path) -> None:
    named = proxy_for(AGENCY, "https://proxy", tmp_path, {})
    assert named == Proxy("proxy", 443, tls=Tls()) and named.setting == "https://proxy:443"
    _, root = proxy_identity(tmp_path)
    keep_roots(tmp_path, root.read_bytes())
    own = proxy_for(AGENCY, None, tmp_path, {"HTTPS_PROXY": "https://ann:pw@proxy:8443"})
    assert own == Proxy("proxy", 8443, "ann", "pw", Tls(tmp_path / ROOTS)) and own.setting == "https://proxy:8443"
    with pytest.raises(ConfigError, match="PEM"):
        keep_roots(tmp_path, b"no certificate")


@pytest.mark.parametrize(
    "setting", ["socks5://proxy:1", "http://ann:pw@proxy:1", "http://", "http://proxy:0", "http://p:x",
                "https://ann:pw@proxy:1", "http://proxy:1/path"],
)  # fmt: skip
def test_what_is_no_proxy_or_holds_a_password_is_refused(tmp_path: Path, setting: str) -> None:
    with pytest.raises(ConfigError, match=r"client\.proxy"):
        proxy_for(AGENCY, setting, tmp_path, {})


@pytest.mark.parametrize("text", ["", "ann", ":pw", "ann:pw\nbob:pw"])
def test_what_is_no_login_is_not_kept(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match="user:password"):
        keep_credentials(tmp_path, text)
