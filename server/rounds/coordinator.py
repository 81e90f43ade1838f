"""The coordinator: runs all rounds of one training run over whichever Grid it is given, and keeps the run's folder.

A run's folder holds `run.json` (what was asked), `rounds.jsonl` (a line per round), `checkpoint.safetensors` (resume),
`model.safetensors`, `curves.png`, `summary.json` (the end) and, if the run is private, `privacy.json` and
`privacy.html`. The same function serves deployment and simulation.
"""

from __future__ import annotations

import json
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np

from sovfed.federation.config import Config
from sovfed.federation.errors import ConfigError, SovfedError
from sovfed.federation.files import write_private
from sovfed.federation.messages import Bytes, RunRequest, Sums, Vector
from sovfed.federation.metrics import gain
from sovfed.federation.secagg.keys import Identity
from sovfed.federation.secagg.shares import MAX_HOLDERS
from sovfed.federation.tasks import Task, initial_vector, summarise
from sovfed.federation.tasks.registry import configured_task
from sovfed.federation.text import plain_name
from sovfed.federation.wire.grids import StreamingGrid
from sovfed.server.orders.making import read_order, write_answers
from sovfed.server.orders.withdrawn import PROFILED, withdrawn_from
from sovfed.server.rounds import checkpoint
from sovfed.server.rounds.aggregation import Aggregation, PlainAggregation, Total
from sovfed.server.rounds.beginning import read_start
from sovfed.server.rounds.downlink import Downlink
from sovfed.server.rounds.ledger_heads import LedgerHeads, names_of
from sovfed.server.rounds.loop import NOTHING, Round, Rounds
from sovfed.server.rounds.patience import Patience
from sovfed.server.rounds.possible import require_possible
from sovfed.server.rounds.privacy import PrivacyPlan, vector_size
from sovfed.server.rounds.record import (
    STATEMENT,
    absence_tags,
    drop_after,
    line_of,
    listed,
    scored,
    summary_of,
    told,
    versions,
    write_statement,
)
from sovfed.server.rounds.sampling import MOST, Sampled
from sovfed.server.rounds.secure_aggregation import SecureAggregation
from sovfed.server.rounds.stopping import Stopping
from sovfed.server.runs.attendance import participants
from sovfed.server.runs.curves import ROUNDS, plot_curves, read_rounds
from sovfed.server.runs.release import DIGEST, FILES, SIMULATED, SUMMARY, TABLE, deliver, publish, release_of
from sovfed.server.runs.tracking import Tracker, figures
from sovfed.server.strategies import optimizer_of, rounded_of
from sovfed.server.strategies.averaged import Averaged

log = logging.getLogger(__name__)
Answered: TypeAlias = Callable[[str, Mapping[str, bytes]], None]  # an order's digest, the institutions' words on it
SPACING_S: Final = 0.25  # between checkpoints; rounds after the last are run again, with the same result


@dataclass(frozen=True)
class Outcome:
    """The trained model (flat, shape [d]), the feature scale (shape [2f]) and the run's summary."""

    model: Vector
    scale: Sums
    summary: dict[str, Any]


@dataclass(frozen=True)
class Paperwork:
    """What an agency shows, signs and is told beside the rounds; a simulation has none of it.

    `order` is what institutions are shown of the run before anything else, `on_answers` takes what they say to it.
    `heads` are those of the institutions' privacy ledgers, which a private run countersigns. `sign_table` makes of what
    stands in `TABLE` the file that institutions are sent.
    """

    order: Callable[[RunRequest], Bytes] | None = None
    on_answers: Answered = lambda digest, answers: None
    heads: LedgerHeads | None = None
    sign_table: Callable[[dict[str, Any]], bytes] = lambda _table: b""


NO_PAPERWORK: Final = Paperwork()


