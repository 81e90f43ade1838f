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


RESTING = """
import gc
from collections import deque
from sovfed.federation.host import heap

loaded = [[] for _ in range(1_000_000)]
gc.collect()
heap.keep_loaded()

class Connection:
    there = 0
    def __init__(self):
        self.own, self.parts = self, [[] for _ in range(50)]
        Connection.there += 1
    def __del__(self):
        Connection.there -= 1

served, most = deque(maxlen=400), 0  # long enough to outlive two searches
for _ in range(8_000):
    served.append(Connection())
    most = max(most, Connection.there)
print(most)
"""


def test_closed_connections_are_found_however_much_is_loaded() -> None:
    """Without that, none of them is found before 250,000 parts have outlived two searches."""
    command = [sys.executable, "-c", RESTING]
    assert int(subprocess.run(command, capture_output=True, text=True, check=True).stdout) < 3_500


@pytest.mark.parametrize(
    ("after", "told"),
    [("", "found\n"), ("heap.keep_loaded(); gc.collect()", ""),
     ("heap.keep_loaded(); Circle(); gc.collect()", "found\n")],
)  # fmt: skip
def test_only_what_came_later_is_searched(after: str, told: str) -> None:
    command = [sys.executable, "-c", f"{GARBAGE}\n{after}"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == told
