"""What is loaded is not searched for garbage."""

from __future__ import annotations

import subprocess
import sys

import pytest

GARBAGE = """
import gc
from sovfed.federation.host import heap

class Circle:
    def __init__(self):
        self.own = self
    def __del__(self):
        print("found")

gc.disable()
Circle()
"""


@pytest.mark.parametrize(
    ("after", "told"),
    [("", "found\n"), ("heap.keep_loaded(); gc.collect()", ""),
     ("heap.keep_loaded(); Circle(); gc.collect()", "found\n")],
)  # fmt: skip
def test_only_what_came_later_is_searched(after: str, told: str) -> None:
    command = [sys.executable, "-c", f"{GARBAGE}\n{after}"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == told
