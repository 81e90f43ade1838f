"""A convolutional network of the tutorials' kind, by SGD with momentum over a DataLoader."""

from __future__ import annotations

import torch
from conversions import made_up
from torch import Tensor, nn
from torch.nn.functional import relu
from torch.utils.data import DataLoader, TensorDataset

EPOCHS = 15


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 5)
        self.second = nn.Conv2d(6, 16, 5)
        self.pool = nn.MaxPool2d(2, 2)
        self.dense1 = nn.Linear(16 * 5 * 5, 120)
        self.dense2 = nn.Linear(120, 84)
        self.head = nn.Linear(84, 10)

    def forward(self, images: Tensor) -> Tensor:
        images = self.pool(relu(self.first(images)))
        images = self.pool(relu(self.second(images)))
        flat = images.view(-1, 16 * 5 * 5)
        result: Tensor = self.head(relu(self.dense2(relu(self.dense1(flat)))))
        return result


def load(part: int = 0, parts: int = 1) -> tuple[made_up.Part, made_up.Part]:
    """Images in [-1, 1] and their labels: to train on, and held out."""
    images, labels = made_up.images(10)
    return made_up.cut(((images - 0.5) / 0.5, labels), part, parts)


def main() -> float:
    torch.manual_seed(0)
    train, test = load()
    net = Net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
    loss_of = nn.CrossEntropyLoss()
    for _ in range(EPOCHS):
        net.train()
        for images, labels in DataLoader(TensorDataset(*train), batch_size=32, shuffle=True):
            optimizer.zero_grad()
            loss_of(net(images), labels).backward()
            optimizer.step()
    return made_up.accuracy(net, test)
