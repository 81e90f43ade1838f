"""A model as one flat vector, and gradients of small models without the time that checks in Python take."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from torch import Tensor

from sovfed.federation.errors import ProtocolError
from sovfed.federation.tasks.layout import SAMPLE, Applied
from sovfed.federation.tasks.trees import to_device

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sovfed.federation.messages import Vector
    from sovfed.federation.tasks import Task

_ENGINE: Final[Any] = torch.autograd.Variable._execution_engine


class FlatModel:
    """A task's model whose travelling tensors are views of `flat`, float32 [d], in the order of its `Layout`.

    Behind the `trained` values of the parameters come the running statistics, which travel too, untrained. Tensors of
    another type than float32 are copies: `gathered` and `scattered` keep them and `flat` the same.
    """

    def __init__(self, task: Task, device: torch.device) -> None:
        self.module = task.model().to(device)
        # Nobody hooks into our own wrapper, so that its call need not look for hooks.
        self.apply = self.module.forward if isinstance(self.module, Applied) else self.module
        layout, tensors = task.layout, task.layout.tensors(self.module)
        self.flat = torch.cat([tensor.detach().reshape(-1).float() for tensor in tensors])
        self.parameters: list[torch.nn.Parameter] = []
        self.trained = layout.trained
        self._copies: list[tuple[Tensor, Tensor]] = []  # a view of `flat`, and the tensor of another type
        for spec, tensor in zip(layout.parts, tensors, strict=True):
            view = self.flat[spec.place].view(spec.shape)
            if tensor.dtype == torch.float32:
                tensor.data = view
            else:
                self._copies.append((view, tensor))
            if spec.trained and isinstance(tensor, torch.nn.Parameter):
                self.parameters.append(tensor)
        self.values = [self.flat[spec.place].view(spec.shape) for spec in layout.parts if spec.trained]
        self.shapes = [tuple(value.shape) for value in self.values]
        self.sizes = [value.numel() for value in self.values]
        self._submodules = list(self.module.modules())
        self._own_train = any(type(submodule).train is not torch.nn.Module.train for submodule in self._submodules)
        self.shares = Shares(device)
        self._loaded: Vector | None = None
        self._prefer_channels_last(task, device)

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
        if self._copies:
            with torch.no_grad():
                for view, tensor in self._copies:
                    tensor.copy_(view)
        self._loaded = None if model.flags.writeable else model

    def scattered(self) -> None:
        """Give parameters of another type what `flat` holds: after every step. Statistics are the forward pass's."""
        if self._copies:  # seldom, and leaving autograd takes as long as a small operation
            with torch.no_grad():
                for view, tensor in self._copies:
                    if isinstance(tensor, torch.nn.Parameter):
                        tensor.copy_(view)

    def gathered(self) -> Tensor:
        """`flat`, with what the forward passes left in running statistics of another type."""
        if self._copies:
            with torch.no_grad():
                for view, tensor in self._copies:
                    if not isinstance(tensor, torch.nn.Parameter):
                        view.copy_(tensor)
        return self.flat

    def state(self) -> dict[str, Tensor]:
        """All that training has changed: `flat`, and the buffers, those that do not travel too."""
        buffers = {f"buffer.{name}": tensor for name, tensor in self.module.named_buffers()}
        return {"model": self.gathered(), **buffers}

    @torch.no_grad()
    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take back what `state` told."""
        self.flat.copy_(state["model"])
        self._loaded = None
        for view, tensor in self._copies:
            tensor.copy_(view)
        for name, tensor in self.module.named_buffers():
            tensor.copy_(state[f"buffer.{name}"])

    def mode(self, *, training: bool) -> None:
        """`Module.train`, without its checks at every module; what is trained is no longer what was loaded."""
        if training:
            self._loaded = None
        if self._own_train:  # a module that keeps some of its layers still, say
            self.module.train(training)
            return
        for submodule in self._submodules:
            submodule.__dict__["training"] = training

    def _prefer_channels_last(self, task: Task, device: torch.device) -> None:
        """Give images in the order of memory in which convolution is fastest, unless the model relies on another."""
        first = next((submodule for submodule in self._submodules if isinstance(submodule, torch.nn.Conv2d)), None)
        if first is None:
            return
        handle = first.register_forward_pre_hook(_channels_last)
        inputs = to_device(task.made_up(SAMPLE)[0], device)
        self.mode(training=False)
        try:
            with torch.no_grad():
                self.module(inputs)
        except RuntimeError:  # `.view` of what is no longer contiguous
            handle.remove()


class Shares:
    """What each of n losses weighs in their mean, as a tensor [n] that is made once."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._kept = device, dict[int, Tensor]()

    def __call__(self, size: int) -> Tensor:
        share = self._kept.get(size)
        if share is None:
            share = self._kept[size] = torch.full((size,), 1.0, device=self._device) / size
        return share


def _channels_last(_: torch.nn.Module, images: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The images in the order of memory in which convolution and pooling are fastest; what follows keeps to it."""
    return tuple(image.contiguous(memory_format=torch.channels_last) if image.dim() == 4 else image for image in images)


def gradients(losses: Tensor, weights: Tensor, parameters: tuple[torch.nn.Parameter, ...]) -> tuple[Tensor | None, ...]:
    """`torch.autograd.grad(losses, parameters, weights, allow_unused=True)` without a quarter of its time.

    That is what its checks in Python take of a small model's step.
    """
    slopes: tuple[Tensor | None, ...] = _ENGINE.run_backward(
        (losses,), (weights,), False, False, parameters, allow_unreachable=True, accumulate_grad=False
    )
    return slopes
