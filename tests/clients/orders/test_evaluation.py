"""Models scored under an order that names them: what was not named is not scored, and one institution never alone."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.clients.orders.house import TASK, House
from tests.clients.orders.test_statistics import Unwitnessed

from sovfed.clients.home.policy import Policy
from sovfed.clients.ledger.book import PrivacyLedger, replay
from sovfed.clients.ledger.entries import Budget
from sovfed.clients.ledger.file import create_ledger, read_ledger
from sovfed.clients.models.received import ReceivedModels
from sovfed.clients.node.app import make_client_app
from sovfed.clients.orders.rules import OrderRules
from sovfed.clients.statistics.scores import keep_score, scores_in
from sovfed.clients.trainer.books import Books
from sovfed.clients.trainer.masking import Masking
from sovfed.clients.trainer.service import TrainerService, make_trainer
from sovfed.federation.compose import compose
from sovfed.federation.config import ClientConfig, Config, DataConfig
from sovfed.federation.errors import ConfigError, DeclinedError, NotPrivateError, OrderError
from sovfed.federation.messages import EvaluateRequest, PrivateRequest, Request, RunRequest, TrainRequest
from sovfed.federation.models.facts import RunFacts
from sovfed.federation.models.saved import save_model
from sovfed.federation.orders.answers import CONSENTED, SIGNED
from sovfed.federation.orders.shown import asked, leaves
from sovfed.federation.privacy.accounting import epsilon
from sovfed.federation.secagg.files import MemoryStore, load_identity
from sovfed.federation.secagg.terms import RECORD, Terms
from sovfed.federation.tasks import initial_vector, summarise
from sovfed.server.orders.making import Ordering
from sovfed.server.rounds.candidates import read_candidates, scoring_request, with_candidate
from sovfed.server.rounds.loop import Rounds, whole_run
from sovfed.server.rounds.privacy import PrivacyPlan, vector_size
from sovfed.server.rounds.record import scored
from sovfed.server.rounds.secure_aggregation import SecureAggregation
from sovfed.server.strategies import make_optimizer
from sovfed.simulations.grid import InMemoryGrid

TERMS = Terms(min_cohort=3, colluders=0, differencing=RECORD)
SCALE = TASK.transform.public_scale


def models(folder: Path, count: int = 2) -> list[Path]:
    """Folders of models that nobody trained here."""
    paths = []
    for number in range(count):
        path = folder / f"model-{number}"
        path.mkdir()
        vector = initial_vector(TASK, number) + np.float32(number)
        save_model(path, TASK, vector.astype(np.float32), SCALE, RunFacts(f"model-{number}"))
        paths.append(path)
    return paths


def scoring(paths: list[Path], *more: str) -> Config:
    asked = f"evaluate={','.join(map(str, paths))}"
    return compose(
        ["task=breast_cancer", "server.min_cohort=3", "privacy.colluders=0", asked, "order.wait_s=0", *more]
    ).config


def whole(config: Config, name: str = "study") -> RunRequest:
    return whole_run(config, TASK, "7", name, None)


def message(config: Config, number: int, **changes: Any) -> EvaluateRequest:
    """What the agency sends to have candidate `number` scored."""
    candidates = read_candidates(config, TASK)
    request = scoring_request(config, TASK, "7", "study", candidates)
    chosen = candidates[number - 1]
    request = dataclasses.replace(request, round=number, model=chosen.model, scale=chosen.scale)
    return dataclasses.replace(request, begin=np.ones(1, np.uint8), **changes)


def trainer(
    house: House, name: str, rules: OrderRules, open_ledger: Callable[[], PrivacyLedger | None]
) -> TrainerService:
    home, gate = house.home(name), house.gate(name, rules)
    identity, store = load_identity(home / "identity"), MemoryStore()
    return make_trainer(
        ClientConfig(device="cpu", data=DataConfig(site=name[1:])),
        books=Books(open_ledger, orders=gate, received=ReceivedModels(home / "received")),
        masking=Masking(lambda: identity, lambda: store, TERMS, narrowed=gate.narrowed),
    )  # fmt: skip


def rounds(
    house: House,
    config: Config,
    rules: dict[str, OrderRules],
    run: str = "7",
    open_ledger: Callable[[str], PrivacyLedger | None] = lambda _name: None,
) -> Rounds:
    folder, names = house.folder / f"study-{run}", dict(enumerate(rules, start=1))
    folder.mkdir()
    trainers = {node: trainer(house, name, rules[name], partial(open_ledger, name)) for node, name in names.items()}
    grid = InMemoryGrid({node: make_client_app(service) for node, service in trainers.items()}, names)
    aggregation = SecureAggregation(
        grid, house.agency, config.secagg, run=run, min_cohort=3, deadline_s=60.0, max_size=TASK.parameters,
        config_digest=bytes(32), wait_s=0.3,
    )  # fmt: skip
    made = Rounds(config, run, grid, make_optimizer(config.strategy), aggregation)
    made.name, made.order = "study", Ordering(config, "study", folder, house.agency)
    made.model = np.zeros(TASK.parameters, np.float32)
    return made


def test_two_models_are_scored_side_by_side_and_each_site_keeps_its_own_figures(tmp_path: Path) -> None:
    house, config = House(tmp_path), scoring(models(tmp_path))
    made = rounds(house, config, dict.fromkeys(("h1", "h2", "h3"), OrderRules()))
    made.agree()
    lines = [made.train(number) for number in (1, 2)]
    by_site = {name: scores_in(house.home(name) / "received") for name in ("h1", "h2", "h3")}
    for candidate, line in zip(made.candidates, lines, strict=True):
        assert line.evaluation is not None
        own = [scores[0]["models"][candidate.digest] for scores in by_site.values()]
        assert line.evaluation[0] == sum(each["records"] for each in own)
        accuracy = sum(each["accuracy"] * each["records"] for each in own) / line.evaluation[0]
        assert summarise(TASK, line.evaluation, SCALE)["accuracy"] == pytest.approx(accuracy)
    first, second = (line.evaluation for line in lines)
    assert first is not None and second is not None and not np.array_equal(first, second)


def test_an_order_names_the_models_and_no_other_is_scored_under_it(tmp_path: Path) -> None:
    house, paths = House(tmp_path), models(tmp_path, 3)
    config, other = scoring(paths[:2]), scoring(paths[1:])
    gate, request = house.gate("h1", house.required("h1")), whole(config)
    proposal = house.proposal(request, config)
    assert len(proposal.order.candidates) == 2
    assert all(digest in "\n".join(leaves(proposal.order)) for digest in proposal.order.candidates)
    shown = house.show(request, proposal)
    assert gate.consider(shown) == ("awaiting", None)
    house.answer("h1", proposal.order.digest)
    assert gate.consider(shown)[0] == SIGNED
    gate.require(message(config, 1))
    gate.require(message(config, 2))
    changed = message(config, 1)
    forged = [
        message(other, 1), message(other, 2),
        dataclasses.replace(changed, model=changed.model + np.float32(1e-3)),
        dataclasses.replace(changed, scale=changed.scale * 0.5), dataclasses.replace(changed, candidates=""),
        dataclasses.replace(changed, round=2), dataclasses.replace(changed, round=3),
        dataclasses.replace(changed, run="8"), dataclasses.replace(changed, begin=np.zeros(0, np.uint8)),
        dataclasses.replace(message(other, 2), candidates=changed.candidates),
    ]  # fmt: skip
    for each in forged:
        with pytest.raises(OrderError):
            gate.require(each)


def test_an_order_to_score_that_names_no_models_or_too_few_is_none(tmp_path: Path) -> None:
    """It would be for any model that the agency likes to ask with."""
    house, config = House(tmp_path), scoring(models(tmp_path))
    for candidates in ("", message(config, 1).candidates.partition(",")[0]):
        request = whole(config)
        scalars = {**json.loads(request.request.tobytes()), "candidates": candidates}
        forged = dataclasses.replace(request, request=np.frombuffer(json.dumps(scalars).encode(), np.uint8))
        with pytest.raises(OrderError, match="candidates"):
            house.gate("h1", OrderRules()).consider(house.show(forged, house.proposal(forged, config)))


@pytest.mark.parametrize("algorithm", ["ditto", "fedbn", "scaffold"])
def test_an_order_to_score_institutions_own_models_in_place_of_the_named_is_none(
    tmp_path: Path, algorithm: str
) -> None:
    """Under a name by which personal models are kept, those would be what is measured."""
    house, config = House(tmp_path), scoring(models(tmp_path))
    request = whole(config)
    scalars = {**json.loads(request.request.tobytes()), "algorithm": algorithm}
    forged = dataclasses.replace(request, request=np.frombuffer(json.dumps(scalars).encode(), np.uint8))
    with pytest.raises(OrderError, match="algorithm"):
        house.gate("h1", OrderRules()).consider(house.show(forged, house.proposal(forged, config)))


def test_no_candidate_is_scored_under_an_order_to_train(tmp_path: Path) -> None:
    """Its officers were shown none, and would read in `client evaluations` that they had agreed to one."""
    house, config = House(tmp_path), scoring(models(tmp_path))
    trained = compose(["task=breast_cancer", "server.min_cohort=3", "privacy.colluders=0", "rounds=2"]).config
    gate, request = house.gate("h1", OrderRules()), whole_run(trained, TASK, "7", "study", None)
    assert gate.consider(house.show(request, house.proposal(request, trained)))[0] == CONSENTED
    gate.require(message(config, 1, candidates=""))
    with pytest.raises(OrderError, match="candidates"):
        gate.require(message(config, 1))


def test_metrics_that_fail_keep_no_figure_and_fail_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Sums of another length, as a package's own metrics may make them: what leaves does not depend on it."""
    config = scoring(models(tmp_path))
    for sums in (np.zeros(0), np.full(TASK.evaluation_size, np.nan)):
        keep_score(ReceivedModels(tmp_path / "received"), message(config, 1), TASK, sums)
    assert caplog.text.count("are not kept") == 2 and not scores_in(tmp_path / "received")


