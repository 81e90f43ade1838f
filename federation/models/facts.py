"""What is said of a trained model, in `model.json` and in the head of `model.safetensors`: enough to use it alone."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from sovfed import __version__
from sovfed.federation.errors import DataError, ProtocolError
from sovfed.federation.messages import OWN, Sums
from sovfed.federation.schema import bind, bounded, choice, named
from sovfed.federation.tasks import Task
from sovfed.federation.tasks.columns import Schema
from sovfed.federation.text import NAME, NAME_LENGTH, json_object, steers

FORMAT: Final = 1
MAX_TEXT: Final = 1 << 20  # characters of a task.yaml
MAX_FACTS_BYTES: Final = 1 << 26
TEXT: Final = "task_yaml"
MAX_TOLD_BYTES: Final = 1 << 18  # of what a message says of a run
MAX_METRIC_NAME: Final = 64


@dataclass(frozen=True)
class Privacy:
    """What the run promised each person. `seeded`: its noise came from a known seed, so nothing."""

    mechanism: str = bounded(low=1, high=64)
    epsilon: float = bounded(low=0.0)
    delta: float = bounded(low=0.0, high=1.0)
    seeded: bool = bounded(False)


@dataclass(frozen=True)
class RunFacts:
    """The run that a model came of; `metrics` are of the held-out records of all institutions, and none if private."""

    name: str = bounded(low=1, high=200)
    rounds: int = bounded(0, 0, 1_000_000)
    strategy: str = bounded("", 0, 64)
    date: str = bounded("", 0, 32, doc="ISO date of the model")
    institutions: tuple[str, ...] = dataclasses.field(default=())
    simulated: bool = bounded(False, doc="in one process, without institutions")
    metrics: dict[str, float] = dataclasses.field(default_factory=dict)
    privacy: Privacy | None = None
    started_from: str = bounded("", 0, 64, doc="SHA-256 of the model that was trained further, hexadecimal")


@dataclass(frozen=True)
class TaskFacts:
    """The task, with the whole schema; `text` is the task.yaml of a task that was declared, "" of a package's."""

    schema: Schema
    name: str = named(high=128)
    digest: str = bounded(low=64, high=64, doc="SHA-256 of all that two sides agree on, hexadecimal")
    parameters: int = bounded(low=0, high=10**12, doc="values that travelled")
    title: str = bounded("", 0, 500)
    version: str = bounded("", 0, 64)
    headline: str = bounded("", 0, 64)
    licence: str = bounded("", 0, 500)
    citation: str = bounded("", 0, 1000)
    normalisation: str = choice(OWN, (OWN, "group"))
    text: str = ""


@dataclass(frozen=True)
class Facts:
    """All of it. `mean` and `deviation` are the transform's scale; one value stands for that many equal ones."""

    task: TaskFacts
    run: RunFacts
    classes: tuple[str, ...] = dataclasses.field(default=())
    mean: tuple[float, ...] = dataclasses.field(default=())
    deviation: tuple[float, ...] = dataclasses.field(default=())
    sovfed: str = bounded(__version__, 1, 64)
    format: int = bounded(FORMAT, FORMAT, FORMAT)

    def scale(self, size: int) -> Sums:
        """[mean (f), deviation (f)] of `size` = f values. Raises DataError if it is of another length, or no scale."""
        try:
            halves = [np.broadcast_to(np.array(half, np.float64), (size,)) for half in (self.mean, self.deviation)]
        except ValueError as error:
            raise DataError(f"the scale is of {len(self.mean)} values, the task's schema has {size}") from error
        if not (halves[1] > 0).all():
            raise DataError("the scale has a deviation that is not above 0")
        return np.concatenate(halves)


def facts_of(task: Task, scale: Sums, run: RunFacts, normalisation: str = OWN) -> Facts:
    """The facts of a model of `task` with its `scale` [mean (f), deviation (f)]."""
    about = TaskFacts(
        schema=task.schema, name=task.name, digest=task.digest, parameters=task.parameters, title=task.title,
        version=task.version, headline=task.headline, licence=task.licence, citation=task.citation,
        normalisation=normalisation, text=task.text,
    )  # fmt: skip
    mean, deviation = np.split(np.asarray(scale, np.float64), 2)
    return Facts(about, run, task.schema.classes, _short(mean), _short(deviation))


def to_json(facts: Facts, **more: str) -> str:
    """As text, with `more` beside it; `from_json` reads it again."""
    fields = _as_dict(facts)
    text = fields["task"].pop("text")
    return json.dumps({**fields, **({TEXT: text} if text else {}), **more}, indent=1, allow_nan=False) + "\n"


def from_json(text: str | bytes, where: str) -> tuple[Facts, dict[str, str]]:
    """The facts in `text` and what stands beside them. Raises DataError unless all is of its type and bounds."""
    fields = json_object(text, where, DataError, MAX_FACTS_BYTES)
    if fields.get("format") != FORMAT:
        raise DataError(f"{where}: format {str(fields.get('format'))[:20]!a}, this version reads {FORMAT}")
    more: dict[str, str] = {name: fields.pop(name) for name in (TEXT, "model_sha256") if name in fields}
    if not all(isinstance(value, str) for value in more.values()) or len(more.get(TEXT, "")) > MAX_TEXT:
        raise DataError(f"{where}: {TEXT} and model_sha256 must be text, of at most {MAX_TEXT} characters")
    facts = bind(Facts, fields, where, DataError)
    task = dataclasses.replace(facts.task, text=more.pop(TEXT, ""))
    return dataclasses.replace(facts, task=task), more


@dataclass(frozen=True)
class Told:
    """What an institution cannot know of a model by itself: the run that it came of, and the version of sovfed."""

    run: RunFacts
    sovfed: str = bounded(__version__, 1, 64)


def told(facts: Facts | Told) -> bytes:
    """The run and version of `facts` as JSON, for a message."""
    return json.dumps(_as_dict(Told(facts.run, facts.sovfed)), allow_nan=False).encode()


def from_told(content: bytes) -> Told:
    """What `told` wrote. Raises ProtocolError unless all is of its type and bounds, and the run's name is one."""
    read = bind(Told, json_object(content, "facts", ProtocolError, MAX_TOLD_BYTES), "facts", ProtocolError)
    name = read.run.name
    if len(name) > NAME_LENGTH or not NAME.fullmatch(name):
        raise ProtocolError(f"facts: run {name[:80]!a} is no name of a run")
    if any(steers(metric) or len(metric) > MAX_METRIC_NAME for metric in read.run.metrics):
        raise ProtocolError("facts: a metric's name is too long or holds control characters")
    return read


def _as_dict(facts: Facts | Told) -> dict[str, Any]:
    """The fields; what the run began with only where that was a model: earlier versions know no such field."""
    fields = dataclasses.asdict(facts)
    if not facts.run.started_from:
        del fields["run"]["started_from"]
    return fields


def _short(values: Any) -> tuple[float, ...]:
    distinct = np.unique(values)
    return (float(distinct[0]),) if len(distinct) == 1 else tuple(float(value) for value in values)
