"""The model families that a task.yaml may name, with their sizes. What else it says is refused; no code is named."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, ClassVar, Final

from sovfed.federation.errors import ConfigError
from sovfed.federation.messages import MAX_PARAMETERS
from sovfed.federation.schema import bind, bounded, choice, nearest
from sovfed.federation.tasks.transform import Transform

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from torch.nn import Module

    from sovfed.federation.tasks.columns import Column, Schema

NORMS: Final = ("layer", "none")
DEEPEST: Final = 32  # layers or stages
WIDEST: Final = 8_192
MOST_VALUES: Final = 1 << 28  # that are computed at once for one record: 1 GiB


def _sizes(default: tuple[int, ...], doc: str) -> Any:
    return field(default=default, metadata={"low": 1, "high": WIDEST, "doc": doc})


def _dropout() -> Any:
    return bounded(0.0, 0.0, 0.9, doc="share of values that a training step leaves out")


@dataclass(frozen=True)
class Family(ABC):
    """A kind of model with its sizes. `takes` is the kind of column that it needs besides numbers and categories."""

    family: ClassVar[str]
    takes: ClassVar[str] = ""
    learns: ClassVar[str] = ""  # the one kind of target that it is for, which no other family is for then
    personal: str = choice("none", ("none", "head"), doc="head: the last layer stays at each institution")

    def is_personal(self, schema: Schema, outputs: int) -> Callable[[str], bool] | None:
        """Which tensors stay at each institution, by name; None: none do."""
        if self.personal == "none":
            return None
        import torch

        with torch.device("meta"):
            module = self.make(schema, outputs)
        layers = [name for name, layer in module.named_modules() if isinstance(layer, torch.nn.Linear) and name]
        if not layers:
            raise ConfigError(
                f"'model.personal': family '{self.family}' is one layer, with nothing beneath it to share"
            )
        head = f"{layers[-1]}."
        return lambda name: name.startswith(head)

    def obstacle(self, schema: Schema) -> str:
        """Why it cannot learn from `schema`, or ""."""
        kinds = [column.kind for column in schema.shaped]
        if kinds != ([self.takes] if self.takes else []):
            expected = f"exactly one {self.takes} column" if self.takes else "numbers, booleans, dates and categories"
            return f"family '{self.family}' takes {expected}, the columns have {', '.join(kinds) or f'no {self.takes}'}"
        if self.takes == "tokens" and Transform(schema).width:
            return f"family '{self.family}' takes the tokens and no other column"
        return "" if kinds or Transform(schema).width else "no column is an input"

    @abstractmethod
    def make(self, schema: Schema, outputs: int) -> Module:
        """The module: inputs as `Transform` gives them → [n, outputs]."""

    def values(self, schema: Schema) -> int:
        """About how many values it computes for a record at once: what a batch of an evaluation is sized by."""
        return Transform(schema).width


@dataclass(frozen=True)
class Linear(Family):
    """One weight for each input: linear, logistic or softmax regression."""

    family: ClassVar[str] = "linear"

    def make(self, schema: Schema, outputs: int) -> Module:
        from torch import nn

        return nn.Linear(Transform(schema).width, outputs)


@dataclass(frozen=True)
class MLP(Family):
    """A perceptron with hidden layers."""

    family: ClassVar[str] = "mlp"
    hidden: tuple[int, ...] = _sizes((64, 64), "values of each hidden layer")
    dropout: float = _dropout()
    norm: str = choice("layer", NORMS)

    def __post_init__(self) -> None:
        _require_depth("hidden", self.hidden)

    def make(self, schema: Schema, outputs: int) -> Module:
        from sovfed.federation.tasks.networks import mlp

        return mlp(Transform(schema).width, self.hidden, outputs, self.dropout, self.norm)

    def values(self, schema: Schema) -> int:
        return max(Transform(schema).width, *self.hidden)


@dataclass(frozen=True)
class TabularResNet(Family):
    """The residual network for tables of Gorishniy et al. 2021."""

    family: ClassVar[str] = "tabular_resnet"
    width: int = bounded(128, 1, WIDEST)
    hidden: int = bounded(256, 1, WIDEST)
    blocks: int = bounded(2, 1, DEEPEST)
    dropout: float = _dropout()
    norm: str = choice("layer", NORMS)

    def make(self, schema: Schema, outputs: int) -> Module:
        from sovfed.federation.tasks.networks import tabular_resnet

        width = Transform(schema).width
        return tabular_resnet(width, self.width, self.hidden, self.blocks, outputs, self.dropout, self.norm)

    def values(self, schema: Schema) -> int:
        return max(Transform(schema).width, self.width, self.hidden)


@dataclass(frozen=True)
class CNN(Family):
    """Convolutions with GroupNorm over an image, beside numbers and categories."""

    family: ClassVar[str] = "cnn"
    takes: ClassVar[str] = "image"
    widths: tuple[int, ...] = _sizes((16, 32, 64), "channels of each convolution; each halves the image")

    def __post_init__(self) -> None:
        _require_depth("widths", self.widths)

    def make(self, schema: Schema, outputs: int) -> Module:
        from sovfed.federation.tasks.networks import cnn

        return _joined(cnn(_shaped(schema).shape[0], self.widths), self.widths[-1], schema, outputs)

    def values(self, schema: Schema) -> int:
        return _shaped(schema).size * max(self.widths)


@dataclass(frozen=True)
class ResNet(Family):
    """A residual network with GroupNorm over an image, beside numbers and categories."""

    family: ClassVar[str] = "resnet"
    takes: ClassVar[str] = "image"
    widths: tuple[int, ...] = _sizes((32, 64, 128), "channels of each stage; each but the first halves the image")
    blocks: int = bounded(2, 1, DEEPEST, doc="of each stage")

    def __post_init__(self) -> None:
        _require_depth("widths", self.widths)

    def make(self, schema: Schema, outputs: int) -> Module:
        from sovfed.federation.tasks.networks import resnet

        channels, *sides = _shaped(schema).shape
        return _joined(resnet(channels, min(sides), self.widths, self.blocks), self.widths[-1], schema, outputs)

    def values(self, schema: Schema) -> int:
        return _shaped(schema).size * max(self.widths)


@dataclass(frozen=True)
class Transformer(Family):
    """A transformer over a text's bytes, beside numbers and categories."""

    family: ClassVar[str] = "transformer"
    takes: ClassVar[str] = "text"
    width: int = bounded(64, 1, 1_024)
    blocks: int = bounded(2, 1, DEEPEST)
    heads: int = bounded(4, 1, 64)
    patch: int = bounded(4, 1, 64, unit="bytes", doc="that become one place of the sequence")
    dropout: float = _dropout()

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is no multiple of heads {self.heads}")

    def make(self, schema: Schema, outputs: int) -> Module:
        from sovfed.federation.tasks.networks import TextBody

        length = _shaped(schema).size
        body = TextBody(length, self.width, self.blocks, self.heads, self.patch, self.dropout)
        return _joined(body, self.width, schema, outputs)

    def values(self, schema: Schema) -> int:
        places = -(-_shaped(schema).size // self.patch)
        return max(_shaped(schema).size * self.width, places * max(4 * self.width, places * self.heads))


@dataclass(frozen=True)
class Decoder(Family):
    """A causal transformer over the tokens of a text: the next token, given those before it."""

    family: ClassVar[str] = "decoder"
    takes: ClassVar[str] = "tokens"
    learns: ClassVar[str] = "next_token"
    width: int = bounded(128, 2, WIDEST)
    blocks: int = bounded(3, 1, 128)
    heads: int = bounded(4, 1, 128)
    hidden: int = bounded(512, 1, 1 << 16, doc="values of each block's inner layer")
    activation: str = choice("relu2", ("relu2", "swiglu"))
    tied: bool = bounded(False, doc="whether one matrix embeds tokens and scores them")
    recompute: bool = bounded(False, doc="compute blocks again for the gradient: less memory, a third more time")
    goldfish: int = bounded(0, 0, 128, doc="in training one token in so many counts nothing; 0: all count")

    def __post_init__(self) -> None:
        if self.width % (2 * self.heads):
            raise ValueError(f"width {self.width} is no multiple of {2 * self.heads}, twice the heads")
        if self.goldfish == 1:
            raise ValueError("goldfish 1 leaves every token out; expected 0 (none), or 2 and more")

    def make(self, schema: Schema, outputs: int) -> Module:
        from sovfed.federation.tasks import decoder

        context = _shaped(schema).size - 1
        return decoder.Decoder(
            outputs, context, self.width, self.blocks, self.heads, self.hidden, self.activation, tied=self.tied,
            recompute=self.recompute, goldfish=self.goldfish,
        )  # fmt: skip

    def values(self, schema: Schema) -> int:
        return _shaped(schema).size * max(self.hidden, int(_shaped(schema).high) + 1)


@dataclass(frozen=True)
class CausalLM(Family):
    """A causal language model of Hugging Face that every place has in a folder, with low-rank adapters or whole."""

    family: ClassVar[str] = "causal_lm"
    takes: ClassVar[str] = "tokens"
    learns: ClassVar[str] = "next_token"
    base: str = bounded("", 0, 64, doc="the digest of its configuration and weights; `sovfed task language --base`")
    rank: int = bounded(8, 0, 1_024, doc="of the adapters, which alone are trained and travel; 0: all of it is trained")
    scale: float = bounded(2.0, 0.0, 1e3, doc="of what the adapters add")
    layers: tuple[str, ...] = bounded((), 1, 64, doc="with adapters, as in [q_proj, v_proj]; none: all linear ones")

    def __post_init__(self) -> None:
        if not re.fullmatch("[0-9a-f]{64}", self.base):
            raise ValueError(f"base is {self.base[:70]!a}, expected the 64 digits of `sovfed task language --base`")
        if self.personal != "none":
            raise ValueError("personal: of a model of Hugging Face nothing stays at one institution; expected none")

    def make(self, schema: Schema, outputs: int) -> Module:
        from sovfed.federation.tasks import bases, causal_lm

        context = _shaped(schema).size - 1
        return causal_lm.load(bases.find(self.base), context, outputs, self.rank, self.scale, self.layers)

    def values(self, schema: Schema) -> int:
        return _shaped(schema).size * (int(_shaped(schema).high) + 1)


FAMILIES: Final[dict[str, type[Family]]] = {
    family.family: family for family in (Linear, MLP, TabularResNet, CNN, ResNet, Transformer, Decoder, CausalLM)
}


def family_of(values: Mapping[str, Any]) -> Family:
    """The family that a task.yaml's `model` names, with its sizes. Raises ConfigError."""
    name = values.get("family")
    if not isinstance(name, str) or name not in FAMILIES:
        raise ConfigError(f"'model.family' is {str(name)[:64]!r}{nearest(str(name)[:64], FAMILIES)}")
    return bind(FAMILIES[name], {key: value for key, value in values.items() if key != "family"}, "model")


@cache
def require_size(family: Family, schema: Schema, outputs: int) -> None:
    """Raise ConfigError if the model is too large to travel, or a record's pass through it too large for any machine.

    No memory is taken to find out: a file that is only looked at must not take all of the reader's.
    """
    from sovfed.federation.tasks.sizes import parameters_of

    if (values := family.values(schema)) > MOST_VALUES:
        raise ConfigError(
            f"the model computes about {values} values at once for a single record, at most {MOST_VALUES}; make the "
            "model or its input smaller"
        )
    size = parameters_of(lambda: family.make(schema, outputs))
    if size > MAX_PARAMETERS:
        raise ConfigError(f"the model has {size} parameters, at most {MAX_PARAMETERS} travel; make it smaller")


def _joined(body: Module, features: int, schema: Schema, outputs: int) -> Module:
    from sovfed.federation.tasks.networks import Joined

    return Joined(body, _shaped(schema).name, features, Transform(schema).width, outputs)


def _shaped(schema: Schema) -> Column:
    return schema.shaped[0]


def _require_depth(name: str, sizes: tuple[int, ...]) -> None:
    if not 1 <= len(sizes) <= DEEPEST:
        raise ValueError(f"{name} has {len(sizes)} sizes, expected 1 to {DEEPEST}")
