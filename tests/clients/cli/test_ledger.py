"""`sovfed client ledger`: what it shows, what it finds damaged, what it hands to an auditor."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from tests.clients.ledger.crash import BUDGET, POPULATION, WitnessedLedger, gaussian_delta, plan, release

from sovfed.clients.cli.doctor import home_findings
from sovfed.clients.cli.institution import cli as institution
from sovfed.clients.cli.ledger import ledger as group
from sovfed.clients.home.policy import Policy
from sovfed.clients.home.settings import settings_text
from sovfed.clients.ledger.entries import Entry
from sovfed.clients.ledger.file import LedgerFile, create_ledger, ledger_path
from sovfed.clients.ledger.lines import Line
from sovfed.federation.errors import PrivacyError

YEAR = 366 * 86_400.0
NOW = time.time()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Ten releases two years ago, two of five granted now, and a refusal."""
    create_ledger(tmp_path, POPULATION, NOW - 2 * YEAR)
    times = [NOW - 2 * YEAR]
    ledger = WitnessedLedger(tmp_path, BUDGET, lambda: times[-1])
    old = ledger.authorise("run-old", plan(12))
    for step in range(10):
        times.append(times[-1] + 60)
        ledger.spend(old, release(old.plan, step))
    ledger.close(old.run)
    times.append(NOW - 60)
    ledger.confirm_clock()
    new = ledger.authorise("run-new", plan(5))
    for step in range(2):
        ledger.spend(new, release(new.plan, step))
    with pytest.raises(PrivacyError):
        ledger.authorise("run-greedy", plan(500))
    ledger.countersign_head()
    ledger.unlock()
    return tmp_path


def run(*args: object) -> Result:
    return CliRunner().invoke(group, [str(arg) for arg in args])


def is_epsilon_of(value: float, releases: int) -> bool:
    below, above = gaussian_delta(value, releases), gaussian_delta(value - 0.01, releases)
    return below <= BUDGET.delta <= above


def test_show_gives_epsilon_of_the_events(home: Path) -> None:
    (found,) = json.loads(run("show", "--json", "--home", home).output)
    epsilon = found["epsilon"]
    assert is_epsilon_of(epsilon["spent"], 12)
    assert is_epsilon_of(epsilon["with_open_grants"], 15)
    assert is_epsilon_of(epsilon["spent_in_366_days"], 2)
    assert is_epsilon_of(epsilon["in_366_days_with_open_grants"], 5)
    runs = [(one["run"], one["steps_spent"], one["steps_reserved"], one["closed"]) for one in found["runs"]]
    assert runs == [("run-old", 10, 0, True), ("run-new", 2, 3, False)]
    assert [refusal["run"] for refusal in found["refusals"]] == ["run-greedy"]
    assert found["budget"]["annual_epsilon"] == 4.0 and found["countersigned"]["seq"] == found["entries"] - 1


def test_show_is_a_table_with_limits_and_refusals(home: Path) -> None:
    shown = run("show", "--home", home)
    assert shown.exit_code == 0
    for words in ("heart", "run-old", "10 of 12", "closed", "run-new", "2 of 5", "limit 4.00", "refusals: 1"):
        assert words in shown.output
    assert "run 'run-greedy', train: this run would take the population from ε=" in shown.output


def test_names_from_the_server_are_not_markup(tmp_path: Path) -> None:
    create_ledger(tmp_path, POPULATION, NOW)
    ledger = WitnessedLedger(tmp_path, BUDGET)
    ledger.authorise("[red]x[/red]", plan())
    with pytest.raises(PrivacyError):
        ledger.authorise("[/]", plan(delta=1e-3))
    ledger.unlock()
    shown = run("show", "--home", tmp_path)
    assert shown.exit_code == 0 and "[red]x" in shown.output and "[/]" in shown.output


def test_plot_is_drawn(home: Path, tmp_path: Path) -> None:
    file = tmp_path / "epsilon.png"
    assert run("show", "--plot", file, "--home", home).exit_code == 0
    assert file.read_bytes().startswith(b"\x89PNG")


def test_plot_of_nothing_is_refused(tmp_path: Path) -> None:
    create_ledger(tmp_path, POPULATION, NOW)
    done = run("show", "--plot", tmp_path / "epsilon.png", "--home", tmp_path)
    assert isinstance(done.exception, PrivacyError) and "nothing was spent yet" in str(done.exception)


