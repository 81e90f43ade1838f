"""The device that an institution trains on, and the arithmetic there.

Parameters, their gradients and the update are float32 under every precision: autocast computes with copies in 16 bits,
made once a step, so that steps smaller than bf16 can tell apart add up all the same.
"""

from __future__ import annotations

import os
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Final

import torch

from sovfed.federation.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

TF32: Final = "tf32"
PRECISIONS: Final = {
    "float32": torch.float32, TF32: torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16,
}  # fmt: skip
SMALL: Final = 1 << 20  # parameters; a smaller model trains on one CPU thread, which is faster where cores are shared
OUT_OF_MEMORY: Final = (torch.OutOfMemoryError, MemoryError)
CUBLAS: Final = ("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # with which cuBLAS repeats itself, as torch asks for


def choose_device(wanted: str) -> torch.device:
    """The device called `wanted`; "auto" takes a CUDA or ROCm GPU, then Apple's, then the CPU; "cuda:2" is the third.

    Of several ("cuda:0,cuda:1") the first, on which all is done that is not divided (`devices.py`).
    torch calls ROCm devices "cuda" (torch.version.hip is set). Raises ConfigError if the device is not there.
    """
    usable, wanted = usable_devices(), wanted.partition(",")[0]
    if wanted == "auto":
        return torch.device(next(name for name in ("cuda", "mps", "cpu") if name in usable))
    name = "cuda" if wanted == "rocm" else wanted
    if name not in usable or (wanted == "rocm" and torch.version.hip is None):
        raise ConfigError(f"device '{wanted}' is not there; present: {usable}")
    return torch.device(name)


def usable_devices() -> list[str]:
    """The names of those that are present: each GPU by its number too."""
    cards = torch.cuda.device_count() if torch.cuda.is_available() else 0
    numbered = [f"cuda:{number}" for number in range(cards)]
    apples = ["mps"] if torch.backends.mps.is_available() else []
    return [*(["cuda"] if cards else []), *numbered, *apples, "cpu"]


def device_name(device: torch.device) -> str:
    """The device, with the maker's name of a GPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def require_precision(precision: str) -> str:
    """`precision` itself. Raises ConfigError if it is none of ours."""
    if precision not in PRECISIONS:
        raise ConfigError(f"precision is '{precision}', expected one of {sorted(PRECISIONS)}")
    return precision


def autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """What a forward pass is computed in."""
    kind = PRECISIONS[precision]
    return nullcontext() if kind == torch.float32 else torch.autocast(device.type, dtype=kind)


def matrices(precision: str) -> AbstractContextManager[None]:
    """Products of float32 matrices as `precision` has them: exact, or with tf32 by a GPU's tensor cores.

    Whatever a task's own code has set for this process does not count.
    """
    wanted, before = "high" if precision == TF32 else "highest", torch.get_float32_matmul_precision()
    return nullcontext() if before == wanted else _matrices(wanted, before)


@contextmanager
def _matrices(wanted: str, before: str) -> Iterator[None]:
    torch.set_float32_matmul_precision(wanted)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """torch's own generators of the CPU and of `device`, begun at `seed`, are afterwards where they were before."""
    if device.type != "cpu":
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            yield
        return
    own = torch.default_generator  # `fork_rng` takes twice as long, and torch.manual_seed formats a stack trace
    before = own.get_state()
    try:
        own.manual_seed(seed)
        yield
    finally:
        own.set_state(before)


def one_thread() -> AbstractContextManager[None]:
    """torch computes on one CPU thread meanwhile."""
    return cpu_threads(1)


def cpu_threads(count: int) -> AbstractContextManager[None]:
    """torch computes on `count` CPU threads meanwhile."""
    before = torch.get_num_threads()
    return nullcontext() if before == count else _cpu_threads(count, before)


@contextmanager
def _cpu_threads(count: int, before: int) -> Iterator[None]:
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def make_deterministic() -> None:
    """Have torch give the same bits for the same request on one device, or fail: for this process, before it trains.

    Without, a processor repeats itself all the same (with as many threads), and a GPU need not.
    """
    os.environ.setdefault(*CUBLAS)
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False


def forget_freed(device: torch.device) -> None:
    """Hand back what torch keeps of the device's memory for later."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
