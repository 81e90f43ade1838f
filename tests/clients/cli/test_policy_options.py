"""What `sovfed client init` and `join` say of a policy stands in it, or the command says that it does not."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from sovfed.clients.cli.institution import cli
from sovfed.clients.home.policy import load_policy
from sovfed.clients.orders.rules import REQUIRED


def run(home: Path, *words: str) -> tuple[int, str]:
    done = CliRunner().invoke(cli, [*words, "--home", str(home)])
    told = str(done.exception) if done.exception and not isinstance(done.exception, SystemExit) else ""
    return done.exit_code, done.output + done.stderr + told


@pytest.mark.parametrize(("least", "colluders"), [(3, 0), (4, 1), (9, 1)])
def test_a_cohort_is_written_with_the_colluders_that_it_bears(tmp_path: Path, least: int, colluders: int) -> None:
    code, told = run(tmp_path / "home", "init", "data=breast_cancer", "--min-cohort", str(least))
    assert code == 0, told
    terms = load_policy(tmp_path / "home").secure_aggregation
    assert (terms.min_cohort, terms.colluders) == (least, colluders)
    assert ("the default is 5" in told) is (least < 5)


def test_what_no_sum_may_be_as_small_as_is_refused(tmp_path: Path) -> None:
    assert run(tmp_path / "home", "init", "data=breast_cancer", "--min-cohort", "2")[0] == 2
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize(
    ("option", "lines"),
    [
        (["--without-privacy"], ["require_privacy is true"]),
        (["--allow-plain-updates"], ["allow_plain_updates is false"]),
        (["--officers"], ["orders.mode is standing", "orders.min_approvers is 0, not 2 (--officers)"]),
        (["--approvers", "1"], ["orders.min_approvers is 0, not 1 (--approvers)"]),
        (["--min-cohort", "4"], ["secure_aggregation.min_cohort is 5"]),
        (["--task", "heart"], ["allowed_tasks lacks heart"]),
    ],
)
def test_join_drops_no_option_at_a_home_that_is_there(tmp_path: Path, option: list[str], lines: list[str]) -> None:
    home = tmp_path / "home"
    assert run(home, "init", "data=breast_cancer")[0] == 0
    before = (home / "policy.yaml").read_bytes()
    code, told = run(home, "join", *option)
    assert code != 0
    assert all(line in told for line in lines) and "edit the file" in told
    assert (home / "policy.yaml").read_bytes() == before


def test_join_goes_on_where_the_policy_says_the_same(tmp_path: Path) -> None:
    home, options = tmp_path / "home", ("--without-privacy", "--officers", "--min-cohort", "4")
    assert run(home, "init", "data=breast_cancer", *options)[0] == 0
    assert load_policy(home).orders.mode == REQUIRED
    _, told = run(home, "join", *options)
    assert "kept as they are" in told and "no invitation" in told


@pytest.mark.parametrize(
    ("words", "least", "line"),
    [
        (["--officers"], 2, "must be approved by 2 of agency"),
        (["--officers", "--approvers", "3"], 3, "must be approved by 3 of agency"),
        (["--officers", "--approvers", "0"], 0, "the agency's server alone can propose an order"),
        (["--approvers", "1"], 1, "must be approved by 1 of agency"),
        ([], 0, "signed by this node itself"),
    ],
)
def test_where_an_officer_signs_two_of_the_agency_have_approved(
    tmp_path: Path, words: list[str], least: int, line: str
) -> None:
    home = tmp_path / "home"
    code, told = run(home, "init", "data=breast_cancer", *words)
    assert code == 0 and line in told, told
    rules = load_policy(home).orders
    assert (rules.min_approvers, rules.approvers) == (least, ("agency",) if least else ())


def test_a_policy_that_asks_for_more_people_is_kept(tmp_path: Path) -> None:
    home = tmp_path / "home"
    assert run(home, "init", "data=breast_cancer", "--officers", "--approvers", "3")[0] == 0
    assert "kept as they are" in run(home, "join", "--officers")[1]
    assert "min_approvers is 3, not 2" in run(home, "join", "--officers", "--approvers", "2")[1]
