"""A vision transformer for 28 × 28 pixels, and its task in three lines."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sovfed.federation.tasks.columns import Column
from sovfed.task import classifier

SIDE, PATCH, WIDTH, BLOCKS, HEADS = 28, 7, 64, 2, 4


class Block(nn.Module):
    """Attention, then a perceptron, each added to what it was given, normalised: [n, t, WIDTH] → the same."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.all, self.out = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.perceptron = nn.Sequential(
            nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH)
        )

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.all(self.before(x)).unflatten(2, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        weights = (query @ key.mT * (WIDTH // HEADS) ** -0.5).softmax(-1)  # torch's kernel has no gradient by record
        x = x + self.out((weights @ value).transpose(1, 2).flatten(2))
        changed: Tensor = self.perceptron(x)
        return x + changed


class ViT(nn.Module):
    """Patches as a sequence; the mean of its places tells (Dosovitskiy et al. 2021, arXiv:2010.11929): → [n, 1].

    LayerNorm, no dropout, no statistics of a batch: each record by itself, so that its gradient can be clipped.
    """

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, WIDTH, PATCH, stride=PATCH)
        self.places = nn.Parameter(0.02 * torch.randn((SIDE // PATCH) ** 2, WIDTH))
        self.blocks = nn.Sequential(*(Block() for _ in range(BLOCKS)))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 1)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patches(images).flatten(2).transpose(1, 2) + self.places
        logits: Tensor = self.head(self.norm(self.blocks(x)).mean(1))
        return logits


IMAGE = Column("image", "image", shape=(1, SIDE, SIDE), scaling="bounds")
WORDS = ("normal", "pneumonia")
TASK = classifier("xray_vit", ViT, IMAGE, WORDS, logits=1, learnt="finding", headline="auc", one_row_a_person=True)
