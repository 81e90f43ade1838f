"""A causal language model of Hugging Face out of a local folder, trained whole or by low-rank adapters.

Of LoRA (Hu et al. 2021, arXiv:2106.09685) only the matrices B are trained and travel; A is drawn from a seed and stays
(FFA-LoRA, Sun et al. 2024, arXiv:2403.12313). So the mean of institutions' BA is the mean of their B times A, which it
is not where both are trained, and noise on B is not multiplied with noise on A. Weights are read from safetensors
alone, no code of the folder is run, and nothing is looked up by name.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, Final, TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear

from sovfed.federation.errors import ConfigError
from sovfed.federation.schema import nearest

PreTrainedModel: TypeAlias = Any  # transformers', whose own types are not whole
MOST_LAYERS: Final = 1_000
HIDDEN: Final = torch.finfo(torch.float32).min  # added to the score of a token that is still to come


class LoRA(nn.Module):
    """`inner`, a linear layer, plus `scale` · BA, of which B [out, rank] alone is trained, from zero."""

    def __init__(self, inner: nn.Module, rank: int, scale: float, seed: int) -> None:
        super().__init__()
        weight = _weight(inner)
        drawn = torch.randn(rank, weight.shape[1], generator=torch.Generator().manual_seed(seed), device="cpu")
        self.inner, self._scale = inner, scale
        self.a = nn.Parameter(drawn.to(weight.device) / math.sqrt(weight.shape[1]), requires_grad=False)
        self.b = nn.Parameter(torch.zeros(weight.shape[0], rank))

    def forward(self, x: Tensor) -> Tensor:
        changed: Tensor = self.inner(x)
        return changed + self._scale * linear(linear(x, self.a), self.b)

    def merged(self) -> nn.Module:
        """The layer that does the same without LoRA; `inner` is changed to it."""
        with torch.no_grad():
            _weight(self.inner).add_(self._scale * self.b @ self.a)
        return self.inner


class CausalLM(nn.Module):
    """Windows [n, `context` + 1] → log p of each token but the first, given those before it [n, `context`].

    Of its tensors only those that are trained are in its state: the base is another file, and both sides hold it.
    Dropout is off in training too.
    """

    def __init__(self, model: PreTrainedModel, context: int) -> None:
        super().__init__()
        self.model, self.context = model, context
        self._later: Tensor
        self.register_buffer("_later", torch.full((context, context), HIDDEN).triu(1), persistent=False)
        self._frozen = {
            name for name, tensor in self.named_parameters(remove_duplicate=False) if not tensor.requires_grad
        }
        cast(Any, self).register_state_dict_post_hook(_without_the_base)

    def train(self, mode: bool = True) -> CausalLM:
        super().train(mode)
        for part in self.children():
            part.eval()
        return self

    def forward(self, windows: Tensor) -> Tensor:
        codes = windows.long()
        return -cross_entropy(self._scores(codes[:, :-1]).transpose(1, 2), codes[:, 1:], reduction="none")

    def scores(self, codes: Tensor) -> Tensor:
        """Of each token that may follow `codes` [n, t]: shape [n, symbols]."""
        return self._scores(codes)[:, -1]

    def _scores(self, codes: Tensor) -> Tensor:
        """The mask is given, so that the model does not look into the batch for one: per-record gradients need that."""
        count = codes.shape[1]
        mask = self._later[:count, :count].expand(len(codes), 1, count, count)
        scores: Tensor = self.model(input_ids=codes, attention_mask=mask, use_cache=False).logits
        return scores.float()

    def merged(self) -> PreTrainedModel:
        """The model without adapters that does the same; this one is changed to it."""
        for name, layer in list(self.model.named_modules()):
            if isinstance(layer, LoRA):
                self.model.set_submodule(name, layer.merged())
        return self.model


def load(folder: Path, context: int, symbols: int, rank: int, scale: float, layers: Collection[str]) -> CausalLM:
    """The model in `folder`; with `rank` > 0, adapters of that rank are all that is trained. Raises ConfigError.

    They are beside the linear layers of the names `layers`, of all but the one that scores tokens if there are none.
    """
    model = _read(folder)
    known = {"tokens": model.config.vocab_size, "places": getattr(model.config, "max_position_embeddings", context)}
    if symbols > known["tokens"]:
        raise ConfigError(f"{folder}: a model of {known['tokens']} tokens, the tokenizer has {symbols}")
    if context > known["places"]:
        raise ConfigError(f"{folder}: the model sees {known['places']} tokens, the task's windows have {context}")
    for name, layer in list(model.named_modules()):
        if isinstance(layer, nn.Dropout):
            model.set_submodule(name, nn.Identity())
    head: Any = model.get_output_embeddings()
    if head is not None:
        head.over_vocabulary = True
    if rank:
        model.requires_grad_(False)
        for seed, (name, layer) in enumerate(_chosen(model, head, layers)):
            model.set_submodule(name, LoRA(layer, rank, scale, seed))
    return CausalLM(model, context)


def _read(folder: Path) -> PreTrainedModel:
    """With its weights; none on torch's device `meta`, on which sizes are looked at."""
    try:
        import transformers
    except ImportError as error:
        raise ConfigError("models of Hugging Face need the package transformers: pip install 'sovfed[llm]'") from error
    library = cast(Any, transformers)
    library.logging.set_verbosity_error()
    library.logging.disable_progress_bar()
    own: dict[str, Any] = {"trust_remote_code": False, "attn_implementation": "eager", "dtype": torch.float32}
    try:
        config = library.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        _require_few_layers(config)
        if torch.get_default_device().type == "meta":
            return library.AutoModelForCausalLM.from_config(config, **own)
        model, told = library.AutoModelForCausalLM.from_pretrained(
            folder, config=config, local_files_only=True, use_safetensors=True, output_loading_info=True, **own
        )
    except Exception as error:  # the library raises whatever it meets
        raise ConfigError(f"{folder}: no causal language model that can be read: {_first(error)}") from error
    if told["missing_keys"]:
        raise ConfigError(f"{folder}: its weights lack {min(told['missing_keys'])}, which would be made up")
    return model