def test_nothing_is_trained_under_an_order_to_score(tmp_path: Path) -> None:
    house, config = House(tmp_path), scoring(models(tmp_path))
    gate, request = house.gate("h1", OrderRules()), whole(config)
    assert gate.consider(house.show(request, house.proposal(request, config)))[0] == CONSENTED
    scored = message(config, 1)
    train = TrainRequest(
        run="7", round=1, task=TASK.name, seed=0, local_epochs=1, batch_size=32, learning_rate=0.1, proximal_mu=0.0,
        model=scored.model, scale=scored.scale, begin=scored.begin, digest=TASK.digest, keep="study",
    )  # fmt: skip
    with pytest.raises(OrderError, match="a kind of message"):
        gate.require(train)


def test_one_institution_is_never_scored_alone(tmp_path: Path) -> None:
    house, paths = House(tmp_path), models(tmp_path)
    with pytest.raises(ConfigError, match="min_cohort"):
        scoring(paths, "server.min_cohort=1")
    rules = {"h1": OrderRules(), "h2": house.required("h2"), "h3": house.required("h3")}
    with pytest.raises(DeclinedError, match="2 of 3 institutions would not answer"):
        rounds(house, scoring(paths), rules).agree()


def test_the_default_policy_answers_no_scores_without_privacy(tmp_path: Path) -> None:
    config = scoring(models(tmp_path))
    policy = Policy(allowed_tasks=("breast_cancer",), secure_aggregation=TERMS)
    with pytest.raises(NotPrivateError):
        policy.check_run(whole(config))
    willing = dataclasses.replace(policy, require_privacy=False)
    assert willing.check_run(whole(config)) == []
    few = dataclasses.replace(willing, max_evaluations_per_run=1)
    assert [error.limit for error in few.check_run(whole(config))] == ["max_evaluations_per_run"]


