"""Several populations in one ledger: studies over the same people share a budget, and no setting makes a fresh one."""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from tests.clients.ledger.crash import BUDGET, POPULATION, WitnessedLedger, plan, release
from tests.clients.trainer.test_service import TASK, train_request

from sovfed.clients.cli.institution import cli
from sovfed.clients.home.folder import create
from sovfed.clients.home.looked import population_findings
from sovfed.clients.home.policy import Policy
from sovfed.clients.home.settings import settings_text
from sovfed.clients.home.whose import whose_in
from sovfed.clients.ledger.adopt import adopt
from sovfed.clients.ledger.book import replay
from sovfed.clients.ledger.entries import Assigned, Budget, History, Whose
from sovfed.clients.ledger.file import create_ledger, ledger_path, read_ledger
from sovfed.clients.trainer.books import Books
from sovfed.clients.trainer.process import ledger_opener
from sovfed.clients.trainer.rules import Rules
from sovfed.clients.trainer.service import make_trainer
from sovfed.federation.config import ClientConfig, DataConfig, StudyConfig
from sovfed.federation.errors import ConfigError, PrivacyError
from sovfed.federation.messages import Refusal, TrainReply
from sovfed.federation.schema import bind

OTHERS = {
    "births": dataclasses.replace(BUDGET, population_name="births"),
    "stays": dataclasses.replace(BUDGET, population_name="stays"),
}
HEARTS = Whose("", "hearts", ("task heart", "path /srv/heart.csv"))
BIRTHS = Whose("births", "births", ("task birth", "path /srv/births.csv"))
ROOM = 10  # of the grants below: two do not fit into one budget


@pytest.fixture
def home(tmp_path: Path) -> Path:
    create_ledger(tmp_path, POPULATION, time.time())
    return tmp_path


def opened(home: Path, others: dict[str, Budget] | None = None) -> WitnessedLedger:
    return WitnessedLedger(home, BUDGET, others=OTHERS if others is None else others)


def most(ledger: WitnessedLedger, whose: Whose, name: str) -> int:
    """Steps of one kind that still fit, and are then spent: each release of its own, the last grant refused."""
    fit = 0
    while fit < 100:
        try:
            grant = ledger.authorise(f"{name}-{fit}", plan(ROOM), whose=whose)
        except PrivacyError as error:
            if "over the limit" not in str(error):
                raise
            return fit
        for step in range(ROOM):
            ledger.spend(grant, release(grant.plan, step))
        fit += 1
    return fit


def history(home: Path) -> History:
    return replay(read_ledger(home, POPULATION)[0])


def test_two_studies_of_one_population_share_its_budget_and_of_two_they_do_not(home: Path) -> None:
    ledger = opened(home)
    shared = Whose("", "stays", ("task stay", "path /srv/stays.csv"))
    alone = most(ledger, HEARTS, "hearts")
    assert alone > 0 and most(ledger, shared, "stays") == 0
    ledger.assign(BIRTHS, "other people")
    assert most(ledger, BIRTHS, "births") == alone
    same = Whose("births", "newborns", ("task newborn", "path /srv/newborns.csv"))
    ledger.assign(same, "their mothers' records")
    assert most(ledger, same, "newborns") == 0
    ledger.unlock()
    again = opened(home)  # after a restart all of it stands
    assert (most(again, BIRTHS, "b"), most(again, same, "n"), most(again, HEARTS, "h")) == (0, 0, 0)


def test_a_population_is_none_before_the_operator_has_said_so_in_the_ledger(home: Path) -> None:
    ledger = opened(home)
    with pytest.raises(PrivacyError, match=r"nobody said .* births are of 'births'; `sovfed client ledger assign"):
        ledger.authorise("r", plan(1), whose=BIRTHS)
    with pytest.raises(PrivacyError, match=r"policy\.yaml has no population 'nobody'"):
        ledger.assign(dataclasses.replace(BIRTHS, population="nobody"), "…")


@pytest.mark.parametrize(
    "renamed",
    [
        dataclasses.replace(BIRTHS, population="stays"),  # another of the policy's
        dataclasses.replace(BIRTHS, population=""),  # back to the home's own, which has its whole budget
        Whose("", "data", ("task birth",)),  # the study is struck out, and its task falls to `data`
        Whose("", "other", ("task other", "path /srv/births.csv")),  # the same table under another study and task
        Whose("stays", "births", ("task x", "path /x.csv")),  # the study's name alone is kept
    ],
)
def test_what_was_charged_is_not_escaped_by_any_setting(home: Path, renamed: Whose) -> None:
    ledger = opened(home)
    ledger.assign(BIRTHS, "of the obstetric ward")
    most(ledger, BIRTHS, "births")
    with pytest.raises(PrivacyError, match=r"`sovfed client ledger assign \w+` says whose they are"):
        ledger.authorise("again", plan(1), whose=renamed)
    with pytest.raises(PrivacyError, match="says whose they are"):
        ledger.enter_unbounded("plain", "train", "birth", renamed)


