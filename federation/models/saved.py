"""A trained model on disk: `model.safetensors`, all its tensors by name, with `model.json` and a card beside it.

The head of the safetensors file holds the facts too, so that the one file is enough, and its SHA-256 stands for all of
it. `model.json` says the same, and that digest. Nothing in either file is code: the task is looked up among those that
are installed, or read from the task.yaml that the facts hold.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from sovfed.federation.errors import ConfigError, DataError
from sovfed.federation.files import replacing, write_private
from sovfed.federation.messages import OWN, Vector
from sovfed.federation.models.card import to_html
from sovfed.federation.models.coefficients import LINEAR, Coefficient, linear
from sovfed.federation.models.facts import Facts, RunFacts, TaskFacts, facts_of, to_json
from sovfed.federation.models.outputs import Predictions, Reading, named
from sovfed.federation.models.stored import (
    CARD,
    FACTS,
    MAX_HEAD_BYTES,
    MODEL,
    check_beside,
    check_shapes,
    check_values,
    head_of,
    read,
)
from sovfed.federation.schema import nearest
from sovfed.federation.tasks import Task
from sovfed.federation.tasks.layout import Applied
from sovfed.federation.tasks.sizes import parameters_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt
    from torch import Tensor, nn

    from sovfed.federation.messages import Sums
    from sovfed.federation.metrics.intervals import Interval
    from sovfed.federation.tasks.columns import Table

FLAT: Final = "model"  # the one tensor of a task that trains nothing


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A trained model with all that it takes to use it. `sha256` is of its file, hexadecimal."""

    task: Task
    network: nn.Module | None  # None: the task trains nothing
    scale: Sums
    facts: Facts
    sha256: str
    flat: Vector | None = None

    @property
    def module(self) -> nn.Module:
        """The torch module: a tree of scaled inputs in, outputs [n, …] out. Raises ConfigError if there is none."""
        if self.network is None:
            raise ConfigError(f"task '{self.task.name}' trains nothing, so there is no model to use")
        return self.network

    @cached_property
    def reading(self) -> Reading:
        """What the outputs mean."""
        return Reading(self.task, self.scale)

    @cached_property
    def vector(self) -> Vector:
        """What travelled, shape [d]."""
        if self.network is not None:
            return self.task.layout.vector(self.network)
        return self.flat if self.flat is not None else np.zeros(0, np.float32)

    def outputs(self, table: Table) -> npt.NDArray[np.float32]:
        """The model's own outputs of raw records, shape [n, …], `task.evaluation_batch` at a time."""
        return self._run(table, torch.nn.Identity())

    def predict(self, table: Table) -> Predictions:
        """What the model says of raw records, as the schema stores them: by name, an array of n values each.

        Classes: the target's own word, and `probability_WORD` of each. Numbers: in the target's unit. Several booleans:
        yes or no and the probability of each. Survival: `survival_TIME`, and `risk` = 1 − the last of them.
        """
        return named(self.task, self.reading.kind, self._run(table, self.reading))

    def predict_rows(self, columns: Mapping[str, Sequence[object]]) -> Predictions:
        """`predict` of columns as a table or data frame has them: numbers, words, dates. Raises DataError."""
        from sovfed.federation.models.rows import to_table

        return self.predict(to_table(self.task.schema, columns))

    @torch.no_grad()
    def _run(self, table: Table, reading: nn.Module) -> npt.NDArray[np.float32]:
        bound, module = self.task.transform.bound(self.scale), self.module.eval()
        count = len(next(iter(table.values())))
        parts = []
        for start in range(0, max(count, 1), self.task.evaluation_batch):
            batch = {
                name: torch.from_numpy(np.ascontiguousarray(column[start : start + self.task.evaluation_batch]))
                for name, column in table.items()
            }
            parts.append(reading(module(bound.inputs(batch)).float()))
        outputs: npt.NDArray[np.float32] = torch.cat(parts).numpy()
        return outputs


