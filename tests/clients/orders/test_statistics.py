"""Statistics before a trainer that holds them to an order: attacks on what was signed, and on the budget."""

from __future__ import annotations

import dataclasses
import json
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
from tests.clients.orders.house import TASK, House

from sovfed.clients.ledger.book import PrivacyLedger, replay
from sovfed.clients.ledger.entries import Budget
from sovfed.clients.ledger.file import create_ledger, read_ledger
from sovfed.clients.node.app import make_client_app
from sovfed.clients.orders.rules import OrderRules, Standing
from sovfed.clients.trainer.books import Books
from sovfed.clients.trainer.masking import Masking
from sovfed.clients.trainer.rules import Rules
from sovfed.clients.trainer.service import TrainerService, make_trainer
from sovfed.clients.training.private import noise_reserve
from sovfed.federation.compose import compose
from sovfed.federation.config import ClientConfig, Config, DataConfig
from sovfed.federation.errors import BoundError, ConfigError, DeclinedError, OrderError, PolicyError
from sovfed.federation.messages import PrivateRequest, Refusal, Request, RunReply, RunRequest
from sovfed.federation.orders.answers import SIGNED
from sovfed.federation.orders.shown import asked, leaves
from sovfed.federation.privacy.accounting import epsilon
from sovfed.federation.secagg.files import MemoryStore, load_identity
from sovfed.federation.secagg.ring import Ring
from sovfed.federation.secagg.terms import RECORD, REFUSE, Terms
from sovfed.federation.statistics.shown import lines_of
from sovfed.federation.statistics.table import table_of
from sovfed.server.orders.making import Ordering
from sovfed.server.rounds.loop import Rounds, whole_run
from sovfed.server.rounds.privacy import PrivacyPlan, vector_size
from sovfed.server.rounds.secure_aggregation import SecureAggregation
from sovfed.server.strategies import make_optimizer
from sovfed.simulations.grid import InMemoryGrid

TERMS = Terms(min_cohort=3, colluders=0, differencing=RECORD)
WILLING = OrderRules(standing=Standing(statistics=True))
COMMON = ("task=breast_cancer", "server.min_cohort=3", "privacy.colluders=0", "order.wait_s=0")


def counting(question: str = "mean radius, malignant, bins=4", *more: str) -> Config:
    return compose([*COMMON, f"statistics={question}", *more]).config


def plan_of(config: Config, name: str = "study") -> PrivacyPlan:
    return PrivacyPlan.make(config, name, vector_size(config, TASK))


def whole(config: Config, name: str = "study") -> RunRequest:
    return whole_run(config, TASK, "7", name, plan_of(config, name))


class Unwitnessed(PrivacyLedger):
    """A ledger that pays without having been shown a head: what that is about is tested elsewhere."""

    def _runs(self) -> None:
        for run in "0123456789":
            self._shown[run] = None


def trainer(house: House, name: str, rules: OrderRules = WILLING, terms: Terms = TERMS) -> TrainerService:
    home, gate = house.home(name), house.gate(name, rules)
    identity, store = load_identity(home / "identity"), MemoryStore()
    create_ledger(home, Budget().population_name, house.now - 9)
    ledger = Unwitnessed(home, Budget())
    ledger._runs()
    return make_trainer(
        ClientConfig(device="cpu", data=DataConfig(site=str(int(name[1:]) % 4))),
        books=Books(lambda: ledger, orders=gate),
        masking=Masking(lambda: identity, lambda: store, terms, narrowed=gate.narrowed),
    )  # fmt: skip


def counted(house: House, trainers: dict[str, TrainerService], config: Config, run: str, name: str) -> Rounds:
    """A statistics run over these trainers, to its end."""
    folder = house.folder / name
    folder.mkdir()
    names = dict(enumerate(trainers, start=1))
    grid = InMemoryGrid({node: make_client_app(trainers[each]) for node, each in names.items()}, names)
    aggregation = SecureAggregation(
        grid, house.agency, config.secagg, run=run, min_cohort=3, deadline_s=60.0,
        max_size=vector_size(config, TASK), config_digest=bytes(32), wait_s=0.3,
    )  # fmt: skip
    rounds = Rounds(config, run, grid, make_optimizer(config.strategy), aggregation)
    rounds.plan, rounds.name = plan_of(config, name), name
    rounds.order = Ordering(config, name, folder, house.agency)
    rounds.model = np.zeros(vector_size(config, TASK), np.float32)
    rounds.agree()
    rounds.train(1)
    return rounds


