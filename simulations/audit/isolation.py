"""Is an institution's isolation what it claims? A real one is started, looked at from outside and attacked from inside.

From outside: what /proc says of the running trainer, supernode and gateway. From inside: a process that is sealed by
the same call tries `escapes.py`. The controls are processes that are not sealed.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sovfed.clients.node.sandbox import NAMES, RUN
from sovfed.federation.compose import compose
from sovfed.federation.errors import ServiceError
from sovfed.federation.host.quiet import HEAP, PASSED, QUIET, SAFE, python_command, quiet_environment
from sovfed.federation.host.sandbox import FILE_CAPABILITIES, read_isolation
from sovfed.simulations.audit.escapes import Targets
from sovfed.simulations.deployment import POLICY, Institution, LocalFederation

if TYPE_CHECKING:
    from collections.abc import Iterator

OWN_VARIABLES: Final = {"FLWR_HOME", "SOVFED_PARENT_PID", "LC_CTYPE", *PASSED, *QUIET, *HEAP, *SAFE}
PATIENCE_S: Final = 60.0
TIMEOUT_S: Final = 60.0


@dataclass(frozen=True)
class Examined:
    """One process: how many looks and attempts there were, and which of them got through."""

    process: str
    tried: int
    escapes: tuple[str, ...]
    control: bool = False


def audit_isolation(institutions: int) -> list[Examined]:
    """Every process of the first of `institutions`, from outside and inside, and controls that are not sealed."""
    with tempfile.TemporaryDirectory(prefix="sovfed-") as name:
        folder = Path(name)
        records = folder / "records" / "table.csv"
        records.parent.mkdir(mode=0o700)
        records.write_text("a,b\n1,2\n", encoding="ascii")
        data = dataclasses.replace(compose(["data=breast_cancer"]).config.data, path=str(records))
        members = [Institution(f"hospital-{number + 1}", data) for number in range(institutions)]
        with LocalFederation(folder / "f", members, compose([]).config, POLICY) as federation:
            home = federation.client_home(members[0].name)
            pids: dict[str, int] = {process: federation.pid(members[0].name, process) for process in NAMES}
            _wait(home, pids)
            examined = [_from_outside(process, home, records, pid) for process, pid in pids.items()]
            with ExitStack() as stack:
                targets = _targets(stack, folder, home, records, pids)
                examined += [_from_inside(process, targets, sealed=True) for process in NAMES]
                examined += [_from_inside(process, targets, sealed=False) for process in ("trainer", "gateway")]
            examined.append(_control(home, records))
    return examined


def _control(home: Path, records: Path) -> Examined:
    """A look at a process that is started as one should not be."""
    with subprocess.Popen([sys.executable, "-m", "asyncio"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as open_:
        examined = _from_outside("trainer", home, records, open_.pid)
        open_.kill()
    return dataclasses.replace(examined, process="control, a process that is not sealed", control=True)


def _wait(home: Path, pids: dict[str, int]) -> None:
    """Until each process has said that it is sealed."""
    deadline = time.monotonic() + PATIENCE_S
    while not all(read_isolation(home / RUN / name, pid) for name, pid in pids.items()):
        if time.monotonic() > deadline:
            raise ServiceError(f"{home}: not every process was sealed within {PATIENCE_S:g} s")
        time.sleep(0.05)


def _targets(stack: ExitStack, folder: Path, home: Path, records: Path, pids: dict[str, int]) -> Targets:
    """Listeners of every kind, as a daemon of the machine or an accomplice would have them."""
    abstract = f"sovfed-audit-{os.getpid()}"
    tcp, *unix_listeners = (
        stack.enter_context(socket.socket(family, kind))
        for family, kind in (
            (socket.AF_INET, socket.SOCK_STREAM), (socket.AF_UNIX, socket.SOCK_STREAM),
            (socket.AF_UNIX, socket.SOCK_STREAM), (socket.AF_UNIX, socket.SOCK_DGRAM),
        )
    )  # fmt: skip
    tcp.bind(("127.0.0.1", 0))
    for listener, address in zip(
        unix_listeners, (str(folder / "daemon"), f"\0{abstract}", str(folder / "log")), strict=True
    ):
        listener.bind(address)
    for listener in (tcp, *unix_listeners[:2]):
        listener.listen(64)
    return Targets(
        home=str(home), records=str(records), tcp_port=tcp.getsockname()[1], unix=str(folder / "daemon"),
        abstract=abstract, datagram=str(folder / "log"), trainer=pids["trainer"], gateway=pids["gateway"],
    )  # fmt: skip


def _from_inside(name: str, targets: Targets, *, sealed: bool) -> Examined:
    arguments = json.dumps({"name": name, "sealed": sealed, "targets": dataclasses.asdict(targets)})
    completed = subprocess.run(
        python_command("sovfed.simulations.audit.escapes", arguments), env=quiet_environment(), cwd=targets.home,
        capture_output=True, text=True, timeout=TIMEOUT_S, check=False,
    )  # fmt: skip
    if completed.returncode:
        raise ServiceError(f"the attack from inside a {name} failed: {completed.stderr[-1000:]}")
    result = json.loads(completed.stdout)
    title = f"attack from inside a {name}" if sealed else f"control, the same without the seal ({name})"
    return Examined(title, result["tried"], tuple(result["through"]), control=not sealed)


def _from_outside(name: str, home: Path, records: Path, pid: int) -> Examined:
    looks = dict(_looks(name, home, records, Path(f"/proc/{pid}")))
    return Examined(f"the running {name}", len(looks), tuple(look for look, fine in looks.items() if not fine))


def _looks(name: str, home: Path, records: Path, process: Path) -> Iterator[tuple[str, bool]]:
    """What /proc shows, and whether it is as it should be. Of a sealed process, only root sees the second half."""
    threads = [_status(thread / "status") for thread in (process / "task").iterdir()]
    yield "a thread without filter", all(status["Seccomp"] == "2" and status["NoNewPrivs"] == "1" for status in threads)
    yield "capabilities", all(int(status["CapEff"], 16) & ~FILE_CAPABILITIES == 0 for status in threads)
    command = (process / "cmdline").read_bytes().split(b"\0")
    yield "started with others' modules within reach", command[1:2] == [b"-I"]
    yield (
        "a core would be written",
        bool(re.search(r"Max core file size +0 +0 ", (process / "limits").read_text(encoding="ascii"))),
    )
    yield "looked into by its own user", os.geteuid() == 0 or not os.access(process / "environ", os.R_OK)
    if name == "trainer":
        yield "a network socket", all(_lines(process / "net" / table) == 0 for table in ("tcp", "tcp6", "udp", "udp6"))
    if os.geteuid() != 0:
        return
    yield "another folder", (process / "cwd").readlink() == home
    names = {line.partition(b"=")[0].decode() for line in (process / "environ").read_bytes().split(b"\0") if line}
    yield f"variables {sorted(names - OWN_VARIABLES)}", names <= OWN_VARIABLES
    open_files = [str(entry.readlink()) for entry in (process / "fd").iterdir() if entry.is_symlink()]
    if name == "trainer":
        inodes = {line.split()[6] for line in (process / "net" / "unix").read_text().splitlines()[1:]}
        sockets = {target[8:-1] for target in open_files if target.startswith("socket:")}
        yield "a socket that is no Unix socket", sockets <= inodes
    else:
        yield "an open file of the records", not any(target.startswith(str(records.parent)) for target in open_files)


def _status(path: Path) -> dict[str, str]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return {name: value.strip() for name, value in (line.split(":", 1) for line in lines)}


def _lines(table: Path) -> int:
    """The entries of a table of sockets: those of the process's own network namespace."""
    return len(table.read_text(encoding="ascii").splitlines()) - 1 if table.exists() else 0
