"""Whole runs put before institutions' policies: by trainers of our own, over an in-memory Grid."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.clientapp import ClientApp

from sovfed.clients.home.policy import Policy
from sovfed.clients.ledger.book import PrivacyLedger
from sovfed.clients.ledger.entries import Budget
from sovfed.clients.ledger.file import create_ledger
from sovfed.clients.node.app import make_client_app
from sovfed.clients.trainer.books import Books
from sovfed.clients.trainer.rules import Rules
from sovfed.clients.trainer.service import make_trainer
from sovfed.federation.codec import last_of
from sovfed.federation.compose import compose
from sovfed.federation.config import Config
from sovfed.federation.errors import DeclinedError, ProtocolError
from sovfed.federation.messages import Refusal, RunReply, RunRequest
from sovfed.federation.secagg.terms import Terms
from sovfed.federation.tasks.registry import get_task
from sovfed.server.rounds import aggregation, agreement
from sovfed.server.rounds.aggregation import PlainAggregation
from sovfed.server.rounds.agreement import Agreement
from sovfed.server.rounds.loop import Rounds, whole_run
from sovfed.server.rounds.privacy import PrivacyPlan
from sovfed.server.strategies import make_optimizer
from sovfed.simulations.grid import InMemoryGrid

TASK = get_task("breast_cancer")
MOST_BYTES = 2**20
OPEN = Policy(
    allowed_tasks=(TASK.name,), require_privacy=False, secure_aggregation=Terms(min_cohort=3, colluders=0),
    privacy=Budget(max_share_per_run=1.0),
)  # fmt: skip
NAMES = {1: "north", 2: "south", 3: "west"}


def rounds(*policies: Policy, config: Config, homes: Path | None = None) -> Rounds:
    def ledger(policy: Policy, number: int) -> PrivacyLedger | None:
        if homes is None:
            return None
        home = homes / str(number)
        home.mkdir(mode=0o700)
        create_ledger(home, policy.privacy.population_name, 1e9)
        return PrivacyLedger(home, policy.privacy)

    ledgers = [ledger(policy, number) for number, policy in enumerate(policies)]

    def app(policy: Policy, own: PrivacyLedger | None) -> ClientApp:
        return make_client_app(make_trainer(config.client, Rules.of(policy, MOST_BYTES), Books(lambda: own)))

    apps = {number: app(*pair) for number, pair in enumerate(zip(policies, ledgers, strict=True), 1)}
    grid = InMemoryGrid(apps, NAMES)
    made = Rounds(config, "7", grid, make_optimizer(config.strategy), PlainAggregation(grid, 60.0))
    if config.privacy.private:
        made.plan = PrivacyPlan.make(config, "study", TASK.parameters)
    return made


def planned(*overrides: str) -> Config:
    return compose(["server.min_cohort=3", "privacy.colluders=0", "task.batch_size=16", *overrides]).config


@pytest.mark.parametrize(
    ("change", "override", "limit"),
    [
        ({"max_rounds": 99}, "rounds=100", "max_rounds"),
        ({"max_sums_per_run": 100}, "rounds=100", "max_sums_per_run"),
        ({"max_parameters": 20}, "rounds=1", "max_parameters"),
        ({"min_batch_size": 17}, "rounds=1", "min_batch_size"),
        ({"allowed_tasks": ("digits",)}, "rounds=1", "allowed_tasks"),
        ({"secure_aggregation": Terms(min_cohort=4)}, "rounds=1", "secure_aggregation.min_cohort"),
        ({"secure_aggregation": Terms(min_cohort=3, colluders=0, max_weight=2000)}, "secagg.max_weight=2001",
         "secure_aggregation.max_weight"),
        ({"secure_aggregation": Terms(min_cohort=3, colluders=0, max_size=20)}, "rounds=1",
         "secure_aggregation.max_size"),
        ({"require_privacy": True}, "rounds=1", "needs-privacy"),
    ],
)  # fmt: skip
def test_a_bound_of_one_is_told_by_name_before_anything_is_computed(
    change: dict[str, object], override: str, limit: str
) -> None:
    """Seen: 1,000 rounds were trained, then refused; 1 GB was sent five times, then refused by nobody known."""
    strict = dataclasses.replace(OPEN, **change)  # type: ignore[arg-type]
    made = rounds(OPEN, strict, OPEN, config=planned(override))
    with pytest.raises(DeclinedError, match=rf"1 of 3 institutions .* minimum cohort is 3: south: {limit}"):
        made.agree()


def test_the_run_of_the_page_on_language_models_is_within_the_policy_that_institutions_begin_with() -> None:
    """Seen: it had batches of 2 and 1,200 rounds, which every institution refused that had not changed its policy."""
    page = (Path(__file__).parents[3] / "docs" / "language.md").read_text(encoding="utf-8")
    words = page.split("## A run\n")[1].split("sovfed run start")[1].split("\n\n")[0].replace("\\", " ").split()
    assert words[0] == "task=law.yaml" and any(word.startswith("rounds=") for word in words)
    begun = Policy(allowed_tasks=OPEN.allowed_tasks, secure_aggregation=OPEN.secure_aggregation, require_privacy=False)
    made = rounds(begun, begun, begun, config=planned(*words[1:]))
    made.agree()
    assert made.cohort() == [1, 2, 3]


def test_all_bounds_are_told_at_once() -> None:
    strict = dataclasses.replace(OPEN, max_rounds=5, max_parameters=3)
    made = rounds(OPEN, strict, OPEN, config=planned("rounds=10"))
    with pytest.raises(DeclinedError, match="south: max_rounds, max_parameters;"):
        made.agree()


def test_who_would_refuse_is_left_out_while_there_are_enough_others() -> None:
    strict = dataclasses.replace(OPEN, max_rounds=5)
    made = rounds(OPEN, OPEN, OPEN, strict, config=planned("rounds=10"))
    made.agree()
    assert made.cohort() == [1, 2, 3]


@pytest.mark.parametrize(
    ("change", "code"), [({"allowed_tasks": ("digits",)}, "bound"), ({"require_privacy": True}, "needs-privacy")]
)
def test_who_would_refuse_stands_with_its_code_in_every_round(change: dict[str, object], code: str) -> None:
    """Seen: it stood in the coordinator's log alone, and in no round, summary or MLflow run."""
    willing = dataclasses.replace(OPEN, allow_plain_updates=True, allowed_tasks=("echo",))
    strict = dataclasses.replace(willing, **change)  # type: ignore[arg-type]
    made = rounds(willing, willing, willing, strict, config=planned("task=echo", "secagg=none"))
    made.agree()
    made.model = np.zeros(made.task.parameters, np.float32)
    for number in (1, 2):
        round_ = made.train(number)
        assert (sorted(round_.participants), round_.refused) == ([1, 2, 3], {4: code})


