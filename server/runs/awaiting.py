"""Whom a run waits for, since when and why: kept by its coordinator in `awaiting.json`, told to whoever asks.

`Attentive` stands before the Grid that a run's rounds travel on, so that every exchange is seen: training, secure
aggregation's steps, ledgers, the release. A round of milliseconds writes nothing; what lasts is written once a second.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final

from sovfed.federation.errors import WIRE_SENTENCES, ServiceError
from sovfed.federation.files import write_private
from sovfed.federation.wire.flower import refusal_in
from sovfed.federation.wire.grids import LeftS, StreamingGrid, for_ever
from sovfed.server.runs.folders import ACTIVE, INTERRUPTED, STARTING, read_runs, run_folder
from sovfed.server.runs.recovery import last_try

if TYPE_CHECKING:
    from pathlib import Path

    from flwr.app import Message as FlowerMessage
    from flwr.proto.node_pb2 import NodeInfo
    from flwr.supercore.run import Run

    from sovfed.server.runs.control import NodeRecord

USUAL_START_S: Final = 15.0  # that a coordinator takes to start
FILE: Final = "awaiting.json"
LASTS_S: Final = 1.0  # what is over sooner is not told
NAMED: Final = 8  # institutions in a sentence; the rest are counted
STAGES: Final = {  # by Flower's message type
    "train": "training",
    "train.private": "private training",
    "evaluate": "evaluation",
    "query.profile": "the columns' profile",
    "query.run": "their word on the whole run",
    "query.secagg": "secure aggregation",
    "query.ledger": "their privacy ledgers' heads",
    "query.release": "taking the model",
    "query.lane": "opening their lanes",
}
COHORT: Final = "the minimum cohort"


@dataclass(frozen=True)
class Awaiting:
    """What a coordinator waits for: `missing` of `asked` institutions; `refused` are the codes of those who declined.

    `since` and `until` are Unix time; `until` is when it gives up, 0 if it did not say.
    """

    stage: str
    since: float
    asked: int
    missing: tuple[str, ...] = ()
    refused: dict[str, str] = field(default_factory=dict)
    until: float = 0.0


class Attentive(StreamingGrid):
    """`grid`, with `folder/awaiting.json` saying whom its exchanges wait for; `least` institutions make a cohort."""

    def __init__(self, grid: StreamingGrid, folder: Path, least: int) -> None:
        self._grid, self._path, self._least = grid, folder / FILE, least
        self._lock, self._closed = threading.Lock(), threading.Event()
        self._names: dict[int, str] = {}
        self._now: Awaiting | None = None
        self._written: Awaiting | None = None
        self._path.unlink(missing_ok=True)
        threading.Thread(target=self._write, name="awaiting", daemon=True).start()

    @property
    def bytes_down(self) -> int:  # type: ignore[override]
        return self._grid.bytes_down

    @property
    def bytes_up(self) -> int:  # type: ignore[override]
        return self._grid.bytes_up

    def set_run(self, run: Run) -> None:
        self._grid.set_run(run)

    @property
    def run(self) -> Run:
        return self._grid.run

    def get_node_ids(self) -> Iterable[int]:
        nodes = self._grid.get_node_ids()
        count = len(nodes if isinstance(nodes, range) else list(nodes))
        with self._lock:
            if count >= self._least:
                self._now = None if self._now and self._now.stage == COHORT else self._now
            elif self._now is None or self._now.stage != COHORT:
                self._now = Awaiting(COHORT, time.time(), self._least)
        return nodes

    def get_nodes(self) -> Iterable[NodeInfo]:
        nodes = list(self._grid.get_nodes())
        self._names |= {node.node_id: node.name or str(node.node_id) for node in nodes}
        return nodes

    def push_messages(self, messages: Iterable[FlowerMessage]) -> Iterable[str]:
        return self._grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[FlowerMessage]:
        return self._grid.pull_messages(message_ids)

    def presence(self) -> dict[str, Any] | None:
        return self._grid.presence()

    def heard(self, node_id: int) -> float:
        return self._grid.heard(node_id)

    def awaits(self, stage: str, since: float, nodes: Iterable[int], asked: int, until: float) -> None:
        names = {node.node_id: node.name or str(node.node_id) for node in self.get_nodes()} if stage else {}
        missing = tuple(sorted(names.get(node, str(node)) for node in nodes))
        self._see(Awaiting(stage, since, asked, missing, {}, until) if stage else None)

    def replies(
        self, messages: Iterable[FlowerMessage], timeout_s: float, left_s: LeftS = for_ever
    ) -> Iterator[FlowerMessage]:
        batch = messages if isinstance(messages, list) else list(messages)
        nodes = [message.metadata.dst_node_id for message in batch]
        if unknown := set(nodes) - self._names.keys():
            self.get_nodes()
            self._names |= {node: str(node) for node in unknown - self._names.keys()}
        missing = {node: self._names[node] for node in nodes}
        stage, since = _stage(batch[0]) if batch else "", time.time()
        refused = dict[str, str]()
        del batch
        try:
            self._see(Awaiting(stage, since, len(nodes), tuple(missing.values()), {}, since + timeout_s))
            for reply in self._grid.replies(messages, timeout_s, left_s):
                name = missing.pop(reply.metadata.src_node_id, "")
                if name and (code := _refusal(reply)):
                    refused[name] = code
                self._see(Awaiting(stage, since, len(nodes), tuple(missing.values()), dict(refused), since + timeout_s))
                yield reply
        finally:
            self._see(None)

    def close(self) -> None:
        self._closed.set()
        self._path.unlink(missing_ok=True)
        self._grid.close()

    def _see(self, awaiting: Awaiting | None) -> None:
        with self._lock:
            self._now = awaiting

    def _write(self) -> None:
        while not self._closed.wait(LASTS_S):
            with self._lock:
                now = self._now if self._now and time.time() - self._now.since >= LASTS_S else None
            if now == self._written:
                continue
            with contextlib.suppress(OSError):  # a full disk ends no run
                if now is None:
                    self._path.unlink(missing_ok=True)
                else:
                    write_private(self._path, json.dumps(asdict(now)).encode())
                self._written = now


def _stage(message: FlowerMessage) -> str:
    kind, group = message.metadata.message_type, message.metadata.group_id
    words = STAGES.get(kind, kind)
    return f"{words} of round {group}" if group.isdigit() and not kind.startswith("query.") else words


def _refusal(reply: FlowerMessage) -> str:
    """The code of a reply that declines, or that Flower made because nobody answers; else ""."""
    if reply.has_error():
        return f"flower-{reply.error.code}"
    return refusal_in(reply.content)


def read_awaiting(folder: Path) -> Awaiting | None:
    """What the coordinator of the run in `folder` waits for, as it said last; None if for nothing that lasts."""
    try:
        values: dict[str, Any] = json.loads((folder / FILE).read_bytes())
        return Awaiting(**{**values, "missing": tuple(values["missing"])})
    except (OSError, ValueError, TypeError, KeyError):
        return None


def why_waiting(
    run: dict[str, Any], folder: Path, nodes: Iterable[NodeRecord] | None, now: float | None = None
) -> list[str]:
    """Sentences about what an active run waits for, since when and why; [] if it goes on. `nodes`: all, None unknown.

    `run` is what `read_run` says of it.
    """
    moment = time.time() if now is None else now
    if run["status"] not in ACTIVE:
        return []
    if run["status"] == INTERRUPTED:
        return [_when_again(run, folder, moment)]
    if run["status"] == STARTING:
        since = moment - float(run["started"])
        if since < USUAL_START_S:
            return ["the executor starts its coordinator"]
        waited = ago(since)
        return [f"waiting for the executor to start it, since {waited}; `sovfed server logs executor` may say why"]
    online = None if nodes is None else {node.name for node in nodes if node.status == "online"}
    awaiting = read_awaiting(folder)
    if awaiting is None or awaiting.stage == COHORT:
        return _cohort(run, nodes, awaiting, moment)
    lines = [*_refusals(awaiting)]
    if awaiting.missing:
        until = f", for at most {ago(awaiting.until - moment)} more" if awaiting.until > moment else ""
        lines.insert(
            0,
            f"awaiting {len(awaiting.missing)} of {awaiting.asked} for {awaiting.stage}, since "
            f"{ago(moment - awaiting.since)}{until}: {_named(awaiting.missing, online)}",
        )
    return lines


def _cohort(
    run: dict[str, Any], nodes: Iterable[NodeRecord] | None, awaiting: Awaiting | None, moment: float
) -> list[str]:
    """Who is not connected, where too few are for a round."""
    if nodes is None or (awaiting is None and run["rounds_done"]):
        return []
    named = run.get("cohort") or ()  # else the run is for all
    known = [node for node in nodes if node.status != "unregistered" and (not named or node.name in named)]
    online = [node.name for node in known if node.status == "online"]
    least = int(run["min_cohort"])
    if len(online) >= least:
        return []
    since = f", since {ago(moment - awaiting.since)}" if awaiting else ""
    away = [node.name for node in known if node.status != "online"]
    absent = f"; not connected: {_named(away, None)}" if away else "; no other institution is enrolled"
    return [f"waiting for institutions: {len(online)} of the {least} that a round needs are connected{since}{absent}"]


def _when_again(run: dict[str, Any], folder: Path, moment: float) -> str:
    tried = last_try(folder)
    wait = tried.next_at - moment
    soon = f"in {ago(wait)}" if wait > 0 else "now, while `sovfed server up` runs"
    why = f": {tried.why}" if tried.why else ""
    return f"interrupted: {run['reason']}; it is taken up again {soon} ({tried.count} tries without a new round{why})"


def _refusals(awaiting: Awaiting) -> Iterator[str]:
    by_code: dict[str, list[str]] = {}
    for name, code in awaiting.refused.items():
        by_code.setdefault(code, []).append(name)
    for code, names in by_code.items():
        why = WIRE_SENTENCES.get(code, "").rstrip(".")
        yield f"{len(names)} of {awaiting.asked} refuse: {code}{f' ({why})' if why else ''}: {_named(names, None)}"


def _named(names: Iterable[str], online: set[str] | None) -> str:
    """At most NAMED of `names`, each with whether it is connected, where that is known."""
    listed = list(names)
    words = [f"{name} (not connected)" if online is not None and name not in online else name for name in listed]
    more = f" and {len(words) - NAMED} more" if len(words) > NAMED else ""
    return ", ".join(words[:NAMED]) + more


def ago(seconds: float) -> str:
    """`seconds` as a person says it: 12 s, 4 min, 3 h, 2 days."""
    for size, unit in ((86_400, "days"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"


def nodes_of(control: Any) -> list[NodeRecord] | None:
    """The nodes that the superlink knows, None if it is away."""
    try:
        return list(control.list_nodes())
    except (ServiceError, OSError):
        return None


def waiting_runs(home: Path, nodes: Iterable[NodeRecord] | None) -> list[tuple[str, str, list[str]]]:
    """Each active run of `home`: its name, its state in a few words, and what it waits for."""
    known = None if nodes is None else list(nodes)
    runs = [run for run in read_runs(home) if run["status"] in ACTIVE]
    return [(run["name"], state_of(run), why_waiting(run, run_folder(home, run["name"]), known)) for run in runs]


def state_of(run: dict[str, Any]) -> str:
    """How far a run is, for a line."""
    return f"{run['status']}, {run['rounds_done']} of {run['rounds']} rounds"
