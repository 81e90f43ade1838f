"""Code of strangers is tried in a process that can harm nobody."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from tests.packages import TASK, write_wheel

from sovfed.federation.archive.packing import pack
from sovfed.federation.archive.signer import SigningKey
from sovfed.federation.errors import ConfigError

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
