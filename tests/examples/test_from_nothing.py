"""The transcript from nothing is of the script that stands beside it: the same commands, in the same order."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "examples" / "from_nothing.sh"
TYPED = re.compile(r"^\s*types \S+ sovfed (\w+ [\w-]+)", re.MULTILINE)
SHOWN = re.compile(r"^[\w-]+\$ sovfed (\w+ [\w-]+)", re.MULTILINE)


def test_the_transcript_has_the_commands_of_the_script() -> None:
    typed = TYPED.findall(SCRIPT.read_text(encoding="utf-8"))
    shown = SHOWN.findall((ROOT / "docs" / "from-nothing.md").read_text(encoding="utf-8"))
    assert len(typed) > 10 and shown == typed


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash on this machine")
def test_bash_reads_the_script() -> None:
    done = subprocess.run(["bash", "-n", SCRIPT], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
