"""Is this machine ready? Each check looks, changes nothing, contacts nothing outside, and says what to fix."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import shutil
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, Literal

from sovfed.federation.addresses import host_port
from sovfed.federation.config import ServerConfig
from sovfed.federation.host.extras import complete
from sovfed.federation.host.quiet import QUIET, REMOVED, python_command, quiet_environment
from sovfed.federation.host.sandbox import Isolation
from sovfed.federation.host.status import read_status
from sovfed.federation.schema import bind

SOON: Final = timedelta(days=7)  # what ends by then is told
MIN_FREE_BYTES: Final = 5 * 2**30  # models, checkpoints and MLflow's artefacts of some runs
SECRET_NAMES: Final = re.compile(r".*(\.key|key\.pem|node_key|secret.*)")
CLOCK_FLOOR: Final = time.mktime((2026, 1, 1, 0, 0, 0, 0, 1, 0))  # a clock before this fails every certificate


@dataclass(frozen=True)
class Finding:
    """What a check saw; `fix` is empty when there is nothing to do."""

    name: str
    state: Literal["ok", "warn", "fail"]
    found: str
    fix: str = ""


def examine(home: Path | None = None, server: ServerConfig | None = None) -> Iterator[Finding]:
    """Every finding for this machine; `home` also checks the permissions of one of our folders."""
    yield python()
    yield from packages()
    yield device()
    yield disk(home or Path.cwd())
    yield clock(time.time())
    if home is None or not (home / "client.yaml").is_file():
        running = home is not None and read_status(home) is not None
        yield from ports(server or own_settings(home) or ServerConfig(), running=running)
    yield environment(os.environ)
    yield isolation()
    if home is not None:
        yield from permissions(home)
        if (settings := own_settings(home)) is not None:
            yield approvals(settings)
            if read_status(home) is not None:
                yield from reach(settings, home)
        yield from expiries(home, datetime.now(UTC))


def own_settings(home: Path | None) -> ServerConfig | None:
    """What `sovfed server init` fixed in `home`; None if that is no agency's. Raises ConfigError."""
    path = home / "server.json" if home is not None else None
    if path is None or not path.is_file():
        return None
    return bind(ServerConfig, json.loads(path.read_text(encoding="utf-8"))["server"], str(path))


def python() -> Finding:
    """Whether this interpreter is one that sovfed is tested on."""
    version = platform.python_version()
    if sys.version_info[:2] in ((3, 11), (3, 12)):
        return Finding("python", "ok", version)
    return Finding("python", "fail", version, "use Python 3.11 or 3.12")


def packages() -> Iterator[Finding]:
    """Whether each direct dependency is installed in the pinned range."""
    from packaging.requirements import Requirement

    try:
        every = [Requirement(text) for text in importlib.metadata.requires("sovfed") or ()]
    except importlib.metadata.PackageNotFoundError:
        yield Finding("packages", "warn", "sovfed is not installed", "pip install -c constraints.txt -e .")
        return
    pins = [pin for pin in every if pin.marker is None or pin.marker.evaluate({"extra": ""})]
    wrong: list[Finding] = []
    for pin in pins:
        try:
            version = importlib.metadata.version(pin.name)
        except importlib.metadata.PackageNotFoundError:
            version = ""
        if not pin.specifier.contains(version or "0"):
            fix = f"pip install '{pin}' (or, for all: pip install -c constraints.txt .)"
            wrong.append(Finding(pin.name, "fail", version or "missing", fix))
    yield from wrong or [Finding("packages", "ok", f"{len(pins)} direct requirements met")]
    installed = [extra for extra, is_complete in complete().items() if is_complete]
    yield Finding("extras", "ok", ", ".join(installed) or "none, as an institution needs none")


def device() -> Finding:
    """The device that `client.device=auto` takes."""
    import torch

    if torch.cuda.is_available():
        cards = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
        named = [f"cuda:{number} {card.name}, {card.total_memory / 2**30:.0f} GiB" for number, card in enumerate(cards)]
        several = "; client.device=cuda:0,cuda:1 takes several" if len(cards) > 1 else ""
        return Finding("device", "ok", f"{'; '.join(named)} (torch {torch.__version__}){several}")
    if torch.backends.mps.is_available():
        return Finding("device", "ok", f"Apple GPU (torch {torch.__version__})")
    processor = f"processor, {torch.get_num_threads()} threads (torch {torch.__version__})"
    return Finding("device", "ok", f"{processor}; no GPU is seen")


def disk(folder: Path) -> Finding:
    """Whether the file system of `folder` has room for runs."""
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    room = f"{free / 2**30:.1f} GiB free in {folder.resolve()}"
    if free < MIN_FREE_BYTES:
        return Finding("disk", "warn", room, f"make room: runs want {MIN_FREE_BYTES / 2**30:.0f} GiB")
    return Finding("disk", "ok", room)


def clock(now: float) -> Finding:
    """Whether `now` (Unix seconds) is plausible: certificates and Flower's signed requests depend on it."""
    utc = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now))
    if now < CLOCK_FLOOR:
        return Finding("clock", "fail", utc, "set the clock (timedatectl set-ntp true): certificates will not verify")
    return Finding("clock", "ok", utc)


