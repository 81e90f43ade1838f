"""The one codec of messages: a kind, a mapping of scalars and named vectors, each checked before it is a message again.

Two edges use it: the Flower edge (`federation/wire/flower.py`: ConfigRecord and ArrayRecord) and the trainer's socket
(`clients/trainer/frames.py`: JSON and raw bytes).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from functools import cache
from typing import Any, Final, TypeAlias, cast

import numpy as np
import numpy.typing as npt

from sovfed.federation.errors import ProtocolError
from sovfed.federation.messages import KINDS, LATER, LastRequest, Message, RunRequest
from sovfed.federation.schema import BIGGEST, bind
from sovfed.federation.stored import Pieces
from sovfed.federation.text import NAME, json_object
from sovfed.federation.vectors import MAX_PARAMETERS

PROTOCOL_VERSION: Final = 1
MAX_SCALARS_BYTES: Final = 16_384
Scalar: TypeAlias = bool | int | float | str
_NAMES: Final = {cls: kind for kind, cls in KINDS.items()}


def _vector_dtypes(cls: type[Any]) -> dict[str, np.dtype[Any]]:
    return {
        field.name: np.dtype(field.metadata["dtype"]) for field in dataclasses.fields(cls) if "dtype" in field.metadata
    }


_DTYPES: Final = {cls: _vector_dtypes(cls) for cls in KINDS.values()}
_LATER: Final = {
    cls: {
        field.name: cast("Scalar", field.default)
        for field in dataclasses.fields(cls)
        if field.name in LATER and "dtype" not in field.metadata
    }
    for cls in KINDS.values()
}


def encode(message: Message) -> tuple[str, dict[str, Scalar], dict[str, npt.NDArray[Any]]]:
    """Split `message` into its kind, its scalars (with the protocol version) and its vectors, uncopied."""
    dtypes, values = _DTYPES[type(message)], vars(message)
    scalars: dict[str, Scalar] = {"version": PROTOCOL_VERSION}
    scalars.update({name: value for name, value in values.items() if name not in dtypes})
    for name, default in _LATER[type(message)].items():
        if scalars[name] == default:
            del scalars[name]
    said = (name for name in dtypes if name not in LATER or values[name].size)
    return _NAMES[type(message)], scalars, {name: values[name] for name in said}


def unsaid(message: Message) -> Mapping[str, Scalar]:
    """The fields of `message`'s kind that may be left out of what is sent and signed, and what they are then."""
    return _LATER[type(message)]


def vectors(message: Message) -> dict[str, npt.NDArray[Any]]:
    """The vectors of `message`, by field."""
    values = vars(message)
    return {name: values[name] for name in _DTYPES[type(message)]}


@cache
def dtype_name(dtype: np.dtype[Any]) -> str:
    """`str(dtype)`, which numpy spells anew each time."""
    return str(dtype)


def check(message: Message) -> None:
    """Raise ProtocolError where `decode` would, without building the message again."""
    cls: type[Any] = type(message)
    values, dtypes = vars(message), _DTYPES[cls]
    _check_vectors(_NAMES[cls], values, dtypes, judged=True)
    if len(values) != len(dtypes) + len(_rules(cls)) or not _acceptable(cls, values):  # type: ignore[arg-type]
        decode(*encode(message))


def decode(
    kind: str, scalars: Mapping[str, Any], vectors: Mapping[str, npt.NDArray[Any]], *, judged: bool = True
) -> Message:
    """Build the message of `kind` again; vectors must be finite, one-dimensional and of the declared dtype.

    Raises ProtocolError on an unknown kind or version, a missing or unknown field, a value out of range, and on
    a vector of another dtype or shape or with NaN or Inf. What is not `judged` is only passed on: its values are not
    looked at, since whoever uses them does.
    """
    cls = KINDS.get(kind)
    if cls is None:
        raise ProtocolError(f"unknown message kind {kind[:40]!r}")
    values = {**_LATER[cls], **scalars}
    if values.pop("version", None) != PROTOCOL_VERSION:
        raise ProtocolError(f"{kind}: protocol version {scalars.get('version')!r}, expected {PROTOCOL_VERSION}")
    dtypes = _DTYPES[cls]
    vectors = {name: np.zeros(0, dtype) for name, dtype in dtypes.items() if name in LATER} | dict(vectors)
    if set(vectors) != set(dtypes):
        raise ProtocolError(f"{kind}: vectors {sorted(vectors)}, expected {sorted(dtypes)}")
    if misplaced := set(values) & set(dtypes):
        raise ProtocolError(f"{kind}: {sorted(misplaced)} must be vectors")
    _check_vectors(kind, vectors, dtypes, judged=judged)
    if len(values) != len(_rules(cls)) or not _acceptable(cls, values):  # type: ignore[arg-type]
        checked = bind(_scalars_class(cls), values, kind, ProtocolError)
        values = {field.name: getattr(checked, field.name) for field in dataclasses.fields(checked)}
    return cls(**values, **vectors)  # type: ignore[no-any-return]


