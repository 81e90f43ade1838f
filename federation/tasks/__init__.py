"""Tasks: what is learnt from which columns, with which model, loss and metrics.

A run names a task and its digest; both sides look the name up among what was installed there (`registry.py`), so no
message and no configuration ever carries code.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from sovfed.federation.errors import ConfigError
from sovfed.federation.messages import OWN
from sovfed.federation.tasks.identity import described
from sovfed.federation.tasks.transform import Transform

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor
    from torch.nn import Module

    from sovfed.federation.messages import Sums, Vector
    from sovfed.federation.metrics import Metric
    from sovfed.federation.tasks.columns import Schema
    from sovfed.federation.tasks.layout import Layout
    from sovfed.federation.tasks.trees import Tree


@dataclass(frozen=True, eq=False)
class Task:
    """A learning task. Its model crosses the wire as a flat vector (`layout.py`).

    `build` makes the model, under a seed that is the same everywhere; what it loads, both sides must hold: frozen
    parameters count in the digest. `loss` maps outputs [n, …] and targets to the loss of each record [n]. Inputs and
    targets are a tensor where the schema has one, else a dict by column; scalar inputs and categories come together as
    "x" [n, width], in the schema's order.
    """

    name: str
    title: str
    schema: Schema
    metrics: Metric
    headline: str  # the metric to report first
    build: Callable[[], Module] | None  # None: nothing is trained
    loss: Callable[[Tensor, Any], Tensor] | None
    predict: Callable[[Module, Tree], object] | None = None  # how the model is called; None: `layout.call`
    trained: Callable[[str], bool] | None = None  # which parameters, by name; None: all that require gradients
    personal: Callable[[str], bool] | None = None  # which tensors, by name, stay at each institution; None: none
    version: str = "1"
    simulated_split: bool = True  # one data set cut into made-up institutions, unless the data have their own
    licence: str = ""
    citation: str = ""
    evaluation_batch: int = 8_192  # records whose outputs are computed at once
    length: int = 0  # of the vector of a task that trains nothing
    code: str = ""  # the digest of the bytes that it was made from; "": of the module that has `build`
    tokenizer: str = ""  # the SHA-256 of the tokenizer's file, of a task whose records are tokens of texts
    text: str = ""  # the task.yaml that declared it; "": it is a package's

    @cached_property
    def transform(self) -> Transform:
        return Transform(self.schema)

    @cached_property
    def layout(self) -> Layout:
        """Which of the model's tensors travel. Raises ConfigError if the model does not take made-up records."""
        from sovfed.federation.tasks.layout import SAMPLE, lay_out

        inputs, _ = self.made_up(SAMPLE)
        try:
            return lay_out(self._built(0), inputs, self.trained, self.personal)
        except (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError) as error:
            raise ConfigError(
                f"task '{self.name}': the model does not take {_shapes(inputs)}: {type(error).__name__}: {error}"
            ) from error

    @property
    def parameters(self) -> int:
        """Length d of the flat vector."""
        return self.length if self.build is None else self.layout.size

    @property
    def evaluation_size(self) -> int:
        """Length of the evaluation vector."""
        return self.metrics.size

    @cached_property
    def digest(self) -> str:
        """SHA-256 of what two sides must agree on: schema, model, frozen weights, loss, metrics, the code of all these.

        Out of an archive (`federation/archive`) that is every byte of the package: `code`. Of an installed package it
        is not what their modules import, nor constant buffers: whoever changes these changes `version`.
        An institution answers a request only if it carries the digest of its own task of that name.
        """
        parts = (
            []
            if self.build is None
            else [[component.name, component.shape, component.trained] for component in self.layout.parts]
        )
        content = {
            "name": self.name, "version": self.version, "schema": self.schema.to_dict(), "model": parts,
            "metrics": [type(self.metrics).__name__, self.metrics.size], "headline": self.headline,
            "code": self.code or _code(self.build), "frozen": "" if self.build is None else self.layout.frozen,
        }  # fmt: skip
        if self.build is not None and self.layout.personal:
            content["personal"] = sorted(self.layout.personal)
        if self.tokenizer:
            content["tokenizer"] = self.tokenizer
        if not self.text:  # of a task.yaml the code stands for all that it says
            content["learning"] = [
                described(component) for component in (self.build, self.loss, self.predict, self.metrics)
            ]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def model(self, seed: int = 0) -> Module:
        """A freshly initialised model: a tree of inputs in, outputs [n, …] out. Raises ConfigError if there is none."""
        from sovfed.federation.tasks.layout import Applied

        module = self._built(seed)
        names = {block.name for block in self.layout.parts if block.trained}
        inner = module.inner if isinstance(module, Applied) else module
        for name, parameter in inner.named_parameters():
            parameter.requires_grad_(name in names)
        return module

    def made_up(self, count: int, seed: int = 0) -> tuple[Tree, Tree]:
        """Inputs and targets of made-up records, scaled by the declared bounds, as the model is given them."""
        import torch

        table = {name: torch.from_numpy(column) for name, column in self.schema.made_up(count, seed).items()}
        bound = self.transform.bound(self.transform.public_scale)
        return bound.inputs(table), bound.targets(table)

    def with_normalisation(self, how: str) -> Task:
        """The task with its own normalisation layers, or ("group") with GroupNorm in the place of BatchNorm."""
        return self if how == OWN else self._grouped

    @cached_property
    def _grouped(self) -> Task:
        from sovfed.federation.tasks.group_norm import grouped

        if self.build is None or (build := grouped(self.build)) is self.build:
            return self
        return replace(self, title=f"{self.title}, made GroupNorm", build=build, code=self.digest)

    def _built(self, seed: int) -> Module:
        import torch

        from sovfed.federation.tasks.layout import Applied, way_to_call

        if self.build is None or self.loss is None:
            raise ConfigError(f"task '{self.name}' has no model to train")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            module = self.build()
        if self._plain(module):
            return module
        return Applied(module, self.predict or way_to_call(module, self.transform.names))

    def _plain(self, module: Module) -> bool:
        """Whether the module takes the inputs as they are and returns a tensor: nothing stands around it then."""
        import torch

        from sovfed.federation.tasks.layout import floats

        if self.predict is not None or floats(module) != torch.float32:
            return False
        if "_is_plain" not in self.__dict__:
            inputs, _ = self.made_up(2)
            with torch.no_grad():
                training = module.training
                outputs = module.eval()(inputs) if isinstance(inputs, torch.Tensor) else None
                module.train(training)
            self.__dict__["_is_plain"] = isinstance(outputs, torch.Tensor)
        return bool(self.__dict__["_is_plain"])


