"""What a sealed process can no longer do, tried from inside; and that an open one could."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sovfed.federation.host import landlock, seccomp
from sovfed.federation.host.quiet import python_command, quiet_environment
from sovfed.federation.host.sandbox import Isolation, read_isolation, write_isolation

pytestmark = pytest.mark.skipif(seccomp.this_machine() is None, reason="no seccomp on this machine")
needs_landlock = pytest.mark.skipif(landlock.version() == 0, reason="this kernel has no Landlock")

ATTEMPTS = """
import ctypes, json, os, socket, sys
from pathlib import Path
from sovfed.federation.host import landlock, sandbox, seccomp

arguments = json.loads(sys.argv[1])
rules = [*sandbox.system_rules(), *(landlock.Rule(Path(name), rights) for name, rights in arguments["rules"])]
libc = ctypes.CDLL(None, use_errno=True)
number = seccomp.this_machine().calls

def attempt(do):
    try:
        do()
    except OSError as error:
        return error.strerror
    return "done"

def call(name, *values):
    def do():
        result = libc.syscall(ctypes.c_long(number[name]), *map(ctypes.c_long, values))
        if result == 0 and name == "clone":
            os._exit(0)
        if result < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return do

def connect(family, kind, address):
    def do():
        with socket.socket(family, kind) as one:
            one.connect(address)
    return do

def send_datagram():
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as one:
        one.sendto(b"record", arguments["datagram"])

def fast_open():
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as one:
        one.sendto(b"record", socket.MSG_FASTOPEN, tuple(arguments["tcp"]))

def listen():
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as one:
        one.bind(arguments["mine"])
        one.listen()

def pair(kind):
    return lambda: [one.close() for one in socket.socketpair(socket.AF_UNIX, kind)]

def child():
    if os.fork() == 0:
        os._exit(0 if attempt(connect(socket.AF_INET, socket.SOCK_STREAM, tuple(arguments["tcp"]))) == "done" else 9)
    if os.waitstatus_to_exitcode(os.wait()[1]):
        raise OSError(1, "refused in the child")

parameters = ctypes.create_string_buffer(120)  # struct io_uring_params
attempts = {
    "tcp": connect(socket.AF_INET, socket.SOCK_STREAM, tuple(arguments["tcp"])),
    "tcp in a child": child,
    "udp": connect(socket.AF_INET, socket.SOCK_DGRAM, tuple(arguments["tcp"])),
    "stream socket": lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM).close(),
    "tcp by its first datagram": fast_open,
    "ipv6": lambda: socket.socket(socket.AF_INET6, socket.SOCK_DGRAM).close(),
    "netlink": lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW).close(),
    "unix connect": connect(socket.AF_UNIX, socket.SOCK_STREAM, arguments["unix"]),
    "abstract connect": connect(socket.AF_UNIX, socket.SOCK_STREAM, chr(0) + arguments["abstract"]),
    "unix datagram": send_datagram,
    "pair of datagrams": pair(socket.SOCK_DGRAM),
    "io_uring": call("io_uring_setup", 1, ctypes.addressof(parameters)),
    "ptrace": call("ptrace", 0x4206, os.getppid(), 0, 0),
    "unshare": call("unshare", 0),
    "new namespace": call("clone", 0x40000011, 0, 0, 0, 0),
    "clone3": call("clone3", 0, 0),
    "foreign file": lambda: Path(arguments["foreign"]).read_text(),
    "write own": lambda: Path(arguments["own"]).write_text("x"),
    "listen": listen,
    "pair of streams": pair(socket.SOCK_STREAM),
    "packets": lambda: socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET).close(),
    "memory of the parent": lambda: open(f"/proc/{os.getppid()}/mem", "rb").close(),
    "environment of the parent": lambda: open(f"/proc/{os.getppid()}/environ", "rb").read(),
}
if arguments["sealed"]:
    held = sandbox.seal(rules, network=arguments["network"])
else:
    held = sandbox.Isolation()
