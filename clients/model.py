"""A model as one flat vector, and gradients of small models without the time that checks in Python take."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from sovfed.federation.errors import ConfigError, ProtocolError
from sovfed.federation.tasks import state_tensors

if TYPE_CHECKING:
    from sovfed.federation.messages import Vector
    from sovfed.federation.tasks import Task


class FlatModel:
    """A task's model whose tensors are views of `flat`, shape [d], in the order of `state_tensors`.

    Behind the `trained` values of the parameters come the floating-point buffers (running statistics), which travel
    too, untrained.
    """

    def __init__(self, task: Task, device: torch.device) -> None:
        if task.build is None:
            raise ConfigError(f"task '{task.name}' has no model to train")
        self.module = task.build().to(device)
        tensors = state_tensors(self.module)
        self.flat = torch.cat([tensor.detach().reshape(-1) for tensor in tensors])
        self.parameters: list[torch.nn.Parameter] = []
        self.trained = place = 0
        for tensor in tensors:
            part = slice(place, place + tensor.numel())
            tensor.data = self.flat[part].view_as(tensor)
            if isinstance(tensor, torch.nn.Parameter):
                self.parameters.append(tensor)
                self.trained = part.stop
            place = part.stop
        if place != task.parameters:
            raise ConfigError(f"task '{task.name}' declares {task.parameters} parameters, its model has {place}")
        self.values = [parameter.detach() for parameter in self.parameters]  # the same memory, outside of autograd
        self._parts = list(self.module.modules())
        first = next((part for part in self._parts if isinstance(part, torch.nn.Conv2d)), None)
        if first is not None:
            first.register_forward_pre_hook(_channels_last)
        self._loaded: Vector | None = None

    def load(self, model: Vector) -> None:
        """Take the values of `model`, shape [d]. Raises ProtocolError."""
        if model.shape != tuple(self.flat.shape):
            raise ProtocolError(f"model of shape {model.shape}, this task has {self.flat.numel()} parameters")
        if model is self._loaded:
            return
        if self.flat.device.type == "cpu":
            self.flat.numpy()[:] = model  # one copy, also of a read-only vector
        else:
            self.flat.copy_(torch.from_numpy(np.require(model, requirements="W")))
        self._loaded = None if model.flags.writeable else model

    def mode(self, *, training: bool) -> None:
        """`Module.train`, without its checks at every module; what is trained is no longer what was loaded."""
        if training:
            self._loaded = None
        for part in self._parts:
            part.__dict__["training"] = training


def _channels_last(_: torch.nn.Module, images: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The images in the order of memory in which convolution and pooling are fastest; what follows keeps to it."""
    return tuple(image.contiguous(memory_format=torch.channels_last) for image in images)


def gradients(losses: Tensor, weights: Tensor, parameters: tuple[torch.nn.Parameter, ...]) -> tuple[Tensor | None, ...]:
    """`torch.autograd.grad(losses, parameters, weights, allow_unused=True)` without a quarter of its time.

    That is what its checks in Python take of a small model's step.
    """
    engine: Any = torch.autograd.Variable._execution_engine
    found: tuple[Tensor | None, ...] = engine.run_backward(
        (losses,), (weights,), False, False, parameters, allow_unreachable=True, accumulate_grad=False
    )
    return found