def ports(server: ServerConfig, *, running: bool = False) -> Iterator[Finding]:
    """Whether the ports that an agency listens on are free, or, while it is `running`, are its own."""
    for name in ("fleet_port", "enrolment_port", "lane_port", "control_port"):
        host, port = "127.0.0.1" if name == "control_port" else server.host, getattr(server, name)
        where, problem = host_port(host, port), _taken(host, port)
        if running and problem:
            yield Finding(name, "ok", f"{where}: the server that runs here has it")
        elif running:
            yield Finding(name, "fail", f"{where}: nobody listens, though the server runs", "`sovfed server logs`")
        elif problem:
            fix = f"another process has it: stop that (`ss -ltnp`), or choose another port: server.{name}=PORT"
            yield Finding(name, "warn", f"{where}: {problem}", fix)
        else:
            yield Finding(name, "ok", f"{where} is free")


def _taken(host: str, port: int) -> str:
    """Why nothing can listen there; "" if something can."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        return error.strerror or str(error)
    return ""


def reach(server: ServerConfig, home: Path) -> Iterator[Finding]:
    """Whether a running agency's three ports answer under the name that institutions are told."""
    from sovfed.federation.wire.reach import Pinned, UnreachableError, look

    pinned = Pinned((home / "identity" / "root.pem").read_text(encoding="ascii"))
    for name in ("fleet_port", "enrolment_port", "lane_port"):
        address = host_port(server.certificate_names[0], getattr(server, name))
        try:
            look(address, pinned)
        except UnreachableError as error:
            yield Finding("reach", "warn", f"from this machine: {error}", error.fix)
        else:
            yield Finding("reach", "ok", f"{address} answers with this server's certificate")


def environment(variables: Mapping[str, str]) -> Finding:
    """Whether a variable of the environment asks for what our processes switch off."""
    against = [name for name, value in QUIET.items() if variables.get(name, value) != value]
    against += [name for name in REMOVED if name in variables]
    if against:
        fix = f"unset {' '.join(against)} (our processes override them; other tools on this machine may not)"
        return Finding("telemetry", "warn", f"{', '.join(against)} set against us", fix)
    return Finding("telemetry", "ok", "off in every process that sovfed starts")


def isolation() -> Finding:
    """Whether a process can give up the network and foreign files here, as each institution's processes do."""
    command = python_command("sovfed.federation.host.sandbox")
    completed = subprocess.run(
        command, env=quiet_environment(), capture_output=True, text=True, timeout=60, check=False
    )
    if completed.returncode:
        return Finding("isolation", "fail", completed.stderr.strip()[-200:], "a trainer does not start here")
    seals = Isolation(**json.loads(completed.stdout))
    if not seals.network:
        fix = "a trainer starts only with allow_open_network: true in policy.yaml; use Linux on x86-64 or aarch64"
        return Finding("isolation", "fail", "no network namespace and no seccomp", fix)
    if not seals.files:
        fix = "Linux 5.13 or later with Landlock, or keep the records from the node's user"
        return Finding("isolation", "warn", f"{seals.sentence()}: a gateway can read the records", fix)
    return Finding("isolation", "ok", f"a trainer has {seals.sentence()}")


def permissions(home: Path) -> Iterator[Finding]:
    """Whether `home` is ours alone and the secrets in it are readable by nobody else."""
    if not home.is_dir():
        yield Finding("home", "fail", f"{home} is not a folder", "give the folder that init or enrol made")
        return
    mode = stat.S_IMODE(home.stat().st_mode)
    if mode & 0o077:
        yield Finding("home", "fail", f"{home} has mode {mode:04o}", f"chmod 700 {home}")
    else:
        yield Finding("home", "ok", f"{home} has mode {mode:04o}")
    owner = home.stat().st_uid
    if owner != os.getuid():
        yield Finding("owner", "fail", f"{home} belongs to user {owner}", f"run as that user, or chown {home}")
    for path in sorted(home.rglob("*")):
        secret = path.parent.name == "secrets" or SECRET_NAMES.fullmatch(path.name)
        if secret and path.is_file() and not path.is_symlink() and stat.S_IMODE(path.stat().st_mode) & 0o077:
            yield Finding("secret", "fail", f"{path} is readable by others", f"chmod 600 {path}")


def approvals(server: ServerConfig) -> Finding:
    """Whether people of the agency have to approve what the server begins."""
    from sovfed.federation.orders.approving import bound_line

    return Finding("approvals", "ok", bound_line(server).removeprefix("orders: "))


def expiries(home: Path, now: datetime) -> Iterator[Finding]:
    """Until when the certificate and the revocation list in `home` are good; without either nobody is trusted."""
    from sovfed.federation.identity import load_certificate
    from sovfed.federation.revocation import load_crl

    folder = home / "identity" if (home / "identity").is_dir() else home
    dates: dict[str, datetime | None] = {}
    if (folder / "cert.pem").exists():
        dates["cert.pem"] = load_certificate(folder / "cert.pem").not_valid_after_utc
    if (folder / "crl.pem").exists():
        dates["crl.pem"] = load_crl(folder / "crl.pem").next_update_utc
    for name, end in dates.items():
        validity = f"{folder / name} is good until {end:%F %R} UTC" if end else f"{folder / name} has no end"
        if end is None or end - now > SOON:
            yield Finding(name, "ok", validity)
        else:
            fix = "have `sovfed authority crl` sign a new one"
            if name == "cert.pem":
                fix = "it is renewed by itself while the authority tends (`sovfed authority tend`)"
            yield Finding(name, "warn" if end > now else "fail", validity, fix)