def save_model(
    folder: Path, task: Task, vector: Vector, scale: Sums, run: RunFacts, normalisation: str = OWN,
    within: Mapping[str, Interval] | None = None,
) -> str:  # fmt: skip
    """Write the model `vector` [d] with its `scale` into `folder`, as `FILES`; the SHA-256 of `model.safetensors`.

    `task` is the one that was trained, of which `normalisation` says how its layers were made; `within` are intervals
    of metrics, for the card.
    """
    return write_model(folder, task, vector, facts_of(task, scale, run, normalisation), within)


def write_model(
    folder: Path, task: Task, vector: Vector, facts: Facts, within: Mapping[str, Interval] | None = None
) -> str:
    """`save_model` with facts that are known: equal ones of an equal model give equal bytes, so an equal digest."""
    from safetensors.torch import save_file

    head = {"sovfed": to_json(facts)}  # one key: safetensors writes several in any order
    with replacing(folder / MODEL) as draft:
        tensors = tensors_of(task, vector)
        save_file(_apart(tensors), draft, metadata=head)
        with draft.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    write_private(folder / FACTS, to_json(facts, model_sha256=digest).encode())
    told = linear(task, tensors, facts.scale(task.transform.size))
    write_private(folder / CARD, to_html(facts, digest, within=within, linear=told).encode())
    return digest


def write_card(folder: Path, outside: Mapping[str, float] | None = None) -> None:
    """Write the card of the model in `folder` anew, with metrics from `outside` of the federation (`to_html`)."""
    digest = hashlib.sha256(read(folder / MODEL)).hexdigest()
    told = linear_of(folder)
    write_private(folder / CARD, to_html(read_facts(folder), digest, outside, linear=told).encode())


def linear_of(path: Path) -> tuple[str, list[Coefficient]]:
    """What the coefficients of the model in `path` are of, and they. Raises DataError.

    ("", []) unless it is linear, and its task is known here.
    """
    file = path / MODEL if path.is_dir() else path
    if set(head_of(read(file), file)[1]) != LINEAR:
        return "", []
    try:
        loaded = load_model(path)
    except ConfigError:  # the task's package, or archive, is not here
        return "", []
    return linear(loaded.task, named_tensors(loaded.task, loaded.module), loaded.scale)


def tensors_of(task: Task, vector: Vector) -> dict[str, Tensor]:
    """Every tensor of the task's model by name, those of `vector` [d] in their places. Raises DataError."""
    if vector.shape != (task.parameters,) or not np.isfinite(vector).all():
        raise DataError(f"a model of {vector.size} values, expected {task.parameters} finite ones")
    if task.build is None:
        return {FLAT: torch.from_numpy(vector)}
    module = task.model()
    with torch.no_grad():
        for block, tensor in zip(task.layout.parts, task.layout.tensors(module), strict=True):
            tensor.copy_(torch.tensor(vector[block.place]).view(block.shape))
    return named_tensors(task, module)


def named_tensors(task: Task, module: nn.Module) -> dict[str, Tensor]:
    """The tensors of `module`'s state dict, and running statistics that it leaves out; no copies."""
    inner = module.inner if isinstance(module, Applied) else module
    state: dict[str, Any] = inner.state_dict(keep_vars=True)
    non_tensors = [name for name, value in state.items() if not isinstance(value, torch.Tensor)]
    if non_tensors:
        raise ConfigError(f"task '{task.name}': the state of its model holds {non_tensors[0]!r}, which is no tensor")
    travelling = zip((block.name for block in task.layout.parts), task.layout.tensors(module), strict=True)
    return state | {name: tensor for name, tensor in travelling if name not in state}


