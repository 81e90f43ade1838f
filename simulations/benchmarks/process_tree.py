"""Process trees, read from /proc: what a deployment consists of, to pause it, weigh it, and end it. Linux only."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterable, Iterator
from pathlib import Path


def tree(roots: Iterable[int]) -> dict[int, int]:
    """The living processes of `roots` and all their descendants: process id → start time in clock ticks.

    The start time tells a process from a later one with the same id.
    """
    parents = {pid: process for pid in _pids() if (process := _stat(pid)) is not None}
    members = {pid for pid in roots if pid in parents}
    while more := {pid for pid, (parent, _) in parents.items() if parent in members} - members:
        members |= more
    return {pid: parents[pid][1] for pid in members}


def mentioning(word: str) -> list[int]:
    """The processes that have `word` on their command line."""
    return [pid for pid in _pids() if word.encode() in _command_line(pid)]


def send(members: dict[int, int], number: signal.Signals) -> None:
    """Send a signal to those of `members` that still live."""
    for pid, started in members.items():
        process = _stat(pid)
        if process is not None and process[1] == started:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)


@contextlib.contextmanager
def paused(roots: Iterable[int]) -> Iterator[None]:
    """Stop `roots` and their descendants inside the block (SIGSTOP), and let them go on after it, whatever happens."""
    members = tree(roots)
    try:
        send(members, signal.SIGSTOP)
        yield
    finally:
        send(members, signal.SIGCONT)


def resident_bytes(pid: int) -> int:
    """The resident set size of process `pid`; 0 if it has ended."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (FileNotFoundError, ProcessLookupError):
        return 0


def open_files(pid: int) -> int:
    """Files and sockets that process `pid` has open; 0 if it has ended."""
    try:
        return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())
    except (FileNotFoundError, ProcessLookupError):
        return 0


def threads(pid: int) -> int:
    """Threads of process `pid`; 0 if it has ended."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[17])
    except (FileNotFoundError, ProcessLookupError):
        return 0


def peak_bytes(pid: int) -> int:
    """The largest resident set that process `pid` has had; 0 if it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def memory_file_bytes(pids: Iterable[int]) -> int:
    """What the files of memory (memfd_create(2)) hold that processes `pids` have open, each file once."""
    sizes: dict[int, int] = {}
    for pid in pids:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended
            for entry in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(FileNotFoundError):  # it was closed
                    if str(entry.readlink()).startswith("/memfd:"):
                        status = entry.stat()
                        sizes[status.st_ino] = 512 * status.st_blocks
    return sum(sizes.values())


def cpu_seconds(roots: Iterable[int], children: bool = True) -> float:
    """User and system seconds of `roots`, their living descendants, and the children that these have waited for.

    Without `children`, of `roots` alone.
    """
    ticks = sum(_cpu_ticks(pid) for pid in tree(roots)) if children else sum(_cpu_ticks(pid, 13) for pid in roots)
    return ticks / os.sysconf("SC_CLK_TCK")


def proportional_bytes(roots: Iterable[int]) -> int:
    """Proportional set size of `roots` and their descendants: a page that n processes share counts 1/n in each."""
    return sum(_proportional(pid) for pid in tree(roots))


def _cpu_ticks(pid: int, end: int = 15) -> int:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return sum(int(field) for field in fields[11:end])  # utime, stime, cutime, cstime


def _proportional(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def _pids() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def _command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def _stat(pid: int) -> tuple[int, int] | None:
    """Parent and start time of a living process; None for one that is gone or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] == "Z" else (int(fields[1]), int(fields[19]))