def last_of(run: RunRequest) -> LastRequest:
    """The last round's request of `run`, its model left out. Raises ProtocolError."""
    cls = KINDS[run.request_kind]
    vectors = {name: np.zeros(int(name == "begin" and run.masked), dtype) for name, dtype in _DTYPES[cls].items()}
    scalars = json_object(run.request.tobytes(), "the run's request", ProtocolError, MAX_SCALARS_BYTES)
    return cast("LastRequest", decode(run.request_kind, scalars, vectors))


def _check_vectors(kind: str, found: Mapping[str, Any], dtypes: Mapping[str, np.dtype[Any]], *, judged: bool) -> None:
    with np.errstate(invalid="ignore", over="ignore"):  # of `_finite`'s sums
        for name, dtype in dtypes.items():
            vector = found[name]
            if vector.dtype != dtype or vector.ndim != 1 or vector.size > MAX_PARAMETERS:
                shape = f"{vector.dtype} of shape {vector.shape}"
                raise ProtocolError(f"{kind}.{name}: {shape}, expected {dtype} of shape [d]")
            if judged and dtype.kind == "f" and not all(map(_finite, Pieces(vector))):
                raise ProtocolError(f"{kind}.{name}: not finite")


def _finite(values: npt.NDArray[Any]) -> bool:
    """Whether all are; +inf and -inf add up to NaN, and a sum may overflow by itself."""
    return math.isfinite(values.sum()) or bool(np.isfinite(values).all())


def _acceptable(cls: type[Any], values: Mapping[str, Any]) -> bool:
    """Whether the binder would take these scalars as they are; a quick look, for every message has to pass."""
    for name, kind, low, high, options, plain in _rules(cls):  # type: ignore[arg-type]  # mypy takes type[Any] for unhashable
        value: Any = values.get(name)
        if type(value) is not kind or (options is not None and value not in options):
            return False
        if kind is str and not (NAME.fullmatch(value) or not value if plain else value.isprintable()):
            return False
        size = len(value) if kind is str else value
        if not low <= size <= high:
            return False
    return True


@cache
def _rules(cls: type[Any]) -> tuple[tuple[str, type[Any], float, float, frozenset[str] | None, bool], ...]:
    """(name, type, least, greatest, options, is it a name) of the scalar fields of `cls`; for text, of its length."""
    entries = []
    for field in dataclasses.fields(_scalars_class(cls)):
        rules = field.metadata
        low, high = rules.get("low"), rules.get("high")
        options = frozenset(rules["options"]) if rules.get("options") else None
        edges = (-BIGGEST if low is None else low, BIGGEST if high is None else high)
        entries.append((field.name, cast("type[Any]", field.type), *edges, options, "name" in rules))
    return tuple(entries)


def _scalars_class(cls: type[Any]) -> type[Any]:
    """The dataclass of only the scalar fields of `cls`, which the binder can check."""
    scalars = _SCALARS.get(cls)
    if scalars is None:
        hints = {field.name: field for field in dataclasses.fields(cls) if "dtype" not in field.metadata}
        types = {"int": int, "float": float, "str": str, "bool": bool}
        spec = [
            (name, types[str(field.type)], dataclasses.field(default=field.default, metadata=field.metadata))
            for name, field in hints.items()
        ]
        scalars = _SCALARS[cls] = dataclasses.make_dataclass(cls.__name__ + "Scalars", spec, frozen=True, kw_only=True)
    return scalars


_SCALARS: dict[type[Any], type[Any]] = {}