def _require_few_layers(config: Any) -> None:
    """So many as nobody has would take all memory before it is seen that their weights are not there."""
    if (layers := getattr(config, "num_hidden_layers", 0)) > MOST_LAYERS:
        raise ConfigError(f"{layers} layers, at most {MOST_LAYERS}")


def _chosen(model: PreTrainedModel, head: nn.Module | None, names: Collection[str]) -> Iterator[tuple[str, nn.Module]]:
    """The layers that get adapters, by name, in the model's order. Raises ConfigError."""
    every = [(name, layer) for name, layer in model.named_modules() if _is_linear(layer) and layer is not head]
    known = {name.rpartition(".")[2] for name, _ in every}
    for name in names:
        if name not in known:
            raise ConfigError(f"'model.layers' holds '{name}'{nearest(name, sorted(known))}")
    chosen = [(name, layer) for name, layer in every if not names or name.rpartition(".")[2] in names]
    if not chosen:
        raise ConfigError("the model has no linear layer beside which an adapter could stand")
    return iter(chosen)


def _is_linear(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Linear) or type(layer).__name__ == "Conv1D"


def _weight(layer: nn.Module) -> Tensor:
    """[out, in]; a view, of GPT-2's Conv1D turned over."""
    weight: Tensor = layer.weight  # type: ignore[assignment]
    return weight if isinstance(layer, nn.Linear) else weight.T


def _without_the_base(module: nn.Module, state: dict[str, Any], prefix: str, _local: object) -> None:
    for name in module._frozen:  # type: ignore[union-attr]
        state.pop(prefix + str(name), None)


def _first(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
