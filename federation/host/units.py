"""systemd units that keep our supervisors up, for ever, with no more of the machine in sight than they need."""

from __future__ import annotations

import contextlib
import pwd
import subprocess
import sys
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from sovfed.federation.errors import ConfigError, ServiceError
from sovfed.federation.host.quiet import python_command

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

Role = Literal["client", "server", "authority"]
FOLDER: Final = Path("/etc/systemd/system")
_SHARED: Final = (Path("/tmp"), Path("/var/tmp"))  # noqa: S108 - a service has its own in their stead
# Which system calls: what services need, and those by which our processes seal themselves.
_CALLS: Final = "@system-service seccomp landlock_create_ruleset landlock_add_rule landlock_restrict_self"
_REFUSED_CALLS: Final = "~@keyring userfaultfd io_uring_setup io_uring_enter io_uring_register"
# By role: the kinds of namespace that it may make (the trainer's own, without a network), and the devices it may open.
_NAMESPACES: Final[Mapping[Role, str]] = {"client": "user net", "server": "yes", "authority": "yes"}
_DEVICES: Final[Mapping[Role, str]] = {  # of the institution: graphics processors, which work by device files
    "client": "DevicePolicy=closed\nDeviceAllow=char-nvidia* rw\nDeviceAllow=char-drm rw\nDeviceAllow=char-kfd rw",
    "server": "PrivateDevices=yes",
    "authority": "PrivateDevices=yes\nPrivateNetwork=yes\nIPAddressDeny=any",
}

_HEAD: Final = """\
# Written by `sovfed {role} install-service`
[Unit]
Description=sovfed {role} at {home}
"""
# Waits for the network and for shares that are mounted late, and requires neither: what fails is tried again.
_ORDER: Final = """\
Wants=network-online.target
After=network-online.target remote-fs.target time-sync.target nss-user-lookup.target
StartLimitIntervalSec=0
"""
# The supervisor says when all of its processes are ready, and that it lives; one that is stuck is killed. A process of
# its own that the kernel kills for memory is for the supervisor to start again.
_KEPT_UP: Final = """\
Type=notify
NotifyAccess=main
Restart=always
RestartSec=15
TimeoutStartSec=15min
TimeoutStopSec=60
WatchdogSec=120
WatchdogSignal=SIGKILL
KillMode=mixed
OOMPolicy=continue
LimitNOFILE=65536
"""
_SANDBOX: Final = """\
User={user}
ExecStart={command}
WorkingDirectory={home}
ReadWritePaths={home}
UMask=0077
LimitCORE=0
NoNewPrivileges=yes
CapabilityBoundingSet=
AmbientCapabilities=
{devices}
ProtectSystem=strict
ProtectHome=read-only
PrivateTmp=yes
PrivateMounts=yes
ProtectProc=invisible
ProtectClock=yes
ProtectControlGroups=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
KeyringMode=private
LockPersonality=yes
RemoveIPC=yes
RestrictAddressFamilies={families}
RestrictNamespaces={namespaces}
RestrictRealtime=yes
RestrictSUIDSGID=yes
SystemCallArchitectures=native
SystemCallFilter={calls}
SystemCallFilter={refused_calls}
SystemCallErrorNumber=EPERM
"""
_AT_BOOT: Final = "\n[Install]\nWantedBy=multi-user.target\n"
_TIMER: Final = """\
# Written by `sovfed {role} install-service`
[Unit]
Description=sovfed {role} at {home}, every day

[Timer]
OnBootSec=5min
OnCalendar=daily
RandomizedDelaySec=1h
Persistent=yes

[Install]
WantedBy=timers.target
"""


@dataclass(frozen=True)
class Unit:
    """A unit file: its name, and its text."""

    name: str
    text: str


def service(role: Role, home: Path, *arguments: str, user: str = "", name: str = "") -> Unit:
    """The service that runs `sovfed ROLE up` for `home` as `user` (default: whose folder it is), and keeps it up.

    Raises ConfigError for a path that systemd would take for something else, or that a service cannot see.
    """
    command = _lasting(python_command("sovfed", role, "up", *arguments, "--home", str(home)))
    text = _HEAD + _ORDER + "\n[Service]\n" + _KEPT_UP + _SANDBOX + _AT_BOOT
    return Unit(f"{name or f'sovfed-{role}'}.service", _filled(text, role, home, [command], user))


