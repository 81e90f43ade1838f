"""How an institution trains between two exchanges, as plain values, and how the learning rate runs over all rounds.

A plan is built once a round: the server computes the schedule and sends where the rate stands as the round begins and
as it ends. Nothing here imports torch; `federation/optimizers.py` takes the steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

SGD: Final = "sgd"
BUILT_IN: Final = (SGD, "adamw", "muon")  # `optimizers.py` has them
SCHEDULES: Final = ("constant", "linear", "cosine", "wsd")
NOT_SENT: Final = ("final_rate", "proximal_mu")  # which the request says in its own way
REACHING: Final = ("adamw", "muon")  # whose steps are as long as the rate, whatever the gradient
MARGIN: Final = 1.25
LEAST_RATE: Final = 1e-30  # whose inverse still is a float32
MUON_MOMENTUM: Final = 0.95  # Jordan 2024


@dataclass(frozen=True)
class LocalPlan:
    """An institution's work in one round. The optimizer's state is never sent, and fresh unless kept there.

    `learning_rate` is the rate as the round begins, `final_rate` as it ends. A step is taken on `accumulation` batches
    of `batch_size` records; it ends with the epoch. `local_steps` > 0 are as many steps, over as many epochs as they
    need; 0: `local_epochs` epochs. `gradient_clip` 0: gradients are not clipped.
    """

    optimizer: str = SGD
    momentum: float = 0.0
    nesterov: bool = False
    beta_1: float = 0.9
    beta_2: float = 0.999
    epsilon: float = 1e-8
    weight_decay: float = 0.0
    gradient_clip: float = 0.0
    accumulation: int = 1
    local_epochs: int = 1
    local_steps: int = 0
    batch_size: int = 32
    learning_rate: float = 0.1
    final_rate: float = 0.1
    proximal_mu: float = 0.0

    @property
    def plain(self) -> bool:
        """Whether a step is w ← w − rate · gradient and nothing else."""
        return self.optimizer == SGD and not (self.momentum or self.weight_decay or self.gradient_clip)

    @property
    def step_size(self) -> int:
        """Records that a step is taken on, but for the last of an epoch."""
        return self.batch_size * self.accumulation

    def steps_an_epoch(self, count: int) -> int:
        """Steps of a pass over `count` records."""
        return -(-count // self.step_size)

    def steps(self, count: int) -> int:
        """Steps of the round at an institution with `count` training records."""
        return self.local_steps if self.local_steps and count else self.local_epochs * self.steps_an_epoch(count)

    def epochs(self, count: int) -> list[int]:
        """The steps of each epoch of the round, in order; the last may break off."""
        each, total = self.steps_an_epoch(count), self.steps(count)
        return [min(each, total - start) for start in range(0, total, each)] if each else []

    def rate(self, step: int, steps: int) -> float:
        """The rate of step `step` (from 0) of `steps`: the straight line between the round's two, at the step's middle.

        So neither a warm-up from 0 nor a decay to 0 wastes a step, and the mean over a round is `mean_rate` whatever
        the number of steps.
        """
        if self.learning_rate == self.final_rate:
            return self.learning_rate
        return self.learning_rate + (self.final_rate - self.learning_rate) * (step + 0.5) / steps

    @property
    def bounded(self) -> bool:
        """Whether it is known before any record is read how far a value may move: by steps as long as their rate.

        Other optimizers move by as much as the gradient says, and epochs take as many steps as there are records; at a
        rate of nothing, nothing moves, and a multiple of that is no number.
        """
        return self.optimizer in REACHING and self.local_steps > 0 and self.mean_rate >= LEAST_RATE

    def reach(self, shape: tuple[int, ...]) -> float:
        """How far values of a tensor of `shape` move in the round, about; weight decay comes on top.

        A step of AdamW moves a value by its rate at most (Kingma and Ba 2015, arXiv:1412.6980, section 2.1), but where
        gradients are rare. One of Muon has a root mean square of a fifth of the rate, and of √(long side / short side)
        as much where few rows of a long matrix have a gradient, as in an embedding; five times that are room enough.
        """
        moved = self.local_steps * self.mean_rate
        if self.optimizer == "muon" and len(shape) > 1:
            sides = shape[0], math.prod(shape[1:])
            return moved * math.sqrt(max(sides) / max(1, min(sides)))
        return MARGIN * moved

    @property
    def mean_rate(self) -> float:
        """The mean rate of the round's steps."""
        return (self.learning_rate + self.final_rate) / 2


@dataclass(frozen=True)
class Schedule:
    """The share of the learning rate over all `rounds`, as a function of progress in [0, 1].

    It rises from 0 to 1 over `warmup`. Then `constant` stays, `linear` and `cosine` (Loshchilov and Hutter 2017,
    arXiv:1608.03983, equation 5, one cycle) fall to `floor` at the end, and `wsd` (Hu et al. 2024, arXiv:2404.06395)
    stays until the last `cooldown`, in which it falls to `floor` in a straight line.
    """

    kind: str = "constant"
    warmup: float = 0.0
    floor: float = 0.0
    cooldown: float = 0.2
    rounds: int = 1

    @property
    def constant(self) -> bool:
        return self.kind == "constant" and not self.warmup

    def at(self, progress: float) -> float:
        """The share at `progress`."""
        if progress < self.warmup:
            return progress / self.warmup
        if self.kind == "constant":
            return 1.0
        start = 1.0 - self.cooldown if self.kind == "wsd" else self.warmup
        gone = min(1.0, max(0.0, (progress - start) / (1.0 - start))) if start < 1.0 else 0.0
        remaining = (1.0 + math.cos(math.pi * gone)) / 2 if self.kind == "cosine" else 1.0 - gone
        return self.floor + (1.0 - self.floor) * remaining

    def ends(self, number: int) -> tuple[float, float]:
        """The shares as round `number` (from 1) begins and as it ends; 1 to stay within rounding."""
        ends = (self.at(min(1.0, turn / self.rounds)) for turn in (number - 1, number))
        start, end = (min(1.0, max(0.0, share)) for share in ends)
        return start, end

    def middle(self, number: int) -> float:
        """The mean share of round `number`."""
        return sum(self.ends(number)) / 2


CONSTANT: Final = Schedule()
