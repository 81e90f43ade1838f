"""Flower's SuperLink app as the agency runs it: what it is told, what must never be on, and its housekeeping.

What is used here beyond Flower's public API is held by `tests/server/network/test_flower_contract.py`.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sovfed.federation.errors import ServiceError
from sovfed.federation.wire.loopback import ensure_secret
from sovfed.server.network import state_db
from sovfed.server.network.state_migration import keep_copy_before_change

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastapi import FastAPI, Request
    from fastapi.responses import JSONResponse
    from flwr.superlink.config_loader import SuperLinkLifespanConfig

    from sovfed.federation.wire.held import App, Event, Receive, Send

SUPEREXEC_SECRET_FILE: Final = Path("secrets") / "superexec.secret"
STATE_FILE: Final = Path("superlink") / "state.db"
CONTROL: Final = "/v1/control/"
OF_CONTROL: Final = (
    "ControlSensitiveResponseMiddleware", "ControlAuthenticationMiddleware", "ControlLicenseMiddleware",
)  # fmt: skip
SWITCHED_OFF: Final = ("ControlEventLogMiddleware", "FleetEventLogMiddleware")
REOPENED_BY: Final = ("FLWR_INTERNAL_GRPC_CONTROL_API", "FLWR_INTERNAL_GRPC_FLEET_API")  # Flower's second doors
_log = logging.getLogger("sovfed.superlink")


def flower_config(home: Path, host: str, port: int) -> SuperLinkLifespanConfig:
    """Flower's configuration: nodes and executors authenticated, everything off that we do not use.

    `host` and `port` are only what Flower would tell children of its own; it is given none and opens no port.
    """
    from flwr.common.constant import ISOLATION_MODE_PROCESS, TRANSPORT_TYPE_GRPC_RERE
    from flwr.superlink.auth_plugin import NoOpControlAuthnPlugin
    from flwr.superlink.config_loader import SuperLinkLifespanConfig

    return SuperLinkLifespanConfig(
        control_address=f"{host}:{port}",
        health_server_address=None,
        host=host,
        port=port,
        insecure=True,  # TLS is the network listener's, not Flower's
        certificates=None,
        superexec_auth_secret=ensure_secret(home / SUPEREXEC_SECRET_FILE).encode("ascii"),
        authn_plugin=NoOpControlAuthnPlugin(),
        event_log_plugin=None,
        fleet_event_log_plugin=None,
        enable_event_log=False,
        artifact_provider=None,
        enable_supernode_auth=True,
        fleet_api_type=TRANSPORT_TYPE_GRPC_RERE,
        fleet_api_address=None,
        simulation=False,
        ssl_ca_certfile=None,
        ssl_certfile=None,
        ssl_keyfile=None,
        database=str(home / STATE_FILE),
        isolation=ISOLATION_MODE_PROCESS,
        runtime_dependency_install=False,
    )


def check_flower(config: SuperLinkLifespanConfig) -> None:
    """Raises ServiceError unless Flower authenticates nodes and executors, and starts and installs nothing itself."""
    from flwr.common.constant import ISOLATION_MODE_PROCESS

    if opened := [name for name in REOPENED_BY if os.environ.get(name)]:
        raise ServiceError(f"{opened[0]} is set: Flower would open that API again, without our gate")
    if not config.enable_supernode_auth:
        raise ServiceError("SuperNode authentication is off: any holder of a certificate could act for any node")
    if config.isolation != ISOLATION_MODE_PROCESS:
        raise ServiceError(f"isolation is {config.isolation!r}: app code would run in children of the superlink")
    if not config.superexec_auth_secret:
        raise ServiceError("no SuperExec secret: any local process could claim the ServerApp task")
    if config.event_log_plugin or config.fleet_event_log_plugin or os.environ.get("FLWR_TRACING_ENABLED") == "1":
        raise ServiceError("Flower's event log or tracing is on: it would write down what institutions send")
    if config.runtime_dependency_install:
        raise ServiceError("runtime dependency installation is on: a run could install packages")
    if config.simulation or config.health_server_address or config.artifact_provider:
        raise ServiceError(
            "simulation, a health server or an artifact provider is on: not part of an agency's superlink"
        )


def create_flower_app(config: SuperLinkLifespanConfig) -> FastAPI:
    """Flower's app over the prepared database; raises ServiceError if `check_flower` does.

    A locked database is answered 503: Flower says 500, which its clients do not retry, and one lost heartbeat ends
    a run.
    """
    from flwr.superlink.cli.flower_superlink import SuperLinkLifespan
    from flwr.superlink.main import create_app
    from sqlalchemy.exc import OperationalError

    from sovfed.server.network.object_store import use_agency_object_store

    check_flower(config)
    use_agency_object_store()
    state_db.prepare(Path(config.database))
    keep_copy_before_change(Path(config.database))
    state_db.use_patient_pragmas()
    state_db.use_long_leases()
    state_db.look_for_lapsed_leases_seldom()
    app = create_app(config, SuperLinkLifespan)
    app.add_exception_handler(OperationalError, _answer_busy)
    spare_middlewares(app)
    return app


def spare_middlewares(app: FastAPI) -> None:
    """Leave out those of Flower's middlewares that hand a request on as it is: half of what a call costs.

    Those of the Control API look at its paths alone; event logs and tracing are off, as `check_flower` has seen. Who
    authenticates nodes, parses and answers is left as it is, and so is whatever a later Flower adds.
    """
    from starlette.middleware import Middleware

    named = [(getattr(entry.cls, "__name__", ""), entry) for entry in app.user_middleware]
    app.user_middleware[:] = [
        Middleware(_OfControl, middleware=entry.cls) if name in OF_CONTROL else entry
        for name, entry in named
        if name not in SWITCHED_OFF
    ]


class _OfControl:
    """A middleware of the Control API; requests to the others go past it."""

    def __init__(self, app: App, middleware: Callable[[App], App]) -> None:
        self._app, self._inner = app, middleware(app)

    async def __call__(self, scope: Event, receive: Receive, send: Send) -> None:
        past = scope["type"] == "http" and not scope["path"].startswith(CONTROL)
        await (self._app if past else self._inner)(scope, receive, send)


async def _answer_busy(request: Request, error: Exception) -> JSONResponse:
    from fastapi.responses import JSONResponse

    if "locked" not in str(error):
        raise error
    _log.warning("%s: the database was locked for %d ms", request.url.path, state_db.BUSY_TIMEOUT_MS)
    return JSONResponse({"detail": "Busy"}, status_code=503)


def clean_up(app: FastAPI, database: Path, cleaned: set[int]) -> None:
    """Drop the messages and objects of finished runs (once each, remembered in `cleaned`) and give free pages back."""
    from flwr.common.constant import Status

    state = app.state.linkstate_factory.state()
    for run in state.get_run_info(statuses=[Status.FINISHED], order_by="pending_at", ascending=False, limit=20):
        if run.run_id not in cleaned:
            state.cleanup_run(run.run_id)
            cleaned.add(run.run_id)
    state_db.trim(database)
