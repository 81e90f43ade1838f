"""Measurements from CSV files outside the project: columns `feature_0` to `feature_3` and `label`."""

from __future__ import annotations

import csv
import tempfile
from pathlib import Path

import torch
from conversions import made_up
from torch import Tensor, nn
from torch.nn.functional import relu
from torch.optim import SGD
from torch.utils.data import DataLoader, TensorDataset

EPOCHS = 10
COLUMNS = [f"feature_{place}" for place in range(4)]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(4, 8)
        self.output = nn.Linear(8, 2)

    def forward(self, features: Tensor) -> Tensor:
        result: Tensor = self.output(relu(self.hidden(features)))
        return result


def write_csv(path: Path, data: made_up.Part) -> Path:
    """What a hospital would have exported."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*COLUMNS, "label"])
        writer.writerows([*row.tolist(), int(label)] for row, label in zip(*data, strict=True))
    return path


def load_csv(path: Path) -> made_up.Part:
    """Features [n, 4] and labels [n]."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    features = torch.tensor([[float(row[column]) for column in COLUMNS] for row in rows])
    return features, torch.tensor([int(row["label"]) for row in rows])


def files(part: int = 0, parts: int = 1) -> tuple[Path, Path]:
    """A CSV file to train on and one held out, in a folder for the moment."""
    folder = Path(tempfile.mkdtemp(prefix="measurements-"))
    train, test = made_up.cut(made_up.measurements(4, 2, seed=5), part, parts)
    return write_csv(folder / "train.csv", train), write_csv(folder / "test.csv", test)


def main() -> float:
    torch.manual_seed(0)
    train, test = map(load_csv, files())
    model = Net()
    optimizer = SGD(model.parameters(), lr=0.1)
    loss_of = nn.CrossEntropyLoss()
    for _ in range(EPOCHS):
        for features, labels in DataLoader(TensorDataset(*train), batch_size=16, shuffle=True):
            optimizer.zero_grad()
            loss_of(model(features), labels).backward()
            optimizer.step()
    return made_up.accuracy(model, test)