def coordinate(
    grid: StreamingGrid,
    config: Config,
    *,
    run: str,
    folder: Path,
    transport: str,
    identity: Identity | None = None,
    paperwork: Paperwork = NO_PAPERWORK,
    tracker: Tracker | None = None,
    resume: bool = False,
    on_round: Callable[[dict[str, Any]], None] = lambda line: None,
    engine: Callable[[Aggregation], Aggregation] = lambda usual: usual,
) -> Outcome:
    """Train for `config.rounds` rounds and return the outcome; with `resume`, go on after the last checkpoint.

    `identity` is the coordinator's, by which it speaks in secure aggregation; a run without it needs none.
    `engine` puts something in the place of the aggregation that the configuration asks for; only a simulation does.
    Raises CohortError when too few institutions answer; the checkpoint then lets the run be resumed.
    """
    task = configured_task(config.task)
    require_possible(config, task)
    optimizer = optimizer_of(config, task)
    downlink = Downlink(rounded_of(optimizer))
    aggregation = _sampled(config, engine(_aggregation(grid, config, run, task, identity, downlink)))
    rounds = Rounds(config, run, grid, optimizer, aggregation)
    rounds.name, rounds.order = plain_name(folder.name), paperwork.order
    rounds.withdrawn = partial(withdrawn_from, folder)
    if config.privacy.private:
        rounds.plan = PrivacyPlan.make(config, rounds.name, vector_size(config, task))
        if rounds.plan.drowned:
            log.warning("%s", rounds.plan.drowned)
    training = _Training(rounds, folder, transport, paperwork, tracker)
    training.begin(resume=resume)
    training.train(on_round)
    return training.finish()