def test_models_of_another_task_or_twice_are_told_before_anybody_is_asked(tmp_path: Path) -> None:
    paths = models(tmp_path)
    with pytest.raises(ConfigError, match="a model is there twice"):
        whole(scoring([paths[0], paths[0]]))
    with pytest.raises(ConfigError, match=r"candidates are scored, one a round"):
        scoring(paths, "rounds=3")
    with pytest.raises(ConfigError, match=r"candidates are scored, one a round"):
        scoring(paths, "privacy=silo")
    with pytest.raises(ConfigError, match=r"scored on all held-out persons"):
        scoring(paths, "privacy=distributed", "privacy.sampling_rate=0.5")


def private(paths: list[Path], *more: str) -> Config:
    return scoring(paths, "privacy=distributed", "privacy.epsilon=1.4", *more)


def plan_of(config: Config) -> PrivacyPlan:
    return PrivacyPlan.make(config, "study", vector_size(config, TASK))


def private_message(config: Config, number: int, **changes: Any) -> PrivateRequest:
    candidates = read_candidates(config, TASK)
    request = plan_of(config).request("7", number, np.zeros(0, np.float32))
    return dataclasses.replace(with_candidate(request, candidates, number), begin=np.ones(1, np.uint8), **changes)


def private_rounds(house: House, config: Config, names: tuple[str, ...] = ("h1", "h2", "h3"), run: str = "7") -> Rounds:
    made = rounds(house, config, dict.fromkeys(names, OrderRules()), run=run, open_ledger=partial(ledger_of, house))
    made.name = f"study-{run}"
    made.plan = PrivacyPlan.make(config, made.name, vector_size(config, TASK))
    made.order = Ordering(config, made.name, house.folder / made.name, house.agency)
    return made


@cache
def ledger_of(house: House, name: str) -> PrivacyLedger:
    """The one ledger of an institution, which one process at a time holds."""
    create_ledger(house.home(name), Budget().population_name, house.now - 9)
    ledger = Unwitnessed(house.home(name), Budget())
    ledger._runs()
    return ledger


def charged(house: House, name: str) -> int:
    return len(replay(read_ledger(house.home(name), Budget().population_name)[0]).spends)