def test_a_budget_that_does_not_suffice_is_told_and_nothing_is_charged(tmp_path: Path) -> None:
    poor = dataclasses.replace(OPEN, privacy=Budget(epsilon=0.5, annual_epsilon=0.5, max_share_per_run=1.0))
    config = planned("privacy=distributed", "privacy.epsilon=1", "rounds=10")
    made = rounds(OPEN, poor, OPEN, config=config, homes=tmp_path)
    heads = [(tmp_path / str(number) / "privacy").stat().st_mtime_ns for number in range(3)]
    with pytest.raises(DeclinedError, match="south: privacy"):
        made.agree()
    assert heads == [(tmp_path / str(number) / "privacy").stat().st_mtime_ns for number in range(3)]


def test_institutions_that_cannot_read_the_question_are_asked_for_nothing() -> None:
    """Of a version before it, or before a field of its order: what they add up may have another form."""

    class Old:
        def answer(self, _request: object) -> Refusal:
            return Refusal(reason="protocol")

    config = planned()
    grid = InMemoryGrid({number: make_client_app(Old()) for number in NAMES}, NAMES)
    made = Rounds(config, "7", grid, make_optimizer(config.strategy), PlainAggregation(grid, 60.0))
    with pytest.raises(DeclinedError, match=r"north: protocol, .* update the older side's sovfed"):
        made.agree()