found = {name: attempt(do) for name, do in attempts.items()}
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
import resource
print(json.dumps({
    "held": vars(held), "found": found, "net": os.readlink("/proc/self/ns/net"),
    "status": {name: status[name].strip() for name in ("NoNewPrivs", "Seccomp", "CapPrm")},
    "threads": sorted({
        line.strip() for thread in Path("/proc/self/task").iterdir()
        for line in (thread / "status").read_text().splitlines() if line.startswith("Seccomp:")
    }),
    "core": resource.getrlimit(resource.RLIMIT_CORE), "dumpable": libc.prctl(3, 0, 0, 0, 0),
}))
"""
ESCAPES = (
    "tcp", "tcp in a child", "stream socket", "tcp by its first datagram", "udp", "ipv6", "netlink", "unix connect",
    "abstract connect", "unix datagram", "pair of datagrams", "io_uring", "ptrace", "unshare", "new namespace",
    "clone3",
)  # fmt: skip
NEEDED = ("write own", "listen", "pair of streams", "packets")


@pytest.fixture
def arguments(tmp_path: Path) -> Iterator[dict[str, Any]]:
    """Listeners of every kind that somebody outside could have set up, and files."""
    own, foreign = tmp_path / "own", tmp_path / "foreign"
    own.mkdir()
    foreign.write_text("record")
    kinds: dict[str, tuple[int, int, Any]] = {
        "tcp": (socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", 0)),
        "unix": (socket.AF_UNIX, socket.SOCK_STREAM, str(tmp_path / "daemon")),
        "abstract": (socket.AF_UNIX, socket.SOCK_STREAM, f"\0sovfed-{os.getpid()}"),
        "datagram": (socket.AF_UNIX, socket.SOCK_DGRAM, str(tmp_path / "log")),
    }
    sockets = {}
    for name, (family, kind, address) in kinds.items():
        sockets[name] = socket.socket(family, kind)
        sockets[name].bind(address)
        if kind is socket.SOCK_STREAM:
            sockets[name].listen(8)
    yield {
        "tcp": sockets["tcp"].getsockname(), "unix": kinds["unix"][2], "abstract": f"sovfed-{os.getpid()}",
        "datagram": kinds["datagram"][2], "foreign": str(foreign), "own": str(own / "file"), "mine": str(own / "s"),
        "rules": [[str(own), landlock.WRITE | landlock.LISTEN]],
    }  # fmt: skip
    for one in sockets.values():
        one.close()


def tried(arguments: dict[str, Any], *, sealed: bool = True, network: bool = False, before: str = "") -> dict[str, Any]:
    given = json.dumps({**arguments, "sealed": sealed, "network": network})
    command = [sys.executable, "-c", before + ATTEMPTS, given]
    path = os.pathsep.join(entry for entry in sys.path if entry)
    env = {**quiet_environment(), "PYTHONPATH": path}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_without_a_network_nothing_gets_out(arguments: dict[str, Any]) -> None:
    result = tried(arguments)
    assert {name for name in ESCAPES if result["found"][name] == "done"} == set()
    assert {name: result["found"][name] for name in NEEDED} == dict.fromkeys(NEEDED, "done")
    assert result["status"] == {"NoNewPrivs": "1", "Seccomp": "2", "CapPrm": "0000000000000000"}
    assert (result["core"], result["dumpable"]) == ([0, 0], 0)
    assert "seccomp" in result["held"]["network"]


def test_the_same_attempts_succeed_in_a_process_that_is_not_sealed(arguments: dict[str, Any]) -> None:
    """The control: a trial that could not succeed would show nothing."""
    found = tried(arguments, sealed=False)["found"]
    open_ways = {"tcp", "tcp in a child", "udp", "netlink", "unix connect", "abstract connect", "unix datagram",
                 "pair of datagrams", "unshare", "foreign file", *NEEDED}  # fmt: skip
    assert {name for name in open_ways if found[name] != "done"} == set()


def test_the_filter_alone_closes_every_socket(arguments: dict[str, Any]) -> None:
    """Where namespaces are not allowed: a second thread has the same effect on `leave_network`."""
    thread = "import threading; threading.Thread(target=threading.Event().wait, daemon=True).start()\n"
    result = tried(arguments, before=thread)
    assert {name for name in ESCAPES if result["found"][name] == "done"} == set()
    assert {result["found"][name] for name in ("io_uring", "ptrace", "unshare")} == {"Operation not permitted"}
    assert result["held"]["network"] == "seccomp"
    assert result["threads"] == ["Seccomp:\t2"]
    assert result["held"]["files"] == ""  # Landlock would have left the other thread out, so it is not claimed
    assert result["net"] == str(Path("/proc/self/ns/net").readlink())


def test_the_namespace_is_the_processs_own(arguments: dict[str, Any]) -> None:
    result = tried(arguments)
    if "own namespace" not in result["held"]["network"]:
        pytest.skip("network namespaces may not be made here")
    assert result["net"] != str(Path("/proc/self/ns/net").readlink())


def test_an_ordinary_user_gets_a_namespace_too(arguments: dict[str, Any]) -> None:
    """By a user namespace, where the system allows it; it is the same user in there, and holds nothing outside."""
    ordinary = """
