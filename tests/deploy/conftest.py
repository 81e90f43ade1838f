"""Real federations for the tests that need one: authority, agency and institutions as processes on loopback ports."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sovfed.federation.compose import compose
from sovfed.federation.config import Config
from sovfed.server.runs import folders
from sovfed.server.runs.control import log_path
from sovfed.server.runs.curves import read_rounds
from sovfed.simulations.deployment import POLICY, Institution, LocalFederation
from sovfed.simulations.federation import institution_names, sites

RUN_TIMEOUT_S = 180.0


def make_config(*overrides: str) -> Config:
    return compose(["server.min_cohort=3", "privacy.colluders=0", "server.start_cohort=4", *overrides]).config


def make_federation(folder: Path, config: Config, **bounds: Any) -> LocalFederation:
    """Hospitals whose policies let the tests train as they like; `bounds` are settings of these policies."""
    data = sites(config)
    institutions = [Institution(name, source) for name, source in zip(institution_names(data), data, strict=True)]
    policy = dataclasses.replace(POLICY, max_local_epochs=1000, min_batch_size=1, allow_plain_updates=True, **bounds)
    return LocalFederation(folder, institutions, config, policy)


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalFederation]:
    """Four simulated hospitals with the breast cancer data."""
    with make_federation(tmp_path_factory.mktemp("federation"), make_config()) as running:
        yield running


def wait_for(condition: Callable[[], bool], what: str, timeout_s: float = RUN_TIMEOUT_S) -> None:
    deadline, pause = time.monotonic() + timeout_s, 0.05
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {what}"
        time.sleep(pause)
        pause = min(1.1 * pause, 0.3)  # each look reads all rounds, and the processes looked at need the processor


def wait_for_run(federation: LocalFederation, name: str, timeout_s: float = RUN_TIMEOUT_S) -> dict[str, Any]:
    """The run's last state, with the coordinator's log in the failure message."""

    def run() -> dict[str, Any]:
        return folders.read_run(federation.home, name, federation.control)

    try:
        wait_for(lambda: run()["status"] not in folders.ACTIVE, f"run {name} to end", timeout_s)
    except AssertionError as error:
        raise AssertionError(f"{error}\n{run()}\n{_log_of(federation, run())}") from error
    return run()


def finished(federation: LocalFederation, name: str) -> list[dict[str, Any]]:
    """Wait until run `name` has finished well; its rounds."""
    run = wait_for_run(federation, name)
    assert run["status"] == "finished", f"{run}\n{_log_of(federation, run)}"
    return read_rounds(folders.run_folder(federation.home, name))


def _log_of(federation: LocalFederation, run: dict[str, Any]) -> str:
    """The last of what the run's coordinator has logged."""
    log = log_path(federation.home, run["flower_run_id"])
    return log.read_text()[-4000:] if log.exists() else "no log"


def rounds_done(federation: LocalFederation, name: str) -> int:
    return len(read_rounds(folders.run_folder(federation.home, name)))


def summary(federation: LocalFederation, name: str) -> dict[str, Any]:
    figures: dict[str, Any] = json.loads((folders.run_folder(federation.home, name) / "summary.json").read_text())
    return figures
