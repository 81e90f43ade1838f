"""An authority, the agency's home and those of two institutions, each with an identity and a log."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
from tests.lane_fixture import Authority

from sovfed.federation.certificates import InstitutionNames, ServerNames
from sovfed.federation.evidence.store import record


def make_home(authority: Authority, folder: Path, name: str) -> Path:
    """A home of the institution `name`, or of the agency, whose log has seven entries."""
    names = ServerNames(("agency.example",)) if name == "agency" else InstitutionNames(name, "ab" * 32)
    home = folder / name
    home.mkdir(mode=0o700)
    authority.write(home, names)
    for number in range(7):
        record(home, "round", run="1", round=number, participants=["hospital-1", "hospital-2"])
    return home


@pytest.fixture
def authority() -> Authority:
    return Authority(datetime.now(UTC))


@pytest.fixture
def agency(authority: Authority, tmp_path: Path) -> Path:
    return make_home(authority, tmp_path, "agency")


@pytest.fixture
def hospital(authority: Authority, tmp_path: Path) -> Path:
    return make_home(authority, tmp_path, "hospital-1")


@pytest.fixture
def other(authority: Authority, tmp_path: Path) -> Path:
    return make_home(authority, tmp_path, "hospital-2")
