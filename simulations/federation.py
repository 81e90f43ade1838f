"""The federation in one process: the deployed coordinator, ClientApp and trainers, with memory between them."""

from __future__ import annotations

import dataclasses
import gc
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from sovfed.clients import data as records_of
from sovfed.clients.data import Dataset
from sovfed.clients.node.app import make_client_app
from sovfed.clients.trainer.held import HeldModels
from sovfed.clients.trainer.loaded import RecordSource, Runtime
from sovfed.clients.trainer.masking import Masking
from sovfed.clients.trainer.rules import Rules
from sovfed.clients.trainer.service import TrainerService
from sovfed.clients.training.device import choose_device, make_deterministic, one_thread
from sovfed.clients.training.local import WARMING, LocalTraining
from sovfed.clients.training.model import FlatModel
from sovfed.clients.training.personal import PersonalStates
from sovfed.federation.config import SECURE_COHORT, Config, DataConfig
from sovfed.federation.errors import CohortError, ConfigError, DataError, TrainingError
from sovfed.federation.files import write_private
from sovfed.federation.models.saved import write_card
from sovfed.federation.secagg.files import MemoryStore
from sovfed.federation.secagg.local import Authority
from sovfed.federation.secagg.shares import MAX_HOLDERS
from sovfed.federation.secagg.terms import LEAST_COHORT, RECORD, Terms
from sovfed.federation.tasks import Task, summarise
from sovfed.federation.tasks.conformance import require_works
from sovfed.federation.tasks.registry import configured_task
from sovfed.federation.wire.grids import StreamingGrid
from sovfed.server.orders.foreseen import beyond_usual
from sovfed.server.rounds.aggregation import Aggregation
from sovfed.server.rounds.coordinator import Outcome, coordinate
from sovfed.server.rounds.privacy import PrivacyPlan, vector_size
from sovfed.server.runs.release import SUMMARY
from sovfed.server.runs.tracking import Tracker
from sovfed.simulations.baselines import merge
from sovfed.simulations.grid import Apps, Failures, InMemoryGrid
from sovfed.simulations.population import KEPT, Institution, institution_names, of_sites, sites, wrong_data

__all__ = ["institution_names", "simulate", "simulate_population", "sites"]
log = logging.getLogger(__name__)
INSTITUTIONS: Final = "institutions"  # folder of what each of them keeps, where a strategy makes it keep something
ENGINE: Final = "engine.json"  # what engine=auto chose
OUTSIDE: Final = "simulated_metrics"  # in the summary of a private simulation
PROFILED: Final = 1_000  # institutions whose records give the features' mean and standard deviation, at most
WORTH_S: Final = 0.01  # of an institution's training, from which on worker processes gain more than messages cost


def simulate(
    config: Config,
    data: list[DataConfig],
    folder: Path,
    *,
    tracker: Tracker | None = None,
    resume: bool = False,
    on_round: Callable[[dict[str, Any]], None] = lambda line: None,
) -> Outcome:
    """Train over one in-process institution per entry of `data`; the run's folder is `folder`, as in a deployment."""
    return simulate_population(config, of_sites(data), folder, tracker=tracker, resume=resume, on_round=on_round)


