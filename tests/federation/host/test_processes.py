"""The supervisor, with real processes."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import re
import signal
import stat
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sovfed.federation.errors import (
    ConfigError,
    IdentityError,
    NotReadNowError,
    NotValidNowError,
    PolicyError,
    ServiceError,
)
from sovfed.federation.host import child, logs
from sovfed.federation.host.processes import (
    START_ATTEMPTS,
    Process,
    ProcessStatus,
    Supervisor,
    exit_code,
    listening,
    read_status,
    stop_supervisor,
)
from sovfed.federation.host.status import WAITS, supervising

pytestmark = pytest.mark.deploy
SLEEPER = "import time; print('up', flush=True); time.sleep(60)"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    tmp_path.chmod(0o700)
    return tmp_path


def python(name: str, program: str, ready: Callable[[], bool] | None = None, *, timeout_s: float = 20.0) -> Process:
    return Process(
        name, [sys.executable, "-u", "-c", textwrap.dedent(program)], dict(os.environ), ready, timeout_s, 2.0
    )


@contextmanager
def running(home: Path, *processes: Process) -> Iterator[Supervisor]:
    supervisor = Supervisor(home, processes)
    supervisor.start()
    try:
        yield supervisor
    finally:
        supervisor.stop()


def wait_for(condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def status_of(home: Path, name: str) -> ProcessStatus:
    found = read_status(home)
    assert found is not None
    return next(process for process in found.processes if process.name == name)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_children_start_in_order_once_the_one_before_is_ready(home: Path) -> None:
    first = python(
        "first",
        f"""
        import time
        time.sleep(0.3)
        open({str(home / "ready")!r}, "w").close()
        time.sleep(60)
        """,
        (home / "ready").exists,
    )
    second = python("second", f"import os, time; print(os.path.exists({str(home / 'ready')!r})); time.sleep(60)")
    with running(home, first, second) as supervisor:
        assert supervisor.status().ready
        wait_for(lambda: (home / "logs" / "second.log").read_text().endswith(" True\n"))


def test_killed_child_is_restarted_and_the_status_says_so(home: Path) -> None:
    with running(home, python("worker", SLEEPER)):
        before = status_of(home, "worker")
        assert before.pid is not None
        os.kill(before.pid, signal.SIGKILL)
        wait_for(lambda: status_of(home, "worker").restarts == 1 and status_of(home, "worker").state == "ready")
        after = status_of(home, "worker")
        assert after.pid not in (None, before.pid)
        assert after.exit_code == -signal.SIGKILL


def test_pauses_between_restarts_double(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "BACK_OFF_S", (0.1, 0.4))
    with running(home, python("crasher", "import time; print(time.monotonic())")):
        log = home / "logs" / "crasher.log"
        wait_for(lambda: len(_starts(log)) >= 6)
    starts = _starts(log)
    pauses = [after - before for before, after in itertools.pairwise(starts)]
    assert all(pause >= least for pause, least in zip(pauses, [0.1, 0.2, 0.4, 0.4, 0.4], strict=False))


def test_pause_is_short_again_after_health(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "BACK_OFF_S", (0.1, 30.0))
    monkeypatch.setattr(child, "HEALTHY_S", 0.0)
    with running(home, python("crasher", "import time; print(time.monotonic())")):
        wait_for(
            lambda: len(_starts(home / "logs" / "crasher.log")) >= 6
        )  # doubling, this would take 6 s of pauses alone


def _starts(log: Path) -> list[float]:
    return [float(found) for found in re.findall(r"Z (\d+\.\d+)$", log.read_text(), re.MULTILINE)]


def test_stop_reaches_grandchildren_and_kills_what_ignores_it(home: Path) -> None:
    program = """
        import signal, subprocess, sys, time
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        grandchild = subprocess.Popen([sys.executable, "-u", "-c", "import time; time.sleep(60)"])
        print(grandchild.pid, flush=True)
        time.sleep(60)
        """
    with running(home, python("stubborn", program)):
        log = home / "logs" / "stubborn.log"
        wait_for(lambda: re.search(r"Z \d+$", log.read_text(), re.MULTILINE) is not None)
        grandchild = int(re.findall(r"Z (\d+)$", log.read_text(), re.MULTILINE)[0])
        pid = status_of(home, "stubborn").pid
        assert pid is not None
        assert is_alive(grandchild)
    assert not is_alive(pid)
    wait_for(lambda: not is_alive(grandchild), 5)
    assert "did not stop within 2 s" in log.read_text()
    assert read_status(home) is None


def test_child_that_refuses_ends_the_start_with_its_own_words(home: Path) -> None:
    refusing = python("trainer", "import sys; print('policy.yaml is missing'); sys.exit(3)", lambda: False)
    supervisor = Supervisor(home, [python("other", SLEEPER), refusing])
    with pytest.raises(ServiceError, match=r"(?s)trainer refused to run \(exit code 3\).*policy\.yaml is missing"):
        supervisor.start()
    assert [process.state for process in supervisor.status().processes] == ["stopped", "failed"]


def test_child_that_is_never_ready_ends_the_start(home: Path) -> None:
    with pytest.raises(ServiceError, match=r"slow was not ready within 0\.5 s"):
        Supervisor(home, [python("slow", SLEEPER, lambda: False, timeout_s=0.5)]).start()


def test_child_that_always_crashes_ends_the_start_early(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "BACK_OFF_S", (0.01, 0.01))
    crashing = python("trainer", "raise SystemExit('no such device')", lambda: False, timeout_s=60)
    with pytest.raises(ServiceError, match=r"(?s)trainer ended 4 times before it was ready.*no such device"):
        Supervisor(home, [crashing]).start()


def test_program_that_cannot_be_started_is_told(home: Path) -> None:
    process = Process("absent", [str(home / "no-such-program")], {}, lambda: False, 0.5)
    with pytest.raises(ServiceError, match="no-such-program"):
        Supervisor(home, [process]).start()


def test_second_supervisor_of_a_home_is_refused(home: Path) -> None:
    with running(home, python("worker", SLEEPER)), pytest.raises(ServiceError, match="in use"):
        Supervisor(home, [python("worker", SLEEPER)]).start()


def test_home_that_others_may_enter_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o750)
    with pytest.raises(ServiceError, match="0750, expected 0700"):
        Supervisor(tmp_path, [])


def test_stale_status_of_a_killed_supervisor_is_not_believed(home: Path) -> None:
    (home / "status.json").write_text(json.dumps({"pid": os.getpid(), "since": 0, "processes": []}))
    (home / "status.lock").touch()
    assert read_status(home) is None
    assert stop_supervisor(home) is False


def test_log_lines_carry_the_time_and_the_file_is_private(home: Path) -> None:
    with running(home, python("worker", SLEEPER)):
        log = home / "logs" / "worker.log"
        wait_for(lambda: "up" in log.read_text())
    assert re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z up\n", log.read_text())
    assert stat.S_IMODE(log.stat().st_mode) == 0o600


def test_log_rotates_by_size(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "LOG_BYTES", 1000)
    with running(home, python("talker", "import time\nfor i in range(200): print(i, '.' * 50)\ntime.sleep(60)")):
        wait_for((home / "logs" / "talker.log.3").exists)
    assert all(path.stat().st_size <= 1000 for path in (home / "logs").glob("talker.log*"))
    assert not (home / "logs" / "talker.log.4").exists()


SUPERVISOR = """
    import sys
    from pathlib import Path
    import os
    from sovfed.federation.host.processes import Process, Supervisor
    child = "from sovfed.federation.host.processes import die_with_parent; die_with_parent(); "
    child += "import time; print('up', flush=True); time.sleep(60)"
    Supervisor(Path(sys.argv[1]), [Process("worker", [sys.executable, "-u", "-c", child], dict(os.environ))]).run()
    """


@pytest.fixture
def supervisor_process(home: Path) -> Iterator[subprocess.Popen[bytes]]:
    source = str(Path(__file__).parents[3] / ".src")
    with subprocess.Popen(
        [sys.executable, "-u", "-c", textwrap.dedent(SUPERVISOR), str(home)], env={**os.environ, "PYTHONPATH": source}
    ) as process:
        wait_for(lambda: (home / "logs" / "worker.log").exists() and "up" in (home / "logs" / "worker.log").read_text())
        yield process
        process.kill()


def test_children_die_with_a_killed_supervisor(home: Path, supervisor_process: subprocess.Popen[bytes]) -> None:
    pid = status_of(home, "worker").pid
    assert pid is not None
    supervisor_process.kill()
    supervisor_process.wait()
    wait_for(lambda: not is_alive(pid), 5)


def test_sigterm_stops_a_supervisor_and_its_children(home: Path, supervisor_process: subprocess.Popen[bytes]) -> None:
    pid = status_of(home, "worker").pid
    assert pid is not None
    assert stop_supervisor(home) is True
    assert supervisor_process.wait(10) == 0
    assert not is_alive(pid)
    assert read_status(home) is None


def test_listening_sees_unix_sockets_and_ports(home: Path) -> None:
    import socket

    with socket.socket() as tcp, socket.socket(socket.AF_UNIX) as unix:
        tcp.bind(("127.0.0.1", 0))
        port = tcp.getsockname()[1]
        assert not listening(("127.0.0.1", port))()
        assert not listening(home / "s.sock")()
        tcp.listen()
        unix.bind(str(home / "s.sock"))
        unix.listen()
        assert listening(("127.0.0.1", port))()
        assert listening(home / "s.sock")()


def test_exit_codes_that_are_final() -> None:
    assert exit_code(ConfigError("x")) == 2
    assert exit_code(NotValidNowError("x")) == exit_code(NotReadNowError("x")) == WAITS
    assert exit_code(IdentityError("x")) == exit_code(PolicyError("x")) == 3
    assert exit_code(ServiceError("x")) == 1


def test_a_status_that_cannot_be_written_is_a_warning(home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Seen: a full disk as a child died ended the whole institution, for good."""
    with running(home, python("worker", SLEEPER)) as supervisor:
        before = status_of(home, "worker").pid
        assert before is not None
        (home / "status.json").unlink()
        (home / "status.json").mkdir()  # nothing can be written in its place
        os.kill(before, signal.SIGKILL)
        wait_for(lambda: supervisor.status().processes[0].restarts == 1 and supervisor.status().ready)
        assert capfd.readouterr().err.count("the status cannot be written") == 1
        (home / "status.json").rmdir()
        wait_for((home / "status.json").is_file)
        assert status_of(home, "worker").pid not in (None, before)


