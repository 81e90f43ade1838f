"""An agency's home with real certificates, and its processes on free ports, for the tests of the Flower edge."""

from __future__ import annotations

import contextlib
import dataclasses
import ssl
import subprocess
import sys
import time
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import httpx
from cryptography.hazmat.primitives.asymmetric import ec
from google.protobuf.message import Message

from sovfed.federation.certificates import (
    InstitutionNames,
    ServerNames,
    create_csr,
    create_key,
    create_root,
    key_to_pem,
    make_crl,
    sign_csr,
    to_pem,
)
from sovfed.federation.config import ServerConfig
from sovfed.federation.files import private_directory, write_atomic, write_private
from sovfed.federation.host.quiet import quiet_environment
from sovfed.federation.host.settings import settings_file
from sovfed.federation.identity import node_key_bytes, node_key_digest
from sovfed.server.runs.control import ControlClient
from sovfed.simulations.ports import free_ports


class Authority:
    """A root, and the numbered revocation lists it has signed."""

    def __init__(self) -> None:
        self.now = datetime.now(UTC)
        self.key, self.root = create_root("test authority", self.now)
        self.revoked: list[tuple[int, datetime]] = []
        self.number = 0

    def crl(self, days: int = 30, now: datetime | None = None) -> bytes:
        self.number += 1
        return to_pem(make_crl(self.key, self.root, self.revoked, self.number, now or self.now, days))


@dataclasses.dataclass(frozen=True)
class Institution:
    """Certificate and key files of an institution, and its SuperNode key."""

    folder: Path
    node_key: ec.EllipticCurvePrivateKey
    serial: int

    @property
    def public_key(self) -> bytes:
        return node_key_bytes(self.node_key.public_key())

    def headers(self) -> dict[str, str]:
        """What Flower's SuperNode sends to prove that it holds the node key."""
        from flwr.supercore.date import now
        from flwr.supercore.primitives.asymmetric import sign_message

        timestamp = now().isoformat()
        signature = sign_message(self.node_key, timestamp.encode("ascii"))
        return {
            "flwr-public-key": b64encode(self.public_key).decode(),
            "flwr-signature": b64encode(signature).decode(),
            "flwr-timestamp": timestamp,
        }


def make_institution(authority: Authority, folder: Path, name: str, bound_to: str | None = None) -> Institution:
    """An institution with a certificate for its own node key, or for the digest `bound_to`."""
    private_directory(folder)
    key, node_key = create_key(), ec.generate_private_key(ec.SECP384R1())
    names = InstitutionNames(name, bound_to or node_key_digest(node_key.public_key()))
    certificate = sign_csr(authority.key, authority.root, to_pem(create_csr(key, names)), authority.now, 30)
    write_private(folder / "key.pem", key_to_pem(key))
    write_atomic(folder / "cert.pem", to_pem(certificate))
    write_atomic(folder / "root.pem", to_pem(authority.root))
    return Institution(folder, node_key, certificate.serial_number)


def make_home(authority: Authority, home: Path) -> Path:
    """The agency's home with a certificate for 127.0.0.1."""
    private_directory(home)
    identity = private_directory(home / "identity")
    key = create_key()
    request = to_pem(create_csr(key, ServerNames(("127.0.0.1",))))
    certificate = sign_csr(authority.key, authority.root, request, authority.now, 30)
    write_private(identity / "key.pem", key_to_pem(key))
    write_atomic(identity / "cert.pem", to_pem(certificate))
    write_atomic(identity / "root.pem", to_pem(authority.root))
    write_atomic(identity / "crl.pem", authority.crl())
    return home


def free_port() -> int:
    return free_ports(1)[0]


def server_config(home: Path, **changes: object) -> ServerConfig:
    ports = dict.fromkeys(("fleet_port", "enrolment_port", "lane_port", "control_port"), 0)
    chosen = dict(zip(ports, free_ports(len(ports)), strict=True))
    return dataclasses.replace(ServerConfig(home=str(home)), **(chosen | changes))  # type: ignore[arg-type]


@contextlib.contextmanager
def process(
    argv: Sequence[str], home: Path, log: Path, extra_env: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A child that is ended with the block."""
    with log.open("ab") as output:
        child = subprocess.Popen(
            argv,
            stdout=output,
            stderr=output,
            env=quiet_environment(home) | dict(extra_env or {}),
            start_new_session=True,
        )
    try:
        yield child
    finally:
        if child.poll() is None:
            child.terminate()
            try:
                child.wait(10)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


def superlink_argv(home: Path, config: ServerConfig) -> list[str]:
    settings = settings_file(home, config)
    return [sys.executable, "-m", "sovfed.server.network.superlink", "--home", str(home), "--config", str(settings)]


def wait_until(condition: Callable[[], bool], timeout_s: float = 120.0, what: str = "the condition") -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} did not hold within {timeout_s:g} s")
        time.sleep(0.1)


@contextlib.contextmanager
def superlink(
    home: Path, config: ServerConfig, *, descriptors: int = 0
) -> Iterator[tuple[subprocess.Popen[bytes], ControlClient]]:
    """Our superlink as a real process, answering; with `descriptors` it may have only so many files open."""
    private_directory(home / "logs")
    from sovfed.federation.wire.loopback import ensure_secret

    ensure_secret(home / "secrets" / "loopback.secret")
    log = home / "logs" / "superlink.log"
    argv = superlink_argv(home, config)
    if descriptors:
        argv = ["sh", "-c", f'ulimit -n {descriptors} && exec "$@"', "sh", *argv]
    with process(argv, home, log) as child, ControlClient(home, config.control_port) as control:
        try:
            wait_until(lambda: control.alive() or child.poll() is not None, what="the superlink's health")
        except AssertionError as error:
            raise AssertionError(log.read_text()) from error
        assert child.poll() is None, log.read_text()
        yield child, control


def network_client(port: int, folder: Path, with_certificate: bool = True) -> httpx.Client:
    """A client of the network side, with the certificate in `folder` or with none."""
    context = ssl.create_default_context(cafile=str(folder / "root.pem"))
    if with_certificate:
        context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    return httpx.Client(base_url=f"https://127.0.0.1:{port}", verify=context, trust_env=False, timeout=20.0)


def post(client: httpx.Client, path: str, message: Message, headers: Mapping[str, str] | None = None) -> httpx.Response:
    """POST `message` as Flower's clients do."""
    content = {"content-type": "application/protobuf", "accept": "application/protobuf"}
    return client.post(path, content=message.SerializeToString(), headers=content | dict(headers or {}))