def simulate_population(
    config: Config,
    population: Sequence[Institution],
    folder: Path,
    *,
    tracker: Tracker | None = None,
    resume: bool = False,
    on_round: Callable[[dict[str, Any]], None] = lambda line: None,
    on_start: Callable[[str], None] = log.info,
) -> Outcome:
    """Train over `population`, or a sample of `simulation.cohort` of it in every round, by `simulation.engine`.

    `on_start` is told what to expect of the noise, if the run is private and trains. Raises ConfigError if the engine
    cannot train the task, or there are too many for secure aggregation.
    """
    if config.client.deterministic:
        make_deterministic()
    require_works(configured_task(config.task))
    cohort = min(config.simulation.cohort or len(population), len(population))
    config = _settled(config, cohort)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    for line in _foreseen(config):
        on_start(line)
    authority = Authority() if config.secagg.enabled else None
    failures = Failures()
    held = HeldModels()  # the agency's model, which is the same for all
    make_model = lru_cache(1)(FlatModel)  # institutions are called one after the other: one model does for all

    def trainer(node: int) -> TrainerService:
        institution = population[node - 1]
        return TrainerService(
            RecordSource(institution.load, institution.site),
            Runtime(
                config.client.device, config.client.precision, config.client.evaluation_records, make_model=make_model
            ),
            Rules(reproducible=True),
            masking=_masking(authority, institution.name, cohort, config.secagg.clip),
            states=PersonalStates(folder / INSTITUTIONS / institution.name, durable=False),
            repeats=authority is not None, held=held, on_error=failures.note,
        )  # fmt: skip

    # An institution's identity, keys and journal must outlive the round; without them it is cheap to make again.
    apps = Apps(
        lambda node: make_client_app(trainer(node)),
        len(population),
        keep=max(cohort, KEPT) if authority is None else len(population),
    )

    def run(grid: StreamingGrid, transport: str = "ray") -> Outcome:
        return coordinate(
            grid, config, run="1", folder=folder, transport=transport,
            identity=None if authority is None else authority.server("simulation"), tracker=tracker, resume=resume,
            on_round=on_round, engine=lambda usual: _engine(usual, grid, population, config, cohort, engine_file),
        )  # fmt: skip

    engine_file = folder / ENGINE
    if not resume:
        engine_file.unlink(missing_ok=True)
    names = [institution.name for institution in population]
    try:
        if config.simulation.engine == "ray":
            from sovfed.simulations.ray_engine import run_on_ray

            return run_on_ray(config, names, folder, run)
        with (
            _kept_heap(), _threads(config), failures.unlogged(),
            closing(_grid(config, apps, names, population[0], cohort, failures)) as grid,
        ):  # fmt: skip
            outcome = _told(lambda: run(grid, "in-memory"), failures)
    except DataError as error:
        raise wrong_data(population, configured_task(config.task), error) from error
    if config.privacy.private and not config.task.tells_table:
        outcome.summary[OUTSIDE] = _measure(config, population, outcome)
        write_card(folder, outside=outcome.summary[OUTSIDE])
        write_private(folder / SUMMARY, json.dumps(outcome.summary, indent=2).encode())
    return outcome


def _foreseen(config: Config) -> Iterator[str]:
    """What to expect of a private run's noise; what a federation would refuse of `config` is warned of."""
    if config.secagg.enabled and config.secagg.clip < Terms.min_clip:
        log.warning(
            "secagg.clip %g: institutions refuse one below %g, the secure_aggregation.min_clip of their policy.yaml",
            config.secagg.clip,
            Terms.min_clip,
        )
    if config.privacy.private and not config.task.statistics:
        plan = PrivacyPlan.make(config, "", vector_size(config, configured_task(config.task)))
        lines = (plan.expectation, plan.timid, *(f"in a federation {line}" for line in beyond_usual(plan)))
        yield from filter(None, lines)


@contextmanager
def _kept_heap() -> Iterator[None]:
    """What is there already, modules above all, is not searched for garbage again and again meanwhile."""
    kept = gc.get_freeze_count() > 0  # by whoever calls us, who goes on with it
    gc.freeze()
    try:
        yield
    finally:
        if not kept:
            gc.unfreeze()


def _told(run: Callable[[], Outcome], failures: Failures) -> Outcome:
    """What `run` gives; where institutions failed, the first of their `failures`, which a researcher is to see."""
    try:
        return run()
    except (CohortError, TrainingError) as error:
        if failures.first is not None:
            raise failures.first from error
        raise


def _settled(config: Config, cohort: int) -> Config:
    """`config` with the cohort that there is, and what the engine leaves out. Raises ConfigError."""
    stacked = config.simulation.engine == "vectorised"
    if config.secagg.enabled and not stacked and not SECURE_COHORT <= cohort <= MAX_HOLDERS:
        more = "cut one table up with partition=iid or data.site_column=COLUMN, or " if cohort < SECURE_COHORT else ""
        raise ConfigError(
            f"{cohort} institution{'s' if cohort > 1 else ''} a round; secure aggregation takes {SECURE_COHORT} to "
            f"{MAX_HOLDERS}: {more}add `secagg=none`"
        )
    if config.privacy.private and cohort < config.privacy.colluders + SECURE_COHORT:
        least = config.privacy.colluders + SECURE_COHORT
        raise ConfigError(f"{cohort} institutions a round; privacy.colluders {least - SECURE_COHORT} asks for {least}")
    if "," in config.client.device:
        raise ConfigError("client.device: a simulation trains on one device; several are for a trainer of its own")
    if config.simulation.workers and config.simulation.engine in ("ray", "vectorised"):
        raise ConfigError(f"simulation.workers are for engine=inprocess, not for '{config.simulation.engine}'")
    config = dataclasses.replace(config, server=dataclasses.replace(config.server, min_cohort=cohort, start_cohort=0))
    if config.secagg.enabled and stacked:
        log.warning("the vectorised engine sums in the clear: secure aggregation is left out of this simulation")
        if not config.privacy.private:  # whose configuration must say that a deployment has it
            config = dataclasses.replace(config, secagg=dataclasses.replace(config.secagg, enabled=False))
    return config


