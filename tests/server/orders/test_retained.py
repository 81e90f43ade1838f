"""What a run, a permit or a withdrawal still needs stays in the agency's log; a release outlives what its log says."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path

import pytest
from click.testing import CliRunner
from tests.release_fixture import NAMES, RUN, Released, finished_run

from sovfed.clients.models.compared import differences
from sovfed.clients.models.released import signed_release
from sovfed.federation.config import ServerConfig, TrackingConfig
from sovfed.federation.errors import EvidenceError
from sovfed.federation.evidence.checking import check_log
from sovfed.federation.evidence.entries import read_entry
from sovfed.federation.evidence.retention import DAY_S, Rule, Terms, plan
from sovfed.federation.evidence.store import LogReader, delete_contents, record
from sovfed.federation.files import private_directory, write_private
from sovfed.federation.release.checking import check_release
from sovfed.server.cli.server import cli
from sovfed.server.home import SETTINGS, Settings
from sovfed.server.orders.purging import purge, unpurged
from sovfed.server.orders.retained import ORDERS, needed
from sovfed.server.orders.unlearning import FILE as UNLEARNING
from sovfed.server.orders.withdrawn import Withdrawal, add_withdrawal
from sovfed.server.runs.certificate import release
from sovfed.server.runs.folders import STATE
from sovfed.server.runs.release import SUMMARY

LONG_S = 4_000 * DAY_S  # by then every order has ended


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Released:
    return finished_run(tmp_path_factory.mktemp("finished"), "order.permit=p-12")


@pytest.fixture
def federation(finished: Released, tmp_path: Path) -> Released:
    return finished.copied(tmp_path / "copy")


def why(home: Path, monkeypatch: pytest.MonkeyPatch, kind: str = "round", name: object = RUN) -> str:
    """Why an entry of a run stays, years later."""
    now = time.time()
    with monkeypatch.context() as later:
        later.setattr(time, "time", lambda: now + LONG_S)
        return needed(home)({"kind": kind, "name": name})


def test_a_run_s_entries_stay_until_everybody_is_done_with_it(
    federation: Released, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, folder = federation.agency.home, federation.folder
    assert needed(home)({"kind": "round", "name": RUN}) == "their order still holds"
    assert why(home, monkeypatch) == "permit p-12 is not purged"
    purge(home, "p-12", time.time())
    assert why(home, monkeypatch) == "nothing of their run was released"
    release(home, RUN, wait_s=0.0)
    assert why(home, monkeypatch) == ""
    assert why(home, monkeypatch, "order") == ORDERS
    assert why(home, monkeypatch, name="a run whose folder is gone") == why(home, monkeypatch, name={}) == ""
    add_withdrawal(folder, Withdrawal(NAMES[0], 1, "00" * 32, rounds=2, first=1))
    assert why(home, monkeypatch) == "somebody withdrew, and the model was not made anew"
    anew = private_directory(home / "runs" / "anew")
    made = {"of": RUN, "withdrawn": [NAMES[0]], "cohort": [NAMES[1]], "from_round": 0, "earlier_model": ""}
    write_private(anew / UNLEARNING, json.dumps(made).encode())
    assert why(home, monkeypatch) == "somebody withdrew, and the model was not made anew"
    write_private(anew / SUMMARY, b"{}")
    assert why(home, monkeypatch) == ""
    state = json.loads((folder / STATE).read_bytes())
    write_private(folder / STATE, json.dumps({**state, "status": "running"}).encode())
    assert why(home, monkeypatch) == "their run goes on"
    write_private(folder / "order.json", b"{")
    write_private(folder / STATE, json.dumps(state).encode())
    assert "cannot be read" in why(home, monkeypatch)


def _forget_rounds(home: Path) -> None:
    """What the home's log says of rounds is deleted, with an entry that tells so."""
    rounds = [seq for seq, data in LogReader(home).entries() if read_entry(data)["kind"] == "round"]
    before = int(time.time()) + 10
    delete_contents(home, [(seq, seq) for seq in rounds], rule="x", days=400, before=before, count=len(rounds))


def test_a_release_holds_after_its_run_s_entries_are_gone_and_none_is_made_anew(federation: Released) -> None:
    home = federation.agency.home
    bundle = release(home, RUN, wait_s=0.0)
    size = LogReader(home).extent()

    _forget_rounds(home)

    assert check_release(bundle, federation.roots).log.of_kind("round")
    with pytest.raises(EvidenceError, match=f"of run '{RUN}' is no longer kept"):
        release(home, RUN, wait_s=0.0)
    assert LogReader(home).extent() == size + 1  # nor does the log say that one was made


def test_an_institution_says_that_it_cannot_compare_what_its_log_no_longer_says(federation: Released) -> None:
    """It signs nothing that it cannot hold to its own books."""
    institution = federation.homes[0]
    bundle = release(federation.agency.home, RUN, wait_s=0.0)
    assert differences(institution, check_release(bundle, federation.roots)) == []
    _forget_rounds_of_old(institution)

    said = differences(institution, check_release(bundle, federation.roots))

    assert len(said) == 3 and all("not to be compared" in line for line in said)
    with pytest.raises(EvidenceError, match="older than what this institution's own log still says"):
        signed_release(institution, bundle)


def _forget_rounds_of_old(home: Path) -> None:
    """As if all this were years later: the rule by which the entries went is of then."""
    now = time.time()
    with pytest.MonkeyPatch.context() as later:
        later.setattr(time, "time", lambda: now + LONG_S)
        rounds = [seq for seq, data in LogReader(home).entries() if read_entry(data)["kind"] == "round"]
        for _ in range(70):
            record(home, "login", role="operator")
        fields = {"rule": "x", "days": 400, "before": int(now) + DAY_S, "count": len(rounds)}
        delete_contents(home, [(seq, seq) for seq in rounds], **fields)
    assert check_log(home).retired[0].count == len(rounds)


def test_a_command_at_the_agency_says_what_stays_and_why(federation: Released) -> None:
    home = federation.agency.home
    settings = asdict(Settings(ServerConfig(), TrackingConfig()))
    write_private(home / SETTINGS, json.dumps(settings).encode())
    shown = CliRunner().invoke(cli, ["log", "prune", "--dry-run", "--home", str(home)])
    assert shown.exception is not None and "for ever" in str(shown.exception)
    settings["server"]["log_retention_days"] = 400
    write_private(home / SETTINGS, json.dumps(settings).encode())
    federation.cosign(*federation.homes)
    shown = CliRunner().invoke(cli, ["log", "prune", "--dry-run", "--home", str(home)])
    assert shown.exit_code == 0 and "server.log_retention_days: 400 days" in shown.output
    made = plan(home, Terms(Rule(400, "x"), lambda: needed(home)), time.time())
    assert made.count == 0


def test_a_permit_that_has_ended_is_told_at_the_agency_until_it_is_purged(federation: Released) -> None:
    home, later = federation.agency.home, time.time() + LONG_S
    assert [*unpurged(home, time.time())] == []
    (said,) = unpurged(home, later)
    assert said.startswith("permit p-12: its last order ended on") and "`sovfed run purge p-12`" in said
    purge(home, "p-12", later)
    assert [*unpurged(home, later)] == []
