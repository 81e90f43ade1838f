"""The agency's SuperLink: Flower's own app, served twice by one process.

    network   host:fleet_port, TLS 1.3, client certificate required   → FleetGate → Flower's app
    loopback  127.0.0.1:control_port, plain HTTP, secret required      → require_secret → Flower's app

`python -m sovfed.server.network.superlink --home H_A --config JSON`. Whatever would let a stranger reach Control or
Runtime, run code here or read the state is a ServiceError before a port is served (`check_home`, `check_loopback`,
`check_flower`).
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import os
import signal
import socket
import sqlite3
import ssl
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import uvicorn

from sovfed.federation.certificates import to_der
from sovfed.federation.config import ServerConfig
from sovfed.federation.errors import IdentityError, NotValidNowError, ServiceError, SovfedError
from sovfed.federation.files import read_private
from sovfed.federation.host.begin import begin
from sovfed.federation.host.heap import keep_loaded
from sovfed.federation.host.leaving import leave
from sovfed.federation.host.processes import exit_code
from sovfed.federation.host.pulse import LOOP_S, Beat, Pulse, beating, pulse_file
from sovfed.federation.host.settings import passed_settings
from sovfed.federation.identity import Trust, load_certificate
from sovfed.federation.schema import bind
from sovfed.federation.wire.held import Bell
from sovfed.federation.wire.loopback import ensure_secret, require_secret
from sovfed.server.home import refresh_crl
from sovfed.server.network.door import (
    BACKLOG,
    MAX_CONNECTIONS,
    MAX_LOOPBACK,
    Door,
    DoorSocket,
    PatientProtocol,
    proving,
    raise_descriptor_limit,
)
from sovfed.server.network.door import listen as door_listen
from sovfed.server.network.flower_app import STATE_FILE, clean_up, create_flower_app, flower_config
from sovfed.server.network.repeats import leave_out_repeats
from sovfed.server.network.ringing import Ringing, held_pulls

if TYPE_CHECKING:
    from fastapi import FastAPI

    from sovfed.federation.wire.held import App

LOOPBACK: Final = "127.0.0.1"
SECRET_FILE: Final = Path("secrets") / "loopback.secret"
TLS_FILES: Final = ("root.pem", "crl.pem", "cert.pem", "key.pem")
CLEAN_UP_EVERY_S: Final = 5.0
RELOAD_EVERY_S: Final = 5.0
ENLIST_S: Final = (2.0, 60.0)  # before the first try, when most machines serve it, and the longest pause
_log = logging.getLogger("sovfed.superlink")


class PortTakenError(ServiceError):
    """A port is in use. It may be free a moment later, so the supervisor should try again."""


def check_home(home: Path, crl_source: str | None = None) -> Trust:
    """The trust anchor of `home`, once its folder, key, certificate and revocation list are safe to serve with.

    A list that has appeared at `crl_source` meanwhile is taken in first. Raises NotValidNowError for one that is stale.
    """
    if not home.is_dir() or home.stat().st_mode & 0o077 or home.stat().st_uid != os.geteuid():
        raise ServiceError(f"{home}: must be a directory of this user with mode 0700")
    identity = home / "identity"
    if missing := [name for name in TLS_FILES if not (identity / name).is_file()]:
        raise ServiceError(f"{identity}: no {', '.join(missing)}; TLS needs {', '.join(TLS_FILES)}")
    refresh_crl(home, crl_source)
    try:
        read_private(identity / "key.pem")
        trust = Trust(identity)
        _check_own(trust, identity)
        tls_context(identity)
    except NotValidNowError:
        raise
    except (IdentityError, ssl.SSLError) as error:
        raise ServiceError(f"{identity}: not safe to serve with: {error}") from error
    return trust


def _check_own(trust: Trust, identity: Path) -> None:
    try:
        trust.verify_server(to_der(load_certificate(identity / "cert.pem")))
    except NotValidNowError as error:
        raise NotValidNowError(
            f"{error}; where it ended while this agency was off: `sovfed authority sign {identity / 'server.csr'} "
            "--server --out server.pem`, then `sovfed server certificate server.pem ROOT CRL`, and all else goes on"
        ) from error


def check_loopback(listener: socket.socket) -> None:
    """Raises ServiceError if Control and Runtime would listen where a stranger could reach them."""
    address = listener.getsockname()[0]
    if not ipaddress.ip_address(address).is_loopback:
        raise ServiceError(f"Control and Runtime would listen on {address}, expected {LOOPBACK}")


def tls_context(identity: Path) -> ssl.SSLContext:
    """TLS 1.3 with a client certificate required; names, node key and revocation are the gate's to check."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(identity / "cert.pem", identity / "key.pem")
    context.load_verify_locations(identity / "root.pem")
    context.verify_mode = ssl.CERT_REQUIRED
    return context