def load_model(path: Path, *, any_version: bool = False, sha256: str = "") -> LoadedModel:
    """The model in `path`: its folder, or its `model.safetensors`.

    Checked before a tensor is made: format, facts, and names, types and sizes against the task's own model; then that
    what travelled is finite and nothing is not a number. `any_version` takes a task whose digest is another than the
    model's, if all its tensors and its schema are the same; `sha256` is the digest that the file must have, "" any.
    Raises DataError, or ConfigError for the task.
    """
    from safetensors.torch import load

    path = path / MODEL if path.is_dir() else path
    content = read(path)
    digest = hashlib.sha256(content).hexdigest()
    if sha256 and not hmac.compare_digest(digest.encode(), sha256.encode()):
        raise DataError(f"{path}: SHA-256 {digest}, expected {sha256[:64]!a}")
    facts, entries = head_of(content, path)
    check_beside(path, digest)
    task = _task(facts, path, any_version=any_version, most=len(content))
    scale = facts.scale(task.transform.size)
    module = task.model() if task.build is not None else None
    expected = named_tensors(task, module) if module is not None else {FLAT: torch.zeros(task.parameters)}
    check_shapes(entries, expected, path)
    try:
        tensors = load(content)
    except Exception as error:  # what safetensors raises is its own
        raise DataError(f"{path}: not a safetensors file") from error
    check_values(tensors, {block.name for block in task.layout.parts} if module is not None else {FLAT}, path)
    if module is None:
        return LoadedModel(task, None, scale, facts, digest, tensors[FLAT].numpy())
    with torch.no_grad():
        for name, tensor in expected.items():
            tensor.copy_(tensors[name])
    return LoadedModel(task, module.eval(), scale, facts, digest)


def read_facts(path: Path) -> Facts:
    """What the file of a model (or its folder) says of it, without its tensors. Raises DataError."""
    path = path / MODEL if path.is_dir() else path
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            head = file.read(min(size, MAX_HEAD_BYTES))
    except OSError as error:
        raise DataError(f"{path}: missing or not readable") from error
    return head_of(size.to_bytes(8, "little") + head, path)[0]


def _apart(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """`tensors` that share no memory, as safetensors wants them: copies where there are several."""
    if len(tensors) == 1:
        return {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    return {name: tensor.detach().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}


def _task(facts: Facts, path: Path, *, any_version: bool, most: int) -> Task:
    from sovfed.federation.tasks.registry import get_task

    recorded = facts.task
    if recorded.text:
        declared = _declared(recorded.text)
        _require_size(declared, most, path)
        task = declared.with_normalisation(recorded.normalisation)
    else:
        _require_known(recorded, path)
        task = get_task(recorded.name, recorded.parameters, recorded.normalisation)
    if task.schema != recorded.schema:
        raise ConfigError(f"{path}: its schema is not that of task '{recorded.name}' here, version {task.version}")
    if task.digest != recorded.digest and not any_version:
        raise ConfigError(
            f"{path}: made with task '{recorded.name}' version {recorded.version} of digest {recorded.digest[:16]}…, "
            f"the one here is version {task.version} of {task.digest[:16]}…: install that one, or accept this one "
            "(--any-version)"
        )
    if task.parameters != recorded.parameters:
        raise ConfigError(f"{path}: {recorded.parameters} values, task '{recorded.name}' here has {task.parameters}")
    return task


def _require_known(recorded: TaskFacts, path: Path) -> None:
    """Raise ConfigError, with what to do, where no package here brings the task."""
    from sovfed.federation.tasks.registry import names

    if recorded.name not in names():
        raise ConfigError(
            f"{path}: unknown task '{recorded.name}' of digest {recorded.digest[:16]}…{nearest(recorded.name, names())}"
            f": its package is not here. Of an archive, `sovfed model predict {path} TABLE --task ARCHIVE` and `sovfed "
            "model export` run the code in a sealed process. To load the model into this one (Python, mlflow.pyfunc), "
            "where the code may do all that you may, first `sovfed.task.add_archive(ARCHIVE)`; of a package that "
            "institutions installed, pip install that"
        )


def _require_size(task: Task, most: int, path: Path) -> None:
    """Raise DataError if the model has more values than its file has bytes: told before memory is taken for them."""
    size = None if task.build is None else parameters_of(task.build)
    if size is not None and size > most:
        raise DataError(f"{path}: {most} bytes, the model that it declares has {size} values")


def _declared(text: str) -> Task:
    """The task that a task.yaml declares."""
    from sovfed.federation.tasks.declared import task_from_text

    return task_from_text(text)
