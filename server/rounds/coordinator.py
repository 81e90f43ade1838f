"""The coordinator: runs all rounds of one training run over whichever Grid it is given, and keeps the run's folder.

A run's folder holds `run.json` (what was asked), `rounds.jsonl` (a line per round), `checkpoint.safetensors` (resume),
`model.safetensors`, `curves.png`, `summary.json` (the end) and, if the run is private, `privacy.json` and
`privacy.html`. The same function serves deployment and simulation.
"""

from __future__ import annotations

import json
import logging
import statistics
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Final

from sovfed import __version__
from sovfed.federation.config import Config, stored
from sovfed.federation.errors import ConfigError, PrivacyError
from sovfed.federation.files import write_private
from sovfed.federation.messages import Bytes, RunRequest, Sums, Vector
from sovfed.federation.metrics import gain
from sovfed.federation.privacy.statement import to_html, to_json
from sovfed.federation.secagg.keys import Identity
from sovfed.federation.secagg.shares import MAX_HOLDERS
from sovfed.federation.tasks import Task, initial_vector, summarise
from sovfed.federation.tasks.registry import configured_task
from sovfed.federation.text import plain_name
from sovfed.federation.wire.flower import StreamingGrid
from sovfed.server.orders.making import write_answers
from sovfed.server.rounds import checkpoint
from sovfed.server.rounds.aggregation import Aggregation, PlainAggregation, Total
from sovfed.server.rounds.ledger_heads import LedgerHeads, names_of
from sovfed.server.rounds.loop import Round, Rounds
from sovfed.server.rounds.patience import Patience
from sovfed.server.rounds.privacy import PrivacyPlan
from sovfed.server.rounds.sampling import MOST, Sampled
from sovfed.server.rounds.secure_aggregation import SecureAggregation
from sovfed.server.rounds.stopping import Stopping
from sovfed.server.runs.attendance import attendance, participants
from sovfed.server.runs.curves import ROUNDS, plot_curves, read_rounds
from sovfed.server.runs.release import DIGEST, FILES, MODEL, SIMULATED, SUMMARY, deliver, digest, publish, release_of
from sovfed.server.runs.tracking import Tracker, figures
from sovfed.server.strategies import optimizer_of

log = logging.getLogger(__name__)
TAG_LENGTH: Final = 5_000  # characters; MLflow takes 8,000
NAMED: Final = 255  # institutions listed by name in a tag, which MLflow holds to 8,000 characters
SPACING_S: Final = 0.25  # between checkpoints; rounds after the last are run again, with the same result
STATEMENT: Final = ("privacy.json", "privacy.html")


@dataclass(frozen=True)
class Outcome:
    """The trained model (flat, shape [d]), the feature scale (shape [2f]) and the run's summary."""

    model: Vector
    scale: Sums
    summary: dict[str, Any]


