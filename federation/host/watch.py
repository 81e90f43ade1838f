"""`/health` and `/metrics` of a home, on the loopback: for a monitor on this machine, and for nobody beyond it.

    watch = Watch(9101, health=lambda: status(home), collect=lambda: metrics(home))
    with watch: …                              # a thread of the supervisor answers

Whoever may open a port of this machine may read both, so neither names a person or a file. A browser that a page
elsewhere sends here is refused: the request must name the loopback as its host.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Final, Self

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from socket import socket

    from sovfed.federation.host.status import Status

log = logging.getLogger(__name__)
HOSTS: Final = ("127.0.0.1", "localhost", "[::1]")
FRESH_S: Final = 5.0  # what was collected is told again so long
TIMEOUT_S: Final = 5.0  # of a request that does not come, or is not taken
AT_ONCE: Final = 8  # requests; more are dropped
Health = Callable[[], tuple[bool, dict[str, Any]]]
Collect = Callable[[], Iterable[Metric]]


class Watch(Collector):
    """Answers GET of `/health` (200, or 503 if it is not well) and `/metrics` on the loopback `port` while entered."""

    def __init__(self, port: int, health: Health, collect: Collect) -> None:
        self._port, self.health, self._collect = port, health, collect
        self._lock, self._at, self._metrics = threading.Lock(), 0.0, list[Metric]()
        self.registry = CollectorRegistry()
        self.registry.register(self)

    def __enter__(self) -> Self:
        """Raises OSError if the port is taken."""
        self._server = _Server(self._port, self)
        self._thread = threading.Thread(target=self._server.serve_forever, name="watch", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    def describe(self) -> Iterable[Metric]:
        """Nothing: what there is to tell is known when it is asked for."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """What `collect` said at most FRESH_S ago."""
        with self._lock:
            if not self._at or time.monotonic() - self._at > FRESH_S:
                self._metrics, self._at = list(self._collect()), time.monotonic()
            return self._metrics


def health_of(status: Status | None) -> tuple[bool, dict[str, Any]]:
    """Whether all that must run does, and each process's state."""
    processes = status.processes if status else ()
    well = status is not None and status.ready
    return well, {
        "status": "ready" if well else "not ready",
        "processes": {process.name: process.state for process in processes},
    }


def process_metrics(status: Status | None, version: str) -> Iterator[Metric]:
    """What a supervisor knows of its processes."""
    yield InfoMetricFamily("sovfed", "The installed version.", {"version": version})
    ready = GaugeMetricFamily("sovfed_process_ready", "1: it runs and is ready.", labels=["process"])
    restarts = CounterMetricFamily("sovfed_process_restarts", "Since the supervisor started.", labels=["process"])
    since = GaugeMetricFamily("sovfed_process_since_seconds", "Since when it is so; Unix time.", labels=["process"])
    for process in status.processes if status else ():
        ready.add_metric([process.name], float(process.state == "ready"))
        restarts.add_metric([process.name], process.restarts)
        since.add_metric([process.name], process.since)
    yield from (ready, restarts, since)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, port: int, watch: Watch) -> None:
        self.watch, self._slots = watch, threading.BoundedSemaphore(AT_ONCE)
        super().__init__(("127.0.0.1", port), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._slots.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._slots.release()

    def handle_error(self, request: socket | tuple[bytes, socket], client_address: Any) -> None:
        """Nothing: whoever hung up need not be told of."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    server_version, sys_version = "sovfed", ""
    timeout = TIMEOUT_S

    def do_GET(self) -> None:
        if self.headers.get("Host", "").rpartition(":")[0] not in HOSTS:
            self._answer(403, "text/plain", b"this is for the loopback alone\n")
        elif self.path == "/health":
            well, told = self.server.watch.health()
            self._answer(200 if well else 503, "application/json", json.dumps(told).encode())
        elif self.path == "/metrics":
            self._tell_metrics()
        else:
            self._answer(404, "text/plain", b"/health or /metrics\n")

    def _tell_metrics(self) -> None:
        try:
            text = generate_latest(self.server.watch.registry)
        except Exception as error:  # a damaged file must not end what supervises the processes
            log.warning("the metrics cannot be collected: %s: %s", type(error).__name__, error)
            self._answer(500, "text/plain", b"the metrics cannot be collected; the supervisor's log says why\n")
        else:
            self._answer(200, CONTENT_TYPE_LATEST, text)

    def _answer(self, code: int, kind: str, body: bytes) -> None:
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: a monitor asks four times a minute."""