def test_three_institutions_count_and_the_sum_is_right_within_its_noise(tmp_path: Path) -> None:
    house, config = House(tmp_path), counting("mean radius, malignant, bins=4", "privacy.epsilon=1.4")
    trainers = {name: trainer(house, name) for name in ("h1", "h2", "h3")}
    rounds = counted(house, trainers, config, "7", "study")
    plan = rounds.plan
    assert plan is not None and plan.question is not None
    table = table_of(plan.question, rounds.model, plan.deviation(3), least=0)
    shares = [len(rows_of(site)) for site in "123"]
    assert table["persons"] == pytest.approx(sum(shares), abs=6 * plan.deviation(3))
    assert sum(table["columns"][1]["cells"].values()) == pytest.approx(sum(shares), abs=9 * plan.deviation(3))


SIX: Final = ("h1", "h2", "h3", "h4", "h5", "h6")


def charges(house: House, name: str) -> int:
    return len(replay(read_ledger(house.home(name), Budget().population_name)[0]).spends)


def test_a_second_table_over_one_institution_less_is_refused_by_each_and_charged_to_none(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A table over {h1 … h6}, then one over {h1 … h5}: subtracted, they would tell what h6 holds within the noise."""
    house, strict = House(tmp_path), dataclasses.replace(TERMS, differencing=REFUSE)
    trainers = {name: trainer(house, name, terms=strict) for name in SIX}
    counted(house, trainers, counting("malignant", "privacy.epsilon=0.2"), "7", "all-six")
    fewer = {name: trainers[name] for name in SIX[:5]}
    with pytest.raises(DeclinedError, match=r"policy \(h1, h2, h3, h4, h5\)") as raised:
        counted(house, fewer, counting("mean radius", "privacy.epsilon=0.2"), "8", "without-h6")
    assert "h6" not in str(raised.value)
    told = "the institutions of this sum and of run 7, sum 2 (count) differ by h6, fewer than 3"
    assert caplog.text.count(told) >= 5
    assert [charges(house, name) for name in SIX] == [1] * 6
    counted(house, trainers, counting("mean radius", "privacy.epsilon=0.2"), "9", "all-six-again")
    three = {name: trainers[name] for name in SIX[:3]}
    counted(house, three, counting("malignant", "privacy.epsilon=0.2"), "6", "half")  # differs by three


@pytest.mark.parametrize("days", [0, 365])
def test_a_table_judges_the_next_ones_for_as_long_as_the_policy_says(tmp_path: Path, days: int) -> None:
    house, strict = House(tmp_path), dataclasses.replace(TERMS, differencing=REFUSE, table_days=days)
    trainers = {name: trainer(house, name, terms=strict) for name in SIX}
    question = counting("malignant", "privacy.epsilon=0.2")
    counted(house, trainers, question, "7", "all-six")
    fewer = {name: trainers[name] for name in SIX[:5]}
    if days:
        for each in fewer.values():
            age(each, days - 1)
        with pytest.raises(DeclinedError, match="policy"):
            counted(house, fewer, question, "8", "a-day-early")
        for each in fewer.values():
            age(each, days)
    counted(house, fewer, question, "9", "later")


def age(service: TrainerService, days: int) -> None:
    """The institution's tables are so many days old."""
    masking = service._masking
    assert masking is not None and masking._store is not None
    kept = masking._store.history.days
    for run in kept:
        kept[run] = int(time.time() // 86_400) - days


def test_who_drops_out_of_a_table_leaves_none_of_the_others_beside_an_earlier_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """h6 answers the order and then nothing: holders open no table over h1 … h5, after all of them had masked."""
    house, strict = House(tmp_path), dataclasses.replace(TERMS, differencing=REFUSE)
    trainers = {name: trainer(house, name, terms=strict) for name in SIX}
    question = counting("malignant", "privacy.epsilon=0.2")
    counted(house, trainers, question, "7", "all-six")
    trainers["h6"]._rules = Rules(silent_in_sums)
    with pytest.raises(DeclinedError):
        counted(house, trainers, question, "8", "one-drops-out")
    assert "differ by h6, fewer than 3" in caplog.text
    assert [charges(house, name) for name in SIX] == [2] * 5 + [1]  # what remains: noise that nobody sees is paid for


def silent_in_sums(request: Request) -> None:
    if isinstance(request, PrivateRequest):
        raise PolicyError("this one answers no sum")


def rows_of(site: str) -> np.ndarray[Any, Any]:
    from sovfed.clients.data import load_records

    records = load_records(TASK, DataConfig(site=site))
    return np.concatenate([records.train, records.test])


def test_statistics_asked_again_and_again_end_at_the_budget(tmp_path: Path) -> None:
    """Every ledger lets ε = 3 a year: what goes beyond is refused before anything is counted, and a small one fits."""
    house, asked = House(tmp_path), counting("malignant", "privacy.epsilon=1.45")
    trainers = {name: trainer(house, name) for name in ("h1", "h2", "h3")}
    done = 0
    with suppress(DeclinedError):
        while done < 9:
            counted(house, trainers, asked, str(done), f"study-{done}")
            done += 1
    with pytest.raises(DeclinedError, match="privacy"):
        counted(house, trainers, asked, str(done), "again")
    history = replay(read_ledger(house.home("h1"), Budget().population_name)[0])
    assert len(history.spends) == done > 1
    assert epsilon(history.spent(), 1e-6) <= 3.0 < epsilon([*history.spent(), history.spent()[0]], 1e-6)
    counted(house, trainers, counting("mean radius", "privacy.epsilon=0.02"), "9", "small")


@pytest.mark.parametrize("institutions", [3, 4, 5, 17, 63])
@pytest.mark.parametrize("question", ["malignant", "all, bins=5"])
def test_a_table_says_where_one_institution_s_counts_would_have_been_cut(question: str, institutions: int) -> None:
    """By what the ring holds there: a register with more persons would else be counted as a smaller one unseen."""
    plan = plan_of(counting(question))
    ring = Ring(32, plan.config.secagg.clip, plan.config.secagg.max_weight, institutions)
    request = plan.request("7", 1, np.zeros(plan.parameters, np.float32))
    most, bound = plan.most_counted(institutions), ring.half - 2 - noise_reserve(request, plan.parameters, ring.half)[1]
    assert plan.units.quantise(np.full(plan.parameters, float(most))).max() <= bound
    assert plan.units.quantise(np.full(plan.parameters, most * 1.01)).min() > bound
    assert plan.question is not None
    for largest, said in ((most - 1, False), (most + 1, True)):
        vector = np.full(plan.parameters, 100.0)
        vector[0] = largest
        table = table_of(plan.question, vector, plan.deviation(3), most=most)
        assert (table.get("cut_at") == most) is said is ("may be too small" in "".join(lines_of(table)))


def test_one_institution_alone_is_never_counted(tmp_path: Path) -> None:
    """Neither by an order for a cohort of one, nor where two refuse."""
    house = House(tmp_path)
    with pytest.raises(ConfigError, match="min_cohort"):
        counting("malignant", "server.min_cohort=1")
    config = counting()
    request = dataclasses.replace(whole(config), min_cohort=1)
    gate = house.gate("h4", WILLING)
    proposal = house.proposal(request, config)
    gate.consider(house.show(request, proposal))
    with pytest.raises(PolicyError, match="minimum cohort 1; this institution's terms: 3"):
        TERMS.check_parameters(bits=32, clip=8.0, max_weight=10_000, min_cohort=1, size=0)
    assert gate.narrowed("7", TERMS).min_cohort == 3
    trainers = {
        "h1": trainer(house, "h1"),
        **{name: trainer(house, name, house.required(name)) for name in ("h2", "h3")},
    }
    with pytest.raises(DeclinedError, match="2 of 3 institutions would not answer"):
        counted(house, trainers, config, "7", "alone")


def test_the_standing_consent_is_not_for_statistics_unless_it_says_so(tmp_path: Path) -> None:
    house, config = House(tmp_path), counting()
    request = whole(config)
    shown = house.show(request, house.proposal(request, config))
    assert house.gate("h1", OrderRules()).consider(shown) == ("awaiting", None)
    assert house.gate("h2", WILLING).consider(shown)[0] == "standing"
    trained = compose([*COMMON, "privacy=distributed"]).config
    plan = PrivacyPlan.make(trained, "study", TASK.parameters)
    usual = whole_run(trained, TASK, "7", "study", plan)
    assert house.gate("h3", OrderRules()).consider(house.show(usual, house.proposal(usual, trained)))[0] == "standing"


@pytest.mark.parametrize("purpose", ["to train the task's model", "research; statistics"])
def test_an_order_that_hides_that_it_counts_is_refused(tmp_path: Path, purpose: str) -> None:
    house, config = House(tmp_path), counting()
    request = whole(config)
    with pytest.raises(BoundError, match="one that asks for statistics says so"):
        house.gate("h1", WILLING).consider(house.show(request, house.proposal(request, config, purpose=purpose)))


def test_the_order_says_in_words_what_is_counted_and_what_it_costs(tmp_path: Path) -> None:
    house, config = House(tmp_path), counting()
    order = house.proposal(whole(config), config).order
    text = "\n".join([*asked(order), *leaves(order)])
    assert "purpose    statistics: mean radius, malignant, bins=4" in text
    assert "would leave: once, 9 masked counts of persons" in text
    assert "would cost a person: ε 0.5 at δ 1e-06" in text
    assert "the table goes to" in text and not any(word in text for word in ("the model goes", "strategy", "optimizer"))


def signed(house: House, config: Config, name: str = "h1") -> tuple[TrainerService, PrivateRequest]:
    """A trainer whose officer has signed the order of `config`, and the request that it is for."""
    service, request = trainer(house, name, house.required(name)), whole(config)
    proposal = house.proposal(request, config)
    shown = house.show(request, proposal)
    service.answer(shown)
    house.answer(name, proposal.order.digest)
    reply = service.answer(shown)
    assert isinstance(reply, RunReply) and reply.order == SIGNED
    made = plan_of(config).request("7", 1, np.zeros(vector_size(config, TASK), np.float32))
    return service, dataclasses.replace(made, begin=np.ones(1, np.uint8))


@pytest.mark.parametrize(
    "changes",
    [
        {"statistics": "mean radius, malignant, bins=5"}, {"statistics": "mean radius, malignant, bins=4, least=1"},
        {"statistics": "mean radius*malignant, bins=4"}, {"statistics": ""}, {"round": 2}, {"noise_multiplier": 0.5},
        {"clip": 1.0}, {"sampling_rate": 0.1}, {"honest": 9}, {"grant": "other"}, {"run": "8"},
    ],
)  # fmt: skip
def test_what_was_not_signed_is_not_counted(tmp_path: Path, changes: dict[str, Any]) -> None:
    """A bin chosen after the fact, another column, a second round, less noise, another run: an `order` refusal each."""
    house = House(tmp_path)
    service, request = signed(house, counting())
    assert service.answer(dataclasses.replace(request, **changes)) == Refusal("order")
    history = replay(read_ledger(house.home("h1"), Budget().population_name)[0])
    assert not history.spends


@pytest.mark.parametrize(
    "work",
    [
        {"clip": 0.5}, {"sampling_rate": 0.01}, {"mechanism": "institution"}, {"rounds": 3},
        {"statistics": "income"}, {"statistics": "mean radius, malignant, bins=9"},
    ],
)  # fmt: skip
def test_an_order_is_refused_whose_noise_is_not_for_what_it_counts(tmp_path: Path, work: dict[str, Any]) -> None:
    """A crooked agency orders what its own software would not: too small a clip, a sample that is none, no column."""
    house, config = House(tmp_path), counting()
    request = whole(config)
    scalars = {**json.loads(request.request.tobytes()), **work}
    forged = dataclasses.replace(request, request=np.frombuffer(json.dumps(scalars).encode(), np.uint8))
    reply = trainer(house, "h1").answer(house.show(forged, house.proposal(forged, config)))
    assert reply == Refusal("protocol")


def test_an_order_is_good_for_one_run_and_its_replay_for_none(tmp_path: Path) -> None:
    """The same order shown again by another of Flower's runs ends the first; a run of another name lacks it."""
    house, config = House(tmp_path), counting()
    gate, request = house.gate("h1", house.required("h1")), whole(config)
    proposal = house.proposal(request, config)
    house.answer("h1", proposal.order.digest)
    assert gate.consider(house.show(request, proposal))[0] == SIGNED
    other = dataclasses.replace(whole(config, "again"), run="8")
    with pytest.raises(OrderError, match="otherwise than its order in: run"):
        gate.consider(house.show(other, proposal))
    house.now = proposal.order.expires + 1
    with pytest.raises(BoundError, match="ended"):
        gate.consider(house.show(request, proposal))


def test_a_table_that_would_show_smaller_counts_than_the_policy_lets_is_refused() -> None:
    from sovfed.clients.home.policy import Policy

    policy = Policy(allowed_tasks=("breast_cancer",), secure_aggregation=TERMS)
    assert policy.check_run(whole(counting())) == []
    (error,) = policy.check_run(whole(counting("malignant, least=2")))
    assert error.limit == "min_cell"
