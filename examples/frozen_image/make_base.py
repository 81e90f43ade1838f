"""What somebody has published: a base trained on the digits 0 to 4, as a file that all sides hold.

python examples/frozen_image/make_base.py [FILE]
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy

sys.path.insert(0, str(Path(__file__).parents[1]))
from frozen_image.task import BASE, FEATURES, base


def prepare(path: Path) -> Path:
    """Train the base and save it."""
    digits = load_digits(n_class=5)
    images, labels = torch.from_numpy(digits.images[:, None] / 16).float(), torch.from_numpy(digits.target)
    torch.manual_seed(0)
    model = nn.Sequential(base(), nn.Linear(FEATURES, 5))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(15):
        for batch in torch.randperm(len(images)).split(64):
            optimizer.zero_grad()
            cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()
    save_file(model[0].state_dict(), path)
    return path


if __name__ == "__main__":
    print(prepare(Path(sys.argv[1]) if sys.argv[1:] else BASE))