def test_a_study_that_moves_takes_with_it_what_was_charged(home: Path) -> None:
    ledger = opened(home)
    ledger.authorise("open", plan(2), whose=HEARTS)  # never spent, and counted all the same
    alone = most(ledger, HEARTS, "hearts")
    ledger.enter_unbounded("plain", "train", "heart", HEARTS)
    moved = dataclasses.replace(HEARTS, population="stays")
    assert ledger.assign(moved, "a name of their own").inherits == ("",)
    assert most(ledger, moved, "stays") == 0
    ledger.unlock()
    found = history(home)
    assert [entry.run for _, entry in found.no_bound("stays")] == ["plain"]
    again = opened(home)
    fresh = Whose("births", "hearts", HEARTS.keys)
    assert again.assign(fresh, "once more").inherits == ("stays",)  # a chain of moves forgets nothing
    assert most(again, fresh, "b") == 0
    assert again.assign(fresh, "the table was replaced", apart=True).inherits == ()  # what they have, they keep
    assert most(again, fresh, "c") == 0
    assert again.assign(Whose("births", "hearts", ("task new",)), "again").inherits == ()
    other = Whose("stays", "new", ("task heart", "path /srv/heart.csv"))
    assert again.assign(other, "of the same table", apart=True).apart
    assert alone > 0


def test_studies_that_move_together_inherit_once(home: Path) -> None:
    ledger = opened(home)
    grant = ledger.authorise("r", plan(3), whose=HEARTS)
    for step in range(3):
        ledger.spend(grant, release(grant.plan, step))
    shared = Whose("", "stays", ("task stay", "path /srv/stays.csv"))
    ledger.enter_unbounded("plain", "train", "stay", shared)
    for whose in (HEARTS, shared):
        assert ledger.assign(dataclasses.replace(whose, population="births"), "both wards").inherits == ("",)
    ledger.unlock()
    assert [event.count for event in history(home).spent(population="births")] == [3]


def test_one_run_that_goes_on_to_other_records_is_known_to_have_read_them(home: Path) -> None:
    """An agency that asks for a second task under a run's name, or a study whose table is moved during a run."""
    ledger = opened(home)
    stays = Whose("", "stays", ("task stay", "path /srv/stays.csv"))
    moved = Whose("", "hearts", ("task heart", "path /srv/new/heart.csv"))
    ledger.enter_unbounded("plain", "train", "heart", HEARTS)
    ledger.enter_unbounded("plain", "train", "stay", stays)
    grant = ledger.authorise("r", plan(1), whose=HEARTS)
    assert ledger.authorise("r", plan(1), whose=moved) == grant
    for whose in (stays, Whose("", "later", moved.keys[1:])):
        assert ledger.assign(dataclasses.replace(whose, population="births"), "…").inherits == ("",)
    ledger.unlock()
    assert [entry.run for _, entry in history(home).no_bound("births")] == ["plain"]


def test_other_people_in_the_same_table_are_an_act_that_stays_in_the_ledger(home: Path) -> None:
    ledger = opened(home)
    alone = most(ledger, HEARTS, "hearts")
    split = Whose("births", "births", ("task birth", "path /srv/heart.csv"))
    ledger.assign(split, "the women of the same data base; hearts reads the men", apart=True)
    assert most(ledger, split, "births") == alone
    ledger.unlock()
    (entry,) = (line.entry for line in read_ledger(home, POPULATION)[0] if isinstance(line.entry, Assigned))
    assert (entry.study, entry.apart, entry.because[:9]) == ("births", True, "the women")


def test_what_an_older_version_charged_is_inherited_as_nobody_knows_what_it_read(home: Path) -> None:
    ledger = opened(home, {})
    for number in range(3):
        ledger.spend(ledger.authorise(f"old-{number}", plan(ROOM)), release(plan(ROOM), 0))  # no keys
    ledger.unlock()
    ledger = opened(home)
    assert ledger.assign(BIRTHS, "other people, says somebody").inherits == ("",)


def test_a_grant_is_of_one_population_for_good(home: Path) -> None:
    ledger = opened(home)
    ledger.assign(BIRTHS, "…")
    ledger.authorise("r", plan(1), whose=BIRTHS)
    ledger.enter_unbounded("p", "train", "birth", BIRTHS)
    with pytest.raises(PrivacyError, match="population is '', granted 'births'"):
        ledger.authorise("r", plan(1), whose=HEARTS)
    with pytest.raises(PrivacyError, match="answered for another population"):
        ledger.enter_unbounded("p", "train", "heart", HEARTS)


