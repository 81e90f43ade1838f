"""Which files a process may open, however many its user could: Landlock (Linux 5.13 and later), for ever.

Also forbids to trace, or to look into, any process outside; from Linux 6.7 on TCP, from 6.12 on signals to processes
outside and their abstract sockets.
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sovfed.federation.errors import ServiceError

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR, _REMOVE_DIR, _REMOVE_FILE = (1 << bit for bit in range(6))
_MAKE_DIR, _MAKE_FILE, _MAKE_SOCKET, _TRUNCATE, _IOCTL = 1 << 7, 1 << 8, 1 << 9, 1 << 14, 1 << 15
READ: Final = _EXECUTE | _READ_FILE | _READ_DIR
WRITE: Final = _READ_FILE | _READ_DIR | _WRITE_FILE | _TRUNCATE | _MAKE_FILE | _MAKE_DIR | _REMOVE_FILE | _REMOVE_DIR
DEVICE: Final = _READ_FILE | _READ_DIR | _WRITE_FILE | _TRUNCATE | _IOCTL
LISTEN: Final = _MAKE_SOCKET
_OF_A_FILE: Final = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL
_FILE_RIGHTS: Final = (1 << 13, 1 << 14, 1 << 15, 1 << 15, 1 << 16)  # of ABI 1, 2, …: all rights are below this
_TCP, _ABSTRACT_AND_SIGNALS = 0b11, 0b11
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # the same on every processor
_VERSION, _PATH_BENEATH, _PR_SET_NO_NEW_PRIVS = 1, 1, 38


@dataclass(frozen=True)
class Rule:
    """`rights` on `path` and, if that is a folder, on all beneath it. The root, and what does not exist, give none."""

    path: Path
    rights: int


def version() -> int:
    """The kernel's Landlock ABI; 0 without."""
    if sys.platform != "linux":
        return 0
    abi: int = _call(_CREATE_RULESET, None, 0, _VERSION)
    return max(0, abi)


def is_folder(path: Path) -> bool:
    """Whether `path` is a folder that this user can see."""
    try:
        return path.is_dir()
    except OSError:
        return False


def restrict(rules: list[Rule], *, network: bool) -> None:
    """Let this thread, and what it starts from now on, open by `rules` alone. Raises ServiceError.

    Without `network` TCP is refused too, where the kernel can (ABI 4).
    """
    abi = version()
    if abi == 0:
        raise ServiceError("the kernel has no Landlock")
    handled = _FILE_RIGHTS[min(abi, len(_FILE_RIGHTS)) - 1] - 1
    tcp = _TCP if abi >= 4 and not network else 0
    scoped = _ABSTRACT_AND_SIGNALS if abi >= 6 else 0
    attributes = struct.pack("<QQQ", handled, tcp, scoped)[: 8 if abi < 4 else 16 if abi < 6 else 24]
    ruleset = _checked(_CREATE_RULESET, attributes, len(attributes), 0)
    try:
        for rule in rules:
            _add(ruleset, rule, handled)
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
            raise ServiceError(f"no_new_privs: {os.strerror(ctypes.get_errno())}")
        _checked(_RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)


def _add(ruleset: int, rule: Rule, handled: int) -> None:
    try:
        descriptor = os.open(rule.path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    if rule.path.resolve() == Path("/"):
        os.close(descriptor)
        return
    try:
        rights = rule.rights & handled & (-1 if is_folder(rule.path) else _OF_A_FILE)
        if rights:
            _checked(_ADD_RULE, ruleset, _PATH_BENEATH, struct.pack("<Qi", rights, descriptor), 0)
    finally:
        os.close(descriptor)


def _call(number: int, *arguments: int | bytes | None) -> int:
    passed = [ctypes.c_long(value) if isinstance(value, int) else value for value in arguments]
    result = ctypes.CDLL(None, use_errno=True).syscall(ctypes.c_long(number), *passed)
    return int(result)


def _checked(number: int, *arguments: int | bytes | None) -> int:
    result = _call(number, *arguments)
    if result < 0:
        raise ServiceError(f"Landlock: {os.strerror(ctypes.get_errno())}")
    return result
