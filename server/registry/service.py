"""The registry process: enrolment, renewal, roster and health, and the lane's relay, at three gRPC endpoints.

    enrolment port   TLS that proves the server only   Enrol: a one-time token and a request in, a certificate out
    lane port        mutual TLS                        Renew, Roster, Health, Crl, Probe, and the lane (network/lane.py)
    H/lane.sock      Unix socket, mode 0600            Roster, Health, Crl, and the coordinator's side of the lane

Two ports, because gRPC's Python server either demands a client certificate in the handshake or never asks for one, and
an institution that enrols has none yet. The enrolment port therefore takes nothing larger than 64 KiB, limits the
rate and the open calls of each address, and does nothing for a caller without a token. On the lane port `Guard`
verifies the certificate of every call against the current revocation list, in front of every handler.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import signal
import stat
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

import grpc

from sovfed.federation.addresses import host_port, socket_path
from sovfed.federation.certificates import to_der
from sovfed.federation.config import ServerConfig
from sovfed.federation.errors import IdentityError, NotValidNowError, ServiceError, SovfedError
from sovfed.federation.files import private_directory, read_bounded
from sovfed.federation.host.begin import begin
from sovfed.federation.host.leaving import leave
from sovfed.federation.host.pulse import LOOP_S, Beat, Pulse, beating, pulse_file
from sovfed.federation.host.settings import passed_settings
from sovfed.federation.host.status import WAITS
from sovfed.federation.identity import Trust, parse_certificate, read_pair
from sovfed.federation.roots import FILE as HANDOVER
from sovfed.federation.schema import bind
from sovfed.federation.wire import enrolment_pb2 as pb
from sovfed.federation.wire.enrolment import (
    ENROLMENT_SERVICE,
    MAX_ENROLMENT_BYTES,
    MAX_REGISTRY_BYTES,
    REGISTRY_SERVICE,
)
from sovfed.federation.wire.lane_end import FAR, NEAR
from sovfed.server.home import refresh_crl
from sovfed.server.network import lane
from sovfed.server.network.door import raise_descriptor_limit
from sovfed.server.network.guard import Context, Guard, Hall, RateLimit, unary
from sovfed.server.network.repeats import leave_out_repeats
from sovfed.server.registry import enrolment
from sovfed.server.registry.heads import Heads
from sovfed.server.registry.upkeep import keep_up

ENROLMENT_RATE_PER_S: Final = 10.0
ENROLMENT_BURST: Final = 50
HEADS_RATE_PER_S: Final = 100.0  # of an address, behind which there may be several institutions
HEADS_BURST: Final = 300
MAX_ENROLMENTS: Final = 1024  # calls of all addresses together; none stays without its request (guard.py)
STOP_GRACE_S: Final = 1.0
CIPHER_SUITES: Final = "GRPC_SSL_CIPHER_SUITES"
NO_SUITE: Final = "ECDHE-PSK-AES128-CBC-SHA"
log = logging.getLogger("sovfed.registry")
GenericHandler: TypeAlias = grpc.GenericRpcHandler
_ONE_OWNER: Final = (("grpc.so_reuseport", 0),)  # a second process must not share our ports
_DEADLINES: Final = (
    ("grpc.max_metadata_size", 8192),
    ("grpc.max_connection_idle_ms", 60_000),  # without a call
    ("grpc.server_handshake_timeout_ms", 10_000),
)
_ENROLMENT_OPTIONS: Final = (
    *_ONE_OWNER,
    ("grpc.max_receive_message_length", MAX_ENROLMENT_BYTES),
    ("grpc.max_concurrent_streams", 8),
    ("grpc.max_connection_age_ms", 300_000),
    ("grpc.max_connection_age_grace_ms", 30_000),
    *_DEADLINES,
)
_LANE_OPTIONS: Final = (
    *_ONE_OWNER,
    *lane.SERVER_OPTIONS,
    ("grpc.max_send_message_length", MAX_REGISTRY_BYTES),
    ("grpc.max_concurrent_streams", 128),
    *_DEADLINES,
)


@dataclass(frozen=True)
class Endpoints:
    """Where the registry answers, and the Fleet port that it tells institutions of; all host:port."""

    enrolment: str
    lane: str
    fleet: str


class Registry:
    """The handlers; what they know of institutions is in `server/registry/enrolment.py`."""

    def __init__(self, home: Path, trust: Trust) -> None:
        self._home, self._trust, self._heads = home, trust, Heads(home)
        self.endpoints = Endpoints("", "", "")  # known once the ports are bound

    async def enrol(self, request: pb.EnrolRequest, _: Context) -> pb.EnrolReply:
        """Spend the token on the request, or answer a repeated one."""
        parts = (request.token, request.csr, request.node_public_key, request.node_signature)
        return self._reply(await asyncio.to_thread(enrolment.submit, self._home, *parts))

    async def renew(self, request: pb.RenewRequest, context: Context) -> pb.EnrolReply:
        """Take in, or answer, the renewal of the institution at the other end."""
        peer = self._trust.verify_auth_context(context.auth_context())
        (shown,) = context.auth_context()["x509_pem_cert"]
        parts = (self._home, peer, request.csr, shown, request.endorsement)
        return self._reply(await asyncio.to_thread(enrolment.renew, *parts))

    async def probe(self, request: pb.ProbeRequest, context: Context) -> pb.ProbeReply:
        """What the caller sent, and how the agency sees it: an institution that joins proves its way by this."""
        peer = self._trust.verify_auth_context(context.auth_context())
        node_id, fleet = await asyncio.to_thread(enrolment.standing, self._home, peer.institution)
        return pb.ProbeReply(echo=request.echo, institution=peer.institution, node_id=node_id, fleet=fleet)

    async def roster(self, _request: pb.Empty, _: Context) -> pb.RosterReply:
        """The institutions whose certificates hold at this moment."""
        members = await asyncio.to_thread(enrolment.members, self._home)
        reply = pb.RosterReply()
        for member in members:
            with contextlib.suppress(IdentityError):
                self._trust.verify(to_der(parse_certificate(member.certificate, member.institution)))
                reply.members.add(
                    institution=member.institution, node_id=member.node_id, certificate=member.certificate
                )
        return reply

    async def health(self, _request: pb.Empty, _: Context) -> pb.HealthReply:
        """Whether peers can be trusted at all now, and where the ports are."""
        try:
            self._trust.check()
            serving = True
        except IdentityError:
            serving = False
        where = self.endpoints
        return pb.HealthReply(serving=serving, enrolment_address=where.enrolment, lane_address=where.lane)

    async def crl(self, _request: pb.Empty, _: Context) -> pb.CrlReply:
        """The revocation list in force."""
        return pb.CrlReply(crl=read_bounded(self._home / "identity" / "crl.pem"), roots=self._roots())

    async def heads(self, request: pb.HeadsRequest, context: Context) -> pb.HeadsReply:
        """Cosign the log of the institution at the other end, and show the agency's own."""
        peer = self._trust.verify_auth_context(context.auth_context())
        return await asyncio.to_thread(self._heads.answer, peer.institution, request)

    def _reply(self, certificate: bytes | None) -> pb.EnrolReply:
        if certificate is None:
            return pb.EnrolReply()
        crl, where = read_bounded(self._home / "identity" / "crl.pem"), self.endpoints
        return pb.EnrolReply(
            certificate=certificate, crl=crl, fleet_address=where.fleet, lane_address=where.lane, roots=self._roots()
        )

    def _roots(self) -> bytes:
        """What the authority says of its roots; nothing while it has one only."""
        path = self._home / "identity" / HANDOVER
        return read_bounded(path) if path.exists() else b""


