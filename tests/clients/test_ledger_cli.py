"""`sovfed client ledger`: what it shows, what it finds damaged, what it hands to an auditor."""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from tests.clients.ledger_crash import BUDGET, DATASET, gaussian_delta, plan, release

from sovfed.clients.cli_ledger import ledger as group
from sovfed.clients.ledger import PrivacyLedger
from sovfed.clients.ledger_file import create_ledger, ledger_path
from sovfed.federation.errors import PrivacyError

YEAR = 366 * 86_400.0
NOW = time.time()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Ten releases two years ago, two of five granted now, and a refusal."""
    create_ledger(tmp_path, DATASET, NOW - 3 * YEAR)
    times = [NOW - 2 * YEAR]
    ledger = PrivacyLedger(tmp_path, DATASET, BUDGET, lambda: times[-1])
    old = ledger.authorise("run-old", plan(12))
    for step in range(10):
        times.append(times[-1] + 60)
        ledger.spend(old, release(old.plan, step))
    ledger.close(old.run)
    times.append(NOW - 60)
    new = ledger.authorise("run-new", plan(5))
    for step in range(2):
        ledger.spend(new, release(new.plan, step))
    with pytest.raises(PrivacyError):
        ledger.authorise("run-greedy", plan(500))
    ledger.countersign(ledger.head, b"signed", lambda head, signature: None)
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
    create_ledger(tmp_path, DATASET, NOW)
    ledger = PrivacyLedger(tmp_path, DATASET, BUDGET)
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
    create_ledger(tmp_path, DATASET, NOW)
    done = run("show", "--plot", tmp_path / "epsilon.png", "--home", tmp_path)
    assert isinstance(done.exception, PrivacyError) and "nothing was spent yet" in str(done.exception)


def test_plot_needs_one_ledger(home: Path, tmp_path: Path) -> None:
    create_ledger(home, "lungs", NOW)
    done = run("show", "--plot", tmp_path / "epsilon.png", "--home", home)
    assert done.exit_code == 2 and "name it with --dataset (heart, lungs)" in done.output


def test_verify_says_sound_also_while_the_trainer_has_the_ledger(home: Path) -> None:
    ledger = PrivacyLedger(home, DATASET, BUDGET)
    done = run("verify", "--home", home)
    assert done.exit_code == 0
    assert "heart: sound, entries 0 to 17, countersigned up to entry 17, head " in done.output
    ledger.unlock()


def test_verify_exits_with_1_and_the_reason(home: Path) -> None:
    create_ledger(home, "lungs", NOW)
    path = ledger_path(home, DATASET)
    content = path.read_bytes()
    path.write_bytes(content.replace(b'"run-old"', b'"run-odd"', 1))
    done = run("verify", "--home", home)
    assert done.exit_code == 1
    assert "damaged at line 3" in done.output and "lungs: sound" in done.output
    path.write_bytes(b"".join(content.splitlines(keepends=True)[:5]))
    done = run("verify", "--dataset", DATASET, "--home", home)
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
