"""Client sampling under secure aggregation: one roster of all, sums over samples of it, with real trainers and keys."""

from __future__ import annotations

import dataclasses
import logging

import numpy as np
import pytest

from sovfed.clients.node.app import make_client_app
from sovfed.clients.trainer.masking import Masking
from sovfed.clients.trainer.rules import Rules
from sovfed.clients.trainer.service import make_trainer
from sovfed.federation.compose import compose
from sovfed.federation.config import DataConfig
from sovfed.federation.secagg.files import MemoryStore
from sovfed.federation.secagg.local import Authority
from sovfed.federation.secagg.terms import RECORD, REFUSE, Terms
from sovfed.federation.tasks import initial_vector
from sovfed.federation.tasks.registry import get_task
from sovfed.server.rounds import epochs, secure_aggregation
from sovfed.server.rounds.aggregation import Aggregation, PlainAggregation
from sovfed.server.rounds.loop import Rounds
from sovfed.server.rounds.sampling import MOST, Sampled
from sovfed.server.rounds.secure_aggregation import SecureAggregation
from sovfed.server.strategies import optimizer_of
from sovfed.simulations.grid import InMemoryGrid

TASK, COUNT, COHORT = get_task("breast_cancer"), 8, 5


def federation(secure: bool, differencing: str = RECORD, share: float = 0.6, most: int = MOST) -> Rounds:
    config = compose(["server.min_cohort=3", "server.sample=0.6", "server.node_wait_s=0.3"]).config
    authority, apps = Authority(), {}
    for node in range(1, COUNT + 1):
        identity, store = authority.institution(f"hospital-{node}"), MemoryStore()
        terms = Terms(min_cohort=3, colluders=0, differencing=differencing)
        masking = Masking(lambda identity=identity: identity, lambda store=store: store, terms)  # type: ignore[misc]
        client = dataclasses.replace(config.client, data=DataConfig(site=str(node % 4)))
        apps[node] = make_client_app(make_trainer(client, Rules(reproducible=True), masking=masking))
    grid = InMemoryGrid(apps)
    inner: Aggregation = PlainAggregation(grid, 60.0)
    if secure:
        inner = SecureAggregation(
            grid, authority.server("agency.test"), config.secagg, run="7", min_cohort=3, deadline_s=60.0,
            max_size=TASK.parameters, config_digest=bytes(32), wait_s=0.3, sampled=share < 1,
        )  # fmt: skip
    rounds = Rounds(config, "7", grid, optimizer_of(config, TASK), Sampled(inner, share, 3, seed=0, most=most))
    rounds.model = initial_vector(TASK, 0)
    return rounds


def test_sums_over_samples_need_no_new_roster_and_equal_the_plain_ones(caplog: pytest.LogCaptureFixture) -> None:
    models, cohorts = [], []
    for secure in (True, False):
        rounds = federation(secure)
        rounds.profile()
        with caplog.at_level(logging.INFO):
            done = [rounds.train(number) for number in (1, 2, 3)]
        models.append(rounds.model)
        cohorts.append([sorted(one.participants) for one in done])
    assert cohorts[0] == cohorts[1] and len({tuple(cohort) for cohort in cohorts[0]}) > 1
    assert all(len(cohort) == COHORT for cohort in cohorts[0])
    np.testing.assert_allclose(models[0], models[1], atol=1e-5)
    assert sum("secure aggregation: epoch" in record.message for record in caplog.records) <= 1


def test_policies_that_refuse_differencing_hold_a_run_without_privacy_to_one_sample(
    caplog: pytest.LogCaptureFixture,
) -> None:
    rounds = federation(True, REFUSE)
    rounds.profile()
    cohorts = [sorted(rounds.train(number).participants) for number in range(1, 5)]
    assert all(cohort == cohorts[0] for cohort in cohorts) and len(cohorts[0]) == COHORT
    assert "policies refuse sums over another sample" in caplog.text


@pytest.mark.parametrize("share", [0.6, 1.0])
def test_more_than_one_sum_takes_are_summed_in_samples_that_it_takes(
    monkeypatch: pytest.MonkeyPatch, share: float
) -> None:
    """As with 300 institutions, of which 255 are in each sum: here 5 of 8."""
    for module in (secure_aggregation, epochs):
        monkeypatch.setattr(module, "MAX_HOLDERS", COHORT)
    models, cohorts = [], []
    for secure in (True, False):
        rounds = federation(secure, share=share, most=COHORT)
        rounds.profile()
        cohorts.append([sorted(rounds.train(number).participants) for number in (1, 2, 3)])
        models.append(rounds.model)
    assert cohorts[0] == cohorts[1] and len({tuple(cohort) for cohort in cohorts[0]}) > 1
    assert all(len(cohort) == COHORT for cohort in cohorts[0])
    np.testing.assert_allclose(models[0], models[1], atol=1e-5)


def test_policies_that_refuse_differencing_hold_a_run_to_one_sample_of_as_many_as_a_sum_takes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for module in (secure_aggregation, epochs):
        monkeypatch.setattr(module, "MAX_HOLDERS", COHORT)
    rounds = federation(True, REFUSE, share=1.0, most=COHORT)
    rounds.profile()
    cohorts = [sorted(rounds.train(number).participants) for number in range(1, 4)]
    assert all(cohort == cohorts[0] for cohort in cohorts) and len(cohorts[0]) == COHORT
    rounds.evaluate(3)
