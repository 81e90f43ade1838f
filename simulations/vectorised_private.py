"""Private rounds of whole cohorts: each step's sampled persons side by side, clipped, summed and noised at once.

A person is sampled, averaged over their records in the step, and clipped, and a sum is rounded and noised as in
`clients/training/private.py`, with the same randomness from the operating system. Everything is computed in float64:
pieces here are of another size in each step, where float32 would give a record other bits (`clients/dpsgd/step.py`).
Chains of Linear layers give each record's norm and the clipped sum without a gradient of each; other models, and
persons with several records, have the gradients of a piece of the step's records at a time.

No ledger is charged, as in any simulation, and sums are added in the clear: the figures in the run's statement are what
a deployment would charge.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sovfed.clients.data import Records
from sovfed.clients.dpsgd.engines import clip_factors
from sovfed.clients.dpsgd.step import CLIP_MARGIN, ENGINE_TOLERANCE, PrivateStep
from sovfed.clients.training.feed import Feed
from sovfed.federation.errors import ConfigError, PrivacyError
from sovfed.federation.privacy.compatibility import EXAMPLES
from sovfed.federation.privacy.discrete_gaussian import discrete_gaussian
from sovfed.federation.privacy.noise import Units, share_variance
from sovfed.federation.privacy.sampling import Entropy, at_most, poisson_sample
from sovfed.federation.tasks.trees import Tree, mapped, widened
from sovfed.federation.tasks.trees import rows as take
from sovfed.simulations.stacked import StackedModel

if TYPE_CHECKING:
    from sovfed.clients.data import Indices
    from sovfed.federation.messages import PrivateRequest, Vector
    from sovfed.federation.privacy.discrete_gaussian import Integers
    from sovfed.federation.tasks import Task

PIECE_BYTES: Final = 64 << 20  # gradients of the records that are taken at once
SILO_BITS: Final = 20  # of a clip's grid: what `noise.release` takes
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Persons:
    """The persons of some institutions: each one's institution and records, `rows[first : first + count]`."""

    rows: Indices
    owner: Indices
    first: Indices
    count: Indices
    institutions: int

    @classmethod
    def of(cls, parts: Sequence[Indices], persons: Indices) -> Persons:
        """Those who are behind the rows in `parts`, one an institution; `persons` by row, no one in two parts."""
        rows = np.concatenate(parts)
        owner = np.repeat(np.arange(len(parts)), list(map(len, parts)))
        order = np.lexsort((persons[rows], owner))
        rows, owner = rows[order], owner[order]
        new = np.flatnonzero(np.diff(persons[rows], prepend=-1) | np.diff(owner, prepend=-1))
        return cls(rows, owner[new], new, np.diff(np.append(new, len(rows))), len(parts))

    def together(self) -> Persons:
        """The same, as if they were all of one institution."""
        return replace(self, owner=np.zeros_like(self.owner), institutions=1)

    def at_most(self, records: int, entropy: Entropy = os.urandom) -> Persons:
        """The same persons with so many of their records, drawn anew, or with all where that is 0."""
        if not records or not self.several:
            return self
        rows = at_most(np.repeat(np.arange(len(self.first)), self.count), records, entropy)
        count = np.minimum(self.count, records)
        return replace(self, rows=self.rows[rows], first=np.cumsum(count) - count, count=count)

    @property
    def several(self) -> bool:
        """Whether anyone has more than one record."""
        return len(self.rows) > len(self.first)


@dataclass(frozen=True)
class Piece:
    """Whole persons of a step: `who` [p] (places among `Persons`), and of each record its person's place in `who`."""

    who: Indices
    rows: Indices
    person: Indices


