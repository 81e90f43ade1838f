"""No command ends for what a terminal's encoding lacks: it comes out in other words."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from sovfed.cli import COMMANDS
from sovfed.federation.text import in_other_words


@pytest.mark.parametrize("encoding", ["latin-1", "ascii"])
def test_help_and_output_of_every_command_in_a_narrow_encoding(encoding: str) -> None:
    """In one process, as a person's shell has it: each import of it is slow on a busy machine."""
    script = f"""
import sys
from sovfed import cli
shown = [["config", "show"], ["task", "list"], ["task", "show", "heart"]]
for words in [*([name, "--help"] for name in {list(COMMANDS)!r}), *shown]:
    assert cli.run(words) == 0, words
print("ε ≤ 3 ✓ – ╭─╮ 日")
"""
    env = os.environ | {"PYTHONIOENCODING": encoding, "LC_ALL": "C"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, env=env, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.decode("utf-8", "replace").splitlines()[-1] == "epsilon <= 3 ok - +-+ \\u65e5"


def test_what_has_no_other_words_is_an_escape() -> None:
    assert in_other_words(UnicodeEncodeError("ascii", "aε\udc80", 1, 3, "")) == ("epsilon\\udc80", 3)
    with pytest.raises(UnicodeDecodeError):
        in_other_words(UnicodeDecodeError("ascii", b"\xff", 0, 1, ""))
