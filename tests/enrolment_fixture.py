"""An authority, and an agency whose registry answers on free loopback ports, for the tests of enrolment."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from sovfed.clients.node.enrol import Institution, enrol
from sovfed.federation.certificates import InstitutionNames, ServerNames, create_csr, create_key, key_to_pem, to_pem
from sovfed.federation.config import ServerConfig
from sovfed.federation.files import private_directory, write_atomic, write_private
from sovfed.federation.identity import node_key_bytes, node_key_digest
from sovfed.federation.wire import enrolment_pb2 as pb
from sovfed.federation.wire.enrolment import ENROLMENT_SERVICE, TOLD, Invitation
from sovfed.server.network.guard import REFUSED
from sovfed.server.registry import authority, enrolment
from sovfed.server.registry.service import Endpoints, serving

Pair = tuple[bytes, bytes]
STATUS = grpc.StatusCode


@dataclass
class Agency:
    """The two homes, and where the registry answers while `run` is open."""

    authority: Path
    home: Path
    where: Endpoints = field(default_factory=lambda: Endpoints("", "", ""))
    registered: list[tuple[bytes, str]] = field(default_factory=list)

    def register(self, public_key: bytes, name: str) -> int:
        """Stands where Flower's node registration stands; node ids are unsigned 64-bit numbers."""
        self.registered.append((public_key, name))
        return 2**63 + len(self.registered)

    def invite(self, name: str) -> Invitation:
        return enrolment.invite(self.home, name, self.where.enrolment)

    def certify(self, name: str, days: int = 365) -> bytes:
        """Wait for the request of `name`, have the authority sign it and put the certificate in; the certificate."""
        request = enrolment.wait_for_request(self.home, name, 10)
        certificate = authority.sign(self.authority, request, days=days)
        enrolment.accept_certificate(self.home, certificate, self.register)
        return certificate

    def publish_crl(self, crl: bytes) -> None:
        write_atomic(self.home / "identity" / "crl.pem", crl)

    def enrol(self, folder: Path, name: str) -> Institution:
        """Enrol `name` with its home in `folder`."""
        invitation = self.invite(name)
        helper = threading.Thread(target=self.certify, args=(name,))
        helper.start()
        try:
            return enrol(folder, invitation, 20)
        finally:
            helper.join()

    @contextlib.contextmanager
    def run(self, config: ServerConfig | None = None) -> Iterator[Endpoints]:
        """The registry, in a thread of this process."""
        config = config or ServerConfig(enrolment_port=0, lane_port=0)
        ready, stop, failure = threading.Event(), asyncio.Event(), []
        loop = asyncio.new_event_loop()

        async def main() -> None:
            try:
                async with serving(self.home, config) as self.where:
                    ready.set()
                    await stop.wait()
            except Exception as error:
                failure.append(error)
                ready.set()

        thread = threading.Thread(target=lambda: loop.run_until_complete(main()))
        thread.start()
        try:
            ready.wait(20)
            if failure:
                raise failure[0]
            yield self.where
        finally:
            loop.call_soon_threadsafe(stop.set)
            thread.join(20)
            loop.close()


def make_agency(folder: Path) -> Agency:
    """An authority, and an agency's home with a certificate for 127.0.0.1 and localhost."""
    authority.init(folder / "authority", "Ministry of Health")
    identity = private_directory(private_directory(folder / "agency") / "identity")
    key = create_key()
    request = to_pem(create_csr(key, ServerNames(("127.0.0.1", "localhost"))))
    write_private(identity / "key.pem", key_to_pem(key))
    write_atomic(identity / "cert.pem", authority.sign(folder / "authority", request, server=True))
    for name in ("root.pem", "crl.pem"):
        write_atomic(identity / name, (folder / "authority" / name).read_bytes())
    return Agency(folder / "authority", folder / "agency")


def call(
    address: str, method: str, request: Any, reply: Any, root: bytes, pair: tuple[bytes, bytes] | None = None
) -> Any:
    """One call over TLS; `pair` is the client's key and certificate (PEM)."""
    credentials = grpc.ssl_channel_credentials(root, *(pair or (None, None)))
    with grpc.secure_channel(address, credentials, (("grpc.enable_http_proxy", 0),)) as channel:
        stub = channel.unary_unary(method, type(request).SerializeToString, reply.FromString)
        return stub(request, timeout=10)


class Applicant:
    """An institution that asks at the enrolment port by hand, so that it can ask wrongly."""

    def __init__(self, agency: Agency, name: str = "hospital-1") -> None:
        self.agency, self.name = agency, name
        self.key, self.node_key = create_key(), ec.generate_private_key(ec.SECP384R1())
        self.token = agency.invite(name).token

    def csr(self, name: str | None = None, digest: str | None = None) -> bytes:
        names = InstitutionNames(name or self.name, digest or node_key_digest(self.node_key.public_key()))
        return to_pem(create_csr(self.key, names))

    def request(self, csr: bytes, token: str | None = None, node_key: bytes | None = None) -> pb.EnrolRequest:
        return pb.EnrolRequest(
            token=token or self.token,
            csr=csr,
            node_public_key=node_key or node_key_bytes(self.node_key.public_key()),
            node_signature=self.node_key.sign(csr, ec.ECDSA(hashes.SHA256())),
        )

    def ask(self, request: pb.EnrolRequest) -> pb.EnrolReply:
        root = (self.agency.home / "identity" / "root.pem").read_bytes()
        reply: pb.EnrolReply = call(
            self.agency.where.enrolment, f"/{ENROLMENT_SERVICE}/Enrol", request, pb.EnrolReply, root
        )
        return reply

    def enrolled(self, days: int = 365) -> Pair:
        """Key and certificate (PEM) after an enrolment without a fault."""
        csr = self.csr()
        assert self.ask(self.request(csr)).certificate == b""
        self.agency.certify(self.name, days)
        return key_to_pem(self.key), self.ask(self.request(csr)).certificate


def refusal(applicant: Applicant, request: pb.EnrolRequest) -> grpc.StatusCode:
    """The status of a request that must fail; it says nothing but a fixed sentence."""
    with pytest.raises(grpc.RpcError) as caught:
        applicant.ask(request)
    if caught.value.code() is STATUS.PERMISSION_DENIED:
        assert caught.value.details() == REFUSED or (caught.value.details() or "").startswith(TOLD)
    return caught.value.code()
