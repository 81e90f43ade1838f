"""An agency and its institutions, made anew for each test."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.clients.orders.house import House


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)