class StackedPrivate:
    """Clipped sums of `task` at copies of its model. Raises PrivacyError or ConfigError if they cannot be had."""

    def __init__(self, task: Task, clip: float, device: torch.device) -> None:
        if task.build is None or task.loss is None:
            raise ConfigError(f"task '{task.name}' has no model to train")
        self._task, self._clip, self._loss, self._device = task, clip, task.loss, device
        self._model = StackedModel(task.model().to(device).double(), task.loss)
        self._exact = _linear_once(self._model)
        self._gradients = torch.vmap(
            torch.vmap(torch.func.grad(self._record_loss), in_dims=(None, 0, 0)), in_dims=(0, 0, 0)
        )
        self._try(task, device)

    def descend(self, request: PrivateRequest, feed: Feed, persons: Persons, entropy: Entropy = os.urandom) -> Tensor:
        """`PrivateTraining`'s local steps under `silo`, of every institution: their updates, float64 [institutions, d].

        `feed` has the records that `persons` has its rows of.
        """
        copies, d = persons.institutions, request.model.size
        start = torch.tensor(request.model, dtype=torch.float64, device=self._device)
        models = start.repeat(copies, 1)
        units, table = Units(request.clip, d, SILO_BITS), Units(request.clip, copies * d, SILO_BITS)
        variance = share_variance(request.noise_multiplier, units)
        for sampled in _sampled(len(persons.first), request.steps, request.sampling_rate, entropy):
            drawn = persons.at_most(request.person_records, entropy)
            total = self.clipped_sums(models.float().double(), feed, drawn, sampled).cpu().numpy()
            noised = table.quantise(total.reshape(-1)) + discrete_gaussian(copies * d, variance, entropy)
            step = torch.from_numpy(table.dequantise(noised).reshape(copies, d)).to(models.device)
            models.sub_(step, alpha=request.learning_rate / request.batch)
        return models.sub_(start)

    def sample(self, request: PrivateRequest, feed: Feed, persons: Persons, entropy: Entropy = os.urandom) -> Integers:
        """A `distributed` round: the sum that the secure aggregation of all institutions would open, shape [d].

        It is rounded once, not at each institution, and no institution's part is cut to the ring.
        """
        (sampled,) = _sampled(len(persons.first), 1, request.sampling_rate, entropy)
        model = torch.tensor(request.model, dtype=torch.float64, device=self._device).unsqueeze(0)
        drawn = persons.together().at_most(request.person_records, entropy)
        total = self.clipped_sums(model, feed, drawn, sampled)
        return noised_sum(total.cpu().numpy(), request, persons.institutions, entropy)

    def clipped_sums(self, models: Tensor, feed: Feed, persons: Persons, who: Indices) -> Tensor:
        """For every institution the sum of its sampled persons' clipped gradients at its own model: float64 [c, d].

        `models` is [c, d]; `who` are places of persons, ascending. A gradient that is not finite is left out.
        """
        models = models.double()
        total = torch.zeros_like(models)
        direct = self._exact and not persons.several
        each = 2 * feed.bytes_each if direct else 24 * models.shape[1]
        for piece in _pieces(persons, who, max(1, PIECE_BYTES // max(1, each))):
            copies, places = np.unique(persons.owner[piece.who], return_inverse=True)
            chosen = torch.from_numpy(copies).to(models.device)
            sums = self._clipped(models[chosen], feed, piece, places, direct=direct)
            total.index_add_(0, chosen, sums)
        return total

    def _clipped(self, models: Tensor, feed: Feed, piece: Piece, places: Indices, *, direct: bool) -> Tensor:
        """The piece's sums [c, d], given each person's place among the c `models`."""
        copy = places[piece.person]  # of each record, ascending
        starts = np.searchsorted(copy, np.arange(len(models)))
        column = np.arange(len(copy)) - starts[copy]
        shape = (len(models), int(column.max()) + 1)
        grid, filled = np.zeros(shape, np.int64), np.zeros(shape, np.float64)
        grid[copy, column], filled[copy, column] = piece.rows, 1
        rows, mask = (torch.from_numpy(array).to(models.device) for array in (grid, filled))
        run = self._clip_directly if direct else self._clip_gradients
        inputs, targets = feed.take(rows)
        return run(models, widened(inputs), targets, mask, torch.from_numpy(piece.person).to(models.device))

    def _clip_directly(self, models: Tensor, features: Tree, labels: Tree, mask: Tensor, _: Tensor) -> Tensor:
        """Of a chain, where a record is a person: its norm is Σ (|input|² + 1)·|slope|² over the layers."""
        if self._model.chain is None or not isinstance(features, Tensor):
            raise ConfigError("the model is no chain of Linear layers")
        _, passes = self._model.chain.backward(self._model.split(models), features, labels, mask)
        squares = torch.zeros_like(mask)
        for layer_pass in passes:
            inputs = layer_pass.inputs.square().sum(2) + (1 if layer_pass.bias >= 0 else 0)
            squares += inputs * layer_pass.slopes.square().sum(2)
        finite = squares.isfinite()
        factors = clip_factors(squares.sqrt(), self._clip * (1 - CLIP_MARGIN)).where(finite, 0.0)
        sums = torch.zeros_like(models)
        parts = self._model.split(sums)
        everyone = bool(finite.all())  # else zero times infinity is not zero
        for layer_pass in passes:
            used = layer_pass if everyone else layer_pass.finite(finite)
            used.add(parts, used.slopes * factors.unsqueeze(2), 1.0)
        return sums

    def _clip_gradients(self, models: Tensor, features: Tree, labels: Tree, mask: Tensor, person: Tensor) -> Tensor:
        """Of any model: each record's gradient, averaged over its person's records."""
        positions = mask.flatten().nonzero().flatten()  # in the order of `person`
        gradients = self._gradients(self._model.split(models), features, labels)
        records = torch.cat([gradient.reshape(mask.numel(), -1)[positions] for gradient in gradients], dim=1)
        copies = torch.arange(len(models), device=mask.device).repeat_interleave(mask.shape[1])[positions]
        count = int(person[-1]) + 1
        if count < len(person):
            sizes = torch.bincount(person, minlength=count)
            records = records.new_zeros(count, records.shape[1]).index_add_(0, person, records) / sizes.unsqueeze(1)
            copies = copies.new_zeros(count).scatter_(0, person, copies)
        norms = torch.linalg.vector_norm(records, dim=1)
        finite = norms.isfinite()
        if not finite.all():
            records, norms, copies = records[finite], norms[finite], copies[finite]
        clipped: Tensor = records * clip_factors(norms, self._clip * (1 - CLIP_MARGIN)).unsqueeze(1)
        sums: Tensor = torch.zeros_like(models).index_add_(0, copies, clipped)
        return sums

    def _record_loss(self, parameters: list[Tensor], record: Tree, label: Tree) -> Tensor:
        outputs = self._model.call(parameters, mapped(_alone, record))
        return self._loss(outputs, mapped(_alone, label))[0]

    def _try(self, task: Task, device: torch.device) -> None:
        """Hold both ways of clipping to `PrivateStep`, on made-up records, before they see a real one."""
        count = 2 * EXAMPLES
        everybody = np.arange(count)
        records = Records(task.schema.made_up(count), everybody, everybody, everybody[:0])
        feed = Feed(task, records, task.transform.public_scale, device)
        features, labels = feed.take(torch.from_numpy(everybody))
        module = task.model().to(device)
        flat = torch.cat([parameter.detach().flatten() for parameter in module.parameters() if parameter.requires_grad])
        models = torch.stack([flat, 0.5 * flat])
        step = PrivateStep(
            module, self._loss, self._clip, example=task.made_up(EXAMPLES), several_records=True,
            device=device,
        )  # fmt: skip
        halves = [np.arange(EXAMPLES), np.arange(EXAMPLES, 2 * EXAMPLES)]
        for people in (np.arange(2 * EXAMPLES), np.arange(2 * EXAMPLES) // 2):
            persons = Persons.of(halves, people)
            got = self.clipped_sums(models, feed, persons, np.arange(len(persons.first)))
            for stacked_sum, model, rows in zip(got, models, halves, strict=True):
                owners = torch.from_numpy(people[rows]).to(device)
                indices = torch.from_numpy(rows).to(device)
                expected, _ = step.clipped_sum(model, take(features, indices), take(labels, indices), owners)
                if not float((stacked_sum - expected).norm()) <= ENGINE_TOLERANCE * max(
                    float(expected.norm()), self._clip
                ):
                    raise PrivacyError(f"stacked clipping is wrong for the model of task '{task.name}'")


def _alone(part: Tensor) -> Tensor:
    return part.unsqueeze(0)


def noised_sum(totals: Floats, request: PrivateRequest, institutions: int, entropy: Entropy = os.urandom) -> Integers:
    """Σ over rows of `totals` [n, d] in units, with a share of the noise of each of `institutions`: shape [d]."""
    count, d = totals.shape
    variance = share_variance(request.noise_multiplier, Units(request.clip, d, request.grid_bits), request.honest)
    total: Integers = (
        Units(request.clip, count * d, request.grid_bits).quantise(totals.ravel()).reshape(count, d).sum(0)
    )
    for _ in range(institutions):
        total += discrete_gaussian(d, variance, entropy)
    return total


def clip_updates(updates: Tensor, clip: float) -> tuple[Tensor, Tensor]:
    """Rows of `updates` [n, d] scaled to a norm of at most `clip`, in float64, and which are finite."""
    exact = updates.double()
    norms = exact.norm(dim=1, keepdim=True)
    return exact * ((1 - 2.0**-20) * clip / norms.clamp_min(1e-300)).clamp_max(1.0), norms.squeeze(1).isfinite()


def mean_of(updates: Tensor) -> Vector:
    """The mean of rows [n, d] in float32: under `silo` everyone weighs the same."""
    mean: Vector = updates.float().mean(0, dtype=torch.float64).float().cpu().numpy()
    return mean


def _sampled(persons: int, steps: int, rate: float, entropy: Entropy) -> Iterator[Indices]:
    """For each step the places of the persons who are in it, ascending: all steps' from one keystream."""
    chosen = poisson_sample(persons * steps, rate, entropy)
    ends = np.searchsorted(chosen, persons * np.arange(1, steps))
    for step, members in enumerate(np.split(chosen, ends)):
        yield members - persons * step


def _pieces(persons: Persons, who: Indices, most: int) -> Iterator[Piece]:
    """`who` in pieces of at most `most` records, or one person; nothing of a person is cut off."""
    counts = persons.count[who]
    ends = np.cumsum(counts)
    start = 0
    while start < len(who):
        before = int(ends[start - 1]) if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + most, side="right")))
        sizes = counts[start:stop]
        person = np.repeat(np.arange(stop - start), sizes)
        within = np.arange(len(person)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        yield Piece(who[start:stop], persons.rows[persons.first[who[start:stop]][person] + within], person)
        start = stop


def _linear_once(model: StackedModel) -> bool:
    """Whether every parameter belongs to one layer of a chain, so that its norm is the sum of the layers'."""
    return model.chain is not None and model.chain.untied