def coordinate(
    grid: StreamingGrid,
    config: Config,
    *,
    run: str,
    folder: Path,
    transport: str,
    identity: Identity | None = None,
    heads: LedgerHeads | None = None,
    tracker: Tracker | None = None,
    resume: bool = False,
    on_round: Callable[[dict[str, Any]], None] = lambda line: None,
    order: Callable[[RunRequest], Bytes] | None = None,
    engine: Callable[[Aggregation], Aggregation] = lambda usual: usual,
) -> Outcome:
    """Train for `config.rounds` rounds and return the outcome; with `resume`, go on after the last checkpoint.

    `identity` is the coordinator's, by which it speaks in secure aggregation; a run without it needs none. `heads` are
    those of the institutions' privacy ledgers, which a private run countersigns; a simulation has none. `order` is what
    institutions are shown of the run before anything else; neither has a simulation one. `engine` puts
    something in the place of the aggregation that the configuration asks for; only a simulation does. Raises
    CohortError when too few institutions answer; the checkpoint then lets the run be resumed.
    """
    task = configured_task(config.task)
    _check(config, task)
    aggregation = _sampled(config, engine(_aggregation(grid, config, run, task, identity)))
    rounds = Rounds(config, run, grid, optimizer_of(config, task), aggregation)
    rounds.name, rounds.order = plain_name(folder.name), order
    if config.privacy.private:
        rounds.plan = PrivacyPlan.make(config, rounds.name, task.parameters)
        if rounds.plan.drowned:
            log.warning("%s", rounds.plan.drowned)
    started = time.monotonic()
    last = _begin(rounds, task, folder, resume, agree=transport not in SIMULATED)
    stopping = Stopping(config, partial(gain, task.headline, metrics=task.metrics), folder)
    stopping.replay([(line["round"] - 1, line["metrics"].get(task.headline)) for line in read_rounds(folder)])
    names = names_of(grid)
    _welcome(rounds, folder, names)
    if rounds.plan and heads:
        rounds.before = partial(heads.before_round, grid, run)
    if tracker:
        tracker.catch_up(last)
        tracker.note({"transport": transport, "connected": _listed(names.values()), **versions()})
    # A private round that is repeated is paid for again.
    lasting = _Lasting(tracker)
    writer = checkpoint.Writer(folder, 0.0 if config.privacy.private else SPACING_S, lasting.tell)
    settled = checkpoint.config_digest(config)
    with (folder / ROUNDS).open("a", encoding="utf-8") as lines, _closing(writer):
        for number in range(last + 1, config.rounds + 1):
            before, round_, last = rounds.model, rounds.train(number), number
            _name_all(names, round_, grid)
            line = _line(task, round_, names, rounds.scale)
            lines.write(json.dumps(line) + "\n")
            lines.flush()  # before the checkpoint: what is beyond that is dropped and run again, what lacks is lost
            lasting.add(number, figures(line))
            writer.submit(checkpoint.Checkpoint(number, rounds.model, rounds.scale, rounds.optimizer.slots(), settled))
            if config.strategy.stateful:
                writer.flush()  # institutions keep two rounds: a checkpoint must not be further behind
            loss = "" if round_.train_loss is None else f" loss {round_.train_loss:.4f},"
            overhead = "" if round_.overhead_seconds is None else f" (overhead {round_.overhead_seconds:.3f} s)"
            log.info(
                "round %d/%d: %d institutions,%s %.3f s%s",
                number, config.rounds, len(round_.participants), loss, round_.seconds, overhead,
            )  # fmt: skip
            on_round(line)
            stopping.see(number - 1, line["metrics"].get(task.headline), before)
            del before  # or it would be in memory all of the next round
            if stopping.due:
                log.info("stopped after round %d: no better %s since round %d", number, task.headline, stopping.round)
                break
    final, chosen = _final(rounds, task, stopping, last)
    _welcome(rounds, folder, names_of(grid))
    summary = {
        **_summary(config, task, folder, final, names, transport, time.monotonic() - started, rounds.scale),
        **aggregation.describe(),
        **(rounds.plan.describe() if rounds.plan else {"epsilon": None}),
    }
    summary |= {"rounds": len(read_rounds(folder)), "model_of_round": chosen, "presence": grid.presence()}
    summary[DIGEST] = publish(folder, task, rounds.model, rounds.scale, summary)
    artifacts = [*FILES, SUMMARY, ROUNDS, "curves.png"]
    if rounds.plan:
        if heads:
            summary["privacy"]["ledger_heads"] = heads.countersign(grid, run, names_of(grid))
        _write_statement(folder, rounds.plan, task, transport)
        artifacts += STATEMENT
    summary["delivered_to"] = _deliver(rounds, folder, chosen, transport)
    plot_curves(folder)
    if tracker:
        tracker.note({"institutions": _listed(summary["institutions"]), **_absence_tags(summary["attendance"])})
        tracker.round(config.rounds + 1, {f"held_out.{key}": value for key, value in summary["metrics"].items()})
        summary["mlflow_run_id"] = tracker.run_id
    write_private(folder / SUMMARY, json.dumps(summary, indent=2).encode())
    if tracker:
        tracker.finish("FINISHED", [folder / name for name in artifacts], register=True)
    return Outcome(rounds.model, rounds.scale, summary)


class _Lasting:
    """Rounds that the tracker is told of once they will not be run again, so that it has each of them once."""

    def __init__(self, tracker: Tracker | None) -> None:
        self._tracker, self._waiting = tracker, deque[tuple[int, dict[str, float]]]()

    def add(self, number: int, metrics: dict[str, float]) -> None:
        if self._tracker:
            self._waiting.append((number, metrics))

    def tell(self, written: int) -> None:
        """Tell of all rounds up to `written`."""
        while self._tracker and self._waiting and self._waiting[0][0] <= written:
            self._tracker.round(*self._waiting.popleft())


@contextmanager
def _closing(writer: checkpoint.Writer) -> Iterator[None]:
    """What was submitted is on disk afterwards, also where the rounds end in an error, which is then the one raised."""
    try:
        yield
    except BaseException:
        with suppress(Exception):
            writer.close()
        raise
    writer.close()


def _listed(names: Collection[str]) -> str:
    """The names for a tag; how many, where they are too many for one."""
    return json.dumps(sorted(names)) if len(names) <= NAMED else str(len(names))


