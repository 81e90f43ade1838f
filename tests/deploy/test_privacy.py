"""Private runs in a real federation: the ledgers are charged and countersigned, and no budget is overspent."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from tests.deploy.conftest import finished, make_config, make_federation, summary, wait_for_run

from sovfed.clients.cli.institution import cli as client_cli
from sovfed.clients.cli.ledger import ledger as ledger_cli
from sovfed.clients.ledger.book import replay
from sovfed.clients.ledger.entries import History
from sovfed.clients.ledger.file import ledger_path, read_ledger
from sovfed.clients.orders.rules import OrderRules, Standing
from sovfed.federation.privacy.accounting import epsilon
from sovfed.federation.privacy.statement import from_json
from sovfed.federation.release.cli import verify
from sovfed.server.cli.run import cli as run_cli
from sovfed.server.rounds.ledger_heads import FILE as HEADS
from sovfed.server.runs import folders
from sovfed.simulations.deployment import LocalFederation

pytestmark = pytest.mark.deploy
POPULATION = "persons"
ROUNDS = 15
ASKED = (f"rounds={ROUNDS}", "task.learning_rate=1.0", "privacy.population=400", "privacy.delta=1e-6")


@pytest.fixture(scope="module")
def private(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalFederation]:
    rules = OrderRules(standing=Standing(statistics=True))
    with make_federation(tmp_path_factory.mktemp("private"), make_config(), orders=rules) as running:
        yield running


def start(federation: LocalFederation, name: str, *overrides: str) -> None:
    federation.start_run(name, make_config("privacy=distributed", *ASKED, *overrides))


def homes(federation: LocalFederation) -> list[Path]:
    return [federation.client_home(member.name) for member in federation.institutions]


def history(home: Path) -> History:
    return replay(read_ledger(home, POPULATION)[0])


def test_a_private_run_is_charged_countersigned_and_certified(private: LocalFederation) -> None:
    start(private, "first", "privacy.epsilon=2")
    rounds = finished(private, "first")
    assert all(not line["metrics"] and line["train_loss"] is None for line in rounds)
    told = summary(private, "first")
    assert told["metrics"] == {}
    assert {line["overhead_seconds"] for line in rounds} == {told["overhead_seconds_per_round_median"]} == {None}
    assert told["privacy"]["mechanism"] == "distributed"
    assert told["privacy"]["honest"] == 3  # of a cohort of 3, none is feared
    assert 1.9 < told["epsilon"] <= 2.0

    heads = json.loads((private.home / HEADS).read_text())
    for home, member in zip(homes(private), private.institutions, strict=True):
        lines, signed = read_ledger(home, POPULATION)
        spent = replay(lines).spent()
        assert [event.count for event in spent] == [ROUNDS]
        assert spent[0].noise_multiplier == told["privacy"]["noise_multiplier"]
        assert epsilon(spent, 1e-6) < told["epsilon"] + 1e-2
        assert signed is not None
        assert heads[member.name]["head"] == signed.head == lines[-1].head
        assert told["privacy"]["ledger_heads"][member.name] == signed.head
        assert CliRunner().invoke(ledger_cli, ["verify", "--home", str(home)]).exit_code == 0

    folder = folders.run_folder(private.home, "first")
    statement = from_json((folder / "privacy.json").read_text())
    assert statement.private
    assert statement.epsilon == pytest.approx(told["epsilon"], abs=1e-6)
    assert {each.institution for each in statement.promises} == {member.name for member in private.institutions}
    assert "3 of the 4 institutions" in (folder / "privacy.html").read_text()


def test_a_run_beyond_the_budget_is_refused_with_numbers(private: LocalFederation) -> None:
    """3 a year is every institution's limit; another ε = 2.95 does not fit, and a small run still does."""
    start(private, "too-much", "privacy.epsilon=2.95")
    assert wait_for_run(private, "too-much")["status"] == "failed"
    for home in homes(private):
        ledger = history(home)
        assert [event.count for event in ledger.spent()] == [ROUNDS]
        (run, reason) = next((entry.run, entry.reason) for _, entry in ledger.refusals)
        assert run == "too-much"
        assert "over the limit annual_epsilon 3.00 of policy.yaml" in reason
        assert "more steps fit" in reason
    start(private, "small", "privacy.epsilon=0.5", "rounds=3")
    finished(private, "small")


def test_a_ledger_that_was_rolled_back_pays_for_nothing(private: LocalFederation) -> None:
    """Ledger and head both put back to an old copy, which only the agency's copy of the head can show."""
    name, home = private.institutions[0].name, homes(private)[0]
    path = ledger_path(home, POPULATION)
    whole = path.read_bytes()
    path.write_bytes(b"".join(whole.splitlines(keepends=True)[:4]))
    path.with_suffix(".head").unlink()
    os.kill(private.pid(name, "trainer"), signal.SIGKILL)
    start(private, "after", "privacy.epsilon=0.1", "rounds=2")
    rounds = finished(private, "after")
    assert all(name not in line["participants"] for line in rounds)
    assert name not in summary(private, "after")["privacy"]["ledger_heads"]
    assert "rolled back" in history(home).refusals[-1][1].reason
    assert CliRunner().invoke(ledger_cli, ["restored", "--home", str(home)]).exit_code != 0  # it is not


def test_statistics_are_counted_charged_and_given_away_signed(private: LocalFederation) -> None:
    """By those whose ledgers pay: order, trainers, one masked sum, table, signature; each sees its own beside it."""
    asked = "mean radius, mean texture*malignant, bins=2"
    config = make_config(f"statistics={asked}", "privacy.epsilon=0.2", "privacy.delta=1e-6")
    private.start_run("counts", config)
    (line,) = finished(private, "counts")
    table = summary(private, "counts")["table"]
    assert [column["name"] for column in table["columns"]] == ["mean radius"]
    for home, member in zip(homes(private), private.institutions, strict=True):
        if member.name in line["participants"]:
            released = history(home).spends[-1][1].release
            assert (released.event.sampling_rate, released.event.count) == (1.0, 1)
    name = line["participants"][0]
    told = CliRunner().invoke(client_cli, ["statistics", "counts", "--json", "--home", str(private.client_home(name))])
    assert told.exit_code == 0 and json.loads(told.output)[0]["own"]["cells"], told.output
    sheet, root = private.folder / "counts.table", private.authority_home / "root.pem"
    done = CliRunner().invoke(run_cli, ["table", "counts", "--out", str(sheet), "--home", str(private.home)])
    assert done.exit_code == 0, done.output
    checked = CliRunner().invoke(verify, [str(sheet), "--root", str(root)])
    assert checked.exit_code == 0 and "ε = 0.200 at δ = 1e-06" in checked.output, checked.output