def other_ledger(home: Path, name: str = "uci_heart", spends: int = 0) -> None:
    """A second ledger in the home, as an older version made one for each data source."""
    path = ledger_path(home, POPULATION)
    path.with_suffix(".head").rename(home / "head")
    path.rename(home / "ledger")
    create_ledger(home, name, NOW - 60)
    ledger = WitnessedLedger(home, dataclasses.replace(BUDGET, population_name=name))
    grant = ledger.authorise("theirs", plan(9))
    for step in range(spends):
        ledger.spend(grant, release(grant.plan, step))
    ledger.enter_unbounded("plain", "train", "heart")
    ledger.unlock()
    (home / "ledger").rename(path)
    (home / "head").rename(path.with_suffix(".head"))


def policy(home: Path, name: str = POPULATION) -> None:
    text = settings_text(Policy(privacy=dataclasses.replace(BUDGET, population_name=name)), "of a test")
    (home / "policy.yaml").write_text(text)


def test_plot_needs_one_ledger(home: Path, tmp_path: Path) -> None:
    other_ledger(home)
    done = run("show", "--plot", tmp_path / "epsilon.png", "--home", home)
    assert done.exit_code == 2 and "this home has heart, uci_heart" in done.output


# --- one population ------------------------------------------------------------------------------------------------


def test_adopted_ledger_counts_in_full_and_is_no_more(home: Path) -> None:
    policy(home)
    other_ledger(home, spends=4)
    done = run("close", "run-new", "--home", home)
    assert isinstance(done.exception, PrivacyError) and "ledger adopt uci_heart" in str(done.exception)
    assert "4 releases" in run("adopt", "uci_heart", "--home", home).output
    (found,) = json.loads(run("show", "--json", "--home", home).output)
    assert found["population"] == POPULATION
    assert is_epsilon_of(found["epsilon"]["spent"], 12 + 4)
    assert is_epsilon_of(found["epsilon"]["spent_in_366_days"], 2 + 4)
    assert [entry["run"] for entry in found["no_bound"]] == ["uci_heart:plain"]
    assert run("verify", "--home", home).exit_code == 0
    assert "'uci_heart'" in str(run("adopt", "uci_heart", "--home", home).exception)
    WitnessedLedger(home).unlock()