def _absence_tags(by_name: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """A tag that says who was late, left out or refused, if there are not too many."""
    missing = {name: entry for name, entry in by_name.items() if entry["late"] or entry["left_out"] or entry["refused"]}
    text = json.dumps(missing)
    return {"absences": text if len(text) <= TAG_LENGTH else f"{len(missing)} institutions"} if missing else {}


def _check(config: Config, task: Task) -> None:
    """Raise ConfigError if the strategy is not for this cohort or this task, PrivacyError if privacy is not."""
    from sovfed.federation.optimizers import make
    from sovfed.federation.tasks.conformance import require_works

    require_works(task)
    make(config.task.plan())  # or there is none of that name
    strategy, cohort = config.strategy, config.server.min_cohort
    if cohort < strategy.least_cohort:
        raise ConfigError(
            f"strategy '{strategy.name}' with malicious={strategy.malicious} needs {strategy.least_cohort} "
            f"institutions a round, the minimum cohort is {cohort}"
        )
    if task.build is None and strategy.algorithm.partial:
        raise ConfigError(f"task '{task.name}' trains nothing that could stay at the institutions: take fedavg")
    if task.build is not None and (reason := strategy.algorithm.refusal(task.layout)):
        raise ConfigError(f"task '{task.name}' {reason}")
    if config.privacy.private and task.build is not None:
        from sovfed.federation.privacy.compatibility import why_not_noised, why_not_private

        per_institution = config.privacy.mechanism == "institution"
        if reason := why_not_noised(task) if per_institution else why_not_private(task):
            raise PrivacyError(f"task '{task.name}' cannot be trained privately: {reason}")


def _aggregation(grid: StreamingGrid, config: Config, run: str, task: Task, identity: Identity | None) -> Aggregation:
    server = config.server
    patience = partial(Patience, server.min_cohort, server.grace_s, server.grace_factor)
    if not config.secagg.enabled:
        log.warning("secure aggregation is off: this process sees every institution's own update")
        return PlainAggregation(grid, server.round_deadline_s, keep=config.strategy.individual, patience=patience)
    if identity is None:
        raise ConfigError("secure aggregation needs the coordinator's certificate and key")
    size = 2 * task.parameters if config.strategy.algorithm.variate else task.parameters
    return SecureAggregation(
        grid, identity, config.secagg, run=run, min_cohort=server.min_cohort, deadline_s=server.round_deadline_s,
        wait_s=server.node_wait_s, patience=patience,
        max_size=size, config_digest=bytes.fromhex(checkpoint.config_digest(config)), sampled=server.sample < 1,
    )  # fmt: skip


def _final(rounds: Rounds, task: Task, stopping: Stopping, last: int) -> tuple[Total, int]:
    """The evaluation of the model that the run ends with, the last or the best, and the round that it is of.

    Held-out records are persons' too: a private run tells no metric of them.
    """
    if rounds.plan is not None:
        return Total(), last
    final = rounds.evaluate(last)
    metrics = {} if final.sums is None else summarise(task, final.sums, rounds.scale)
    best = stopping.better(metrics.get(task.headline))
    if best is None:
        return final, last
    log.info("the model of round %d is better than the last: it is the run's", best.round)
    rounds.model = best.model
    return rounds.evaluate(best.round), best.round


def _sampled(config: Config, aggregation: Aggregation) -> Aggregation:
    """`aggregation` over a sample of the institutions in every round, if one is asked for or one sum takes no more."""
    server, secagg = config.server, config.secagg.enabled
    # Noise that many add together is divided by all of them: with more than one sum takes, such a run is refused.
    if server.sample == 1 and (not secagg or config.privacy.mechanism == "distributed"):
        return aggregation
    return Sampled(aggregation, server.sample, server.min_cohort, config.seed, MAX_HOLDERS if secagg else MOST)


def _begin(rounds: Rounds, task: Task, folder: Path, resume: bool, *, agree: bool) -> int:
    """Set model, scale and optimizer, new or from the checkpoint; the number of the last finished round.

    First of all, the institutions `agree` to the run; those of a simulation have no policy.
    """
    if agree:
        rounds.agree()
    restored = checkpoint.read(folder, rounds.config) if resume else None
    if restored is not None:
        rounds.model, rounds.scale = restored.model, restored.scale
        rounds.optimizer.restore(restored.slots)
        _truncate_lines(folder, restored.round)
        rounds.earlier = frozenset(name for line in read_rounds(folder)[-1:] for name in line["participants"])
        log.info("resumed after round %d", restored.round)
        return restored.round
    rounds.model = initial_vector(task, rounds.config.seed)
    if task.transform.size and rounds.plan is None:
        rounds.profile()
    else:
        rounds.scale = task.transform.public_scale
    (folder / ROUNDS).unlink(missing_ok=True)
    return 0


def _welcome(rounds: Rounds, folder: Path, names: Mapping[int, str]) -> None:
    """Show the order to those that have come since, who may take the model then; write down what was answered."""
    agreement = rounds.agreement
    if agreement is not None:
        agreement.willing(sorted(rounds.grid.get_node_ids()))
        write_answers(folder, {names.get(node, str(node)): answer for node, answer in agreement.answers.items()})


def _deliver(rounds: Rounds, folder: Path, number: int, transport: str) -> list[str]:
    """Bring the published model to the institutions; those that took it. A simulation has none to bring it to."""
    if transport in SIMULATED:
        return []
    config = rounds.config
    release = release_of(
        folder, rounds.task, rounds.model, rounds.scale, run=rounds.run, number=number,
        normalisation=config.task.normalisation,
    )  # fmt: skip
    return deliver(rounds.grid, release, config.server.round_deadline_s)


def _truncate_lines(folder: Path, last: int) -> None:
    """Drop lines of rounds after `last`: they ran, but their checkpoint was not yet written."""
    lines = [json.dumps(line) for line in read_rounds(folder) if line["round"] <= last]
    write_private(folder / ROUNDS, "".join(line + "\n" for line in lines).encode())


def _name_all(names: dict[int, str], round_: Round, grid: StreamingGrid) -> None:
    """Add to `names` institutions that have come since; those of the start keep theirs when they are gone."""
    if not names.keys() >= {*round_.participants, *round_.refused, *round_.late, *round_.left_out}:
        names.update(names_of(grid))


def _line(task: Task, round_: Round, names: dict[int, str], scale: Sums) -> dict[str, Any]:
    """A round as one JSON object; `metrics` are of the model that the round began with."""
    return {
        "round": round_.number,
        "participants": [names.get(node, str(node)) for node in sorted(round_.participants)],
        "refused": {names.get(node, str(node)): code for node, code in round_.refused.items()},
        "late": [names.get(node, str(node)) for node in sorted(round_.late)],
        "left_out": [names.get(node, str(node)) for node in sorted(round_.left_out)],
        "spoilt": round_.spoilt,
        "ring_error": round_.ring_error,
        "attempts": round_.attempts,
        "count": round_.count,
        "train_loss": round_.train_loss,
        "metrics": summarise(task, round_.evaluation, scale) if round_.evaluation is not None else {},
        "seconds": round_.seconds,
        "seconds_compute": round_.seconds_compute,
        "seconds_aggregate": round_.seconds_aggregate,
        "overhead_seconds": round_.overhead_seconds,
        "bytes_down": round_.bytes_down,
        "bytes_up": round_.bytes_up,
    }


def _summary(
    config: Config,
    task: Task,
    folder: Path,
    final: Total,
    names: dict[int, str],
    transport: str,
    seconds: float,
    scale: Sums,
) -> dict[str, Any]:
    lines = read_rounds(folder)
    by_name = {names.get(node, str(node)): sums for node, sums in final.by_node.items()}
    return {
        "task": task.name,
        "split": "simulated" if task.simulated_split else "natural",
        "institutions": participants(lines),
        "attendance": attendance(lines),
        "rounds": config.rounds,
        "strategy": config.strategy.name,
        "transport": transport,
        "seconds_training": seconds,
        "seconds_per_round_median": _median(lines, "seconds"),
        "overhead_seconds_per_round_median": _median(lines, "overhead_seconds"),
        "spoilt_contributions": sum(line.get("spoilt") or 0 for line in lines),
        "bytes_up_per_round": _median(lines, "bytes_up"),
        "bytes_down_per_round": _median(lines, "bytes_down"),
        "metric": task.headline,
        "metrics": summarise(task, final.sums, scale) if final.sums is not None else {},
        "metrics_by_institution": {name: summarise(task, sums, scale) for name, sums in sorted(by_name.items())},
        "config": stored(config),
    }


def _median(lines: list[dict[str, Any]], key: str) -> float | None:
    """None also where the figure is not told, as of private rounds."""
    values = [line[key] for line in lines if line[key] is not None]
    return statistics.median(values) if values else None


def _write_statement(folder: Path, plan: PrivacyPlan, task: Task, transport: str) -> None:
    """The release's privacy statement, for machines and for people; it names all that took part in any round."""
    model_digest = digest(folder / MODEL)
    where = " (a simulation in one process: no ledger was charged)" if transport in SIMULATED else ""
    statement = plan.statement(
        run=folder.name + where, model=f"{task.name}, {MODEL} with SHA-256 {model_digest}",
        institutions=participants(read_rounds(folder)), date=datetime.now(UTC).date().isoformat(),
    )  # fmt: skip
    for name, text in zip(STATEMENT, (to_json(statement), to_html(statement)), strict=True):
        write_private(folder / name, text.encode())


def versions() -> dict[str, str]:
    """The versions that decide the result, for the tracker."""
    from importlib.metadata import version

    return {"version.sovfed": __version__} | {f"version.{name}": version(name) for name in ("flwr", "torch", "numpy")}
