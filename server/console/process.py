"""`python -m sovfed.server.console.process --home H`: the agency's console, served until SIGTERM.

On the loopback without TLS; anywhere else with a certificate: the one that `server.console_certificate` names, which
browsers know, or the server's own, which they do not until the authority's root is added to them.
"""

from __future__ import annotations

import argparse
import dataclasses
import ipaddress
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sovfed.federation.errors import ConfigError, SovfedError
from sovfed.federation.files import read_private
from sovfed.federation.host.leaving import leave
from sovfed.federation.host.logs import log_to_stderr
from sovfed.federation.host.processes import die_with_parent, exit_code
from sovfed.federation.host.quiet import be_quiet
from sovfed.federation.host.web import LOOPBACK
from sovfed.federation.identity import parse_certificate
from sovfed.server.home import load_settings

if TYPE_CHECKING:
    from collections.abc import Callable

    from sovfed.federation.config import ServerConfig

PORT: Final = 8448  # of `server console` where no setting names one
CALLERS: Final = 64  # at a time
KEEP_ALIVE_S: Final = 30


def is_loopback(host: str) -> bool:
    """Whether nobody but this machine reaches `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def serving_files(home: Path, config: ServerConfig) -> tuple[Path, Path] | None:
    """Certificate and key of the page, None on the loopback if none is chosen. Raises ConfigError, IdentityError."""
    if config.console_certificate and config.console_key:
        certificate, key = Path(config.console_certificate), Path(config.console_key)
    elif is_loopback(config.console_host):
        return None
    else:
        certificate, key = home / "identity" / "cert.pem", home / "identity" / "key.pem"
    for path in (certificate, key):
        if not path.is_file():
            raise ConfigError(
                f"{path} is missing: the console at {config.console_host} needs a certificate and its key"
            )
    read_private(key)  # or others can read it
    return certificate, key


def names_of(config: ServerConfig, certificate: Path | None) -> tuple[str, ...]:
    """The names by which a browser may ask for the page."""
    names = {*LOOPBACK, config.console_host}
    if certificate is not None:
        from cryptography import x509

        leaf = parse_certificate(certificate.read_bytes(), str(certificate))
        alternatives = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        names |= {*alternatives.get_values_for_type(x509.DNSName)}
        names |= {_bracketed(str(address)) for address in alternatives.get_values_for_type(x509.IPAddress)}
    return tuple(sorted(names))


def _bracketed(address: str) -> str:
    return f"[{address}]" if ":" in address else address


def serve(home: Path, config: ServerConfig, ready: Callable[[str], None] = lambda _: None) -> None:
    """Serve the console of `home` until SIGTERM or Ctrl-C; `ready` is told its address. Raises ConfigError."""
    import uvicorn

    from sovfed.server.console.app import make_console
    from sovfed.server.runs.control import ControlClient
    from sovfed.server.runs.folders import stop_run
    from sovfed.server.runs.recovery import resume_run

    def acting(act: Callable[[ControlClient, Path, str], Any]) -> Callable[[str], None]:
        def run(name: str) -> None:
            with ControlClient(home, config.control_port) as control:
                act(control, home, name)

        return run

    files = serving_files(home, config)
    names = names_of(config, files[0] if files else None)
    console = make_console(home, names, tls=files is not None, stop=acting(stop_run), resume=acting(resume_run))
    certificate, key = map(str, files) if files else (None, None)
    port = config.console_port or PORT
    ready(f"{'https' if files else 'http'}://{_bracketed(config.console_host)}:{port}")
    uvicorn.run(
        console, host=config.console_host, port=port, access_log=False, server_header=False, log_config=None,
        log_level="warning", ws="none", proxy_headers=False, limit_concurrency=CALLERS, timeout_keep_alive=KEEP_ALIVE_S,
        ssl_certfile=certificate, ssl_keyfile=key,
    )  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    """Serve as a child of `sovfed server up`; its exit codes are `exit_code`'s."""
    die_with_parent()
    parser = argparse.ArgumentParser(description="the agency's console")
    parser.add_argument("--home", type=Path, required=True)
    options = parser.parse_args(arguments)
    os.umask(0o077)
    log_to_stderr()
    be_quiet(options.home)
    try:
        config = load_settings(options.home).server
        serve(options.home, dataclasses.replace(config, home=str(options.home)))
    except SovfedError as error:
        sys.stderr.write(f"console: {error}\n")
        return exit_code(error)
    return 0


if __name__ == "__main__":
    leave(main)
