"""A model for where sovfed is not: a torch program, ONNX, or the folder of a Hugging Face model.

The first two hold everything from raw values to what is predicted: the transform with its scale, the model, and what
its outputs mean. They take the schema's arrays: `numbers` float32 [n, …], NaN where missing; `codes` int64 [n, …], −1
where missing; each image, text or array under its name. What they are fed is not checked against the bounds.
"""

from __future__ import annotations

import copy
import inspect
import json
import logging
import re
import shutil
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor, nn

from sovfed.federation.errors import ConfigError
from sovfed.federation.files import write_private
from sovfed.federation.models.facts import to_json
from sovfed.federation.models.stored import FACTS
from sovfed.federation.tasks import bases
from sovfed.federation.tasks.causal_lm import CausalLM
from sovfed.federation.tasks.columns import CODES, NUMBERS
from sovfed.federation.tasks.declared import DeclaredTask
from sovfed.federation.tasks.layout import Applied

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sovfed.federation.models.saved import LoadedModel
    from sovfed.federation.tasks import Task

EXAMPLES: Final = 3  # made-up records that the graph is traced on
OPSET: Final = 20
TOKENIZER_FILES: Final = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
)
PLACES: Final = ("_name_or_path", "base_model_name_or_path")  # in a folder of Hugging Face: where its base lay


class Program(nn.Module):
    """Raw arrays in, in the order of `names`; what is predicted out."""

    def __init__(self, model: LoadedModel) -> None:
        super().__init__()
        self.model, self.reading = copy.deepcopy(model.module).requires_grad_(False), model.reading
        self._bound = model.task.transform.bound(model.scale)
        stored = model.task.schema.stored()
        targets = {column.name for column in model.task.schema.targets}
        self._stored = [name for name in stored if name not in targets]
        self.names = [re.sub(r"\W", "_", name.removeprefix(".")) for name in self._stored]
        made_up = model.task.schema.made_up(EXAMPLES)
        self.examples = tuple(_widened(name, torch.from_numpy(made_up[name])) for name in self._stored)
        self.eval()

    def forward(self, *arrays: Tensor) -> Tensor:
        table = dict(zip(self._stored, arrays, strict=True))
        outputs: Tensor = self.reading(self.model(self._bound.inputs(table)).float())
        return outputs

    @property
    def dynamic(self) -> tuple[Any, ...]:
        """The first dimension of each input is free."""
        count = torch.export.Dim("records", min=1, max=1 << 30)
        return (tuple({0: count} for _ in self.examples),)


def to_torch(model: LoadedModel, path: Path) -> None:
    """Write a `torch.export` program (.pt2), with `model.json` in it.

    `torch.export.load(path).module()(numbers, codes, …)` uses it. Raises ConfigError if the model cannot be traced.
    """
    program = Program(model)
    with _tracing(model):
        traced = torch.export.export(program, program.examples, dynamic_shapes=program.dynamic)
    facts_json = to_json(model.facts, model_sha256=model.sha256)
    with path.open("wb") as file:
        torch.export.save(traced, file, extra_files={FACTS: facts_json})


def to_onnx(model: LoadedModel, path: Path) -> None:
    """Write an ONNX model with named inputs; `prediction` is its output. Raises ConfigError."""
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ConfigError("ONNX needs the packages onnx and onnxscript: pip install 'sovfed[onnx]'") from error
    program = Program(model)
    with _tracing(model):
        exported = torch.onnx.export(
            program, program.examples, dynamo=True, input_names=program.names, output_names=["prediction"],
            dynamic_shapes=program.dynamic, opset_version=OPSET, verbose=False,
        )  # fmt: skip
    if exported is None:
        raise ConfigError("torch made no ONNX program")
    exported.model.metadata_props["sovfed"] = to_json(model.facts, model_sha256=model.sha256)
    exported.save(str(path))


def to_hugging_face(model: LoadedModel, folder: Path) -> None:
    """Write the folder of a model that has `save_pretrained`, with `model.json` beside. Raises ConfigError.

    Where its base lay on this machine is not in it.
    """
    inner: Any = model.module.inner if isinstance(model.module, Applied) else model.module
    beside: list[Path] = []
    if isinstance(inner, CausalLM):
        inner, beside = copy.deepcopy(inner).merged(), _tokenizer_files(model.task)
    if not (callable(getattr(inner, "save_pretrained", None)) and hasattr(inner, "config")):
        raise ConfigError(
            f"the model of task '{model.task.name}' is a {type(inner).__name__}, which is none of Hugging Face's: it "
            "has no config and save_pretrained; take --torch or --onnx"
        )
    folder.mkdir(parents=True, exist_ok=True)
    before = set(folder.iterdir())
    safe = {"safe_serialization": True} if _takes(inner.save_pretrained, "safe_serialization") else {}
    inner.save_pretrained(folder, **safe)  # since transformers 5 there is no other form
    for file in beside:
        shutil.copyfile(file, folder / file.name)
    _forget_places(folder, before)
    write_private(folder / FACTS, to_json(model.facts, model_sha256=model.sha256).encode())


def _tokenizer_files(task: Task) -> list[Path]:
    """What a model that builds on another one leaves as it is."""
    base = task.base if isinstance(task, DeclaredTask) else ""
    files = (bases.find(base) / name for name in TOKENIZER_FILES) if base else ()
    return [file for file in files if file.exists()]


def _forget_places(folder: Path, before: set[Path]) -> None:
    """Leave of each path in what was written to `folder` the last name; peft's README.md, which has it too, goes."""
    for file in folder.glob("*.json"):
        told = json.loads(file.read_bytes())
        paths = {key: told[key] for key in PLACES if isinstance(told, dict) and told.get(key)}
        if paths:
            named = {key: Path(str(path)).name for key, path in paths.items()}
            file.write_text(json.dumps({**told, **named}, indent=2) + "\n", encoding="utf-8")
    card = folder / "README.md"
    if card not in before:
        card.unlink(missing_ok=True)


WRITERS: Final[dict[str, Callable[[LoadedModel, Path], None]]] = {
    "torch": to_torch, "onnx": to_onnx, "hf": to_hugging_face,
}  # fmt: skip


def inputs_of(model: LoadedModel) -> str:
    """What a program of the model takes, in words, with the columns that stand side by side, in their order."""
    program, schema = Program(model), model.task.schema
    columns = {
        NUMBERS.removeprefix("."): [column.name for column in schema.numbers],
        CODES.removeprefix("."): [f"{column.name}: {'/'.join(column.categories)}" for column in schema.codes],
    }
    told = []
    for name, example in zip(program.names, program.examples, strict=True):
        inside = f" ({', '.join(columns[name])})" if columns.get(name) else ""
        told.append(f"{name} {str(example.dtype).removeprefix('torch.')} {['n', *example.shape[1:]]}{inside}")
    return ", ".join(told)


@contextmanager
def _tracing(model: LoadedModel) -> Iterator[None]:
    """Without torch's own remarks; ConfigError for whatever of the model's code cannot be traced."""
    log = logging.getLogger("torch.onnx")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Exception as error:
        raise ConfigError(f"the model of task '{model.task.name}' cannot be exported: {_first(error)}") from error
    finally:
        log.setLevel(before)


def _takes(function: Callable[..., Any], name: str) -> bool:
    return name in inspect.signature(function).parameters


def _widened(name: str, values: Tensor) -> Tensor:
    """Codes as int64, which every runtime indexes with."""
    return values.float() if name == NUMBERS else values.long() if name == CODES else values


def _first(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200]
