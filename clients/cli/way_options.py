"""The options of `sovfed client join` that say by which way the agency is reached."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import wraps
from pathlib import Path
from typing import Any

import click

PROXY = (
    "http://HOST:PORT on the way to the agency, or https:// where the proxy itself wants TLS; by default HTTPS_PROXY. "
    "Kept in client.yaml."
)
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@dataclass(frozen=True)
class Way:
    """The proxy as client.yaml has it, user:password, and the authorities (PEM) of a proxy that wants TLS."""

    proxy: str | None = None
    login: str = ""
    roots: bytes = b""

    def else_of_environment(self, home: Path, address: str) -> Way:
        """With the proxy that the environment names for `address`: after a reboot nobody sets the variable."""
        from sovfed.federation.wire.proxy import proxy_for

        proxy = None if self.proxy is not None else proxy_for(address, None, home)
        if proxy is None:
            return self
        login = f"{proxy.user}:{proxy.password}" if proxy.user else ""
        return replace(self, proxy=proxy.setting, login=self.login or login)

    def keep(self, home: Path) -> None:
        """Put what client.yaml does not hold into the home. Raises ConfigError if it is not what it should be."""
        from sovfed.federation.wire.proxy import keep_credentials, keep_roots

        if self.login:
            keep_credentials(home, self.login)
        if self.roots:
            keep_roots(home, self.roots)


def way_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """`command` with these options, which it takes as one value, `way`."""

    @wraps(command)
    def chosen(*, proxy: str | None, proxy_login: Path | None, proxy_ca: Path | None, **others: Any) -> Any:
        login = proxy_login.read_text(encoding="utf-8") if proxy_login else ""
        return command(way=Way(proxy, login, proxy_ca.read_bytes() if proxy_ca else b""), **others)

    options = (
        click.option("--proxy", help=PROXY),
        click.option("--proxy-login", type=FILE, help="File with user:password."),
        click.option("--proxy-ca", type=FILE, help="Authorities of an https:// proxy (PEM), where not the system's."),
    )
    for option in reversed(options):
        chosen = option(chosen)
    return chosen
