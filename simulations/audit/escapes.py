"""Ways out of a process, tried from inside: `python -m sovfed.simulations.audit.escapes JSON`.

The process is sealed as the institution's process of that name first, or not at all. Prints what got through, in JSON.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import socket
import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from sovfed.clients.node.sandbox import NAMES, seal_as
from sovfed.federation.host.seccomp import this_machine

if TYPE_CHECKING:
    from collections.abc import Callable

    Attempts = dict[str, Callable[[], object]]

_PTRACE_SEIZE, _PTRACE_DETACH, _NEW_NETWORK, _SIGCHLD = 0x4206, 17, 0x40000000, 17


@dataclass(frozen=True)
class Targets:
    """What is there to be reached; listeners of the audit, and the running trainer and gateway."""

    home: str
    records: str
    tcp_port: int
    unix: str
    abstract: str
    datagram: str
    trainer: int
    gateway: int


def network(targets: Targets) -> Attempts:
    """Every kind of socket by which a byte could leave the trainer."""
    listener = ("127.0.0.1", targets.tcp_port)
    out: Attempts = {
        "TCP": lambda: _connect(socket.AF_INET, socket.SOCK_STREAM, listener),
        "UDP": lambda: _connect(socket.AF_INET, socket.SOCK_DGRAM, listener),
        "TCP by its first datagram": lambda: _fast_open(listener),
        "TCP from a child": lambda: _in_child(lambda: _connect(socket.AF_INET, socket.SOCK_STREAM, listener)),
        "IPv6": lambda: socket.socket(socket.AF_INET6, socket.SOCK_DGRAM).close(),
        "raw": lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP).close(),
        "netlink": lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW).close(),
        "packet": lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW).close(),
        "vsock": lambda: socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM).close(),
        "Unix stream": lambda: _connect(socket.AF_UNIX, socket.SOCK_STREAM, targets.unix),
        "abstract Unix stream": lambda: _connect(socket.AF_UNIX, socket.SOCK_STREAM, f"\0{targets.abstract}"),
        "Unix datagram": lambda: _datagram(targets.datagram),
        "Unix datagram by a pair": lambda: _datagram_by_pair(targets.datagram),
        "another process's socket": lambda: _call("pidfd_getfd", os.pidfd_open(targets.gateway), 0, 0),
        "another's network": lambda: _call("setns", os.open("/proc/1/ns/net", os.O_RDONLY), _NEW_NETWORK),
    }
    return out | {f"{family} of every type": partial(_any, family) for family in (0, 3, 4, 9, 29, 38, 44)}


def processes(targets: Targets, pids: tuple[int, ...]) -> Attempts:
    """Ways into other processes and the kernel."""
    attempts: Attempts = {
        "io_uring": _io_uring,
        "a namespace": lambda: _call("unshare", _NEW_NETWORK),
        "a child in a namespace": lambda: _call("clone", _NEW_NETWORK | _SIGCHLD, 0, 0, 0, 0),
        "bpf": lambda: _call("bpf", 0, 0, 0),
        "keyring": lambda: _call("keyctl", 0, -3, 1),
        "32-bit calls": _compatible,
    }
    for pid in pids:
        process = Path(f"/proc/{pid}")
        attempts[f"trace of {pid}"] = partial(_trace, pid)
        attempts[f"memory of {pid}"] = partial((process / "mem").open, "rb")
        attempts[f"environment of {pid}"] = (process / "environ").read_bytes
        attempts[f"files of {pid}"] = partial(_open_one_of, process / "fd")
        attempts[f"root of {pid}"] = partial(_list, process / "root" / "etc")
    return attempts


def files(name: str, targets: Targets) -> Attempts:
    """Files that process `name` has no business with."""
    home = Path(targets.home)
    attempts: Attempts = {
        "a link out of its folder": lambda: _through_link(home / "run" / name, Path(targets.records)),
        "a program of its own": lambda: _program(home / "run" / name),
        "the policy": lambda: (home / "policy.yaml").open("ab").close(),
        "its settings": lambda: (home / "client.yaml").open("ab").close(),
        "a common folder": lambda: _write(Path("/tmp")),  # noqa: S108
    }
    if name == "trainer":
        attempts["the gateway's secrets"] = lambda: _list(home / "secrets")
        attempts["the records, writing"] = lambda: Path(targets.records).open("ab").close()
        return attempts
    attempts["the records"] = lambda: Path(targets.records).read_bytes()
    attempts["their folder"] = lambda: _list(Path(targets.records).parent)
    attempts["a second name of the records"] = lambda: os.link(targets.records, home / "state" / "link")
    for subfolder in ("secagg", "privacy", "personal", "orders", "run/trainer"):
        attempts[subfolder] = partial(_list, home / subfolder)
    return attempts


def _connect(family: int, kind: int, address: str | tuple[str, int]) -> None:
    with socket.socket(family, kind) as connection:
        connection.settimeout(2.0)
        connection.connect(address)


def _fast_open(address: tuple[str, int]) -> None:
    """TCP without `connect`: the first datagram opens it (RFC 7413)."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as connection:
        connection.sendto(b"x", socket.MSG_FASTOPEN, address)


