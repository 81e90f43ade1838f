"""The coordinator's process in a deployment: one training run over Flower's Grid and, where it can, over the lane.

Started by `server/runs/executor.py`, one process per run; the task's token comes on standard input. What it may run is
fixed: the run's configuration chooses among installed tasks and strategies and never names code.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sqlite3
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from flwr.serverapp.grid import Grid
from flwr.supercore.run import RunNotRunningException

from sovfed.federation.config import Config, stored
from sovfed.federation.errors import (
    AwayError,
    CohortError,
    ConfigError,
    DeclinedError,
    IdentityError,
    LostError,
    NotReadNowError,
    PrivacyError,
    ServiceError,
    SovfedError,
    TrainingError,
)
from sovfed.federation.host.begin import end_without_memory
from sovfed.federation.host.heap import keep_loaded
from sovfed.federation.host.leaving import leave
from sovfed.federation.host.logs import log_to_stderr
from sovfed.federation.host.pulse import Pulse
from sovfed.federation.secagg.files import FollowingIdentity
from sovfed.federation.text import plain_name
from sovfed.federation.wire.grids import FlowerGrid, StreamingGrid
from sovfed.server.home import load_settings
from sovfed.server.network.grid import open_stream_grid
from sovfed.server.network.presence import Awaited, Presence, write_presence
from sovfed.server.orders.making import Ordering
from sovfed.server.orders.withdrawn import withdrawn_from
from sovfed.server.own_tasks import require_reviewed
from sovfed.server.registry.enrolment import members
from sovfed.server.rounds.coordinator import Paperwork, coordinate
from sovfed.server.rounds.ledger_heads import LedgerHeads
from sovfed.server.runs.awaiting import Attentive
from sovfed.server.runs.curves import read_rounds
from sovfed.server.runs.folders import (
    ACTIVE,
    INTERRUPTED,
    PULSE,
    STOPPING,
    lock,
    read_state,
    run_folder,
    stored_config,
    write_state,
)  # fmt: skip
from sovfed.server.runs.logged import RunLog
from sovfed.server.runs.serverapp_runner import DROPPED, Stopped, run
from sovfed.server.runs.sheet import sign_table
from sovfed.server.runs.spare import wait_for_task, write_output_to
from sovfed.server.runs.tracking import DATABASE, Tracker, make_database

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger(__name__)
SAME_AGAIN: Final = (ConfigError, PrivacyError, TrainingError)  # for its settings or its model: a resumed run has both
LINE: Final = "%(asctime)s %(levelname)s %(name)s: %(message)s"
SETTLE_S: Final = 1.0  # institutions that connect this soon after the minimum cohort still make round 1


def serve_run(base: Grid, spec: dict[str, Any], home: Path) -> None:
    """Run the training whose `spec` is {name, resume}; the folder's `run.json` has its configuration and how it went.

    The configuration never comes with the task: whatever does, institutions can read.
    """
    name, resume = str(spec.get("name", "")), bool(spec.get("resume", False))
    folder = run_folder(home, name)
    with lock(folder):  # whoever starts the run holds it until all is written
        config = stored_config(home, name, base.run.run_id)
        if (status := read_state(home, name)["status"]) not in ACTIVE:
            raise Stopped(f"run {name} is {status}: it was ended after Flower was given its task")
        state = {
            "name": name, "flower_run_id": base.run.run_id, "pid": os.getpid(), "started": time.time(),
            "config": stored(config),
        }  # fmt: skip
        write_state(folder, state, "running")
        Pulse(folder / PULSE).start()
        tracker, logged = Tracker(config, home, folder, name), RunLog(home, name, str(base.run.run_id))
        try:
            require_reviewed(home, config)
            logged.begin(config, resume=resume)
            _train(base, config, home, folder, tracker, resume, logged)
        except (Stopped, RunNotRunningException) as error:
            _ended(folder, home, state, INTERRUPTED, str(error) if isinstance(error, Stopped) else DROPPED)
            tracker.finish("KILLED", [], register=False)
            logged.end(INTERRUPTED)
            raise
        except BaseException as error:
            reason = str(error) if isinstance(error, SovfedError) else type(error).__name__
            state["resumable"] = not isinstance(error, SAME_AGAIN)
            _ended(folder, home, state, INTERRUPTED if _passes(error, folder, resume) else "failed", reason)
            tracker.note({"failure": reason[:500]})
            tracker.finish("FAILED", [], register=False)
            logged.end("failed")
            raise
        write_state(folder, state, "finished")
        logged.end("finished")


def _ended(folder: Path, home: Path, state: dict[str, Any], status: str, reason: str) -> None:
    """Write down how the run ended; where the operator was stopping it, that it is stopped, whatever else befell it."""
    if read_state(home, folder.name)["status"] == STOPPING:
        status, reason = "stopped", "stopped by the operator"
    write_state(folder, state, status, reason)


def _passes(error: BaseException, folder: Path, resume: bool) -> bool:
    """Whether what ended the run may pass by itself, as a full disk or absent institutions do.

    Whoever starts a run looks at its first round, and is told at once that nothing comes of it; not where that was
    taken up again already, where institutions were there and were lost, or where the agency's own processes are away.
    """
    if isinstance(error, OSError | MemoryError | NotReadNowError | sqlite3.OperationalError) or _no_thread(error):
        return True  # the machine was short of something
    if not (resume or read_rounds(folder)):
        return isinstance(error, LostError | AwayError)
    return isinstance(error, CohortError | ServiceError) and not isinstance(error, DeclinedError)


def _no_thread(error: BaseException) -> bool:
    """Whether it is how Python says that the machine, or a limit of this service, has no thread left."""
    return isinstance(error, RuntimeError) and "can't start new thread" in str(error)


def _train(
    base: Grid, config: Config, home: Path, folder: Path, tracker: Tracker, resume: bool, logged: RunLog
) -> None:
    own = FollowingIdentity(home / "identity")
    identity = own if config.secagg.enabled else None
    lane, transport = connect(base, config, home, folder)
    grid = Attentive(lane, folder, config.server.min_cohort)
    try:
        paperwork = Paperwork(
            Ordering(config, plain_name(folder.name), folder, own, home), logged.answers,
            LedgerHeads(home, identity) if identity else None, partial(sign_table, home, folder.name),
        )  # fmt: skip
        outcome = coordinate(
            grid, config, run=str(base.run.run_id), folder=folder, transport=transport, identity=identity,
            paperwork=paperwork, tracker=tracker, resume=resume, on_round=logged.round,
        )  # fmt: skip
        logged.model(outcome.summary)
    finally:
        grid.close()


def connect(base: Grid, config: Config, home: Path, folder: Path) -> tuple[StreamingGrid, str]:
    """The Grid that the rounds travel on and its name: the lane, or Flower's own where the lane cannot be had.

    Who has joined, and who is missing, stands in `folder`.
    """
    server, started = config.server, time.monotonic()
    cohort, gone = config.order.cohort, withdrawn_from(folder)

    def asked(name: str) -> bool:
        return (not cohort or name in cohort) and name not in gone

    nodes = _wait_for_cohort(base, config, asked)
    expected = tuple(filter(asked, (member.institution for member in members(home))))
    wanted = min(server.start_cohort, len(set(cohort) - gone)) if cohort else server.start_cohort
    awaited = Awaited(wanted, started + server.node_wait_s - time.monotonic(), expected, partial(_note, folder), asked)
    if server.lane == "flower":
        return FlowerGrid(base), "flower"
    try:
        grid = open_stream_grid(
            base, run_id=base.run.run_id, run=str(base.run.run_id), home=home, address=server.announced_lane_address,
            identity=FollowingIdentity(home / "identity"),
            nodes=nodes, max_message_bytes=server.max_message_bytes, offer_timeout_s=server.lane_timeout_s,
            awaited=awaited, folder=folder,
        )  # fmt: skip
        if len(list(grid.get_node_ids())) >= server.min_cohort:
            return grid, "stream"
        grid.close()
        kind, problem = ServiceError, "too few institutions opened their stream"
    except (CohortError, IdentityError, ServiceError) as error:
        kind, problem = AwayError if isinstance(error, AwayError) else ServiceError, str(error)
    if server.lane == "stream":
        raise kind(f"the lane could not be opened: {problem}; server.lane=auto would fall back to Flower's Grid")
    log.warning("the lane could not be opened (%s); falling back to Flower's own Grid, which is slower", problem)
    return FlowerGrid(base), "flower"


def _note(folder: Path, presence: Presence) -> None:
    """Write down who has joined. A disk that takes nothing ends no run."""
    try:
        write_presence(folder, presence)
    except OSError as error:
        log.warning("%s: %s", folder, error)


def _wait_for_cohort(base: Grid, config: Config, asked: Callable[[str], bool]) -> list[Any]:
    """All nodes, once enough of those that are `asked` are there. Raises CohortError."""
    least, patience = config.server.min_cohort, config.server.node_wait_s
    ideal = max(least, config.server.start_cohort)
    deadline, settled = time.monotonic() + patience, 0.0
    while True:
        nodes = list(base.get_nodes())
        count = sum(asked(node.name) for node in nodes)
        now = time.monotonic()
        if count >= ideal and ideal > least:
            return nodes
        settled = settled or (now + SETTLE_S if count >= least and ideal == least else 0.0)
        if (settled and now >= settled) or (now >= deadline and count >= least):
            return nodes
        if now >= deadline:
            raise CohortError(f"{count} institutions are connected after {patience:g} s, server.min_cohort is {least}")
        time.sleep(0.1)


def _log_form(home: Path) -> str:
    """How a line of the coordinator's own log is made; `server.log_format` chooses."""
    try:
        return "json" if load_settings(home).server.log_format == "json" else LINE
    except SovfedError:
        return LINE


def main() -> int:
    """Entry of `python -m sovfed.server.runs.app`; the process's exit code."""
    parser = argparse.ArgumentParser(description="sovfed coordinator (started by the executor, not by hand)")
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--spare", action="store_true", help="import all first, and then wait for the task")
    args = parser.parse_args()
    os.umask(0o077)
    line = wait_for_task(partial(make_database, args.home / DATABASE)) if args.spare else sys.stdin.readline()
    if not line:
        return 0
    task = json.loads(line)
    if args.spare:
        write_output_to(Path(task["log"]))
    log_to_stderr(_log_form(args.home))
    end_without_memory()
    keep_loaded()
    return run(args.home, args.port, task["token"], lambda grid, context, spec: serve_run(grid, spec, args.home))


if __name__ == "__main__":
    leave(main)