def test_private_scores_are_right_within_their_noise_charged_once_a_model_and_kept_at_each_site(tmp_path: Path) -> None:
    house, config = House(tmp_path), private(models(tmp_path))
    made = private_rounds(house, config)
    made.agree()
    lines = [made.train(number) for number in (1, 2)]
    plan = made.plan
    assert plan is not None and plan.scores is not None
    assert [charged(house, name) for name in ("h1", "h2", "h3")] == [2, 2, 2]
    by_site = [scores_in(house.home(name) / "received")[0]["models"] for name in ("h1", "h2", "h3")]
    deviation = plan.deviation(3)
    for candidate, line in zip(made.candidates, lines, strict=True):
        assert line.scores is not None and line.evaluation is None
        own = [site[candidate.digest] for site in by_site]
        persons = sum(each["records"] for each in own)
        correct = sum(each["accuracy"] * each["records"] for each in own)
        assert line.scores[0] == pytest.approx(persons, abs=6 * deviation)
        assert line.scores[1] == pytest.approx(correct - persons / 2, abs=6 * deviation)
        said = scored(TASK, candidate, line, SCALE, plan)
        assert said["noise_deviation"] == deviation and said["model"]["digest"] == candidate.digest


def test_the_default_policy_answers_private_scores(tmp_path: Path) -> None:
    config = private(models(tmp_path))
    policy = Policy(allowed_tasks=("breast_cancer",), secure_aggregation=TERMS)
    request = whole_run(config, TASK, "7", "study", plan_of(config))
    assert policy.check_run(request) == []
    policy.check(private_message(config, 1))


def declined(made: Rounds) -> bool:
    """Whether too many ledgers would not pay for the run."""
    try:
        made.agree()
    except DeclinedError as error:
        return "privacy" in str(error)
    return False


def test_private_scores_end_at_the_budget(tmp_path: Path) -> None:
    """Each ledger lets ε = 3 a year: what goes beyond is refused before anything is computed."""
    house, config, done = House(tmp_path), private(models(tmp_path, 1)), 0
    while not declined(made := private_rounds(house, config, run=str(done))):
        made.train(1)
        done += 1
    history = replay(read_ledger(house.home("h1"), Budget().population_name)[0])
    assert len(history.spends) == done > 1
    assert epsilon(history.spent(), 1e-6) <= 3.0 < epsilon([*history.spent(), history.spent()[0]], 1e-6)


def test_an_order_for_private_scores_names_the_models_and_no_other_is_scored_under_it(tmp_path: Path) -> None:
    house, paths = House(tmp_path), models(tmp_path, 3)
    config, other = private(paths[:2]), private(paths[1:])
    request = whole_run(config, TASK, "7", "study", plan_of(config))
    proposal = house.proposal(request, config)
    text = "\n".join([*asked(proposal.order), *leaves(proposal.order)])
    assert all(digest in text for digest in proposal.order.candidates) and len(proposal.order.candidates) == 2
    assert "would cost a person: ε 1.3999 at δ 1e-06" in text
    gate = house.gate("h1", OrderRules())
    assert gate.consider(house.show(request, proposal))[0] == CONSENTED
    gate.require(private_message(config, 1))
    gate.require(private_message(config, 2))
    changed = private_message(config, 1)
    forged: list[Request] = [
        private_message(other, 1), private_message(other, 2), message(config, 1),
        dataclasses.replace(changed, model=changed.model + np.float32(1e-3)),
        dataclasses.replace(changed, scale=changed.scale * 0.5), dataclasses.replace(changed, candidates=""),
        dataclasses.replace(changed, round=2), dataclasses.replace(changed, scores=2),
        dataclasses.replace(changed, statistics="malignant"), dataclasses.replace(changed, noise_multiplier=0.5),
    ]  # fmt: skip
    for each in forged:
        with pytest.raises(OrderError):
            gate.require(each)


def test_no_candidate_is_scored_under_an_order_to_train_privately(tmp_path: Path) -> None:
    house, config = House(tmp_path), private(models(tmp_path))
    trained = compose(
        ["task=breast_cancer", "server.min_cohort=3", "privacy.colluders=0", "privacy=distributed", "rounds=2"]
    ).config
    plan = PrivacyPlan.make(trained, "study", TASK.parameters)
    request = whole_run(trained, TASK, "7", "study", plan)
    gate = house.gate("h1", OrderRules())
    assert gate.consider(house.show(request, house.proposal(request, trained)))[0] == CONSENTED
    step = plan.request("7", 1, np.zeros(TASK.parameters, np.float32))
    gate.require(dataclasses.replace(step, begin=np.ones(1, np.uint8)))
    with pytest.raises(OrderError):
        gate.require(private_message(config, 1))