def _datagram(address: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"x", address)


def _datagram_by_pair(address: str) -> None:
    sender, peer = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with sender, peer:
        sender.sendmsg([b"x"], (), 0, address)


def _any(family: int) -> None:
    """A socket of `family` with any type, made by the bare call."""
    for kind in (1, 2, 3, 5, 1 | socket.SOCK_CLOEXEC):
        with contextlib.suppress(OSError):
            _call("socket", family, kind, 0)
            return
    raise OSError(0, "none")


def _call(name: str, *arguments: int) -> None:
    machine = this_machine()
    if machine is None:
        raise OSError(0, "unknown machine")
    numbers = [ctypes.c_long(number) for number in (machine.calls[name], *arguments)]
    result = ctypes.CDLL(None, use_errno=True).syscall(*numbers)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    if name == "clone" and result == 0:
        os._exit(0)


def _io_uring() -> None:
    parameters = ctypes.create_string_buffer(120)  # struct io_uring_params
    _call("io_uring_setup", 1, ctypes.addressof(parameters))


def _compatible() -> None:
    """A call by x86-64's second table, where that is this machine."""
    if os.uname().machine != "x86_64":
        raise OSError(0, "no such table")
    result = ctypes.CDLL(None, use_errno=True).syscall(ctypes.c_long(0x40000000 + 41), 2, 1, 0)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _trace(pid: int) -> None:
    _call("ptrace", _PTRACE_SEIZE, pid, 0, 0)
    with contextlib.suppress(OSError):
        _call("ptrace", _PTRACE_DETACH, pid, 0, 0)


def _in_child(attempt: Callable[[], None]) -> None:
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(OSError):
            attempt()
            os._exit(0)
        os._exit(1)
    if os.waitpid(pid, 0)[1]:
        raise OSError(0, "refused in the child")


def _through_link(folder: Path, target: Path) -> None:
    link = folder / "link"
    link.unlink(missing_ok=True)
    link.symlink_to(target)
    link.read_bytes()
    link.unlink()


def _program(folder: Path) -> None:
    """Write a program and run it."""
    path = folder / "program"
    path.write_bytes(b"#!/bin/sh\nexit 0\n")
    path.chmod(0o700)
    if subprocess.run([path], check=False).returncode:
        raise OSError(0, "does not run")


def _open_one_of(folder: Path) -> None:
    """Open a file of another process by its descriptor there; their bare numbers root may see."""
    for entry in folder.iterdir():
        with contextlib.suppress(OSError):
            os.close(os.open(entry, os.O_RDONLY | os.O_NONBLOCK))
            return
    raise OSError(0, "none")


def _list(folder: Path) -> list[Path]:
    return list(folder.iterdir())


def _write(folder: Path) -> None:
    path = folder / f"sovfed-escape-{os.getpid()}"
    path.write_bytes(b"x")
    path.unlink()


def main(text: str) -> int:
    """Seal this process as `name`, try all ways, and print those that got through."""
    arguments = json.loads(text)
    name, targets = arguments["name"], Targets(**arguments["targets"])
    if arguments["sealed"]:
        if name not in NAMES:
            raise ValueError(f"no process is called {name!r}")
        seal_as(name, Path(targets.home), Path(targets.records))
    pids = tuple(pid for pid in (targets.trainer, targets.gateway) if pid)
    attempts = network(targets) if name == "trainer" else {}
    attempts |= {**files(name, targets), **processes(targets, pids)}
    through = []
    for label, attempt in attempts.items():
        with contextlib.suppress(OSError):
            attempt()
            through.append(label)
    sys.stdout.write(json.dumps({"tried": len(attempts), "through": through}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
