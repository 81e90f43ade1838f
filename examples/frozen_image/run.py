"""Fine-tuning: a network that knows the digits 0 to 4 stays frozen, and a head for 5 to 9 is trained by a federation.

python examples/frozen_image/run.py [--quick]
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

sys.path.insert(0, str(Path(__file__).parents[1]))
from arrays.connector import write
from frozen_image import make_base
from frozen_image.task import BASE, base, task_of
from study import Study, divided, main, united

TRAINING = 600


def prepare(folder: Path) -> Path:
    """A third of the images for each institution; what is beyond 600 is held out."""
    digits = load_digits()
    high = digits.target >= 5
    images, labels = (digits.images[high, None] / 16).astype(np.float32), digits.target[high] - 5
    train, test = (images[:TRAINING], labels[:TRAINING]), (images[TRAINING:], labels[TRAINING:])
    return write(folder, divided(train, test))


def study(path: Path = BASE) -> Study:
    """The example on the base in `path`."""

    def pooled(folder: Path) -> float:
        """Accuracy of a head by scikit-learn, on the same features of all images."""
        x, y, held_out, expected = united(folder)
        model = base()
        model.load_state_dict(load_file(path))
        with torch.no_grad():
            features, others = (model(torch.from_numpy(images)).numpy() for images in (x, held_out))
        head = LogisticRegression(C=10, max_iter=500).fit(features, y)
        return float(head.score(others, expected))

    return Study(
        "frozen_image", task_of(path), "accuracy", "arrays", prepare, pooled,
        "scikit-learn's head on the same features", persons=600, rounds=30,
        plain={"task.local_epochs": 8, "task.learning_rate": 1.0},
        private={"task.learning_rate": 2.0},
    )  # fmt: skip


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(study(BASE if BASE.exists() else make_base.prepare(Path(temporary) / BASE.name)))
