"""The coordinator's side of a private run: noise for all planned steps, and what may be claimed of the model."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from sovfed.federation.compose import compose
from sovfed.federation.errors import CohortError, ConfigError, PrivacyError
from sovfed.federation.privacy.accounting import epsilon
from sovfed.federation.privacy.events import Event
from sovfed.federation.privacy.noise import Units
from sovfed.federation.privacy.statement import from_json, to_html, to_json
from sovfed.server.rounds.aggregation import Total
from sovfed.server.rounds.privacy import PrivacyPlan

SIZE = 31


def made(*overrides: str) -> PrivacyPlan:
    config = compose(["privacy=distributed", "rounds=50", "server.min_cohort=5", *overrides]).config
    return PrivacyPlan.make(config, "trial", SIZE)


@pytest.mark.parametrize("mechanism", ["distributed", "silo", "institution"])
@pytest.mark.parametrize("target", [1.0, 8.0])
def test_noise_is_calibrated_to_all_rounds_steps_and_spares(mechanism: str, target: float) -> None:
    found = made(f"privacy={mechanism}", f"privacy.epsilon={target}", "privacy.local_steps=4", "privacy.spare_steps=3")
    steps = 50 * (4 if mechanism == "silo" else 1) + 3
    assert found.event.count == steps
    assert 0.99 * target < found.epsilon <= target
    if mechanism == "institution":  # a person may move an update by 2C, and everybody takes part
        assert found.event == Event(found.noise_multiplier / 2, 1.0, steps)
    assert epsilon([dataclasses.replace(found.event, count=steps + 20)], 1e-6) > target


def test_noise_stays_the_same_over_the_rounds_and_a_resumed_run() -> None:
    found, model = made(), np.zeros(SIZE, np.float32)
    requests = [found.request("1", 1, model), found.request("1", 50, model), made().request("2", 7, model)]
    assert len({request.noise_multiplier for request in requests}) == 1
    assert {(request.rounds, request.steps, request.spare) for request in requests} == {(50, 1, 2)}


def test_noise_that_keeps_no_promise_is_refused_before_anything_is_asked() -> None:
    """And not when the model is published, after every ledger was charged."""
    with pytest.raises(PrivacyError, match="over 1002 steps keeps no ε that can be told"):
        made("privacy=silo", "privacy.noise_multiplier=0.3", "privacy.local_steps=20")


@pytest.mark.parametrize("mechanism", ["distributed", "institution"])
def test_noise_that_fits_no_ring_is_refused_before_anything_is_asked(mechanism: str) -> None:
    """Seen: five attempts of round 1, each refused by every institution."""
    words = (f"privacy={mechanism}", "rounds=1", "privacy.noise_multiplier=2000")
    with pytest.raises(PrivacyError, match="does not fit the ring's room of 268435454: take fewer grid_bits"):
        made(*words)  # 32 bits, 3 of them for a cohort of 5: 2^28 - 2
    made(*words, "privacy.grid_bits=8")
    made("privacy=silo", *words[1:])


@pytest.mark.parametrize(("cohort", "colluders", "honest"), [(5, 1, 4), (5, 2, 3), (20, 0, 20)])
def test_noise_of_feared_colluders_is_not_counted_on(cohort: int, colluders: int, honest: int) -> None:
    found = made(f"server.min_cohort={cohort}", f"privacy.colluders={colluders}")
    assert found.honest == honest
    assert made("privacy=silo", f"server.min_cohort={cohort}").honest == 1


def test_a_cohort_of_nothing_but_colluders_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"colluders is 5, server\.min_cohort 5"):
        made("privacy.colluders=5")


def test_a_private_run_without_secure_aggregation_is_refused() -> None:
    with pytest.raises(ConfigError, match="needs secure aggregation"):
        made("secagg=none")


def test_the_sum_becomes_a_step_over_declared_numbers() -> None:
    found = made("privacy.population=400", "privacy.sampling_rate=0.1", "task.learning_rate=0.5")
    units = Units(1.0, SIZE, 16)
    total = Total(participants=[1, 2, 3], integers=units.quantise(np.full(SIZE, 8.0)))
    assert np.allclose(found.mean_update(total), -0.5 * 8.0 / 40)
    with pytest.raises(CohortError, match="no private sum came"):
        found.mean_update(Total())
    with pytest.raises(CohortError, match="no private update came"):
        made("privacy=silo").mean_update(Total())


def test_the_statement_claims_what_the_plan_grants() -> None:
    found = made("privacy.epsilon=2")
    statement = found.statement("trial", "digits", ["b", "a", "c", "d", "e"], "2026-01-31")
    assert from_json(to_json(statement)) == statement
    assert statement.epsilon == found.epsilon  # with the samplers' distance in δ
    assert (statement.cohort, statement.threshold, statement.colluders) == (5, 4, 1)
    assert "at most 4 of the 5" not in to_html(statement)
    assert "at least 4 of the 5 institutions" in to_html(statement)
    silo = made("privacy=silo").statement("trial", "digits", ["a", "b", "c", "d", "e"], "2026-01-31")
    assert (silo.threshold, silo.colluders) == (1, 0)


@pytest.mark.parametrize(
    ("overrides", "share"),
    [  # √(T/d)·b/z by hand; of silo the noise of 5 institutions is averaged
        (["privacy.population=10", "privacy.sampling_rate=0.1", "privacy.noise_multiplier=2"], "0.6"),
        (["privacy=silo", "privacy.local_steps=2", "privacy.population=10", "privacy.noise_multiplier=2"], "0.4"),
        (["privacy=institution", "privacy.noise_multiplier=9"], "0.7"),
    ],
)
def test_noise_beyond_all_that_could_be_said_is_told(overrides: list[str], share: str) -> None:
    assert f"is {share} times as long as the noise" in made("server.start_cohort=5", *overrides).drowned


@pytest.mark.parametrize("mechanism", ["distributed", "silo"])
def test_with_the_persons_that_are_asked_for_noise_is_as_long_as_what_is_learnt(mechanism: str) -> None:
    settings = (
        f"privacy={mechanism}",
        "privacy.sampling_rate=0.1",
        "privacy.noise_multiplier=2",
        "server.start_cohort=5",
    )
    few = made(*settings, "privacy.population=10")
    asked = int(few.expectation.rpartition(" ")[2])
    assert few.drowned
    assert not made(*settings, f"privacy.population={asked}").drowned
    assert made(*settings, f"privacy.population={asked - 1}").drowned
    each = few.batch * (5**0.5 if mechanism == "silo" else 1)
    assert f"noise of {2 * few.config.privacy.clip / each:.2g} on each of" in few.expectation


def test_a_population_that_nobody_chose_is_said_to_be_the_default() -> None:
    assert "privacy.population = 1000 persons (as by default" in made("privacy.noise_multiplier=1").expectation
    chosen = made("privacy.noise_multiplier=1", "privacy.population=1300").expectation
    assert "privacy.population = 1300 persons; as long" in chosen and "default" not in chosen
    assert "population" not in made("privacy=institution", "privacy.noise_multiplier=9").expectation


@pytest.mark.parametrize("mechanism", ["distributed", "silo", "institution"])
def test_a_run_that_may_learn_is_not_warned_of(mechanism: str, caplog: pytest.LogCaptureFixture) -> None:
    assert made(f"privacy={mechanism}", "privacy.noise_multiplier=1").drowned == ""
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
