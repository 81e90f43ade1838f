"""A filter of system calls that its process, its threads and its children can never take off again (seccomp(2)).

It is a program of the kernel's own small machine (BPF), written out here because libseccomp is not on every machine.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sovfed.federation.errors import ServiceError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


@dataclass(frozen=True)
class Machine:
    """What the filter must know of a processor: its AUDIT_ARCH number and its numbers of system calls."""

    audit: int
    calls: Mapping[str, int]


_SAME: Final = {  # everywhere: calls that were added after 2019
    "io_uring_setup": 425, "io_uring_enter": 426, "io_uring_register": 427, "open_tree": 428, "move_mount": 429,
    "fsopen": 430, "fsmount": 432, "clone3": 435, "pidfd_getfd": 438, "mount_setattr": 442,
}  # fmt: skip
MACHINES: Final[Mapping[str, Machine]] = {
    "x86_64": Machine(0xC000003E, _SAME | {
        "socket": 41, "connect": 42, "socketpair": 53, "clone": 56, "ptrace": 101, "pivot_root": 155, "chroot": 161,
        "mount": 165, "umount2": 166, "init_module": 175, "kexec_load": 246, "add_key": 248, "request_key": 249,
        "keyctl": 250, "unshare": 272, "perf_event_open": 298, "open_by_handle_at": 304, "setns": 308,
        "process_vm_readv": 310, "process_vm_writev": 311, "finit_module": 313, "seccomp": 317,
        "kexec_file_load": 320, "bpf": 321, "userfaultfd": 323,
    }),
    "aarch64": Machine(0xC00000B7, _SAME | {
        "socket": 198, "connect": 203, "socketpair": 199, "clone": 220, "ptrace": 117, "pivot_root": 41, "chroot": 51,
        "mount": 40, "umount2": 39, "init_module": 105, "kexec_load": 104, "add_key": 217, "request_key": 218,
        "keyctl": 219, "unshare": 97, "perf_event_open": 241, "open_by_handle_at": 265, "setns": 268,
        "process_vm_readv": 270, "process_vm_writev": 271, "finit_module": 273, "seccomp": 277,
        "kexec_file_load": 294, "bpf": 280, "userfaultfd": 282,
    }),
}  # fmt: skip
# Ways into other processes, other namespaces and the kernel. io_uring makes sockets that no filter sees.
DENIED: Final = (
    "io_uring_setup", "io_uring_enter", "io_uring_register", "ptrace", "process_vm_readv", "process_vm_writev",
    "pidfd_getfd", "setns", "unshare", "mount", "umount2", "open_tree", "move_mount", "fsopen", "fsmount",
    "mount_setattr", "pivot_root", "chroot", "open_by_handle_at", "add_key", "request_key", "keyctl", "bpf",
    "perf_event_open", "userfaultfd", "init_module", "finit_module", "kexec_load", "kexec_file_load",
)  # fmt: skip
_AF_UNIX, _SOCK_STREAM, _SOCK_SEQPACKET, _TYPE_MASK = 1, 1, 5, 0xF
_NEW_NAMESPACES: Final = 0x7E020080  # CLONE_NEW{NS,CGROUP,UTS,IPC,USER,PID,NET,TIME}
_X32: Final = 0x40000000  # x86-64's second table of calls
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _AND, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x54, 0x06
_ALLOW, _ERRNO, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_NUMBER, _ARCH, _ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data; the low half of an argument comes first
_SET_MODE_FILTER, _TSYNC, _PR_SET_NO_NEW_PRIVS = 1, 1, 38


def this_machine() -> Machine | None:
    """This processor's numbers; None where there is no filter for it."""
    wide = sys.maxsize > 2**32 and sys.byteorder == "little"
    return MACHINES.get(os.uname().machine) if sys.platform == "linux" and wide else None


def program(machine: Machine, *, network: bool, local: bool = True) -> bytes:
    """The filter: `DENIED` fails, and without `network` every socket but a Unix one with connections, and `connect`.

    With a network, but not `local`, Unix sockets fail: who has one can ask the machine's daemons, as a cluster's
    scheduler, for what it may not do itself.

    So a Unix socket can be listened on only: whoever may connect reaches the machine's daemons, and datagrams need not
    even connect (syslog).
    """
    return b"".join(struct.pack("<HBBI", *step) for step in _steps(machine, network, local))


def _steps(machine: Machine, network: bool, local: bool) -> Iterator[tuple[int, int, int, int]]:
    def refuse(call: str, code: int) -> Iterator[tuple[int, int, int, int]]:
        yield _EQUAL, 0, 1, machine.calls[call]
        yield _RETURN, 0, 0, _ERRNO | code

    yield _LOAD, 0, 0, _ARCH
    yield _EQUAL, 1, 0, machine.audit
    yield _RETURN, 0, 0, _KILL  # 32-bit calls have other numbers
    yield _LOAD, 0, 0, _NUMBER
    yield _AT_LEAST, 0, 1, _X32
    yield _RETURN, 0, 0, _ERRNO | errno.EPERM
    for call in DENIED:
        yield from refuse(call, errno.EPERM)
    yield from refuse("clone3", errno.ENOSYS)  # its flags lie in memory, where no filter looks; clone is taken then
    yield _EQUAL, 0, 4, machine.calls["clone"]
    yield _LOAD, 0, 0, _ARGUMENTS
    yield _ANY_BIT, 0, 1, _NEW_NAMESPACES
    yield _RETURN, 0, 0, _ERRNO | errno.EPERM
    yield _RETURN, 0, 0, _ALLOW
    if network and not local:
        yield _EQUAL, 0, 4, machine.calls["socket"]
        yield _LOAD, 0, 0, _ARGUMENTS
        yield _EQUAL, 0, 1, _AF_UNIX
        yield _RETURN, 0, 0, _ERRNO | errno.EAFNOSUPPORT
        yield _RETURN, 0, 0, _ALLOW
    if not network:
        yield from refuse("connect", errno.EACCES)
        for call in ("socket", "socketpair"):
            yield _EQUAL, 0, 8, machine.calls[call]
            yield _LOAD, 0, 0, _ARGUMENTS
            yield _EQUAL, 0, 5, _AF_UNIX
            yield _LOAD, 0, 0, _ARGUMENTS + 8
            yield _AND, 0, 0, _TYPE_MASK
            yield _EQUAL, 1, 0, _SOCK_STREAM
            yield _EQUAL, 0, 1, _SOCK_SEQPACKET  # CUDA listens on one
            yield _RETURN, 0, 0, _ALLOW
            yield _RETURN, 0, 0, _ERRNO | errno.EAFNOSUPPORT
    yield _RETURN, 0, 0, _ALLOW


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("steps", ctypes.c_char_p))


def install(*, network: bool, local: bool = True) -> None:
    """Put the filter on all threads of this process, for ever. Raises ServiceError, and nothing has changed then."""
    machine = this_machine()
    if machine is None:
        raise ServiceError(f"no filter of system calls for {sys.platform} on {os.uname().machine}")
    steps = program(machine, network=network, local=local)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise ServiceError(f"no_new_privs: {os.strerror(ctypes.get_errno())}")
    number, filter_ = ctypes.c_long(machine.calls["seccomp"]), ctypes.byref(_Program(len(steps) // 8, steps))
    failed = libc.syscall(number, ctypes.c_long(_SET_MODE_FILTER), ctypes.c_long(_TSYNC), filter_)
    if failed:  # > 0: the thread that could not be brought along
        raise ServiceError(f"seccomp: {os.strerror(ctypes.get_errno()) if failed < 0 else f'thread {failed}'}")
