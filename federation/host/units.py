"""A systemd unit that keeps one of our supervisors up, with no more of the machine in sight than it needs."""

from __future__ import annotations

import getpass
from typing import TYPE_CHECKING

from sovfed.federation.errors import ConfigError
from sovfed.federation.host.quiet import python_command

if TYPE_CHECKING:
    from pathlib import Path

_UNIT = """\
# sovfed {role} unit --home {home} > /etc/systemd/system/sovfed-{role}.service
[Unit]
Description=sovfed {role} at {home}
Wants=network-online.target
After=network-online.target

[Service]
User={user}
ExecStart={command}
WorkingDirectory={home}
# 2: a setting is wrong, 3: refused (identity, policy, privacy): a restart would change nothing.
# However it ended: `systemctl stop` is how it is stopped.
Restart=always
RestartSec=10
RestartPreventExitStatus=2 3
KillMode=mixed
TimeoutStopSec=60
UMask=0077
LimitCORE=0
LimitNOFILE=65536
NoNewPrivileges=yes
CapabilityBoundingSet=
ProtectSystem=strict
ReadWritePaths={home}
ProtectHome=read-only
PrivateTmp=yes
ProtectProc=invisible
ProtectClock=yes
ProtectControlGroups=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
KeyringMode=private
LockPersonality=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
{namespaces}
RestrictRealtime=yes
RestrictSUIDSGID=yes
SystemCallArchitectures=native

[Install]
WantedBy=multi-user.target
"""


def unit(role: str, home: Path, *arguments: str, namespaces: str = "", user: str = "") -> str:
    """The unit that runs `sovfed ROLE up` for `home` as `user`; `namespaces` are the kinds that it may make.

    Raises ConfigError for a path that systemd would take for something else.
    """
    command = python_command("sovfed", role, "up", *arguments, "--home", str(home))
    for word in (*command, user):
        if any(character.isspace() or not character.isprintable() or character in "%\"'\\$;" for character in word):
            raise ConfigError(f"{word!r}: a unit file takes no spaces, quotes, %, $ or ; in a path or name")
    return _UNIT.format(
        role=role, home=home, command=" ".join(command), user=user or getpass.getuser(),
        namespaces=f"RestrictNamespaces={namespaces or 'yes'}",
    )  # fmt: skip
