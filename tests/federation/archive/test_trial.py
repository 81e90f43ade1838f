"""Code of strangers is tried in a process that can harm nobody."""

from __future__ import annotations

import resource
import socket
import tempfile
from pathlib import Path

import pytest
from tests.packages import TASK, write_wheel

from sovfed.federation.archive import trial
from sovfed.federation.archive.packing import pack
from sovfed.federation.archive.signer import SigningKey
from sovfed.federation.errors import ConfigError
from sovfed.federation.host.apart import MIB, Bounds

ESCAPES = """\
import os, socket
told = []
def tried(name, attempt):
    try:
        attempt()
        told.append(name)
    except Exception:
        pass
tried("key", lambda: open(%(key)r).read())
tried("write", lambda: open(%(key)r + ".new", "w").write("x"))
tried("network", lambda: socket.create_connection(("127.0.0.1", %(port)d), 1))
tried("program", lambda: os.kill(os.getppid(), 0))
"""


def test_the_code_of_a_stranger_reaches_no_key_and_no_network_when_it_is_tried(
    publisher: SigningKey, tmp_path: Path
) -> None:
    (tmp_path / "key.pem").write_text("a secret")
    with socket.create_server(("127.0.0.1", 0)) as server:
        escapes = ESCAPES % {"key": str(tmp_path / "key.pem"), "port": server.getsockname()[1]}
        task = escapes + TASK.replace('title="Sepsis on a ward"', 'title="Sepsis" + " ".join(told)')
        archive, _ = pack(write_wheel(tmp_path, task=task), publisher)
    assert archive.manifest.title == "Sepsis"


FAULTS = {
    "raise SystemExit(7)": "cannot be loaded",
    "1 / 0": "ZeroDivisionError",
    "import os; os._exit(3)": "ended with 3",
    "import no_such": "no_such",
    "TASK = 1": "is a int, expected a Task",
    "print('\\x1b[2Jhi'); 1 / 0": "Zero",
}


@pytest.mark.parametrize(("code", "said"), FAULTS.items())
def test_code_that_does_not_load_is_told_and_steers_no_terminal(
    publisher: SigningKey, tmp_path: Path, code: str, said: str
) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        pack(write_wheel(tmp_path, task=code), publisher)
    assert "\x1b" not in str(caught.value)


def test_a_task_that_does_not_work_is_not_packed(publisher: SigningKey, tmp_path: Path) -> None:
    task = TASK.replace("losses.binary_cross_entropy", "lambda outputs, targets: outputs.mean()")
    with pytest.raises(ConfigError, match="loss"):
        pack(write_wheel(tmp_path, task=task), publisher)


WAITS = "import time; time.sleep(10**6)"
GREEDY = {
    "while True: print('x' * 65536)": "printed more than 1 MiB",
    "import os\nwhile True: os.write(2, b'x' * 65536)": "printed more than 1 MiB",
    "import os, tempfile\nfor number in range(10**9):\n"
    "    with open(f'{tempfile.gettempdir()}/{number}', 'wb') as file: file.write(bytes(1 << 20))":
        "wrote more than 4 MiB",
    "file = __import__('tempfile').TemporaryFile()\nwhile True: file.write(bytes(1 << 20))": "File too large",
    "import os\nfor number in range(10**9): os.mkdir(os.path.join(os.environ['TMPDIR'], str(number)))": "20000 files",
    WAITS: "took more than 3 s",
    "import subprocess, sys\nsubprocess.Popen([sys.executable, '-c', 'while True: print(0)'])\nwhile True: pass":
        "printed more than 1 MiB",
}  # fmt: skip


@pytest.mark.parametrize(("code", "said"), GREEDY.items(), ids=range(len(GREEDY)))
def test_code_that_prints_writes_or_waits_for_ever_is_ended_with_the_reason(
    publisher: SigningKey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, said: str
) -> None:
    seconds = 3 if code == WAITS else 30  # a busy machine needs long to come to what is greedy
    monkeypatch.setattr(trial, "BOUNDS", Bounds(seconds=seconds, printed=MIB, complained=MIB, scratch=4 * MIB))
    scratch = tmp_path / "scratch"  # of this test alone: others have trials at the same time
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    with pytest.raises(ConfigError, match=said):
        pack(write_wheel(tmp_path, task=code), publisher)
    assert not list(scratch.glob("sovfed-trial-*"))


@pytest.mark.parametrize(
    ("task", "said"),
    [(TASK, "28000000001 values to send, at most"),
     (TASK.replace("build=", "trained=lambda name: name == 'out.bias', build="), "takes 112.0 GB, this machine has")],
)  # fmt: skip
def test_a_model_that_is_too_large_is_found_out_by_its_size(
    publisher: SigningKey, tmp_path: Path, task: str, said: str
) -> None:
    """4 billion hidden units: nothing of them is ever allocated."""
    start = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    with pytest.raises(ConfigError, match=said):
        pack(write_wheel(tmp_path, task=task, hidden="4000000000"), publisher)
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss < max(start, 2_000_000)  # KiB
