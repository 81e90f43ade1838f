"""Tasks in one line: an existing module, the shape of what it takes, and what it learns.

    TASK = classifier("digits", Net, (1, 8, 8), classes=10)
    TASK = classifier("scans", Net, Column("scan", "image", shape=(3, 32, 32)), classes=("healthy", "ill"))
    TASK = classifier("visits", Net, {"labs": (5,), "codes": (8,)}, classes=2)
    TASK = regressor("stay", Net, [number("age", 0, 120), number("bmi", 5, 100)], low=0, high=365)

Whatever these do not say, `Task` and `Schema` do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from sovfed.federation.metrics import BinaryMetrics, ClassMetrics, MultiLabelMetrics, RegressionMetrics, TokenMetrics
from sovfed.federation.tasks import Task, losses
from sovfed.federation.tasks.columns import Column, Schema, number, target
from sovfed.federation.tasks.targets import Target

if TYPE_CHECKING:
    from torch.nn import Module

    from sovfed.federation.metrics import Metric

Inputs: TypeAlias = Column | Sequence[Column] | tuple[int, ...] | Mapping[str, tuple[int, ...]]
BOUNDS: Final = (-10.0, 10.0)  # of numbers that are already scaled
FEATURES: Final = "features"


def classifier(
    name: str, build: Callable[[], Module], inputs: Inputs, classes: int | Sequence[str], *, logits: int | None = None,
    bounds: tuple[float, float] = BOUNDS, learnt: str = "label", one_row_a_person: bool = False, **rest: Any,
) -> Task:  # fmt: skip
    """A task whose model puts each record into one of `classes` (their words, or how many): one logit for each.

    `inputs` are columns, or the shape of a record's numbers, which reach the model as they are, unscaled, and lie
    within `bounds`; of several arrays the shape of each by its name, which the model takes as arguments of these names
    or as one dict of them. Columns made by `number(…)` are scaled by the federation's mean and deviation. `learnt` is
    what a table calls the class. `logits` = 1 is for two classes and a model with one logit, of the second class.
    `rest` is `Task`'s; accuracy is reported first unless it has another `headline`.
    """
    words = [str(label) for label in range(classes)] if isinstance(classes, int) else list(classes)
    if logits == 1 and len(words) != 2:
        raise ValueError(f"task '{name}': one logit is for 2 classes, not for {len(words)}")
    metrics: Metric = BinaryMetrics() if logits == 1 else ClassMetrics(len(words))
    loss = losses.binary_cross_entropy if logits == 1 else losses.cross_entropy
    columns = (*_columns(inputs, bounds), target(learnt, *words))
    schema = Schema(columns, one_row_a_person=one_row_a_person)
    return _task(name, build, schema, metrics, "accuracy", loss, rest)


def regressor(
    name: str, build: Callable[[], Module], inputs: Inputs, low: float, high: float, *,
    bounds: tuple[float, float] = BOUNDS, learnt: str = "value", one_row_a_person: bool = False, **rest: Any,
) -> Task:  # fmt: skip
    """A task whose model gives a number in [`low`, `high`] for each record: outputs [n, 1].

    `inputs` and `bounds` as in `classifier`; `learnt` is what a table calls the number. It is
    learnt in deviations from the federation's mean, which `predict` takes back into the number's own unit.
    """
    columns = (*_columns(inputs, bounds), number(learnt, low, high, role="target"))
    schema = Schema(columns, one_row_a_person=one_row_a_person)
    return _task(name, build, schema, RegressionMetrics(), "r2", losses.squared_error, rest)


def multilabel(
    name: str, build: Callable[[], Module], inputs: Inputs, labels: Sequence[str], *,
    bounds: tuple[float, float] = BOUNDS, one_row_a_person: bool = False, **rest: Any,
) -> Task:  # fmt: skip
    """A task whose model says of each of `labels` whether a record has it: one logit for each."""
    names = tuple(labels)
    columns = (*_columns(inputs, bounds), *(Column(label, "boolean", role="target") for label in names))
    schema = Schema(columns, one_row_a_person=one_row_a_person)
    return _task(name, build, schema, MultiLabelMetrics(names), "auc", losses.multilabel(names), rest)


def language_model(
    name: str, build: Callable[[], Module], tokenizer: str, symbols: int, context: int, **rest: Any
) -> Task:  # fmt: skip
    """A task whose model gives log p [n, `context`] of each token but the first of windows [n, `context` + 1].

    `tokenizer` is the SHA-256 of the file that cuts texts into `symbols` tokens; records are of the source `tokens`.
    """
    window = Column("window", "tokens", high=float(symbols - 1), shape=(context + 1,))
    learnt = Target("next_token", tokenizer=tokenizer).to_columns([window])
    schema = Schema((window, *learnt), person="document")
    settings = {"tokenizer": tokenizer, "evaluation_batch": 32, **rest}
    return _task(name, build, schema, TokenMetrics(), "bits_per_byte", losses.counted_tokens, settings)


def _columns(inputs: Inputs, bounds: tuple[float, float]) -> tuple[Column, ...]:
    """The columns of `inputs`; of shapes, columns of numbers that stay what they are. Raises ValueError."""
    if isinstance(inputs, Column):
        return (inputs,)
    if isinstance(inputs, Mapping):
        if inputs and all(map(_is_shape, inputs.values())):
            return tuple(number(name, *bounds, shape=tuple(shape), scaling="none") for name, shape in inputs.items())
    elif _is_shape(inputs):
        return (number(FEATURES, *bounds, shape=tuple(inputs), scaling="none"),)
    elif isinstance(inputs, Sequence) and inputs and all(isinstance(column, Column) for column in inputs):
        return tuple(inputs)  # type: ignore[arg-type]
    raise ValueError(
        f"inputs are {str(inputs)[:80]}, expected a shape such as (3, 32, 32), shapes by name such as "
        '{"labs": (5,), "codes": (8,)}, or columns such as [number("age", 0, 120)]'
    )


def _is_shape(value: object) -> bool:
    return isinstance(value, (tuple, list)) and bool(value) and all(type(size) is int for size in value)


def _task(
    name: str, build: Callable[[], Module], schema: Schema, metrics: Metric, headline: str, loss: Any,
    rest: dict[str, Any],
) -> Task:  # fmt: skip
    settings = {"title": name, "headline": headline, "loss": loss, "metrics": metrics, **rest}
    return Task(name=name, build=build, schema=schema, **settings)


__all__ = ["classifier", "language_model", "multilabel", "regressor"]
