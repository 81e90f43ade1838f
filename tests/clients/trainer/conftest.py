"""A home for a trainer's socket."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def home() -> Iterator[Path]:
    """A private folder whose path is short enough for a Unix socket."""
    folder = Path(tempfile.mkdtemp(prefix="sovfed-"))
    yield folder
    shutil.rmtree(folder)