class _Training:
    """One run from its first message to its published model, and what its folder and the tracker are told of it."""

    def __init__(
        self,
        rounds: Rounds,
        folder: Path,
        transport: str,
        paperwork: Paperwork,
        tracker: Tracker | None,
    ) -> None:
        self._rounds, self._task, self._folder, self._transport = rounds, rounds.task, folder, transport
        self._grid, self._config, self._paperwork, self._tracker = rounds.grid, rounds.config, paperwork, tracker
        self._stopping = Stopping(
            rounds.config, partial(gain, rounds.task.headline, metrics=rounds.task.metrics), folder
        )
        self._started = time.monotonic()
        self._names: dict[int, str] = {}  # by node: all that were ever seen
        self._last = 0  # the number of the last finished round

    def begin(self, *, resume: bool) -> None:
        """Agree with the institutions, and set model, scale and optimizer, new or from the checkpoint.

        Those of a simulation have no policy to agree by.
        """
        if self._transport not in SIMULATED:
            self._rounds.said = self._write_down
            self._rounds.agree()
        if not (resume and self._restore()):
            self._start_anew()
        headline = self._task.headline
        lines = read_rounds(self._folder)
        self._stopping.replay([(line["round"] - 1, line["metrics"].get(headline)) for line in lines])
        self._names = names_of(self._grid)
        _welcome(self._rounds)
        if self._rounds.plan and (heads := self._paperwork.heads):
            self._rounds.before = partial(heads.before_round, self._grid, self._rounds.run)
        if self._tracker:
            self._tracker.catch_up(self._last)
            connected = listed(self._names.values())
            self._tracker.note({"transport": self._transport, "connected": connected, **versions()})

    def _write_down(self, answers: Mapping[int, bytes]) -> None:
        """Keep the institutions' words on the order, also of a run that nothing comes of; enter them in the log."""
        names = self._names | names_of(self._grid)
        kept = write_answers(self._folder, {names.get(node, str(node)): said for node, said in answers.items()})
        proposal = read_order(self._folder)
        if proposal is not None:
            self._paperwork.on_answers(proposal.order.digest, kept)

    def train(self, on_round: Callable[[dict[str, Any]], None]) -> None:
        """Run the rounds that are left; a line of each to `on_round`."""
        config, rounds, stopping = self._config, self._rounds, self._stopping
        # A private round that is repeated is paid for again.
        lasting = _Lasting(self._tracker)
        writer = checkpoint.Writer(self._folder, 0.0 if config.privacy.private else SPACING_S, lasting.tell)
        settled = checkpoint.deciding(config)
        newcomers = _Newcomers(rounds, self._folder, settled) if self._transport not in SIMULATED else _nobody
        with (self._folder / ROUNDS).open("a", encoding="utf-8") as lines, _closing(writer):
            for number in range(self._last + 1, config.rounds + 1):
                newcomers(number)
                before, round_, self._last = rounds.model, rounds.train(number), number
                self._name_all(round_)
                line = line_of(self._task, round_, self._names, rounds.scale)
                if rounds.candidates:
                    line |= scored(self._task, rounds.candidates[number - 1], round_, rounds.scale, rounds.plan)
                lines.write(json.dumps(line) + "\n")
                lines.flush()  # before the checkpoint: what is beyond that is dropped and run again, what lacks is lost
                lasting.add(number, figures(line))
                writer.submit(
                    checkpoint.Checkpoint(number, rounds.model, rounds.scale, rounds.optimizer.slots(), settled)
                )
                if config.strategy.stateful or config.task.keep_state:
                    writer.flush()  # institutions keep two rounds: a checkpoint must not be further behind
                log.info("%s", told(round_, config.rounds))
                on_round(line)
                stopping.see(number - 1, line["metrics"].get(self._task.headline), before)
                del before  # or it would be in memory all of the next round
                if stopping.due:
                    best = stopping.round
                    log.info("stopped after round %d: no better %s since round %d", number, self._task.headline, best)
                    break

    def finish(self) -> Outcome:
        """Evaluate the model, publish it with the run's summary and statement, and bring it to the institutions."""
        rounds, folder = self._rounds, self._folder
        if isinstance(rounds.optimizer, Averaged):
            rounds.model = rounds.optimizer.average(rounds.model)
        final, chosen = self._choose()
        _welcome(rounds)
        summary = {
            **summary_of(self._config, self._task, folder, final, self._names, rounds.scale),
            "transport": self._transport, "seconds_training": time.monotonic() - self._started,
            "model_of_round": chosen, "presence": self._grid.presence(),
            **rounds.aggregation.describe(),
            **(rounds.plan.describe() if rounds.plan else {"epsilon": None}),
        }  # fmt: skip
        if rounds.plan and rounds.plan.question:
            rounds.scale = np.array([rounds.plan.deviation(len(summary["institutions"]))])
            summary["privacy"]["most_counted"] = rounds.plan.most_counted(len(summary["institutions"]))
        summary[DIGEST] = publish(folder, self._task, rounds.model, rounds.scale, summary)
        if rounds.plan:
            if self._paperwork.heads:
                told_heads = self._paperwork.heads.countersign(self._grid, rounds.run, names_of(self._grid))
                summary["privacy"]["ledger_heads"] = told_heads
            started_from = summary.get("started_from_sha256", "")
            write_statement(folder, rounds.plan, self._task, self._transport, started_from)
        summary["delivered_to"] = self._deliver(chosen)
        plot_curves(folder)
        if self._tracker:
            self._track_end(self._tracker, summary)
        write_private(folder / SUMMARY, json.dumps(summary, indent=2).encode())
        if self._tracker:
            made = FILES if (learnt := not (self._config.task.statistics or rounds.candidates)) else (TABLE,)
            artifacts = [*made, SUMMARY, ROUNDS, "curves.png", *(STATEMENT if rounds.plan else ())]
            self._tracker.finish("FINISHED", [folder / name for name in artifacts], register=learnt)
        return Outcome(rounds.model, rounds.scale, summary)

    def _restore(self) -> bool:
        """Go on where the checkpoint is, if there is one."""
        rounds = self._rounds
        restored = checkpoint.read(self._folder, rounds.config)
        if restored is None:
            return False
        rounds.model, rounds.scale, self._last = restored.model, restored.scale, restored.round
        rounds.optimizer.restore(restored.slots)
        drop_after(self._folder, restored.round)
        latest = read_rounds(self._folder)[-1:]
        rounds.earlier = frozenset(name for line in latest for name in line["participants"])
        log.info("resumed after round %d", restored.round)
        return True

    def _start_anew(self) -> None:
        rounds, task = self._rounds, self._task
        start, rounds.model = rounds.config.task.start, initial_vector(task, rounds.config.seed)
        if start is not None:
            rounds.model, rounds.scale = read_start(Path(start), task, private=rounds.plan is not None)
        if rounds.config.task.statistics:
            rounds.model = np.zeros(vector_size(rounds.config, task), np.float32)
        if task.transform.size and rounds.plan is None and not rounds.candidates and start is None:
            asked = rounds.profile()
            if self._transport not in SIMULATED:
                names = names_of(self._grid)
                profiled = [names.get(node, str(node)) for node in asked]
                write_private(self._folder / PROFILED, json.dumps(profiled).encode())
        elif start is None:
            rounds.scale = task.transform.public_scale
        (self._folder / ROUNDS).unlink(missing_ok=True)

    def _name_all(self, round_: Round) -> None:
        """Know the names of institutions that have come since; those of the start keep theirs when they are gone."""
        if not self._names.keys() >= {*round_.participants, *round_.refused, *round_.late, *round_.left_out}:
            self._names.update(names_of(self._grid))

    def _choose(self) -> tuple[Total, int]:
        """The evaluation of the model that the run ends with, the last or the best, and the round that it is of.

        Held-out records are persons' too: a private run tells no metric of them.
        """
        rounds, task = self._rounds, self._task
        if rounds.plan is not None or rounds.candidates:
            return Total(), self._last
        final = rounds.evaluate(self._last)
        metrics = {} if final.sums is None else summarise(task, final.sums, rounds.scale)
        best = self._stopping.better(metrics.get(task.headline))
        if best is None:
            return final, self._last
        log.info("the model of round %d is better than the last: it is the run's", best.round)
        rounds.model = best.model
        return rounds.evaluate(best.round), best.round

    def _deliver(self, number: int) -> list[str]:
        """Bring the published model to the institutions; those that took it. A simulation has none to bring it to."""
        rounds, config = self._rounds, self._config
        if self._transport in SIMULATED:
            return []
        table = self._signed() if config.task.tells_table else b""
        if rounds.candidates and not table:
            return []
        model, scale = (NOTHING, np.zeros(0)) if rounds.candidates else (rounds.model, rounds.scale)
        release = release_of(
            self._folder, self._task, model, scale, run=rounds.run, number=number, table=table,
            normalisation=config.task.normalisation, statistics=config.task.statistics,
        )  # fmt: skip
        return deliver(rounds.grid, release, config.server.round_deadline_s)

    def _signed(self) -> bytes:
        """The run's table as institutions are sent it; nothing where it cannot be signed: the run is over."""
        try:
            return self._paperwork.sign_table(json.loads((self._folder / TABLE).read_bytes()))
        except (SovfedError, OSError) as error:
            log.warning("the table is sent to nobody as a signed file: %s", error)
            return b""

    def _track_end(self, tracker: Tracker, summary: dict[str, Any]) -> None:
        tracker.note({"institutions": listed(summary["institutions"]), **absence_tags(summary["attendance"])})
        held_out = {f"held_out.{key}": value for key, value in summary["metrics"].items()}
        tracker.round(self._config.rounds + 1, held_out)
        summary["mlflow_run_id"] = tracker.run_id