def initial_vector(task: Task, seed: int) -> Vector:
    """The task's initial model, shape [d]: the same for the same seed, and zeros for a task that is not trained."""
    if task.build is None:
        return np.zeros(task.parameters, dtype=np.float32)
    return task.layout.vector(task.model(seed))


def summarise(task: Task, sums: Sums, scale: Sums | None = None) -> dict[str, float]:
    """The task's metrics of added evaluation vectors. Raises ProtocolError if their shape is not the task's.

    `scale` is the run's: with it, errors of a number that is learnt are in its own unit, else in deviations.
    """
    from sovfed.federation.errors import ProtocolError

    if sums.shape != (task.evaluation_size,):
        raise ProtocolError(f"{task.name}: evaluation of shape {sums.shape}, expected ({task.evaluation_size},)")
    return task.metrics.summarise(sums, 1.0 if scale is None else task.transform.unit(scale))


def sized(task: Task, parameters: int) -> Task:
    """`task` with a vector of length `parameters` if it trains nothing, else as it is."""
    return task if task.build is not None else replace(task, length=parameters)


def _code(build: Callable[[], Module] | None) -> str:
    """The digest of the source of the module that has `build`."""
    import inspect

    try:
        source = inspect.getsource(inspect.getmodule(build) or build) if build is not None else ""
    except (OSError, TypeError):  # written in a notebook or at a prompt
        source = getattr(build, "__qualname__", "")
    return hashlib.sha256(source.encode()).hexdigest()


def _shapes(tree: Any) -> str:
    if isinstance(tree, dict):
        return ", ".join(f"{name} {list(leaf.shape)} of {leaf.dtype}" for name, leaf in tree.items())
    return f"{list(tree.shape)} of {tree.dtype}"
