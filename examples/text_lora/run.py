"""A Hugging Face text classifier from a local folder, fine-tuned by LoRA: only its small matrices and the head travel.

pip install 'sovfed[simulate,llm]'
python examples/text_lora/run.py [--quick]
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy

sys.path.insert(0, str(Path(__file__).parents[1]))
from arrays.connector import write
from study import Study, divided, main, united
from text_lora import make_base
from text_lora.task import BASE, task_of
from text_lora.texts import texts

RATE = 5e-3
BATCH = 16
EPOCHS = 20  # of the model on all texts


def prepare(folder: Path) -> Path:
    """A third of 300 texts for each institution; 600 others are held out."""
    return write(folder, divided(texts(300), texts(600, seed=2)))


def study(base: Path = BASE) -> Study:
    """The example on the base in that folder."""
    task = task_of(base)

    def pooled(folder: Path) -> float:
        """Accuracy of the same model, trained by plain torch on all texts."""
        rows, labels, held_out, expected = map(torch.from_numpy, united(folder))
        torch.manual_seed(0)
        model = task.model()
        trained = [values for values in model.parameters() if values.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=RATE, weight_decay=0)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, total_iters=EPOCHS)
        for _ in range(EPOCHS):
            for batch in torch.randperm(len(rows)).split(BATCH):
                optimizer.zero_grad()
                cross_entropy(model(rows[batch]), labels[batch].long()).backward()
                optimizer.step()
            schedule.step()
        with torch.no_grad():
            return float((model(held_out).argmax(1) == expected).float().mean())

    local = {"task.optimizer": "adamw", "task.learning_rate": 2 * RATE, "task.schedule": "cosine"}
    return Study(
        "text_lora", task, "accuracy", "arrays", prepare, pooled, "plain torch", persons=300, rounds=40,
        plain={**local, "task.batch_size": BATCH}, private={"task.learning_rate": 1.0},
    )  # fmt: skip


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(study(BASE if BASE.exists() else make_base.prepare(Path(temporary) / BASE.name)))
