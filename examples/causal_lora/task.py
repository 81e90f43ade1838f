"""A Hugging Face causal language model from a local folder with LoRA: only the matrices B of LoRA travel.

FFA-LoRA (Sun et al. 2024, arXiv:2403.12313): A is drawn from a seed and stays as it is, so the mean of institutions'
BA is the mean of their B times A, and noise on B is not multiplied with noise on A. The base and A are pinned by the
task's digest: institutions with other weights cannot train together. Weights are read from safetensors alone, no code
of a folder is run, and nothing is looked up by name.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear
from transformers import AutoModelForCausalLM, PreTrainedModel, logging

from sovfed.federation.tasks.tokenizer import read_tokenizer
from sovfed.task import Task, language_model

CONTEXT = 32  # tokens that it sees
RANK, SCALE = 8, 2.0
HIDDEN = torch.finfo(torch.float32).min  # added to the score of a token that is still to come
ADAPTED = (
    "q_proj",
    "k_proj",
    "v_proj",
    "o_proj",
    "gate_proj",
    "up_proj",
    "down_proj",
)  # names of the layers that get LoRA
BASE = Path(__file__).with_name("base")  # `make_base.py` writes it
logging.set_verbosity_error()
logging.disable_progress_bar()


class LoRA(nn.Module):
    """`inner` plus SCALE · BA, of which B alone is trained, from zero."""

    def __init__(self, inner: nn.Linear, seed: int) -> None:
        super().__init__()
        drawn = torch.randn(RANK, inner.in_features, generator=torch.Generator().manual_seed(seed))
        self.inner = inner
        self.a = nn.Parameter(drawn / inner.in_features**0.5, requires_grad=False)
        self.b = nn.Parameter(torch.zeros(inner.out_features, RANK))

    def forward(self, x: Tensor) -> Tensor:
        changed: Tensor = self.inner(x)
        return changed + SCALE * linear(linear(x, self.a), self.b)

    def merged(self) -> nn.Linear:
        """The layer that does the same without LoRA; `inner` is changed to it."""
        with torch.no_grad():
            self.inner.weight += SCALE * self.b @ self.a
        return self.inner


class NextToken(nn.Module):
    """Windows [n, CONTEXT + 1] → log p of each token but the first, given those before it."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, windows: Tensor) -> Tensor:
        codes = windows.long()
        later = torch.full((CONTEXT, CONTEXT), HIDDEN, device=codes.device).triu(1)
        added = later.expand(len(codes), 1, CONTEXT, CONTEXT)  # given, so that the model does not look into the batch
        scores = self.model(input_ids=codes[:, :-1], attention_mask=added, use_cache=False).logits
        return -cross_entropy(scores.transpose(1, 2).float(), codes[:, 1:], reduction="none")


def adapted(folder: Path) -> NextToken:
    """The model in `folder` with LoRA, everything but B frozen."""
    base = AutoModelForCausalLM.from_pretrained(
        folder, local_files_only=True, use_safetensors=True, trust_remote_code=False, attn_implementation="eager",
        dtype=torch.float32,
    )  # fmt: skip
    base.requires_grad_(False)
    for seed, (name, layer) in enumerate(list(base.named_modules())):
        if name.rpartition(".")[2] in ADAPTED:
            base.set_submodule(name, LoRA(layer, seed))
    return NextToken(base)


def task_of(folder: Path) -> Task:
    """The task whose model is the one in `folder`, with LoRA; its tokenizer is the folder's."""
    tokenizer = read_tokenizer(folder / "tokenizer.json")
    return language_model("law_text", lambda: adapted(folder), tokenizer.sha256, tokenizer.symbols, CONTEXT)


if (BASE / "tokenizer.json").exists():
    TASK = task_of(BASE)
