"""An institution's home folder: its settings, what enrolment left there, and what must hold before anything starts."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sovfed.clients.home.policy import POLICY, POLICY_HEAD, Policy
from sovfed.clients.home.settings import read_settings, settings_text
from sovfed.federation.addresses import socket_path
from sovfed.federation.config import ClientConfig
from sovfed.federation.errors import (
    ConfigError,
    DataError,
    IdentityError,
    NotValidNowError,
    PrivacyError,
    ServiceError,
    WrongTaskError,
)
from sovfed.federation.files import private_directory, read_private, write_private
from sovfed.federation.host.settings import PLACES
from sovfed.federation.schema import bind

if TYPE_CHECKING:
    from datetime import datetime

    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

    from sovfed.federation.config import DataConfig

SETTINGS: Final = "client.yaml"
FOLDERS: Final = ("identity", "secrets", "logs", "state")
NODE_ID: Final = Path("state/node_id")  # under which the agency knew the node when it was last online
RUNTIME_SECRET: Final = Path("secrets/loopback.secret")  # shown with every request to the SuperNode's Runtime port
TASK_SECRET: Final = Path("secrets/superexec.secret")  # Flower's own: signs the claim of a task
NEXT_CERTIFICATE: Final = "next_cert.pem"  # in identity/: a renewal that was interrupted between two files
SETTINGS_HEAD: Final = """\
How this institution takes part. Changes hold from the next `sovfed client up`. A path that does not begin with / is
taken from this folder."""


def create(home: Path, config: ClientConfig, policy: Policy, why: str = "") -> None:
    """Make the home (0700) with `client.yaml` and `policy.yaml`, whose head ends with `why` it says what it says.

    Raises ConfigError if either file is there already, or the path is too long for the trainer's socket.
    """
    socket_path(home / "trainer.sock")
    config = _with_place(config, Path.cwd())
    texts = {
        SETTINGS: settings_text(config, SETTINGS_HEAD, skip=("home",)),
        POLICY: settings_text(policy, f"{POLICY_HEAD}\n\n{why}".rstrip()),
    }
    for name in texts:
        if (home / name).exists():
            raise ConfigError(f"{home / name} exists; edit it, or choose another --home")
    private_directory(home)
    for name in FOLDERS:
        private_directory(home / name)
    for name, text in texts.items():
        write_private(home / name, text.encode())


def load_config(home: Path) -> ClientConfig:
    """The settings in `home/client.yaml`. Raises ConfigError if the file is missing or a value does not fit."""
    path = home / SETTINGS
    if not path.exists():
        raise ConfigError(f"{path} is missing; `sovfed client init --home {home}` writes it")
    return _with_place(bind(ClientConfig, {**read_settings(path), "home": str(home)}, str(path)), home.absolute())


def proxy_setting(home: Path) -> str | None:
    """`client.proxy` of a home; None where it has no settings yet."""
    return load_config(home).proxy if (home / SETTINGS).exists() else None


def _with_place(config: ClientConfig, folder: Path) -> ClientConfig:
    """`config` with whole paths of all records, from `folder` if they were not whole: the processes run elsewhere."""
    return config.with_data(lambda _study, data: whole(data, folder))


def whole(data: DataConfig, folder: Path) -> DataConfig:
    """`data` with whole paths, from `folder` where they were not."""
    paths = {name: getattr(data, name) for name in (*PLACES, "bad_rows_file")}
    places: dict[str, Any] = {name: str(folder / Path(path).expanduser()) for name, path in paths.items() if path}
    return dataclasses.replace(data, **places)


def private_obstacles(config: ClientConfig, policy: Policy) -> list[str]:
    """Why private runs of the tasks that `policy` allows would be refused for the settings of the records, a line each.

    Only where nothing but private runs is answered: the agency is told a code, so the operator must know beforehand.
    """
    from sovfed.clients.data import check_private_data
    from sovfed.clients.home.looked import allowed_tasks, reads_itself

    obstacles = dict[str, None]()
    for task in allowed_tasks(config, policy) if policy.require_privacy else ():
        try:
            if not reads_itself(task, config.data_of(task)):
                check_private_data(task, config.data_of(task))
        except (PrivacyError, DataError, ConfigError, WrongTaskError) as error:
            obstacles[f"runs will be refused: {error}"] = None
    return list(obstacles)


def load_node_key(path: Path) -> EllipticCurvePrivateKey:
    """The SuperNode's private key (OpenSSH, NIST curve). Raises IdentityError."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.serialization import load_ssh_private_key

    try:
        key = load_ssh_private_key(read_private(path), None)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise IdentityError(f"{path}: not an OpenSSH private key") from error
    if not isinstance(key, EllipticCurvePrivateKey):
        raise IdentityError(f"{path}: {type(key).__name__}, expected an elliptic-curve key")
    return key


def check_enrolled(home: Path, now: datetime) -> None:
    """Raises unless the home is private, enrolled, its keys its own, and its certificate valid at `now`.

    IdentityError says which file and what to do; ServiceError that others may enter the home.
    """
    if not home.is_dir():
        raise ServiceError(f"{home} does not exist; `sovfed client init --home {home}` makes it")
    private_directory(home)
    identity = home / "identity"
    if not (identity / "cert.pem").exists():
        raise IdentityError(f"{home} is not enrolled; run `sovfed client enrol INVITATION --home {home}`")
    private_directory(identity)
    from cryptography import x509

    from sovfed.federation.certificates import InstitutionNames, key_from_pem, read_names
    from sovfed.federation.identity import load_certificate, load_roots, node_key_digest

    certificate = load_certificate(identity / "cert.pem")
    load_roots(identity / "root.pem")
    if not certificate.not_valid_before_utc <= now < certificate.not_valid_after_utc:
        raise NotValidNowError(
            f"{identity / 'cert.pem'}: valid from {certificate.not_valid_before_utc:%F %R} to "
            f"{certificate.not_valid_after_utc:%F %R}, and this machine's clock says {now:%F %R} UTC; set the clock, "
            "or, where it ended while this node was off: `sovfed client join` with a new invitation, for which the "
            "agency types `sovfed server remove NAME` and `sovfed server admit NAME`"
        )
    key = key_from_pem(read_private(identity / "key.pem"), str(identity / "key.pem"))
    if key.public_key() != certificate.public_key():
        raise IdentityError(f"{identity / 'cert.pem'}: made for another key than {identity / 'key.pem'}")
    names = read_names(certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    digest = node_key_digest(load_node_key(identity / "node_key").public_key())
    if not isinstance(names, InstitutionNames) or names.node_key_digest != digest:
        raise IdentityError(f"{identity / 'cert.pem'}: not bound to the node key {identity / 'node_key'}")
