"""How large a model is, before memory is taken for it: it is built on torch's device `meta`, which holds no values."""

from __future__ import annotations

import json
import os
import sys
import warnings
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from sovfed.federation.errors import ConfigError
from sovfed.federation.vectors import MAX_PARAMETERS

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

UNITS = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "bytes"))
CGROUP = Path("/sys/fs/cgroup/memory.max")


def parameters_of(build: Callable[[], nn.Module]) -> int:
    """Values of all trained parameters of the model that `build` makes."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in build().parameters() if parameter.requires_grad)


def demands(parameters: int) -> str:
    """What a round of a model of so many float32 values asks of lines and memory.

    The multiples of memory are those that `sovfed bench rounds --part memory` measures, rounded up.
    """
    size = 4 * parameters
    return (
        f"a round sends {_bytes(size)} down and as much up, {_bytes(size / 2)} up with secagg=compact; memory for it, "
        f"beside batches and optimizers: {_bytes(3 * size)} at an institution, as much at the agency"
    )


def _bytes(count: float) -> str:
    """`count` bytes in the unit that leaves two digits."""
    unit, name = next((pair for pair in UNITS if count >= pair[0]), UNITS[-1])
    return f"{count / unit:.2g} {name}" if count < 100 * unit else f"{count / unit:.0f} {name}"


def require_room(name: str, build: Callable[[], nn.Module], trained: Callable[[str], bool] | None) -> None:
    """Raise ConfigError if the model of task `name` is longer than a message, or larger than this machine's memory.

    A model that cannot be built without values, such as one that reads its weights from a file, is tried with them;
    so is any in a process that cannot be forked, such as a trainer: its size was asked when the task was added.
    """
    sizes = _sizes_apart(build, trained)
    if sizes is None:
        return
    travelling, needed, available = *sizes, memory_left()
    if travelling > MAX_PARAMETERS:
        raise ConfigError(f"the model has {travelling} values to send, at most {MAX_PARAMETERS} travel")
    if available is not None and needed > available:
        raise ConfigError(
            f"the model of task '{name}' takes {needed / 1e9:.1f} GB, this machine has {available / 1e9:.1f} GB left"
        )


def _sizes_apart(build: Callable[[], nn.Module], trained: Callable[[str], bool] | None) -> tuple[int, int] | None:
    """Values that travel and bytes of all, told by a fork: what `build` keeps of a model without values ends with it.

    None if it cannot be told.
    """
    if sys.platform != "linux" or _threads() != 1:
        return None
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        with suppress(BaseException):
            os.write(writing, json.dumps(_sizes(build, trained)).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as told:
        answer = told.read()
    os.waitpid(child, 0)
    return tuple(json.loads(answer)) if answer else None


def _sizes(build: Callable[[], nn.Module], trained: Callable[[str], bool] | None) -> tuple[int, int]:
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        named = [(name, parameter) for name, parameter in build().named_parameters() if parameter.is_meta]
    moving = [each for name, each in named if each.requires_grad and (trained is None or trained(name))]
    return sum(each.numel() for each in moving), sum(each.numel() * each.element_size() for _, each in named)


def _threads() -> int:
    """Threads of this process, those of libraries too."""
    return sum(1 for _ in Path("/proc/self/task").iterdir())


def memory_left() -> int | None:
    """Bytes of memory that this process could still take, None where the system does not tell."""
    if sys.platform != "linux":
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else None
    limits = []
    with suppress(OSError, ValueError, IndexError):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        limits.append(1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")))
    with suppress(OSError, ValueError):  # "max": no limit
        limits.append(int(CGROUP.read_text(encoding="ascii")))
    return min(limits, default=None)