def test_what_an_institution_says_is_shown_only_if_it_names_settings() -> None:
    class Liar:
        def answer(self, _request: object) -> RunReply:
            return RunReply(beyond="max_rounds,\x1b[2J".replace("\x1b", "") + ",<b>x</b>")

    config = planned()
    grid = InMemoryGrid({number: make_client_app(Liar()) for number in NAMES}, NAMES)
    made = Rounds(config, "7", grid, make_optimizer(config.strategy), PlainAggregation(grid, 60.0))
    with pytest.raises(DeclinedError, match=r"north: max_rounds, south: max_rounds, west: max_rounds; ask"):
        made.agree()


@pytest.mark.parametrize("text", [b"", b"[]", b"{", b"{}", b'{"version": 1, "run": 3}', b'"' + b"x" * 20_000 + b'"'])
def test_a_malformed_question_is_refused(text: bytes) -> None:
    request = RunRequest("7", np.frombuffer(text, np.uint8), 1, 1, 1, 3, 32, 1.0, 100)
    with pytest.raises(ProtocolError):
        _ = last_of(request)
    trainer = make_trainer(planned().client, Rules.of(OPEN, MOST_BYTES))
    assert trainer.answer(request) == Refusal("protocol")


def test_an_institution_whose_node_takes_no_message_as_long_as_the_model_says_so_before_round_1() -> None:
    config = planned("rounds=1")
    request = whole_run(config, TASK, "7", "study", None)
    for most_bytes, beyond in ((2**20, ""), (2**14, "client.max_message_bytes")):
        trainer = make_trainer(config.client, Rules.of(OPEN, most_bytes))
        reply = trainer.answer(request)
        assert isinstance(reply, RunReply) and reply.beyond == beyond


def test_newcomers_are_asked_when_they_come() -> None:
    made = rounds(OPEN, OPEN, OPEN, config=planned("rounds=10"))
    made.agree()
    strict = dataclasses.replace(OPEN, max_rounds=5)
    apps = made.grid._apps  # type: ignore[attr-defined]
    for number, policy in ((4, strict), (5, OPEN)):
        apps[number] = make_client_app(make_trainer(planned().client, Rules.of(policy, MOST_BYTES)))
    assert made.cohort() == [1, 2, 3, 5]
    assert isinstance(made.agreement, Agreement) and made.agreement.beyond == {4: ("max_rounds",)}


@pytest.mark.parametrize(("silent", "asked"), [(1, 2), (agreement.TRIES, agreement.TRIES)])
def test_who_is_silent_is_asked_again_before_round_1_but_not_for_ever(
    monkeypatch: pytest.MonkeyPatch, silent: int, asked: int
) -> None:
    """Seen: in a stall nobody answered the first question, so no officer was waited for, and all refused round 1."""
    strict = dataclasses.replace(OPEN, max_rounds=5)
    made = rounds(OPEN, OPEN, OPEN, strict, config=planned("rounds=10"))
    questions = []

    def stalled(grid: Any, requests: Any, *args: Any) -> Any:
        questions.append(sorted(requests))
        for answer in aggregation.ask(grid, requests, *args):
            if answer.node_id != 4 or len(questions) > silent:
                yield answer

    monkeypatch.setattr(agreement, "ask", stalled)
    made.agree()
    assert questions == [[1, 2, 3, 4]] + [[4]] * (asked - 1)
    assert made.cohort() == ([1, 2, 3] if silent < agreement.TRIES else [1, 2, 3, 4])
    assert len(questions) == asked