import codecs, ctypes, json, os, resource, socket, sys
from pathlib import Path
from sovfed.federation.host import landlock, sandbox, seccomp
codecs.lookup("ascii")
# This user may not even look at the packages of the one who runs the tests.
sandbox.system_rules = lambda: [landlock.Rule(Path("/proc"), landlock.READ)]
if os.geteuid() == 0:
    os.setgroups([])
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)
    ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)  # /proc/self is its own, as after an exec
"""
    may = subprocess.run(
        [sys.executable, "-c", f"{ordinary}assert ctypes.CDLL(None).unshare(0x50000000) == 0"], capture_output=True,
        env={**quiet_environment(), "PYTHONPATH": os.pathsep.join(sys.path)}, check=False,
    )  # fmt: skip
    if may.returncode:
        pytest.skip("user namespaces may not be made here")
    result = tried(arguments, before=ordinary)
    assert result["held"]["network"] == "own namespace + seccomp"
    assert result["net"] != str(Path("/proc/self/ns/net").readlink())
    assert result["status"]["CapPrm"] == "0000000000000000"
    assert {name for name in ESCAPES if result["found"][name] == "done"} == set()


def test_root_without_privileges_is_left_in_its_namespace_rather_than_nobodys(arguments: dict[str, Any]) -> None:
    """The kernel lets such a root make a user namespace, and then refuses to say who it is in there."""
    if os.geteuid() != 0:
        pytest.skip("is not root")
    powerless = """
import ctypes, struct
assert ctypes.CDLL(None).capset(struct.pack("<Ii", 0x20080522, 0), bytes(24)) == 0
"""
    result = tried(arguments, before=powerless)
    assert result["held"]["network"] == "seccomp"
    assert {name for name in ESCAPES if result["found"][name] == "done"} == set()
    assert {name: result["found"][name] for name in NEEDED} == dict.fromkeys(NEEDED, "done")


@needs_landlock
@pytest.mark.parametrize("network", [False, True])
def test_foreign_files_and_processes_are_closed(arguments: dict[str, Any], network: bool) -> None:
    found = tried(arguments, network=network)["found"]
    for name in ("foreign file", "memory of the parent", "environment of the parent"):
        assert found[name] == "Permission denied", name
    assert found["write own"] == "done"


@needs_landlock
def test_no_rule_opens_everything(arguments: dict[str, Any]) -> None:
    """A setting that comes out as the root folder gives nothing rather than all."""
    arguments["rules"] += [["/", landlock.READ], ["/usr/..", landlock.READ]]
    assert tried(arguments)["found"]["foreign file"] == "Permission denied"


def test_a_process_with_a_network_keeps_it_but_looks_into_no_other(arguments: dict[str, Any]) -> None:
    result = tried(arguments, network=True)
    assert result["found"]["tcp"] == "done"
    assert result["found"]["stream socket"] == "done"
    assert result["held"]["network"] == ""
    for name in ("io_uring", "ptrace", "unshare", "new namespace"):
        assert result["found"][name] != "done"


def test_what_the_parent_left_open_is_closed() -> None:
    """A connected socket in an inherited descriptor would be a way out that no filter sees."""
    program = """
import os, sys
from sovfed.federation.host.sandbox import close_descriptors
close_descriptors()
try:
    os.fstat(int(sys.argv[1]))
except OSError:
    print("closed")
