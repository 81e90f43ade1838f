"""Real processes log and cosign each other's logs; an agency that rolls back is refused. A release: test_orders.py."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

import pytest
from tests.deploy.conftest import finished, make_config, wait_for, wait_for_run

from sovfed.federation.evidence.checking import check_log
from sovfed.federation.evidence.store import LogReader
from sovfed.federation.evidence.witness import problems
from sovfed.simulations.benchmarks.language_deployed import slowest_seconds
from sovfed.simulations.deployment import LocalFederation

pytestmark = pytest.mark.deploy
ROUNDS = 4


def _homes(federation: LocalFederation) -> list[Path]:
    return [federation.client_home(member.name) for member in federation.institutions]


def _kinds(home: Path) -> list[str]:
    return [values["kind"] for values in LogReader(home).newest()][::-1]


@pytest.fixture(scope="module")
def trained(federation: LocalFederation) -> LocalFederation:
    federation.start_run("evidence", make_config(f"rounds={ROUNDS}"))
    finished(federation, "evidence")
    return federation


def test_both_sides_have_logged_the_run_and_cosigned_each_other(trained: LocalFederation) -> None:
    size = check_log(trained.home).size

    wait_for(lambda: _cosigned(trained.home, size) == 4, "all institutions to cosign the agency's log")
    assert _kinds(trained.home).count("round") == ROUNDS
    assert _kinds(trained.home).count("admission") == 4
    for home in _homes(trained):
        wait_for(partial(_by_the_agency, home), "the agency to cosign an institution's")
        assert _kinds(home).count("round") >= ROUNDS
        assert problems(home) == {}


def test_an_institutions_own_log_says_how_long_it_trained_in_each_round(trained: LocalFederation) -> None:
    """The agency is told powers of two, of which no bench can tell what a round costs beyond the training."""
    seconds = slowest_seconds(_homes(trained))
    assert sorted(seconds) == list(range(1, ROUNDS + 1))
    assert all(0 < taken < 60 for taken in seconds.values())


def test_an_agency_whose_log_was_rolled_back_gets_no_answer(trained: LocalFederation) -> None:
    kept = trained.folder / "audit-before"
    shutil.copytree(trained.home / "audit", kept)
    trained.start_run("forgotten", make_config("rounds=2"))
    finished(trained, "forgotten")
    size = check_log(trained.home).size
    wait_for(lambda: _cosigned(trained.home, size) == 4, "all institutions to cosign the agency's log")
    shutil.copytree(kept, trained.home / "audit", dirs_exist_ok=True)

    trained.start_run("after", make_config("rounds=1000"))  # longer than heads take to be exchanged
    wait_for(lambda: all(problems(home) for home in _homes(trained)), "all institutions to see that it was rolled back")

    assert wait_for_run(trained, "after", 300)["status"] != "finished"  # taken up again where one was late
    wait_for(lambda: all("split" in _kinds(home) for home in _homes(trained)), "it to be in their logs")


def _by_the_agency(home: Path) -> bool:
    """Whether the agency has cosigned all of the log of an institution's home."""
    return _cosigned(home, check_log(home).size) == 1


def _cosigned(home: Path, size: int) -> int:
    """How many have cosigned the first `size` entries of the home's log."""
    return sum(cosigned >= size for cosigned in check_log(home).cosigned.values())
