"""A revocation reaches running processes by itself: agency, lane and the other institutions, without a restart."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from tests.deploy.conftest import make_config, make_federation, wait_for

from sovfed.federation.revocation import crl_number, load_crl
from sovfed.server.network.lane import RECHECK_S
from sovfed.server.registry import authority
from sovfed.server.registry.upkeep import LOOK_S
from sovfed.server.runs import folders
from sovfed.server.runs.curves import read_rounds
from sovfed.simulations.deployment import LocalFederation

pytestmark = pytest.mark.deploy
REFRESH_S = 2.0
SLACK_S = 20.0  # of a busy machine


def members(federation: LocalFederation, name: str) -> int:
    """Institutions in the last round of run `name`."""
    lines = read_rounds(folders.run_folder(federation.home, name))
    return len(lines[-1]["participants"]) if lines else 0


def number(home: Path) -> int:
    return crl_number(load_crl(home / "identity" / "crl.pem"))


def test_a_revoked_institution_leaves_a_running_run_and_the_others_learn_of_it(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    config = make_config(
        "task=echo", "secagg=none", "simulation.institutions=2", "server.min_cohort=1", "server.start_cohort=2",
        "server.round_deadline_s=5", "rounds=100000", f"client.crl_refresh_s={REFRESH_S}",
    )  # fmt: skip
    bounds = {"max_rounds": 1_000_000, "max_sums_per_run": 10**9}
    with make_federation(tmp_path_factory.mktemp("revoked"), config, **bounds) as federation:
        kept, revoked = (federation.client_home(member.name) for member in federation.institutions)
        processes = [("agency", "superlink"), ("agency", "registry"), (kept.name, "gateway")]
        before = [federation.pid(*process) for process in processes]
        federation.start_run("endless")
        wait_for(lambda: members(federation, "endless") == 2, "a round of both institutions")

        authority.revoke(federation.authority_home, revoked.name, "institution")
        began = time.monotonic()
        wait_for(lambda: members(federation, "endless") == 1, "a round without the revoked", 60)
        assert time.monotonic() - began < LOOK_S + RECHECK_S + SLACK_S
        wait_for(lambda: number(kept) == 2, "the list at the other institution", REFRESH_S + SLACK_S)
        refused = "the revocation list was not refreshed: revocation list from"
        wait_for(lambda: refused in (revoked / "logs" / "gateway.log").read_text(), "the revoked to be refused", 30)

        assert number(federation.home) == 2
        assert number(revoked) == 1
        assert [federation.pid(*process) for process in processes] == before
        folders.stop_run(federation.control, federation.home, "endless")
