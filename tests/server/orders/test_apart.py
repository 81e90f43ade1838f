"""Officers are not asked in vain: whoever proposes, approves or starts a run is told which earlier sums forbid it."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from tests.clients.orders.house import House

from sovfed.federation.compose import compose
from sovfed.federation.files import write_private
from sovfed.server.cli.run import cli
from sovfed.server.home import init
from sovfed.server.orders.apart import DAY_S, DAYS, opened_sums, refusals_of, refusals_of_config
from sovfed.server.orders.making import read_order
from sovfed.server.orders.proposing import configured
from sovfed.server.runs.curves import ROUNDS
from sovfed.server.runs.folders import STATE

FIVE = ("h1", "h2", "h3", "h4", "h5")
COMMON = ("task=breast_cancer", "server.min_cohort=3", "privacy.colluders=0")
COUNTS = (*COMMON, "statistics=mean radius", "order.purpose=statistics of radii")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """An agency with one table, over FIVE."""
    house = House(tmp_path)
    house.person("ann")
    init(tmp_path / "server", compose([]).config)
    told(tmp_path / "server", *COUNTS, "run_name=counts")
    ended(tmp_path / "server", "counts", FIVE)
    return tmp_path / "server"


def told(home: Path, *overrides: str) -> str:
    done = CliRunner().invoke(cli, ["propose", *overrides, "--home", str(home)])
    assert done.exit_code == 0, f"{done.output} {done.exception!r}"
    return done.output


def ended(home: Path, name: str, *cohorts: tuple[str, ...], started: float = 0.0) -> None:
    """The run was over these institutions, a round each."""
    folder = home / "runs" / name
    lines = [json.dumps({"round": number, "participants": names}) + "\n" for number, names in enumerate(cohorts, 1)]
    write_private(folder / ROUNDS, "".join(lines).encode())
    state = {"status": "finished", "reason": "", "flower_run_id": 1, "started": started or time.time(), "config": {}}
    write_private(folder / STATE, json.dumps(state).encode())


def cohort(*names: str) -> str:
    return f"order.cohort=[{','.join(names)}]"


@pytest.mark.parametrize(
    ("words", "differ"),
    [
        ((*COUNTS, cohort("h1", "h2", "h3", "h4")), "h5"),
        ((*COUNTS, cohort("h1", "h2", "h3", "h4", "h6")), "h5, h6"),
        ((*COMMON, "rounds=2", cohort("h1", "h2", "h3", "h4")), "h5"),  # exact sums: they tell it all the more
    ],
)
def test_a_run_that_differs_by_few_from_an_earlier_table_is_told_of(
    home: Path, words: tuple[str, ...], differ: str
) -> None:
    said = told(home, *words, "run_name=second")
    assert f"its cohort differs by {differ}, fewer than 3, from that of run counts" in said
    assert f"do: order.cohort=[{','.join(FIVE)}], or wait until" in said
    order = home / "runs" / "second" / "order.json"
    words = ("approve", str(order), "--yes", "--signer", str(home.parent / "people" / "ann"))
    for again in (words, ("explain", "second", "--home", str(home))):
        assert "from that of run counts" in CliRunner().invoke(cli, again).output


@pytest.mark.parametrize(
    "words",
    [
        (*COUNTS, cohort(*FIVE)),
        (*COUNTS, cohort("h1", "h2")[:-1] + ",h6,h7,h8]"),  # six others
        (*COMMON, "rounds=2", "privacy=distributed", cohort("h1", "h2", "h3", "h4")),  # noised for each round
    ],
)
def test_what_institutions_answer_is_not_warned_of(home: Path, words: tuple[str, ...]) -> None:
    assert "warning" not in told(home, *words, "run_name=second")


def test_one_warning_is_for_all_earlier_sums(home: Path) -> None:
    """It came once for each of them."""
    for number in range(2, 6):
        told(home, *COUNTS, f"run_name=counts{number}")
        ended(home, f"counts{number}", FIVE, started=time.time() + number)
    told(home, *COUNTS, "run_name=others")
    ended(home, "others", FIVE[:3], started=time.time() - DAY_S)
    said = told(home, *COUNTS, cohort("h1", "h2", "h3", "h4"), "run_name=second")
    (warning,) = (line for line in said.splitlines() if line.startswith("warning: "))
    assert "h5, fewer than 3, from that of runs counts, counts2, counts3 and 2 more (and of 1 other runs)" in warning
    assert len(warning) < 300


def test_a_table_judges_for_a_year_and_exact_sums_for_ever(home: Path) -> None:
    told(home, *COMMON, "rounds=2", "run_name=trained")
    ended(home, "trained", FIVE, FIVE[:4], started=1.0)
    now = time.time()
    assert [(opened.run, len(opened.institutions)) for opened in opened_sums(home, now)] == [
        ("counts", 5), ("trained", 4), ("trained", 5),
    ]  # fmt: skip
    assert [opened.run for opened in opened_sums(home, now + DAYS * DAY_S)] == ["trained", "trained"]
    (home / "runs" / "trained" / STATE).write_text("{")  # damaged: it keeps nobody from a proposal
    assert [opened.run for opened in opened_sums(home, now)] == ["counts"]


def test_without_a_cohort_those_who_are_enrolled_are_compared(home: Path) -> None:
    """Nobody is enrolled here: that is another five, and no few of them."""
    told(home, *COUNTS, "run_name=second")
    proposal = read_order(home / "runs" / "second")
    assert proposal is not None and refusals_of(home, proposal.order) == []
    ended(home, "counts", FIVE[:2])
    assert "who is enrolled, for it names no cohort, differs by" in refusals_of(home, proposal.order)[0]
    assert refusals_of_config(home, "third", configured(home, COUNTS)) == refusals_of(home, proposal.order)
    assert refusals_of_config(home, "third", configured(home, (*COMMON, "privacy=distributed"))) == []
