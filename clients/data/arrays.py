"""Records of arrays and tensors that are already in memory, as a notebook or a training script has them."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from sovfed.clients.data import Records, check
from sovfed.clients.data.split import by_content, by_person
from sovfed.federation.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sovfed.federation.tasks import Task

Arrays: TypeAlias = "npt.ArrayLike | Mapping[str, npt.ArrayLike]"
Part: TypeAlias = "tuple[Arrays, Arrays]"  # inputs and targets
BOUNDED: Final = "; bounds=(low, high) of classifier() or regressor(), or the column's own, say what can be"
UNSCALED: Final = 20.0  # features beyond it are no scaled ones
LOOKED_AT: Final = 1_000  # records
log = logging.getLogger(__name__)
UNKNOWN: Final = (
    "nothing says who is a person: give records() `persons`, or declare one_row_a_person where each row is another"
)


def records(task: Task, train: Part, test: Part | None = None, *, persons: npt.ArrayLike | None = None) -> Records:
    """The records of one institution: `train` and `test` are (inputs, targets), arrays or tensors of whole data sets.

    Without `test` a part is held out, by person. Inputs and targets are the one array that the task's schema has, or by
    column's name; numbers of a table stand side by side, [n, columns], and so do several targets. `persons` [n] names
    the person of each record, those of `test` behind those of `train`. Raises DataError.
    """
    from sovfed.clients.data.tables.words import is_nobody, person_name  # beside Arrow, which starts threads

    table = _table(task, train)
    count = len(next(iter(table.values())))
    if test is not None:
        held_out = _table(task, test)
        table = {name: np.concatenate([values, held_out[name]]) for name, values in table.items()}
    total = len(next(iter(table.values())))
    rows = np.arange(total)
    names = None if persons is None else [person_name(str(person)) for person in np.asarray(persons)]
    if names is not None and len(names) != total:
        raise DataError(f"task '{task.name}': {len(names)} persons for {total} records")
    if nobody := sum(map(is_nobody, names or ())):
        raise DataError(f"task '{task.name}': {nobody} records name no person")
    if test is not None:
        parts = rows[:count], rows[count:]
    elif names is not None:
        parts = by_person(task.name, names)
    else:
        apart = by_content(task.name, table)
        parts = np.flatnonzero(~apart), np.flatnonzero(apart)
    numbers = rows if names is None else np.unique(names, return_inverse=True)[1].astype(np.int64)
    persons_known = names is not None or task.schema.one_row_a_person
    result = Records(
        table, numbers, *parts, several_records=names is not None, not_private="" if persons_known else UNKNOWN
    )
    check(result, task.schema, f"task '{task.name}'", BOUNDED)
    _warn_unscaled(task, result)
    return result


def _warn_unscaled(task: Task, result: Records) -> None:
    """Say in the log that features which reach the model as they are, are no scaled ones: it hardly learns then."""
    for column in task.schema.shaped:
        if column.kind == "number" and column.scaling == "none" and len(column.shape) == 1 and len(result.train):
            largest = float(np.abs(result.columns[column.name][result.train[:LOOKED_AT]]).max())
            if largest > UNSCALED:
                log.warning(
                    "task '%s': '%s' reaches to %.3g and goes into the model unscaled, which hardly learns from it: "
                    'scale it, or name the columns, [number("age", 0, 120), …], which the federation scales',
                    task.name, column.name, largest,
                )  # fmt: skip


def _pair(task: Task, part: Part) -> Part:
    """`part`, which is what it should be. Raises DataError if it is a data frame, say, whose names are no arrays."""
    if isinstance(part, (tuple, list)) and len(part) == 2:
        return part[0], part[1]
    raise DataError(
        f"task '{task.name}': records() takes (inputs, targets), got {type(part).__name__}; a data frame goes into "
        "simulate() as it is, simulate(task, {NAME: frame})"
    )


def _table(task: Task, part: Part) -> dict[str, npt.NDArray[Any]]:
    schema = task.schema
    inputs, targets = _pair(task, part)
    learnt = {column.name for column in schema.targets}
    input_names = [name for name in schema.stored() if name not in learnt]
    arrays = _by_name(task, inputs, input_names) | _by_name(task, targets, [column.name for column in schema.targets])
    table = {}
    for name, (dtype, shape) in schema.stored().items():
        values = np.asarray(arrays[name])
        if values.shape[1:] != shape:
            raise DataError(f"task '{task.name}': '{name}' is of shape {list(values.shape)}, expected {['n', *shape]}")
        table[name] = values.astype(dtype, copy=False) if dtype.kind == "f" else _whole(task, name, values, dtype)
    if len({len(values) for values in table.values()}) > 1:
        lengths = {name: len(values) for name, values in table.items()}
        raise DataError(f"task '{task.name}': columns of unequal length {lengths}")
    return table


def _by_name(task: Task, arrays: Arrays, names: list[str]) -> dict[str, Any]:
    """`arrays` by the names that the schema stores them under."""
    if hasattr(arrays, "keys"):
        if set(arrays) != set(names):  # type: ignore[arg-type]
            raise DataError(f"task '{task.name}': columns {sorted(arrays)}, expected {sorted(names)}")  # type: ignore[type-var, arg-type]
        return dict(arrays)  # type: ignore[arg-type]
    if len(names) == 1:
        return {names[0]: arrays}
    values = np.asarray(arrays)
    if values.ndim != 2 or values.shape[1] != len(names):
        raise DataError(f"task '{task.name}': one array of shape {list(values.shape)} for columns {sorted(names)}")
    return {name: values[:, position] for position, name in enumerate(names)}


def _whole(task: Task, name: str, values: npt.NDArray[Any], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """`values` as whole numbers of `dtype`. Raises DataError if they are none, or too large for it."""
    with np.errstate(invalid="ignore"):
        result = values.astype(dtype)
    wrong = int((result != values).sum())
    if wrong:
        raise DataError(
            f"task '{task.name}': column '{name}': {wrong} of {values.size} are no whole numbers of {dtype}"
        )
    return result


__all__ = ["records"]
