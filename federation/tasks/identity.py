"""What of a task's own code its digest stands for: which function or class, its module's source, its plain settings.

Not what that module imports: an installed package whose helpers change must change its task's `version`. Of a package
out of an archive the digest stands for every byte (`federation/archive/loading.py`).
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import inspect
from collections.abc import Mapping, Sequence
from types import FunctionType, MethodType
from typing import Any, Final

import numpy as np

OURS: Final = "sovfed."
DEEPEST: Final = 6


def described(part: Any, depth: int = 0) -> Any:
    """`part`, a function, class, dataclass or plain value, as plain values, the same on every machine."""
    if depth > DEEPEST:
        return "…"
    again = functools.partial(described, depth=depth + 1)
    if part is None or isinstance(part, (bool, int, float, str, bytes)):
        return repr(part)
    if isinstance(part, functools.partial):
        return ["partial", again(part.func), again(part.args), again(part.keywords)]
    if isinstance(part, MethodType):
        return ["method", again(part.__func__), again(part.__self__)]
    if isinstance(part, FunctionType):
        return [_source(part), again(part.__defaults__), again(part.__kwdefaults__), again(_closed(part))]
    if isinstance(part, type):
        return _source(part)
    if isinstance(part, Mapping):
        return [[str(key), again(value)] for key, value in sorted(part.items(), key=lambda pair: str(pair[0]))]
    if isinstance(part, (set, frozenset)):
        return sorted(str(again(value)) for value in part)
    if isinstance(part, Sequence):
        return [again(value) for value in part]
    if isinstance(array := _array(part), np.ndarray):
        return [str(array.dtype), list(array.shape), hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()]
    if dataclasses.is_dataclass(part):
        return [_source(type(part)), again({item.name: getattr(part, item.name) for item in dataclasses.fields(part)})]
    return _source(type(part))  # what else it holds may be another on every machine: paths, locks, weights drawn anew


def _source(part: Any) -> list[str]:
    """The name of a function or class, with its module's source, or of ours its module's name."""
    name = str(getattr(part, "__qualname__", ""))
    module = str(getattr(part, "__module__", ""))
    if module.startswith(OURS):
        return [module, name]
    try:
        source = inspect.getsource(inspect.getmodule(part) or part)
    except (OSError, TypeError):  # written in a notebook or at a prompt, or in C
        source = ""
    return [name, hashlib.sha256(source.encode()).hexdigest()]


def _closed(part: FunctionType) -> list[Any]:
    """What a function keeps of where it was made."""
    contents = []
    for cell in part.__closure__ or ():
        try:
            contents.append(cell.cell_contents)
        except ValueError:  # not set yet
            contents.append(None)
    return contents


def _array(part: Any) -> Any:
    """A tensor as numpy has it; anything else as it is."""
    return part.detach().cpu().float().numpy() if hasattr(part, "detach") and hasattr(part, "cpu") else part