@contextlib.asynccontextmanager
async def serving(home: Path, config: ServerConfig) -> AsyncIterator[Endpoints]:
    """The registry of `home`, running; yields where it answers. Refuses to start unsafely.

    Raises IdentityError if a key is readable by others or a certificate or the revocation list does not hold, and
    ServiceError if the home is not private, the socket's path is too long, or a port or the home is in use.
    """
    socket = _socket_path(private_directory(home))
    refresh_crl(home, config.crl_source)
    trust = Trust(home / "identity")
    one_way, mutual = (_Fresh(home / "identity", trust).credentials(mutual=mutual) for mutual in (False, True))
    tls = grpc.aio.server(interceptors=(Guard(trust=trust),), options=(*_LANE_OPTIONS, *FAR))
    uds = grpc.aio.server(interceptors=(Guard(),), options=(*_LANE_OPTIONS, *NEAR))
    door = grpc.aio.server(interceptors=(Guard(),), options=_ENROLMENT_OPTIONS, maximum_concurrent_rpcs=MAX_ENROLMENTS)
    registry = Registry(home, trust)
    door.add_generic_rpc_handlers((_enrolment_handlers(registry),))
    tls.add_generic_rpc_handlers((_registry_handlers(registry, renewals=True),))
    uds.add_generic_rpc_handlers((_registry_handlers(registry, renewals=False),))
    lane.add_lane(tls, uds, trust)
    with _only_one(home):
        enrolment_port = _bind(lambda: door.add_secure_port(host_port(config.host, config.enrolment_port), one_way))
        lane_port = _bind(lambda: tls.add_secure_port(host_port(config.host, config.lane_port), mutual))
        with _private_umask():
            _bind(lambda: uds.add_insecure_port(f"unix:{socket}"))
        registry.endpoints = _endpoints(config, enrolment_port, lane_port)
        servers = (door, tls, uds)
        keeping = asyncio.create_task(keep_up(home, config.crl_source, config.log_retention_days))
        try:
            for server in servers:
                await server.start()
            yield registry.endpoints
        finally:
            keeping.cancel()
            await asyncio.gather(*(server.stop(STOP_GRACE_S) for server in servers))
            socket.unlink(missing_ok=True)