def test_a_population_that_left_the_policy_pays_nothing(home: Path) -> None:
    ledger = opened(home)
    ledger.assign(BIRTHS, "…")
    grant = ledger.authorise("r", plan(2), whose=BIRTHS)
    ledger.unlock()
    left = opened(home, {})
    with pytest.raises(PrivacyError, match="no longer has the grant's population"):
        left.spend(grant, release(grant.plan, 0))
    with pytest.raises(PrivacyError, match=r"births is of population .births., and policy\.yaml has"):
        left.authorise("s", plan(1), whose=BIRTHS)
    assert left.close("r") == 2


def test_the_homes_own_population_takes_no_further_ones_name(home: Path) -> None:
    ledger = opened(home)
    ledger.assign(BIRTHS, "…")
    ledger.unlock()
    with pytest.raises(PrivacyError, match="'births' must be another"):
        adopt(home, POPULATION, "births", 1.0)
    adopt(home, POPULATION, "everybody", 1.0)
    assert replay(read_ledger(home, "everybody")[0]).assigned["births"].population == "births"


def test_keys_in_the_ledger_tell_nobody_where_records_lie(home: Path) -> None:
    ledger = opened(home)
    ledger.authorise("r", plan(1), whose=HEARTS)
    ledger.assign(BIRTHS, "…")
    ledger.unlock()
    assert b"/srv" not in ledger_path(home, POPULATION).read_bytes()


@pytest.mark.parametrize(
    "populations",
    [{"persons": {}}, {"../x": {}}, {"a": {"population_name": "b"}}, {"a": {"epsilon": -1}}, {"": {}}],
)
def test_a_policy_with_populations_that_cannot_be_is_refused(populations: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="populations"):
        bind(Policy, {"populations": populations})


def test_a_policy_with_populations_is_written_and_read_back() -> None:
    import yaml

    policy = Policy(populations={"births": Budget(epsilon=2.0, population=5_000)})
    assert bind(Policy, yaml.safe_load(settings_text(policy, ""))) == policy
    assert policy.other_budgets["births"].population_name == "births"


def test_a_place_is_known_whatever_path_leads_there(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("x\n")
    (tmp_path / "link.csv").symlink_to(tmp_path / "a.csv")

    def keys(name: str) -> tuple[str, ...]:
        data = DataConfig(source="csv", path=str(tmp_path / name))
        return whose_in(ClientConfig(studies={"s": StudyConfig("t", data)}), "s", "t").keys

    assert keys("link.csv") == keys("a.csv") != keys("b.csv")


def test_a_trainer_refuses_a_study_whose_population_was_renamed(tmp_path: Path) -> None:
    """The real trainer, ledger and commands: charged as 'births', then renamed in client.yaml and policy.yaml."""
    home = tmp_path / "home"
    data = DataConfig(source="breast_cancer", site="1")
    policy = Policy(
        (TASK.name,), allow_plain_updates=True, require_privacy=False,
        populations={"births": Budget(), "fresh": Budget()},
    )  # fmt: skip

    def config(population: str) -> ClientConfig:
        return ClientConfig(str(home), device="cpu", studies={"b": StudyConfig(TASK.name, data, population)})

    create(home, config("births"), policy)
    opener = ledger_opener(home, policy)

    def asked(population: str, run: str) -> object:
        return make_trainer(config(population), Rules(policy.check), Books(opener)).answer(train_request(run=run))

    assert isinstance(asked("births", "1"), Refusal)  # nobody said so yet
    assert "nobody said" in "\n".join(population_findings(config("births"), policy))
    opener().unlock()
    assign = ["ledger", "assign", "b", "--because", "the patients of 2026", "--home", str(home)]
    done = CliRunner().invoke(cli, assign)
    assert done.exit_code == 0 and "are of 'births' from here on" in done.output, (done.output, done.exception)
    assert CliRunner().invoke(cli, [*assign[:2], "nobody", *assign[3:]]).exit_code == 2
    opener = ledger_opener(home, policy)
    assert isinstance(asked("births", "2"), TrainReply)
    for renamed in ("fresh", "", "gone"):
        assert isinstance(asked(renamed, f"3-{renamed}"), Refusal)
        assert population_findings(config(renamed), policy)
    opener().unlock()
    shown = json.loads(CliRunner().invoke(cli, ["ledger", "show", "--json", "--home", str(home)]).stdout)
    assert [one["population"] for one in shown] == ["persons", "births", "fresh"]
    assert [[entry["run"] for entry in one["no_bound"]] for one in shown] == [[], ["2"], []]
    assert len(shown[0]["refusals"]) == 4 and shown[1]["studies"][0]["because"] == "the patients of 2026"
    assert CliRunner().invoke(cli, ["ledger", "show", "--home", str(home)]).exit_code == 0
    shutil.rmtree(home)
