"""The agency's home folder: its identity, its settings and its secrets, all readable by the owner only."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from sovfed.federation.addresses import socket_path
from sovfed.federation.certificates import (
    ServerNames,
    create_csr,
    create_key,
    key_from_pem,
    key_to_pem,
    to_der,
    to_pem,
)
from sovfed.federation.config import Config, ServerConfig, TrackingConfig
from sovfed.federation.errors import ConfigError, IdentityError, ServiceError
from sovfed.federation.evidence.store import record_change
from sovfed.federation.files import private_directory, read_bounded, read_private, write_atomic, write_private
from sovfed.federation.identity import install_crl, parse_certificate, verify_server
from sovfed.federation.revocation import check_crl, parse_crl
from sovfed.federation.schema import bind
from sovfed.federation.wire.loopback import ensure_secret

SETTINGS: Final = "server.json"
FOLDERS: Final = ("identity", "superlink", "secrets", "registry", "runs", "mlartifacts", "logs")


@dataclasses.dataclass(frozen=True)
class Settings:
    """What `sovfed server init` fixes for all runs."""

    server: ServerConfig
    tracking: TrackingConfig


def init(home: Path, config: Config) -> Path:
    """Create the home, the server's key and its certificate request; the request's path, for the authority to sign.

    Refuses to touch a home that is already set up.
    """
    if (home / SETTINGS).exists():
        raise ConfigError(f"{home} is already set up; remove it or choose another --home")
    socket_path(home / "lane.sock")
    private_directory(home)
    for name in FOLDERS:
        private_directory(home / name)
    key = create_key()
    write_private(home / "identity" / "key.pem", key_to_pem(key))
    ensure_secret(home / "secrets" / "loopback.secret")
    request = home / "identity" / "server.csr"
    write_atomic(request, to_pem(create_csr(key, ServerNames(config.server.certificate_names))))
    settings = Settings(dataclasses.replace(config.server, home=str(home)), config.tracking)
    write_private(home / SETTINGS, json.dumps(dataclasses.asdict(settings), indent=2).encode())
    return request


def install_certificate(home: Path, certificate: bytes, root: bytes, crl: bytes) -> None:
    """Put the signed certificate, the authority's root and its revocation list (all PEM) into place, once they hold.

    Raises IdentityError if the certificate is for another key, was signed by another root, or the list is stale.
    """
    leaf, authority = parse_certificate(certificate, "certificate"), parse_certificate(root, "root")
    revoked = parse_crl(crl, "revocation list")
    now = datetime.now(UTC)
    check_crl(revoked, authority, now)
    verify_server(to_der(leaf), authority, revoked, now)
    key = key_from_pem(read_private(home / "identity" / "key.pem"), str(home / "identity" / "key.pem"))
    if leaf.public_key() != key.public_key():
        raise IdentityError("the certificate is for another key than this server's")
    for name, content in (("cert.pem", certificate), ("root.pem", root), ("crl.pem", crl)):
        write_atomic(home / "identity" / name, content)


def refresh_crl(home: Path, source: str | None) -> None:
    """Take in the revocation list at `source`, if there is one that holds: the one in place may be stale by now."""
    if source is not None:
        with contextlib.suppress(OSError, IdentityError):  # the registry goes on looking, and says what it finds
            take_crl(home, read_bounded(Path(source)))


def take_crl(home: Path, pem: bytes) -> int:
    """Put the revocation list `pem` in place if it holds, as `install_crl`, and log it if it is new; its number."""
    number = install_crl(home / "identity", pem)
    record_change(home, "revocation", number=number, sha256=hashlib.sha256(pem).hexdigest())
    return number


def load_settings(home: Path) -> Settings:
    """The settings that `sovfed server init` wrote. ServiceError with the command to run if there are none."""
    path = home / SETTINGS
    if not path.exists():
        raise ServiceError(f"{home} is not set up; run `sovfed server init --home {home}`")
    return bind(Settings, json.loads(path.read_text()), str(path))


def behind_cohort(settings: Settings, overrides: Iterable[str]) -> list[str]:
    """`overrides` behind the agency's own cohort, which they may replace and are otherwise judged by."""
    server = settings.server
    return [f"server.min_cohort={server.min_cohort}", f"server.start_cohort={server.start_cohort}", *overrides]


def with_settings(config: Config, settings: Settings, overrides: Iterable[str]) -> Config:
    """`config` with the agency's own server and tracking settings, but for those named on the command line.

    Raises ConfigError if they do not fit the rest.
    """
    named = {word.lstrip("+").split("=", 1)[0] for word in overrides}
    groups = {}
    for group in ("server", "tracking"):
        configured, own = getattr(config, group), getattr(settings, group)
        overridden = {
            f.name: getattr(configured, f.name) for f in dataclasses.fields(own) if f"{group}.{f.name}" in named
        }
        groups[group] = dataclasses.replace(own, **overridden)
    try:
        return dataclasses.replace(config, **groups)
    except ValueError as error:  # two values that do not go together
        raise ConfigError(f"{error} (server and tracking as in the agency's {SETTINGS})") from error