def test_nobody_waits_for_an_optional_process_and_the_others_go_on_without_it(home: Path) -> None:
    """Seen: a page of MLflow that was left behind kept its port, and the agency could not start."""
    page = dataclasses.replace(python("page", "raise SystemExit(2)", lambda: False), optional=True)
    with running(home, page, python("worker", SLEEPER)) as supervisor:
        assert status_of(home, "worker").state == "ready"
        wait_for(lambda: supervisor.status().processes[0].restarts >= 1)
        assert supervisor.status().ready and status_of(home, "worker").restarts == 0


def test_last_words_are_heard_out_however_late_they_are_copied(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen on a busy machine: "refused to run (exit code 3)" and nothing of the reason."""
    copy = child.Child._copy_output

    def late(self: child.Child, popen: subprocess.Popen[bytes]) -> None:
        time.sleep(1.0)
        copy(self, popen)

    monkeypatch.setattr(child.Child, "_copy_output", late)
    worker = python("worker", "print('the key is too old'); raise SystemExit(3)", lambda: False)
    supervisor = Supervisor(home, [worker])
    with pytest.raises(ServiceError, match="the key is too old"):
        supervisor.start()


def test_a_process_that_waits_is_started_again_until_it_may_run_and_says_why(home: Path) -> None:
    program = f"""
        import pathlib, sys, time
        if not pathlib.Path({str(home / "list")!r}).exists():
            print("the list is stale", file=sys.stderr)
            raise SystemExit({WAITS})
        time.sleep(60)
    """
    supervisor = Supervisor(home, [python("worker", program, (home / "list").exists), python("second", SLEEPER)])
    starting = threading.Thread(target=supervisor.start)
    starting.start()
    try:
        wait_for(lambda: supervisor.status().processes[0].restarts > START_ATTEMPTS, timeout_s=60)
        status = read_status(home)
        assert status is not None and status.waits and not status.ready
        assert status.complaints == ["worker does not run: the list is stale"]
        (home / "list").touch()
        wait_for(lambda: supervisor.status().ready, timeout_s=60)
        assert supervisor.status().complaints == []
    finally:
        supervisor.stop()
        starting.join()


def test_a_supervisor_whose_own_log_is_full_goes_on(home: Path) -> None:
    program = f"""
        import pathlib, sys
        from sovfed.federation.host.processes import Process, Supervisor
        argv = [sys.executable, "-c", "import time; time.sleep(60)"]
        Supervisor(pathlib.Path({str(home)!r}), [Process("worker", argv, {{}})]).run()
    """
    (home / "status.json").mkdir()  # nothing can be written in its place
    with (
        Path("/dev/full").open("w") as full,
        subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)], stdout=full, stderr=full) as supervisor,
    ):
        try:
            time.sleep(3.0)
            assert supervisor.poll() is None
            (home / "status.json").rmdir()
            wait_for(lambda: (status := read_status(home)) is not None and status.ready)
        finally:
            supervisor.terminate()


def test_what_a_killed_supervisor_left_is_not_told_of_its_successor(home: Path) -> None:
    """After a reboot "ready" and the numbers of processes stood there for as long as the first one takes to start."""
    stranger = {"name": "trainer", "state": "ready", "pid": os.getpid(), "restarts": 0, "since": 0}
    (home / "status.json").write_text(json.dumps({"pid": os.getpid(), "since": 0, "processes": [stranger]}))
    with supervising(home):
        assert read_status(home) is None
        with pytest.raises(ServiceError, match="does not say which process"):
            stop_supervisor(home, 0.2)  # and no signal goes to who has that number now


def test_a_status_of_a_newer_version_is_read_as_far_as_it_is_known(home: Path) -> None:
    """After an upgrade `status` and `down` meet a supervisor of the other version."""
    worker = {"name": "trainer", "state": "ready", "pid": 5, "restarts": 1, "since": 2.0, "mood": "calm"}
    with supervising(home):
        (home / "status.json").write_text(json.dumps({"pid": 4, "since": 1.0, "processes": [worker], "host": "a"}))
        status = read_status(home)
        assert status is not None and status.pid == 4
        assert status.processes == (ProcessStatus("trainer", "ready", 5, 1, 2.0),)


@pytest.mark.parametrize("content", [None, b"", b"[]", b'{"pid": 1}'])
def test_a_status_that_was_taken_away_or_torn_is_written_again(home: Path, content: bytes | None) -> None:
    """Else the home is "in use" for `up` and "not running" for `down`, until somebody finds the process."""
    with running(home, python("worker", SLEEPER)) as supervisor:
        (home / "status.json").unlink()
        if content is not None:
            (home / "status.json").write_bytes(content)
        wait_for(lambda: read_status(home) is not None)
        assert read_status(home) == supervisor.status()


def test_a_supervisor_goes_on_while_the_machine_has_no_descriptor_thread_or_memory(home: Path) -> None:
    shortages = iter([OSError(24, "Too many open files"), RuntimeError("can't start new thread"), MemoryError()])

    def ready() -> bool:
        shortage = next(shortages, None)
        if shortage is not None:
            raise shortage
        return True

    with running(home, python("worker", SLEEPER, ready)):
        assert status_of(home, "worker").state == "ready"
    log = (home / "logs" / "worker.log").read_text()
    assert "cannot be looked after now: [Errno 24] Too many open files" in log and "now: MemoryError" in log


def test_a_supervisor_that_fails_says_so_and_leaves_nothing(home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Its thread was gone, and `up` ended with exit code 0, as if somebody had asked for it."""

    def ready() -> bool:
        raise KeyError("port")

    supervisor = Supervisor(home, [python("worker", SLEEPER, ready)])
    with pytest.raises(ServiceError, match="the supervisor failed: KeyError: 'port'"):
        supervisor.start()
    assert "Traceback" in capfd.readouterr().err
    assert [process.state for process in supervisor.status().processes] == ["stopped"]