def listen(host: str, port: int, door: Door) -> DoorSocket:
    """A socket bound to `host` and `port`; PortTakenError if that cannot be."""
    try:
        return door_listen(host, port, door)
    except OSError as error:
        raise PortTakenError(f"cannot listen on {host}:{port}: {error.strerror or error}") from error


class _Server(uvicorn.Server):
    """uvicorn's server without signal handlers of its own: two run in one process, and `serve` stops both."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def serve(home: Path, config: ServerConfig, beat: Beat) -> None:
    """Serve until SIGTERM or SIGINT; the event loop calls `beat`.

    Raises ServiceError if that would be unsafe or a port is taken.
    """
    trust = check_home(home, config.crl_source)
    inner, outer = doors(raise_descriptor_limit())
    with (
        listen(LOOPBACK, config.control_port, inner) as loopback,
        listen(config.host, config.fleet_port, outer) as network,
    ):
        check_loopback(loopback)
        app = create_flower_app(flower_config(home, LOOPBACK, config.control_port))
        leave_out_repeats(logging.getLogger("flwr"))  # it made its handler when it was imported
        bell = Bell()
        local, public = (
            _local_server(Ringing(app, bell), home, inner),
            _public_server(held_pulls(app, bell), home, trust, config.max_message_bytes, outer),
        )
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, _stop, local, public, bell)
        cleaning = asyncio.create_task(_clean_up_for_ever(app, home / STATE_FILE))
        beats = asyncio.create_task(beating(beat))
        reloading = asyncio.create_task(_reload_for_ever(public, home / "identity"))
        enlisting = asyncio.create_task(_enlist_lost(home, config.control_port))
        keep_loaded()
        _log.info("fleet on %s:%d, control on %s:%d", *network.getsockname()[:2], *loopback.getsockname()[:2])
        try:
            async with asyncio.TaskGroup() as servers:
                servers.create_task(_until_end(local, loopback, partial(_stop, local, public, bell)))
                servers.create_task(_until_end(public, network, partial(_stop, local, public, bell)))
        finally:
            cleaning.cancel()
            beats.cancel()
            reloading.cancel()
            enlisting.cancel()
        if not (local.started and public.started):
            raise ServiceError("Flower's app did not start; its reason stands above")


_COMMON: Final[dict[str, Any]] = {
    "ws": "none",
    "backlog": BACKLOG,
    "access_log": False,
    "log_config": None,
    "server_header": False,
    "proxy_headers": False,
    "timeout_graceful_shutdown": 3,
}


def doors(descriptors: int) -> tuple[Door, Door]:
    """The doors of loopback and network, which together leave a quarter of the descriptors to everything else."""
    return Door(min(MAX_LOOPBACK, descriptors // 4), MAX_LOOPBACK), Door(min(MAX_CONNECTIONS, descriptors // 2))


def _local_server(app: App, home: Path, door: Door) -> _Server:
    from sovfed.server.network.object_store import trusted

    guarded = require_secret(proving(trusted(app)), ensure_secret(home / SECRET_FILE))
    http = type("LoopbackProtocol", (PatientProtocol,), {"door": door})
    return _Server(uvicorn.Config(guarded, lifespan="on", http=http, **_COMMON))


def _public_server(app: App, home: Path, trust: Trust, max_message_bytes: int, door: Door) -> _Server:
    from sovfed.server.network.fleet_calls import FleetRules
    from sovfed.server.network.fleet_state import FleetState
    from sovfed.server.network.gate import CertificateProtocol, FleetGate

    config = uvicorn.Config(
        FleetGate(app, trust, FleetRules(FleetState(home / STATE_FILE), max_message_bytes)),
        http=type("NetworkProtocol", (CertificateProtocol,), {"door": door, "trust": trust}),
        lifespan="off",
        date_header=False,  # the gate's
        ssl_context_factory=lambda _config, _default: tls_context(home / "identity"),
        **_COMMON,
    )
    return _Server(config)


def _stop(local: uvicorn.Server, public: uvicorn.Server, bell: Bell) -> None:
    bell.close()  # or each server would wait for those that it keeps waiting
    local.should_exit = public.should_exit = True


async def _until_end(server: uvicorn.Server, listener: socket.socket, stop: Callable[[], None]) -> None:
    """Serve on `listener`; neither server goes on without the other."""
    try:
        await server.serve([listener])
    finally:
        stop()


async def _reload_for_ever(server: uvicorn.Server, identity: Path) -> None:
    """Have new connections served with the certificate and the roots that are in `identity` now.

    A root that the authority has given up stays in the TLS context until the process ends; `Trust`, which judges every
    request, has dropped it.
    """
    stamp = _stamp(identity)
    while True:
        await asyncio.sleep(RELOAD_EVERY_S)
        try:
            if (now := _stamp(identity)) != stamp and isinstance(context := server.config.ssl, ssl.SSLContext):
                context.load_verify_locations(identity / "root.pem")
                context.load_cert_chain(identity / "cert.pem", identity / "key.pem")
                stamp = now
                _log.info("certificate and roots were read again")
        except (OSError, ssl.SSLError) as error:
            _log.warning("certificate and roots were not read again: %s", error)


def _stamp(identity: Path) -> tuple[int, ...]:
    return tuple((identity / name).stat().st_mtime_ns for name in ("cert.pem", "key.pem", "root.pem"))


async def _enlist_lost(home: Path, port: int) -> None:
    """Have the nodes that Flower's database lacks in it again: they are enrolled all the same.

    Tried until it succeeds, ever more seldom: who is left out here comes online no more.
    """
    from sovfed.server.registry.enrolment import register_lost

    pause, lost = ENLIST_S[0], None
    while lost is None:
        await asyncio.sleep(pause)
        pause = min(2 * pause, ENLIST_S[1])
        try:
            lost = await asyncio.to_thread(register_lost, home, port)
        except (SovfedError, OSError, sqlite3.Error) as error:
            _log.warning("nodes that Flower's database may lack are not registered yet: %s", error)
    for name in lost:
        _log.warning("%s: its node was not in Flower's database, which was lost or is older; registered anew", name)


async def _clean_up_for_ever(app: FastAPI, database: Path) -> None:
    cleaned: set[int] = set()
    while True:
        await asyncio.sleep(CLEAN_UP_EVERY_S)
        try:
            await asyncio.to_thread(clean_up, app, database, cleaned)
        except Exception:  # housekeeping must never end the server
            _log.exception("cleaning up the database failed; next try in %g s", CLEAN_UP_EVERY_S)


def main(arguments: list[str] | None = None) -> int:
    """Entry point; its exit codes are `exit_code`'s."""
    home, settings = begin("Flower's SuperLink behind the gate", arguments)
    leave_out_repeats(logging.getLogger())
    loop = Pulse(pulse_file(home, "superlink")).start().watch("event loop", LOOP_S)
    try:
        asyncio.run(serve(home, bind(ServerConfig, passed_settings(settings)), loop))
    except SovfedError as error:
        sys.stderr.write(f"superlink: {error}\n")
        return exit_code(error)
    return 0


if __name__ == "__main__":
    leave(main)