def test_adoption_that_was_cut_short_enters_nothing_twice(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy(home)
    other_ledger(home, spends=4)
    append, left = LedgerFile.append, [3]

    def dying(self: LedgerFile, entry: Entry, now: float) -> Line:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return append(self, entry, now)

    with monkeypatch.context() as patch:
        patch.setattr(LedgerFile, "append", dying)
        assert run("adopt", "uci_heart", "--home", home).exit_code != 0
    assert "2 releases" in run("adopt", "uci_heart", "--home", home).output
    (found,) = json.loads(run("show", "--json", "--home", home).output)
    assert is_epsilon_of(found["epsilon"]["spent"], 12 + 4)


def test_renamed_ledger_keeps_its_chain_and_its_head(home: Path) -> None:
    policy(home, "patients-of-st-anna")
    before = ledger_path(home, POPULATION).read_bytes()
    assert "its chain goes on" in run("adopt", POPULATION, "--home", home).output
    after = ledger_path(home, "patients-of-st-anna").read_bytes()
    assert after.startswith(before) and len(after.splitlines()) == len(before.splitlines()) + 1
    (found,) = json.loads(run("show", "--json", "--home", home).output)
    assert found["population"] == "patients-of-st-anna" and is_epsilon_of(found["epsilon"]["spent"], 12)
    assert found["countersigned"]["seq"] == found["entries"] - 2
    assert run("verify", "--home", home).exit_code == 0


# --- what an operator must say ------------------------------------------------------------------------------------


def test_date_must_be_the_clocks_to_be_confirmed(home: Path) -> None:
    policy(home)
    done = run("confirm-clock", "2001-01-01", "--home", home)
    assert done.exit_code == 2 and "not 2001-01-01" in done.output
    today = time.strftime("%Y-%m-%d", time.gmtime())
    assert f"goes on from {today}" in run("confirm-clock", today, "--home", home).output


def test_show_and_verify_say_that_a_ledger_was_rolled_back(home: Path) -> None:
    policy(home)
    ledger = WitnessedLedger(home)
    with pytest.raises(PrivacyError):
        ledger.countersign("17", 99, "ab" * 32, b"signed", ours=True)
    ledger.unlock()
    assert "PAYS NOTHING: this institution signed entry 99" in run("show", "--home", home).output
    done = run("verify", "--home", home)
    assert done.exit_code == 1 and "does not have: it was rolled back" in done.output
    assert "restore it" in str(run("restored", "--home", home).exception)


def test_status_and_doctor_say_that_a_ledger_was_rolled_back_and_what_to_do(home: Path) -> None:
    """Seen: `client status` said "failures: none" while every private run was refused for it."""

    def told() -> tuple[list[str], str, list[str]]:
        machines = json.loads(CliRunner().invoke(institution, ["status", "--json", "--home", str(home)]).output)
        found = [(each.state, each.found) for each in home_findings(home) if each.name == "ledger"]
        assert all(state == "fail" for state, _ in found)
        status = CliRunner().invoke(institution, ["status", "--home", str(home)]).output
        return machines["ledgers"], status, [text for _, text in found]

    assert told()[0] == told()[2] == []
    ledger = WitnessedLedger(home)
    with pytest.raises(PrivacyError):
        ledger.countersign("17", 99, "ab" * 32, b"signed", ours=True)
    ledger.unlock()
    (line,), status, (found,) = told()
    assert line == found and line in status
    assert "signed entry 99" in line and f"privacy/{POPULATION}.ledger" in line and "`sovfed client up`" in line
    ledger_path(home, POPULATION).with_suffix(".rolled-back").write_bytes(b"torn")
    assert "rolled-back" in told()[0][0]


def test_show_says_that_a_run_without_privacy_has_no_bound(home: Path) -> None:
    ledger = WitnessedLedger(home)
    for purpose in ("profile", "train", "train"):
        ledger.enter_unbounded("plain", purpose, "heart")
    ledger.unlock()
    text = run("show", "--home", home).output
    assert "ε: no bound since 20" in text and "1 runs without privacy were answered (plain)" in text
    assert "add or remove one, of the private runs alone" in text
    (found,) = json.loads(run("show", "--json", "--home", home).output)
    assert [(entry["run"], entry["purpose"]) for entry in found["no_bound"]] == [
        ("plain", "profile"), ("plain", "train")
    ]  # fmt: skip


def test_verify_says_sound_also_while_the_trainer_has_the_ledger(home: Path) -> None:
    ledger = WitnessedLedger(home, BUDGET)
    done = run("verify", "--home", home)
    assert done.exit_code == 0
    assert "heart: sound, entries 0 to 18, countersigned up to entry 18, head " in done.output
    ledger.unlock()


def test_verify_exits_with_1_and_the_reason(home: Path) -> None:
    other_ledger(home, "lungs")
    path = ledger_path(home, POPULATION)
    content = path.read_bytes()
    path.write_bytes(content.replace(b'"run-old"', b'"run-odd"', 1))
    done = run("verify", "--home", home)
    assert done.exit_code == 1
    assert "damaged at line 3" in done.output and "lungs: sound" in done.output
    path.write_bytes(b"".join(content.splitlines(keepends=True)[:5]))
    done = run("verify", "--home", home)
    assert done.exit_code == 1 and "lines were cut off, or an old copy was put back" in done.output


@pytest.mark.parametrize("gone", ["heart.ledger", "mac.key"])
def test_verify_exits_with_1_when_a_file_is_gone(home: Path, gone: str) -> None:
    (home / "privacy" / gone).unlink()
    assert run("verify", "--home", home).exit_code == 1


def test_verify_exits_with_1_when_there_is_no_ledger(tmp_path: Path) -> None:
    done = run("verify", "--home", tmp_path)
    assert done.exit_code == 1 and "has no privacy ledger" in done.output


def test_auditor_can_check_the_chain_without_the_key(home: Path, tmp_path: Path) -> None:
    file = tmp_path / "audit.json"
    assert run("export", file, "--home", home).exit_code == 0
    (found,) = json.loads(file.read_text())["ledgers"]
    lines: list[str] = found["lines"]
    entries: list[dict[str, Any]] = [json.loads(line) for line in lines]
    heads = [hashlib.sha256(f"{line}\n".encode()).hexdigest() for line in lines]
    assert [entry["prev"] for entry in entries[1:]] == heads[:-1]
    assert found["head"] == heads[-1] == found["countersigned"]["head"]
    spent = sum(entry["entry"]["release"]["event"]["count"] for entry in entries if entry["kind"] == "spend")
    assert spent == 12 and is_epsilon_of(found["epsilon"]["spent"], spent)
    key = (home / "privacy" / "mac.key").read_bytes()
    assert key not in file.read_bytes() and key.hex() not in file.read_text()
