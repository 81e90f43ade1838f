"""What a process gives up before it opens anything: the network, other processes, files that are not its own.

Each step holds for ever, for all threads and children, and asks for no privilege. What the kernel does not offer is
told, never guessed: `Isolation` is found by trying.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import errno
import json
import os
import resource
import socket
import stat
import struct
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sovfed.federation.errors import ServiceError
from sovfed.federation.host import landlock, seccomp

if TYPE_CHECKING:
    from collections.abc import Iterable

ISOLATION: Final = "isolation.json"
_PR_SET_DUMPABLE, _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 4, 47, 4
_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
_CAPABILITIES_3: Final = 0x20080522
FILE_CAPABILITIES: Final = 0b1111  # chown, dac_override, dac_read_search, fowner: what lets root read others' records
_SYS_ADMIN, _SETFCAP = 1 << 21, 1 << 31


@dataclass(frozen=True)
class Isolation:
    """What is in force in the process `pid`; a text that is empty is a protection that is missing."""

    pid: int = 0
    network: str = ""  # how sockets are kept from it: "own namespace + seccomp"; empty: it can reach the network
    files: str = ""  # how files are kept from it: "Landlock 7"; empty: it may open all that its user may
    processes: str = ""  # how it is kept from other processes: "seccomp"
    records: str = ""  # why it can open the records, for a process that should not; empty: it tried, and cannot

    def sentence(self) -> str:
        """All of it in one line for an operator."""
        parts = [f"no network ({self.network})" if self.network else "network"]
        parts.append(f"own files only ({self.files})" if self.files else "every file of its user")
        parts += [] if self.processes else ["other processes of its user"]
        return ", ".join([*parts, *([f"can read the records: {self.records}"] if self.records else [])])


def close_descriptors() -> None:
    """Close what was inherited but for the first three, which may be no sockets of the network. Raises ServiceError."""
    os.closerange(3, max(4096, resource.getrlimit(resource.RLIMIT_NOFILE)[0]))
    for number in range(3):
        with contextlib.suppress(OSError):
            if stat.S_ISSOCK(os.fstat(number).st_mode):
                with socket.socket(fileno=os.dup(number)) as inherited:
                    if inherited.family != socket.AF_UNIX:
                        raise ServiceError(f"descriptor {number} is a socket of the network")


def leave_network() -> str:
    """Move this process into a network namespace of its own, in which nothing is up; how, or "" where not allowed.

    Only a process with one thread can: others would be left behind.
    """
    if sys.platform != "linux" or len(list(Path("/proc/self/task").iterdir())) != 1:
        return ""
    user, group = os.geteuid(), os.getegid()
    libc = ctypes.CDLL(None, use_errno=True)
    if _capabilities() & _SYS_ADMIN and libc.unshare(_CLONE_NEWNET) == 0:
        return "own namespace"
    if user == 0 and not _capabilities() & _SETFCAP:
        return ""  # such a root may make a user namespace, but not be root in it (user_namespaces(7))
    if libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET) != 0:
        return ""
    for name, line in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
        Path(f"/proc/self/{name}").write_text(line, encoding="ascii")
    return "own namespace"


def drop_privileges(keep: int = 0) -> None:
    """Give up every capability but those in `keep`; not traced, not dumped by anyone who is not root."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    capabilities = _capabilities() & keep
    header, data = struct.pack("<Ii", _CAPABILITIES_3, 0), struct.pack("<6I", capabilities, capabilities, 0, 0, 0, 0)
    if libc.capset(header, data) != 0 or libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        raise ServiceError(f"cannot give up privileges: {os.strerror(ctypes.get_errno())}")


def seal(rules: Iterable[landlock.Rule], *, network: bool, keep: int = 0, local: bool = True) -> Isolation:
    """Give up what `rules`, `network` and `local` (Unix sockets) do not name, as far as the kernel can; what holds.

    To be called first of all in a process: a second thread would keep its files and its network (only seccomp reaches
    all threads), so nothing is claimed for those then.
    """
    namespace = "" if network else leave_network()
    drop_privileges(keep)
    filtered, files = "", ""
    if sys.platform == "linux" and len(list(Path("/proc/self/task").iterdir())) == 1:
        with contextlib.suppress(ServiceError):
            landlock.restrict(list(rules), network=network)
            files = f"Landlock {landlock.version()}"
    with contextlib.suppress(ServiceError):
        seccomp.install(network=network, local=local)
        filtered = "seccomp"
    closed = " + ".join(how for how in (namespace, filtered) if how) if not (network or reaches_network()) else ""
    return Isolation(os.getpid(), network=closed, files=files, processes=filtered)


def reaches_network() -> bool:
    """Whether this process can send a datagram towards another machine, or to this one; nothing is sent."""
    for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "::1")):
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as probe:
                probe.connect((address, 9))  # of a datagram socket: asks for a route, no more
        except OSError:
            continue
        return True
    return False


def opens(path: Path) -> bool:
    """Whether this process can open `path`, or anything in it. Raises nothing."""
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
    except OSError as error:
        return error.errno not in (errno.EACCES, errno.EPERM, errno.ENOENT)
    return True


def write_isolation(folder: Path, isolation: Isolation) -> None:
    """Keep `isolation` for `read_isolation`: the status commands look from outside."""
    from sovfed.federation.files import write_private

    write_private(folder / ISOLATION, json.dumps(dataclasses.asdict(isolation)).encode())


def read_isolation(folder: Path, pid: int | None) -> Isolation | None:
    """What the process `pid` wrote of itself; None if it wrote nothing (yet), or what no terminal should show."""
    try:
        isolation = Isolation(**json.loads((folder / ISOLATION).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    texts = [value for name, value in vars(isolation).items() if name != "pid"]
    fine = all(isinstance(text, str) and text.isprintable() for text in texts)
    return isolation if fine and isolation.pid == pid else None


def system_rules() -> list[landlock.Rule]:
    """Reading what every process of ours needs: this Python, its packages, the system's libraries and settings."""
    import sovfed

    package = Path(sovfed.__file__).parent
    folders = {Path(name) for name in (sys.prefix, sys.base_prefix, *sys.path) if name}
    folders |= {package, *(child.resolve() for child in package.iterdir() if child.is_dir())}
    folders |= {Path(name) for name in ("/usr", "/lib", "/lib64", "/bin", "/sbin", "/etc", "/proc", "/sys")}
    folders.add(Path("/etc/resolv.conf").resolve().parent)
    devices = [Path("/dev") / name for name in ("null", "zero", "full", "random", "urandom")]
    read = [landlock.Rule(folder, landlock.READ) for folder in sorted(folders)]
    return [*read, *(landlock.Rule(device, landlock.DEVICE) for device in devices)]


def _capabilities() -> int:
    """The lower 32 of this process's permitted capabilities."""
    if sys.platform != "linux":
        return 0
    header, data = struct.pack("<Ii", _CAPABILITIES_3, 0), ctypes.create_string_buffer(24)
    ctypes.CDLL(None).capget(header, data)
    return int(struct.unpack("<6I", data.raw)[1])


def main() -> int:
    """Print what this machine offers a process that wants no network: `sovfed doctor` asks a child."""
    sys.stdout.write(json.dumps(dataclasses.asdict(seal(system_rules(), network=False))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