def _threads(config: Config) -> AbstractContextManager[None]:
    """One CPU thread, as each worker has, so that models are bitwise the same for any number of workers."""
    on_cpu = choose_device(config.client.device).type == "cpu"
    return one_thread() if on_cpu and config.simulation.engine != "vectorised" else nullcontext()


def _grid(
    config: Config, apps: Apps, names: Sequence[str], first: Institution, cohort: int, failures: Failures
) -> StreamingGrid:
    """The Grid that calls `apps`, here or in worker processes."""
    workers, nodes = config.simulation.workers, dict(enumerate(names, start=1))
    task, on_cpu = configured_task(config.task), choose_device(config.client.device).type == "cpu"
    if workers and not on_cpu:
        raise ConfigError("simulation.workers are processes on a CPU: add `client=cpu`, or leave them out")
    if workers is None:
        cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        spare = min(cpus, cohort)
        able = on_cpu and spare > 1 and config.simulation.engine != "vectorised" and task.build is not None
        workers = spare if able and _training_s(config, task, first) > WORTH_S else 0
    if not workers:
        return InMemoryGrid(apps, nodes, failures=failures)
    from sovfed.simulations.workers import WorkersGrid

    log.info("%d processes train", workers)
    return WorkersGrid(apps, nodes, workers, task.parameters, keeping=config.secagg.enabled, failures=failures)


def _training_s(config: Config, task: Task, institution: Institution) -> float:
    """Seconds that a round of local training takes at `institution`, judged by a step and an evaluation."""
    training = LocalTraining(task, _untold(institution, task), site="", device="cpu")
    training.warm_up()
    start = time.perf_counter()
    training.warm_up()
    return (time.perf_counter() - start) * max(1.0, config.task.local_epochs * training.count / WARMING)


def _untold(institution: Institution, task: Task) -> Dataset:
    """The institution's records. What there is to say of them is said where they are loaded to be trained on."""
    logger = logging.getLogger(records_of.__name__)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        return institution.load(task)
    finally:
        logger.setLevel(level)


def _measure(config: Config, population: Sequence[Institution], outcome: Outcome) -> dict[str, float]:
    """The final model's metrics on held-out records of up to `PROFILED` institutions.

    A private federation tells none; the simulator, which holds all records, measures them outside of it.
    """
    task = configured_task(config.task)
    if task.build is None:
        return {}
    records = merge([_untold(institution, task) for institution in population[:PROFILED]])
    training = LocalTraining(task, records, site="", device=config.client.device)
    return summarise(task, training.evaluate(outcome.model, outcome.scale), outcome.scale)


def _engine(
    usual: Aggregation, grid: StreamingGrid, population: Sequence[Institution], config: Config, cohort: int, kept: Path
) -> Aggregation:
    """The engine that `config` asks for, over a sample of the population where one is asked for."""
    from sovfed.simulations.engines import Sampled

    engine = _unsampled(usual, grid, population, config, cohort, kept)
    return (
        engine
        if cohort == len(population)
        else Sampled(engine, cohort, MAX_HOLDERS if config.secagg.enabled else PROFILED, config.seed)
    )


def _unsampled(
    usual: Aggregation, grid: StreamingGrid, population: Sequence[Institution], config: Config, cohort: int, kept: Path
) -> Aggregation:
    engine, task = config.simulation.engine, configured_task(config.task)
    if engine in ("inprocess", "ray"):
        return usual
    from sovfed.simulations.engines import LEAST, AutoEngine
    from sovfed.simulations.vectorised import VectorisedAggregation

    if engine == "vectorised":
        return VectorisedAggregation(grid, task, population, config)
    if config.secagg.enabled:
        return AutoEngine(usual, None, "secure aggregation is on")
    if cohort < LEAST:
        return AutoEngine(usual, None, f"{cohort} institutions a round are too few to stack")
    try:
        vectorised = VectorisedAggregation(grid, task, population, config)
    except ConfigError as error:
        return AutoEngine(usual, None, str(error))
    return AutoEngine(usual, vectorised, kept=kept)


def _masking(authority: Authority | None, name: str, institutions: int, clip: float) -> Masking | None:
    """A simulated institution's part in secure aggregation, under a certificate of the simulation's own authority.

    It takes any clip; a real one's policy says how small one may be.
    """
    if authority is None:
        return None
    identity, store = authority.institution(name), MemoryStore()
    least = min(Terms.min_clip, clip)
    terms = Terms(min_cohort=min(institutions, LEAST_COHORT), colluders=0, differencing=RECORD, min_clip=least)
    return Masking(lambda: identity, lambda: store, terms)