def daily(role: Role, home: Path, *commands: list[str], user: str = "", name: str = "", more: str = "") -> list[Unit]:
    """A service that runs `commands` one after the other, and a timer for every day, also after days switched off.

    What fails is tried again every quarter of an hour. `more` stands in its section [Service].
    """
    again = "Type=oneshot\nRestart=on-failure\nRestartSec=15min\n"
    text = _HEAD + "StartLimitIntervalSec=0\n\n[Service]\n" + again + more + _SANDBOX
    stem = name or f"sovfed-{role}"
    timer = Unit(f"{stem}.timer", _TIMER.format(role=role, home=home))
    return [Unit(f"{stem}.service", _filled(text, role, home, list(map(_lasting, commands)), user)), timer]


def _lasting(command: list[str]) -> list[str]:
    """`command` by the link to the installed version that counts, if a bundle was installed: it outlives an upgrade."""
    environment = Path(sys.prefix)
    current = environment.parent.parent / "current"
    named = (
        environment.parent.name == "versions" and current.is_symlink() and current.resolve() == environment.resolve()
    )
    return [str(current / "bin" / "python"), *command[1:]] if named else command


def _filled(text: str, role: Role, home: Path, commands: list[list[str]], user: str) -> str:
    if any(home.is_relative_to(shared) for shared in _SHARED):
        raise ConfigError(f"{home}: a service has a {home.parts[1]} of its own; keep the home elsewhere")
    user = user or _owner(home)
    for word in (*chain.from_iterable(commands), user):
        if any(character.isspace() or not character.isprintable() or character in "%\"'\\$;" for character in word):
            raise ConfigError(f"{word!r}: a unit file takes no spaces, quotes, %, $ or ; in a path or name")
    return text.format(
        role=role, home=home, user=user, command="\nExecStart=".join(map(" ".join, commands)), devices=_DEVICES[role],
        namespaces=_NAMESPACES[role], calls=_CALLS, refused_calls=_REFUSED_CALLS,
        families="AF_UNIX" if role == "authority" else "AF_UNIX AF_INET AF_INET6 AF_NETLINK",
    )  # fmt: skip


def _owner(home: Path) -> str:
    """Whose folder `home` is: the name, or the number of a user that has none."""
    try:
        number = home.stat().st_uid
    except OSError as error:
        raise ConfigError(f"{home}: no such home folder; make it first, or name the user with --user") from error
    with contextlib.suppress(KeyError):
        return pwd.getpwuid(number).pw_name
    return str(number)


def install(units: Iterable[Unit], folder: Path, *, start: bool) -> None:
    """Write `units` into `folder`; with `start` systemd starts the last one, now and with the machine.

    Raises ServiceError where either fails, with what systemd said.
    """
    written = list(units)
    try:
        for unit in written:
            path = folder / unit.name
            path.write_text(unit.text, encoding="utf-8")
            path.chmod(0o644)
    except OSError as error:
        raise ServiceError(f"{folder}: cannot write the unit: {error.strerror}; are you root?") from error
    for argv in (["daemon-reload"], ["enable", written[-1].name], ["restart", written[-1].name]) if start else ():
        _systemctl(argv)


def _systemctl(argv: list[str]) -> None:
    try:
        done = subprocess.run(["systemctl", *argv], capture_output=True, text=True, check=False)  # noqa: S607
    except FileNotFoundError as error:
        raise ServiceError("there is no systemctl on this machine; --no-start writes the unit alone") from error
    if done.returncode != 0:
        said = done.stderr.strip() or f"exit code {done.returncode}"
        raise ServiceError(f"systemctl {' '.join(argv)}: {said}")


def kept_up_by(pid: int) -> str:
    """The service that started process `pid` and would start it again, as "sovfed-client.service"; "" if none."""
    try:
        groups = Path(f"/proc/{pid}/cgroup").read_text(encoding="utf-8").split()
    except OSError:
        return ""
    names = {Path(group).name for group in groups}
    return next((name for name in sorted(names) if name.startswith("sovfed") and name.endswith(".service")), "")