class _Newcomers:
    """Keeps the model as it was before an institution came that may take part: it may withdraw one day."""

    def __init__(self, rounds: Rounds, folder: Path, settled: str) -> None:
        self._rounds, self._folder, self._settled = rounds, folder, settled
        self._known = set(participants(read_rounds(folder)))
        self._nodes = frozenset[int]()

    def __call__(self, number: int) -> None:
        """Round `number` is next."""
        rounds, nodes = self._rounds, frozenset(self._rounds.grid.get_node_ids())
        if nodes == self._nodes:
            return
        self._nodes, names = nodes, set(names_of(rounds.grid).values())
        if names - self._known and number > 1:
            slots = rounds.optimizer.slots()
            kept = checkpoint.Checkpoint(number - 1, rounds.model, rounds.scale, slots, self._settled)
            checkpoint.keep(self._folder, kept, rounds.config.rounds)
        self._known |= names


def _nobody(number: int) -> None:
    """A simulation's institutions are all there from the beginning."""


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


def _aggregation(
    grid: StreamingGrid, config: Config, run: str, task: Task, identity: Identity | None, downlink: Downlink
) -> Aggregation:
    server = config.server
    patience = partial(Patience, server.min_cohort, server.grace_s, server.grace_factor)
    if not config.secagg.enabled:
        log.warning("secure aggregation is off: this process sees every institution's own update")
        keep = config.strategy.individual
        return PlainAggregation(grid, server.round_deadline_s, keep=keep, patience=patience, downlink=downlink)
    if identity is None:
        raise ConfigError("secure aggregation needs the coordinator's certificate and key")
    size = 2 * task.parameters if config.strategy.algorithm.variate else vector_size(config, task)
    return SecureAggregation(
        grid, identity, config.secagg, run=run, min_cohort=server.min_cohort, deadline_s=server.round_deadline_s,
        wait_s=server.node_wait_s, patience=patience, downlink=downlink,
        max_size=size, config_digest=bytes.fromhex(checkpoint.config_digest(config)), sampled=server.sample < 1,
    )  # fmt: skip


def _sampled(config: Config, aggregation: Aggregation) -> Aggregation:
    """`aggregation` over a sample of the institutions in every round, if one is asked for or one sum takes no more."""
    server, secagg = config.server, config.secagg.enabled
    # Noise that many add together is divided by all of them: with more than one sum takes, such a run is refused.
    if server.sample == 1 and (not secagg or config.privacy.mechanism == "distributed"):
        return aggregation
    return Sampled(aggregation, server.sample, server.min_cohort, config.seed, MAX_HOLDERS if secagg else MOST)


def _welcome(rounds: Rounds) -> None:
    """Show the order to those that have come since, who may take the model then."""
    if rounds.agreement is not None:
        rounds.agreement.willing(sorted(rounds.grid.get_node_ids()))
