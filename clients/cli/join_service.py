"""`sovfed client join --service`: what has joined is kept up by systemd, as after `install-service`."""

from __future__ import annotations

import os
import shutil
import sys
import time
from typing import TYPE_CHECKING, Final

import click

from sovfed.federation.errors import ConfigError, ServiceError
from sovfed.federation.host.service_options import carry_out
from sovfed.federation.host.status import read_status
from sovfed.federation.host.units import Unit, kept_up_by, service

if TYPE_CHECKING:
    from pathlib import Path

UNIT: Final = "sovfed-client"
LOOK_S: Final = 0.5


def unit_for(home: Path, folder: Path, institution: str) -> Unit:
    """The unit that keeps `home` up; one for another home that is in `folder` already stays as it is.

    Raises ConfigError or ServiceError where systemd could not start it: before anybody waits to be admitted.
    """
    if shutil.which("systemctl") is None:
        raise ServiceError("there is no systemctl on this machine: leave --service out, and have it start at boot")
    owner = home.stat().st_uid
    if os.geteuid() == 0 and owner != 0:
        raise ConfigError(f"{home} is of user {owner}, who is to join: `sudo -u '#{owner}' sovfed client join …`")
    unit = service("client", home, "--plain", "--no-look")
    there = folder / unit.name
    if not there.exists() or f"\nWorkingDirectory={home}\n" in there.read_text(encoding="utf-8"):
        return unit
    return service("client", home, "--plain", "--no-look", name=f"{UNIT}-{institution}")


def keep_up(home: Path, unit: Unit, folder: Path, timeout_s: float) -> None:
    """Have systemd start `unit`; where only root may, say by which command, and wait until it was typed.

    Raises ServiceError if that takes longer than `timeout_s`, or the processes run without a service.
    """
    status = read_status(home)
    if status is not None and not kept_up_by(status.pid):
        raise ServiceError(f"its processes run without a service: `sovfed client down --home {home}`, then again")
    if status is None and os.access(folder, os.W_OK):
        carry_out([unit], folder, start=True, show=False)
    elif status is None:
        click.echo(f"one command is left, for root (it is waited for):\n  sudo {command(home, unit)}")
        _wait(home, timeout_s)


def command(home: Path, unit: Unit) -> str:
    """What root types."""
    name = unit.name.removesuffix(".service")
    named = "" if name == UNIT else f" --name {name}"
    return f"{sys.prefix}/bin/sovfed client install-service --home {home}{named}"


def _wait(home: Path, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while (status := read_status(home)) is None or not status.ready:
        if time.monotonic() > deadline:
            raise ServiceError(f"{home}: nobody started the service within {timeout_s:g} s; the same command goes on")
        time.sleep(LOOK_S)
