"""Flower's Ray simulation in a process that does not outlive it."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flwr.clientapp import ClientApp
    from flwr.serverapp import ServerApp


def run_or_exit(server_app: ServerApp, client_app: ClientApp, institutions: int, backend: dict[str, Any]) -> None:
    """`run_simulation`; if it fails, this process ends: Flower's other thread would wait for ever."""
    from flwr.simulation import run_simulation

    try:
        run_simulation(server_app, client_app, num_supernodes=institutions, backend_config=backend)
    except RuntimeError as error:
        sys.stderr.write(f"Ray did not start or broke off, as it does on a busy machine: {error}\n")
        sys.stderr.flush()
        os._exit(1)