def demand_tls_1_3() -> None:
    """Make this process's gRPC refuse TLS 1.2. Call it first of all: it may begin the process anew.

    gRPC's Python server has no setting for the version, only for the cipher suites of TLS 1.2 and below. The one
    named here needs a pre-shared key, which nobody has; those of TLS 1.3 are not affected. gRPC reads its environment
    once, which an import may have caused already.
    """
    if os.environ.get(CIPHER_SUITES) != NO_SUITE:
        os.environ[CIPHER_SUITES] = NO_SUITE
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606 - ourselves, the same process id


def main(argv: list[str] | None = None) -> int:
    """Run the registry until SIGTERM or SIGINT; the exit code."""
    demand_tls_1_3()
    home, settings = begin("The agency's registry", argv)
    raise_descriptor_limit()
    leave_out_repeats(logging.getLogger())
    loop = Pulse(pulse_file(home, "registry")).start().watch("event loop", LOOP_S)
    try:
        asyncio.run(_run(home, bind(ServerConfig, passed_settings(settings), "server"), loop))
    except SovfedError as error:
        sys.stderr.write(f"registry: {error}\n")
        return WAITS if isinstance(error, NotValidNowError) else 1
    return 0


async def _run(home: Path, config: ServerConfig, beat: Beat) -> None:
    stop, beats = asyncio.Event(), asyncio.create_task(beating(beat))
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with serving(home, config) as where:
        log.info("ready: enrolment %s, lane %s", where.enrolment, where.lane)
        await stop.wait()
    beats.cancel()


def _enrolment_handlers(registry: Registry) -> GenericHandler:
    limit = RateLimit(ENROLMENT_RATE_PER_S, ENROLMENT_BURST)
    return grpc.method_handlers_generic_handler(
        ENROLMENT_SERVICE, {"Enrol": unary(registry.enrol, pb.EnrolRequest.FromString, Hall(), limit)}
    )


