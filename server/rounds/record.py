"""What a run's folder and the tracker are told of it: a line a round, the summary at the end, the privacy statement."""

from __future__ import annotations

import json
import statistics
from collections.abc import Collection, Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from sovfed import __version__
from sovfed.federation.config import Config, stored
from sovfed.federation.files import write_private
from sovfed.federation.messages import Sums
from sovfed.federation.metrics.intervals import intervals
from sovfed.federation.privacy.statement import to_html, to_json
from sovfed.federation.statistics.scores import told_scores
from sovfed.federation.tasks import Task, summarise
from sovfed.server.rounds.aggregation import Total
from sovfed.server.rounds.candidates import Candidate
from sovfed.server.rounds.loop import Round
from sovfed.server.rounds.privacy import PrivacyPlan
from sovfed.server.runs.attendance import attendance, participants
from sovfed.server.runs.curves import ROUNDS, read_rounds
from sovfed.server.runs.release import MODEL, SIMULATED, TABLE, digest

TAG_LENGTH: Final = 5_000  # characters; MLflow takes 8,000
NAMED: Final = 255  # institutions listed by name in a tag, which MLflow holds to 8,000 characters
STATEMENT: Final = ("privacy.json", "privacy.html")
LEAST_SCORED: Final = 10  # held-out records of all institutions, of fewer of which no figure is told


def line_of(task: Task, round_: Round, names: Mapping[int, str], scale: Sums) -> dict[str, Any]:
    """A round as one JSON object; `metrics` are of the model that the round began with."""

    def named(nodes: Iterable[int]) -> list[str]:
        return [names.get(node, str(node)) for node in sorted(nodes)]

    return {
        "round": round_.number,
        "participants": named(round_.participants),
        "refused": {names.get(node, str(node)): code for node, code in round_.refused.items()},
        "late": named(round_.late),
        "left_out": named(round_.left_out),
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


def scored(task: Task, candidate: Candidate, round_: Round, scale: Sums, plan: PrivacyPlan | None) -> dict[str, Any]:
    """What a line says of a candidate instead of a round: figures of fewer than `LEAST_SCORED` records are left out.

    Under a `plan` they are of the noised sums.
    """
    model = {"name": candidate.name, "sha256": candidate.sha256, "digest": candidate.digest}
    if plan is not None and plan.scores is not None and round_.scores is not None:
        deviation = plan.deviation(len(round_.participants))
        return {"model": model, **told_scores(plan.scores, round_.scores, deviation, task.transform.unit(scale))}
    sums = round_.evaluation
    records = 0 if sums is None else round(float(sums[0]))
    few = sums is None or records < LEAST_SCORED
    within = {} if few or sums is None else intervals(task.metrics, sums, task.transform.unit(scale))
    return {
        "model": model,
        "records": None if few else records, "intervals": within, **({"metrics": {}} if few else {}),
    }  # fmt: skip


def told(round_: Round, rounds: int) -> str:
    """A round in one sentence for the log."""
    loss = "" if round_.train_loss is None else f" loss {round_.train_loss:.4f},"
    overhead = "" if round_.overhead_seconds is None else f" (overhead {round_.overhead_seconds:.3f} s)"
    cohort = len(round_.participants)
    return f"round {round_.number}/{rounds}: {cohort} institutions,{loss} {round_.seconds:.3f} s{overhead}"


def drop_after(folder: Path, last: int) -> None:
    """Drop lines of rounds after `last`: they ran, but their checkpoint was not yet written."""
    lines = [json.dumps(line) for line in read_rounds(folder) if line["round"] <= last]
    write_private(folder / ROUNDS, "".join(line + "\n" for line in lines).encode())


def summary_of(
    config: Config, task: Task, folder: Path, final: Total, names: Mapping[int, str], scale: Sums
) -> dict[str, Any]:
    """What the rounds in `folder` came to, and the evaluation of the `final` model."""
    lines = read_rounds(folder)
    by_name = {names.get(node, str(node)): sums for node, sums in final.by_node.items()}
    return {
        "task": task.name,
        "split": "simulated" if task.simulated_split else "natural",
        "institutions": participants(lines),
        "attendance": attendance(lines),
        "rounds": len(lines),
        "strategy": config.strategy.name,
        **({} if config.task.start is None else {"started_from_sha256": digest(Path(config.task.start))}),
        "seconds_per_round_median": _median(lines, "seconds"),
        "overhead_seconds_per_round_median": _median(lines, "overhead_seconds"),
        "spoilt_contributions": sum(line.get("spoilt") or 0 for line in lines),
        "bytes_up_per_round": _median(lines, "bytes_up"),
        "bytes_down_per_round": _median(lines, "bytes_down"),
        "metric": task.headline,
        "metrics": summarise(task, final.sums, scale) if final.sums is not None else {},
        "intervals": {} if final.sums is None else intervals(task.metrics, final.sums, task.transform.unit(scale)),
        "metrics_by_institution": {name: summarise(task, sums, scale) for name, sums in sorted(by_name.items())},
        "config": stored(config),
    }


def write_statement(folder: Path, plan: PrivacyPlan, task: Task, transport: str, started_from: str = "") -> None:
    """The release's privacy statement, for machines and for people; it names all that took part in any round."""
    name = MODEL if plan.counted is None else TABLE
    model_digest = digest(folder / name)
    further = (
        f", trained further from one with SHA-256 {started_from}, of which this says nothing" if started_from else ""
    )
    where = " (a simulation in one process: no ledger was charged)" if transport in SIMULATED else ""
    statement = plan.statement(
        run=folder.name + where, model=f"{task.name}, {name} with SHA-256 {model_digest}{further}",
        institutions=participants(read_rounds(folder)), date=datetime.now(UTC).date().isoformat(),
    )  # fmt: skip
    for name, text in zip(STATEMENT, (to_json(statement), to_html(statement)), strict=True):
        write_private(folder / name, text.encode())


def listed(names: Collection[str]) -> str:
    """The names for a tag; how many, where they are too many for one."""
    return json.dumps(sorted(names)) if len(names) <= NAMED else str(len(names))


def absence_tags(by_name: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """A tag that says who was late, left out or refused, if there are not too many."""
    missing = {name: entry for name, entry in by_name.items() if entry["late"] or entry["left_out"] or entry["refused"]}
    text = json.dumps(missing)
    return {"absences": text if len(text) <= TAG_LENGTH else f"{len(missing)} institutions"} if missing else {}


def versions() -> dict[str, str]:
    """The versions that decide the result, for the tracker."""
    from importlib.metadata import version

    return {"version.sovfed": __version__} | {f"version.{name}": version(name) for name in ("flwr", "torch", "numpy")}


def _median(lines: list[dict[str, Any]], key: str) -> float | None:
    """None also where the figure is not told, as of private rounds."""
    values = [line[key] for line in lines if line[key] is not None]
    return statistics.median(values) if values else None
