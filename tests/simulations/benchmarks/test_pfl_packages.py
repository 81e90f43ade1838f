"""pfl's packages are installed once, and without a registry the message says so."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from rich.console import Console

from sovfed.federation.errors import ServiceError
from sovfed.simulations.benchmarks.pfl_packages import PACKAGES, pfl_packages


def test_without_a_registry_nothing_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(ServiceError, match=r"could not install pfl==0\.6\.0"):
        pfl_packages(Console(quiet=True))
    assert list((tmp_path / "sovfed").iterdir()) == []


def test_a_folder_that_is_there_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", "")
    name = "-".join(PACKAGES).replace("==", "-") + f"-python{sys.version_info.major}.{sys.version_info.minor}"
    (tmp_path / "sovfed" / name).mkdir(parents=True)
    assert pfl_packages(Console(quiet=True)) == tmp_path / "sovfed" / name