def _registry_handlers(registry: Registry, *, renewals: bool) -> GenericHandler:
    hall = Hall()
    handlers = {
        "Roster": unary(registry.roster, pb.Empty.FromString, hall),
        "Health": unary(registry.health, pb.Empty.FromString, hall),
        "Crl": unary(registry.crl, pb.Empty.FromString, hall),
    }
    if renewals:
        handlers["Renew"] = unary(registry.renew, pb.RenewRequest.FromString, hall)
        limit = RateLimit(HEADS_RATE_PER_S, HEADS_BURST)
        handlers["Heads"] = unary(registry.heads, pb.HeadsRequest.FromString, hall, limit)
        handlers["Probe"] = unary(registry.probe, pb.ProbeRequest.FromString, hall)
    return grpc.method_handlers_generic_handler(REGISTRY_SERVICE, handlers)


class _Fresh:
    """The server's key and certificate for gRPC, read again for a handshake once they were replaced."""

    def __init__(self, identity: Path, trust: Trust) -> None:
        self._identity, self._trust = identity, trust
        self._stamp, self._mutual = self._look(), False

    def credentials(self, *, mutual: bool) -> grpc.ServerCredentials:
        """Credentials that follow the files; `mutual` demands a client's certificate. Raises IdentityError."""
        self._mutual = mutual
        configuration = self._configuration()
        changed: Any = self._changed  # None is what gRPC documents, and its stubs forget
        return grpc.dynamic_ssl_server_credentials(configuration, changed, require_client_authentication=mutual)

    def _changed(self) -> grpc.ServerCertificateConfiguration | None:
        """A new configuration if there is one that holds, None to go on with the last. Asked at each handshake."""
        try:
            if (stamp := self._look()) == self._stamp:
                return None
            configuration = self._configuration()
        except (OSError, IdentityError) as error:
            log.warning("the server's certificate was not read again: %s", error)
            return None
        self._stamp = stamp
        return configuration

    def _configuration(self) -> grpc.ServerCertificateConfiguration:
        key, certificate = read_pair(self._identity)
        self._trust.verify_server(to_der(parse_certificate(certificate, str(self._identity / "cert.pem"))))
        roots = read_bounded(self._identity / "root.pem") if self._mutual else None
        return grpc.ssl_server_certificate_configuration([(key, certificate)], root_certificates=roots)

    def _look(self) -> tuple[int, ...]:
        return tuple((self._identity / name).stat().st_mtime_ns for name in ("cert.pem", "key.pem", "root.pem"))


def _endpoints(config: ServerConfig, enrolment_port: int, lane_port: int) -> Endpoints:
    name = config.certificate_names[0]
    return Endpoints(
        enrolment=host_port(name, enrolment_port),
        lane=config.lane_address or host_port(name, lane_port),
        fleet=host_port(name, config.fleet_port),
    )


def _bind(add: Callable[[], int]) -> int:
    try:
        return add()
    except RuntimeError as error:
        raise ServiceError(f"registry: {error}") from error


def _socket_path(home: Path) -> Path:
    path = socket_path(home / "lane.sock")
    if path.exists() and not stat.S_ISSOCK(path.lstat().st_mode):
        raise ServiceError(f"{path}: in the way of the registry's socket")
    return path


@contextlib.contextmanager
def _only_one(home: Path) -> Iterator[None]:
    """Hold the home's registry folder, so that a second process does not take the socket away; ends with us."""
    handle = os.open(private_directory(home / "registry"), os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise ServiceError(f"{home}: a registry is already running here") from error
    finally:
        os.close(handle)


@contextlib.contextmanager
def _private_umask() -> Iterator[None]:
    """Files and sockets made meanwhile are for the owner alone. Nothing else runs yet that could make any."""
    before = os.umask(0o177)
    try:
        yield
    finally:
        os.umask(before)


if __name__ == "__main__":
    leave(main)