"""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        command = [sys.executable, "-c", program, str(theirs.fileno())]
        path = os.pathsep.join(entry for entry in sys.path if entry)
        done = subprocess.run(
            command, env={**quiet_environment(), "PYTHONPATH": path}, pass_fds=(theirs.fileno(),), check=True,
            capture_output=True, text=True,
        )  # fmt: skip
    assert done.stdout.strip() == "closed"


def test_an_inherited_standard_descriptor_of_the_network_is_refused() -> None:
    program = "from sovfed.federation.host.sandbox import close_descriptors; close_descriptors()"
    path = os.pathsep.join(entry for entry in sys.path if entry)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as network:
        done = subprocess.run(
            [sys.executable, "-c", program], env={**quiet_environment(), "PYTHONPATH": path}, stdin=network.fileno(),
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    assert done.returncode != 0
    assert "descriptor 0 is a socket of the network" in done.stderr


def test_the_filter_kills_calls_of_another_machine_and_names_each_once() -> None:
    """By hand: the first steps compare the architecture; every call has a number on both machines."""
    x86, arm = seccomp.MACHINES["x86_64"], seccomp.MACHINES["aarch64"]
    assert x86.calls.keys() == arm.calls.keys() >= set(seccomp.DENIED)
    for machine in (x86, arm):
        assert len(set(machine.calls.values())) == len(machine.calls)
        steps = seccomp.program(machine, network=False)
        assert steps[:8] == b"\x20\x00\x00\x00\x04\x00\x00\x00"  # load the architecture
        assert steps[8:16] == b"\x15\x00\x01\x00" + machine.audit.to_bytes(4, "little")
        assert steps[16:24] == b"\x06\x00\x00\x00\x00\x00\x00\x80"  # kill the process


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="x32 calls are an x86-64 matter")
def test_the_second_table_of_calls_is_closed() -> None:
    program = """
import ctypes, os
from sovfed.federation.host import seccomp
seccomp.install(network=True)
libc = ctypes.CDLL(None, use_errno=True)
print(libc.syscall(ctypes.c_long(0x40000000 + 39)), ctypes.get_errno())
"""
    path = os.pathsep.join(entry for entry in sys.path if entry)
    done = subprocess.run(
        [sys.executable, "-c", program], env={**quiet_environment(), "PYTHONPATH": path}, capture_output=True,
        text=True, check=True,
    )  # fmt: skip
    assert done.stdout.split() == ["-1", "1"]  # EPERM; without the filter ENOSYS, or a process id


def test_the_probe_for_doctor_says_what_this_machine_offers() -> None:
    command = python_command("sovfed.federation.host.sandbox")
    done = subprocess.run(command, env=quiet_environment(), capture_output=True, text=True, check=True)
    found = Isolation(**json.loads(done.stdout))
    assert found.network
    assert bool(found.files) == (landlock.version() > 0)


def test_what_a_process_says_of_itself_is_not_shown_if_it_forges_lines(tmp_path: Path) -> None:
    write_isolation(tmp_path, Isolation(pid=7, network="seccomp"))
    assert read_isolation(tmp_path, 7) == Isolation(pid=7, network="seccomp")
    assert read_isolation(tmp_path, 8) is None  # what an earlier process left
    for text in ("a\nb", "\x1b]0;t\x07", 7):
        write_isolation(tmp_path, Isolation(pid=7, records=text))  # type: ignore[arg-type]
        assert read_isolation(tmp_path, 7) is None


def test_what_is_missing_is_said() -> None:
    assert Isolation().sentence() == "network, every file of its user, other processes of its user"
    assert Isolation(files="Landlock 4", processes="seccomp", records="/r lies there").sentence() == (
        "network, own files only (Landlock 4), can read the records: /r lies there"
    )


def test_a_process_with_a_network_can_be_kept_from_the_machine_s_daemons(tmp_path: Path) -> None:
    """As the gateway of a cluster's institution, which must not ask the scheduler for a job that reads the records."""
    program = """
import socket, sys
from sovfed.federation.host import sandbox
sandbox.seal(sandbox.system_rules(), network=True, local=False)
for family in (socket.AF_UNIX, socket.AF_INET):
    try:
        with socket.socket(family, socket.SOCK_STREAM) as made:
            made.connect(sys.argv[1] if family == socket.AF_UNIX else ("127.0.0.1", int(sys.argv[2])))
        print("done")
    except OSError as error:
        print(error.strerror)
first, second = socket.socketpair()  # of its own, as event loops have
first.close(), second.close()
"""
    with socket.socket(socket.AF_UNIX) as local, socket.socket() as network:
        local.bind(str(tmp_path / "daemon"))
        network.bind(("127.0.0.1", 0))
        for listener in (local, network):
            listener.listen()
        port = network.getsockname()[1]
        path = os.pathsep.join(entry for entry in sys.path if entry)
        done = subprocess.run(
            [sys.executable, "-c", program, str(tmp_path / "daemon"), str(port)],
            env={**quiet_environment(), "PYTHONPATH": path}, capture_output=True, text=True, check=True,
        )  # fmt: skip
    assert done.stdout.splitlines() == ["Address family not supported by protocol", "done"]
