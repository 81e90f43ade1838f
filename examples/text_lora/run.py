"""A Hugging Face text classifier from a local folder, fine-tuned by LoRA: only its small matrices and the head travel.

pip install 'sovfed[simulate,llm]'
python examples/text_lora/run.py [--quick]
"""

from __future__ import annotations

import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch
from make_base import prepare
from peft import LoraConfig, get_peft_model
from texts import AREAS, LENGTH, texts
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import AutoModelForSequenceClassification, logging

import sovfed
from sovfed.task import Column, Task, classifier

LORA = LoraConfig(
    task_type="SEQ_CLS", r=8, lora_alpha=16, lora_dropout=0.0, target_modules=["query", "key", "value"],
    modules_to_save=["pooler", "classifier"],  # the base has neither: they are new, and trained whole
)  # fmt: skip
RATE = 5e-3
PRIVATE = {
    "privacy.population": 300, "privacy.epsilon": 8, "privacy.delta": 1e-3, "privacy.colluders": 0,
    "privacy.sampling_rate": 0.5, "server.min_cohort": 3, "task.learning_rate": 1.0,
}  # fmt: skip
LOCAL = {"task.optimizer": "adamw", "task.learning_rate": RATE, "task.local_epochs": 2, "task.batch_size": 16}

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

    def predict(model: nn.Module, text: Tensor) -> Tensor:
        there = (text > 0)[:, None, None, :].expand(-1, 1, LENGTH, -1)  # [n, L] would be looked into, as no vmap allows
        logits: Tensor = model(input_ids=text.long(), attention_mask=there).logits
        return logits

    column = Column("text", "text", shape=(LENGTH,))
    return classifier("law_area", build, column, classes=AREAS, predict=predict, one_row_a_person=True)


def pooled(task: Task, train: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray], epochs: int) -> float:
    """Held-out accuracy of the same model, trained by plain torch on all texts."""
    torch.manual_seed(0)
    model, rows, labels = task.model(), torch.from_numpy(train[0]), torch.from_numpy(train[1])
    optimizer = torch.optim.AdamW([part for part in model.parameters() if part.requires_grad], lr=RATE, weight_decay=0)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, total_iters=epochs)  # as one would train alone
    for _ in range(epochs):
        for batch in torch.randperm(len(rows)).split(16):
            optimizer.zero_grad()
            cross_entropy(model(rows[batch]), labels[batch]).backward()
            optimizer.step()
        schedule.step()
    with torch.no_grad():
        return float(np.mean(model(torch.from_numpy(test[0])).argmax(1).numpy() == test[1]))


def run(quick: bool = False, private: bool = True) -> dict[str, float]:
    """Accuracy on held-out texts: plain torch on all of them, federated, and with privacy."""
    train, test = texts(300), texts(150, seed=2)
    sites = [((train[0][i::3], train[1][i::3]), (test[0][i::3], test[1][i::3])) for i in range(3)]
    rounds = 1 if quick else 18
    with tempfile.TemporaryDirectory() as folder:
        task = task_of(prepare(Path(folder), 40 if quick else 400))
        plain = sovfed.simulate(task, sites, rounds=rounds, settings=LOCAL)
        result = {"pooled": pooled(task, train, test, 2 if quick else 20), "federated": plain.metrics["accuracy"]}
        if private:
            kept = sovfed.simulate(task, sites, rounds=rounds, privacy="distributed", settings=PRIVATE)
            result["private"] = kept.metrics["accuracy"]
        total = sum(part.numel() for part in plain.model.parameters())
    return result | {"values that travel": task.parameters, "values of the model": total}


if __name__ == "__main__":
    for name, value in run("--quick" in sys.argv).items():
        print(f"{name:<20} {value:.3f}" if isinstance(value, float) else f"{name:<20} {value}")
