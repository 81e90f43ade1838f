"""A run made anew without those who withdrew: from the last model before their first round, under an own order."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Final

from sovfed.federation.errors import ConfigError
from sovfed.federation.evidence.entries import canonical, listed
from sovfed.federation.evidence.store import record
from sovfed.federation.files import write_private
from sovfed.federation.orders.answers import CONSENTED, SIGNED, decision_in
from sovfed.federation.schema import bind, bounded, named
from sovfed.federation.tasks.registry import configured_task
from sovfed.server.orders.beginning import beginning_after
from sovfed.server.orders.making import read_answers
from sovfed.server.orders.proposing import propose
from sovfed.server.orders.withdrawn import PROFILED, read_withdrawn
from sovfed.server.rounds.checkpoint import KEPT, NAME, kept_rounds
from sovfed.server.runs.attendance import participants
from sovfed.server.runs.curves import ROUNDS, read_rounds
from sovfed.server.runs.folders import ACTIVE, read_state, read_summary, run_folder, stored_config

if TYPE_CHECKING:
    from pathlib import Path

    from sovfed.federation.config import Config
    from sovfed.federation.orders.order import Proposal

FILE: Final = "unlearning.json"  # in the new run's folder


@dataclass(frozen=True)
class Unlearning:
    """That a run is `of` another made anew by `cohort`, without `withdrawn`, from after round `from_round` of it."""

    of: str = named(high=128)
    withdrawn: tuple[str, ...] = bounded(low=1, high=63)
    cohort: tuple[str, ...] = bounded(low=1, high=63)
    from_round: int = bounded(0, 0, 1_000_000)
    earlier_model: str = bounded("", 0, 64)
    purpose: str = bounded("", 0, 500, doc="of the new run's order; empty: the earlier one's")


def read_unlearning(folder: Path) -> Unlearning | None:
    """What the run in `folder` makes anew; None of any other run."""
    path = folder / FILE
    return bind(Unlearning, json.loads(path.read_bytes()), str(path)) if path.exists() else None


def unlearn(home: Path, run: str, name: str, purpose: str = "") -> tuple[Unlearning, Proposal]:
    """Propose run `name`: `run` anew without those who withdrew from it, for its purpose or another.

    Raises ConfigError where nobody has, too few are left, or the run still goes on.
    """
    folder, old = run_folder(home, name), run_folder(home, run)
    if read_state(home, run)["status"] in ACTIVE:
        raise ConfigError(f"run '{run}' goes on; `sovfed run stop {run}` first")
    gone = tuple(withdrawal.institution for withdrawal in read_withdrawn(old))
    if not gone:
        raise ConfigError(f"nobody has withdrawn from run '{run}'; `sovfed run withdraw` records who has")
    config, summary = stored_config(home, run), read_summary(home, run)
    if not set(gone) & (set(participants(read_rounds(old))) | _profiled(old, ())):
        raise ConfigError(f"{', '.join(gone)} took part in nothing of run '{run}': nothing is to be unlearnt")
    left = tuple(name for name in _willing(old, config) if name not in gone)
    if len(left) < config.server.min_cohort:
        least = config.server.min_cohort
        raise ConfigError(
            f"without {', '.join(gone)} there are {len(left)} institutions, minimum cohort is {least}: "
            "the model cannot be made anew by them; `sovfed run propose` a run that more can join"
        )
    earlier = (summary or {}).get("model_sha256", "")
    made = Unlearning(run, gone, left, _from_round(old, config, gone), earlier, purpose or config.order.purpose)
    kept = {FILE: json.dumps(asdict(made), indent=1).encode()}  # before there is an order that could be started
    begins = beginning_after(old, made.from_round) if made.from_round else None
    proposal = propose(home, name, _without(config, name, made), (), kept, begins)
    if made.from_round:
        shutil.copyfile(old / KEPT / f"{made.from_round}.safetensors", folder / NAME)
        lines = [json.dumps(line) + "\n" for line in read_rounds(old) if line["round"] <= made.from_round]
        write_private(folder / ROUNDS, "".join(lines).encode())
        if (old / PROFILED).exists():  # the scale goes on too
            shutil.copyfile(old / PROFILED, folder / PROFILED)
    record(home, "unlearning", name=name, **stated(made))
    return made, proposal


def unlearning_config(home: Path, name: str) -> Config | None:
    """The configuration of run `name`, if it was proposed by `unlearn`. Raises ConfigError if more have withdrawn."""
    made = read_unlearning(run_folder(home, name))
    if made is None:
        return None
    more = {entry.institution for entry in read_withdrawn(run_folder(home, made.of))} - set(made.withdrawn)
    if more:
        raise ConfigError(f"{', '.join(sorted(more))} withdrew from run '{made.of}' since; `sovfed run unlearn` anew")
    return _without(stored_config(home, made.of), name, made)


def left_since(home: Path, name: str) -> set[str]:
    """Who has withdrawn from the run with whose model run `name` begins, since then, and is in that model."""
    folder = run_folder(home, name)
    made = read_unlearning(folder)
    if made is None or not made.from_round:
        return set()
    begun = (line for line in read_rounds(folder) if line["round"] <= made.from_round)
    gone = {entry.institution for entry in read_withdrawn(run_folder(home, made.of))} - set(made.withdrawn)
    return (gone & ({*participants(begun)} | _profiled(folder, tuple(gone)))) | left_since(home, made.of)


def left_before(home: Path, name: str) -> set[str]:
    """Who has withdrawn from a run of this agency from whose model run `name` was trained further, at any remove."""
    runs = [path for path in run_folder(home, name).parent.iterdir() if path.is_dir()]
    summaries = [read_summary(home, path.name) or {} for path in runs]
    known: set[str] = set()
    begun = {str((read_summary(home, name) or {}).get("started_from_sha256", ""))} - {""}
    while begun:
        known |= begun
        earlier = (entry for entry in summaries if entry.get("model_sha256") in begun)
        begun = {str(entry.get("started_from_sha256", "")) for entry in earlier} - known - {""}
    withdrawn = (entry for path in runs for entry in read_withdrawn(path))
    return {entry.institution for entry in withdrawn if known & set(entry.models)}


def stated(made: Unlearning) -> dict[str, object]:
    """What log and release say of it."""
    return {
        "of": made.of, "withdrawn": listed(made.withdrawn), "from_round": made.from_round,
        "earlier_model": made.earlier_model,
    }  # fmt: skip


def _without(config: Config, name: str, made: Unlearning) -> Config:
    server = replace(config.server, start_cohort=min(config.server.start_cohort, len(made.cohort)))
    order = replace(config.order, cohort=made.cohort, purpose=made.purpose or config.order.purpose)
    return replace(config, run_name=name, server=server, order=order)


def _willing(folder: Path, config: Config) -> list[str]:
    """Whom the run was for: those it named, else those who took part or agreed to."""
    if config.order.cohort:
        return sorted(config.order.cohort)
    words = {name: decision_in(canonical(value)) for name, value in read_answers(folder).items()}
    agreed = {name for name, decision in words.items() if decision in (SIGNED, CONSENTED)}
    return sorted(agreed | set(participants(read_rounds(folder))))


def _profiled(folder: Path, gone: tuple[str, ...]) -> set[str]:
    """Whose records are in the columns' profile; where nobody wrote it down, those too that are asked about."""
    path = folder / PROFILED
    return set(json.loads(path.read_bytes())) if path.exists() else set(gone)


def _from_round(folder: Path, config: Config, gone: tuple[str, ...]) -> int:
    """The last round before which nothing of `gone` is in the model, and whose model was kept; 0: the beginning.

    What institutions keep of a run themselves begins with it, and so does what a private run has been charged for.
    """
    if config.strategy.stateful or config.privacy.private:
        return 0
    if configured_task(config.task).transform.size and set(gone) & _profiled(folder, gone):
        return 0
    first = min((line["round"] for line in read_rounds(folder) if set(gone) & set(line["participants"])), default=0)
    return max((kept for kept in kept_rounds(folder) if kept < first), default=0) if first else 0
