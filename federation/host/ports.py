"""Ports that a home's processes will listen on, looked at before anything starts."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

from sovfed.federation.errors import ServiceError
from sovfed.federation.host.processes import read_status

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


def check_ports(home: Path, settings: Path, ports: Mapping[str, tuple[str, int]]) -> None:
    """`ports`: the name of each setting in the file `settings` → its (host, port); 0 is any free port.

    Raises ServiceError if the home's processes run already, or naming port and setting if one is taken: it may be free
    a moment later, so no supervisor's supervisor should take that for final.
    """
    if read_status(home) is not None:
        raise ServiceError(f"{home} is in use: its processes are running already")
    for setting, (host, port) in ports.items():
        if why := taken(host, port):
            raise ServiceError(
                f"{setting} = {port}: cannot listen on {host}:{port} ({why}); "
                f"end what uses the port, or choose another {setting} in {settings}"
            )


def check_port(host: str, port: int) -> None:
    """Raise ServiceError, which names `--port`, if nothing more can listen there."""
    if why := taken(host, port):
        raise ServiceError(f"cannot listen on {host}:{port} ({why}); end what uses the port, or choose another: --port")


def taken(host: str, port: int) -> str:
    """Why nothing more can listen on `host`:`port`; "" if it can."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return os.strerror(error.errno or 0)
    return ""
