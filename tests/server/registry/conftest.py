"""An agency whose registry answers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.enrolment_fixture import Agency, make_agency


@pytest.fixture
def agency(tmp_path: Path) -> Iterator[Agency]:
    found = make_agency(tmp_path)
    with found.run():
        yield found
