"""A small BERT from a local folder with LoRA and a new head: what each institution installs, with the folder `base`."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, logging

from sovfed.task import Column, Task, classifier

AREAS = ("tax", "traffic", "health")
LENGTH = 52  # bytes of a text that are read
HIDDEN = torch.finfo(torch.float32).min  # added to the score of a place behind the end
BASE = Path(__file__).with_name("base")  # `make_base.py` writes it
LORA = LoraConfig(
    task_type="SEQ_CLS", r=8, lora_alpha=16, lora_dropout=0.0, target_modules=["query", "key", "value"],
    modules_to_save=["pooler", "classifier"],  # the base has neither: they are new, and trained whole
)  # fmt: skip
logging.set_verbosity_error()
logging.disable_progress_bar()


def task_of(folder: Path) -> Task:
    """The task whose model is the one in `folder`, with LoRA."""

    def build() -> nn.Module:
        base = AutoModelForSequenceClassification.from_pretrained(
            folder, num_labels=len(AREAS), ignore_mismatched_sizes=True, local_files_only=True,
            attn_implementation="eager",
        )  # fmt: skip
        with warnings.catch_warnings():  # of peft's use of transformers
            warnings.simplefilter("ignore", FutureWarning)
            return get_peft_model(base, LORA)

    column = Column("text", "text", shape=(LENGTH,))
    return classifier("law_area", build, column, classes=AREAS, predict=predict, one_row_a_person=True)


def predict(model: nn.Module, text: Tensor) -> Tensor:
    """The logits of texts, each byte plus one, and zeros behind the end."""
    # Of shape [n, L] the model would look into it, as no vmap may; what is added to each score it takes as it is.
    hidden = HIDDEN * (text == 0)[:, None, None, :].expand(-1, 1, LENGTH, -1)
    logits: Tensor = model(input_ids=text.long(), attention_mask=hidden).logits
    return logits


TASK = task_of(BASE)
