"""The files of a model as they lie on disk, and what must hold of them before anything is made of them."""

from __future__ import annotations

import hmac
import json
from typing import TYPE_CHECKING, Any, Final

import torch

from sovfed.federation.errors import DataError
from sovfed.federation.models.facts import Facts, from_json

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

MODEL: Final = "model.safetensors"
FACTS: Final = "model.json"
CARD: Final = "model.html"
FILES: Final = (MODEL, FACTS, CARD)
MAX_BYTES: Final = 1 << 35
MAX_HEAD_BYTES: Final = 100_000_000  # what safetensors allows
DTYPES: Final = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


def read(path: Path) -> bytes:
    """All of the file: what is checked is what is loaded."""
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise DataError(f"{path}: {size} bytes, at most {MAX_BYTES}")
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: missing or not readable") from error


def head_of(content: bytes, path: Path) -> tuple[Facts, dict[str, Any]]:
    """The facts in the head of a safetensors file, and its entries: type and shape of each tensor by name."""
    size = int.from_bytes(content[:8], "little")
    if not 2 <= size <= min(len(content) - 8, MAX_HEAD_BYTES):
        raise DataError(f"{path}: not a safetensors file")
    try:
        entries = json.loads(content[8 : 8 + size])
        text = entries.pop("__metadata__", {}).get("sovfed")
    except (ValueError, AttributeError, RecursionError) as error:
        raise DataError(f"{path}: not a safetensors file") from error
    if not isinstance(text, str):
        raise DataError(f"{path}: no model of sovfed, or one of before version 1 of the format")
    return from_json(text, str(path))[0], entries


def check_beside(path: Path, digest: str) -> None:
    """Raise DataError if the `model.json` beside the file speaks of another."""
    beside = path.with_name(FACTS)
    if path.name != MODEL or not beside.is_file():
        return
    try:
        recorded = from_json(beside.read_bytes(), str(beside))[1].get("model_sha256", "")
    except OSError as error:
        raise DataError(f"{beside}: not readable") from error
    if not hmac.compare_digest(recorded.encode(), digest.encode()):
        raise DataError(f"{path}: SHA-256 {digest}, {FACTS} beside it says {recorded[:64]!a}")


def check_shapes(entries: dict[str, Any], wanted: Mapping[str, Tensor], path: Path) -> None:
    if entries.keys() != wanted.keys():
        odd = sorted(entries.keys() ^ wanted.keys())
        raise DataError(
            f"{path}: {len(entries)} tensors, the task's model has {len(wanted)}; first unequal: {odd[0]!a}"
        )
    for name, tensor in wanted.items():
        entry = entries[name]
        kind, shape = (entry.get("dtype"), entry.get("shape")) if isinstance(entry, dict) else (None, None)
        if DTYPES.get(str(kind)) != tensor.dtype or shape != list(tensor.shape):
            raise DataError(
                f"{path}: tensor '{name}' is {str(kind)[:8]!a} of shape {str(shape)[:40]}, expected {tensor.dtype} of "
                f"{list(tensor.shape)}"
            )


def check_values(tensors: Mapping[str, Tensor], travelling: set[str], path: Path) -> None:
    """Raise DataError if what was trained is not finite, or anything not a number; a constant mask may be −∞."""
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            continue
        wrong = ~tensor.isfinite() if name in travelling else tensor.isnan()
        if wrong.any():
            raise DataError(f"{path}: tensor '{name}' has {int(wrong.sum())} values that are not finite numbers")
