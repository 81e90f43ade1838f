"""One private gradient step up to the noise: the sum over persons of each person's clipped gradient.

The privacy unit is a person. A person's gradient is the mean of the gradients of their records in the batch, so that
the clip means the same for one record and for fifty, and the step follows the mean over persons of their mean loss.
"""

from __future__ import annotations

import logging
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import torch
from torch import nn

from sovfed.clients.dpsgd.compatibility import check_private_compatible, still
from sovfed.clients.dpsgd.engines import GhostEngine, build_engine, clip_factors, one_by_one
from sovfed.clients.dpsgd.layers import ENGINES, choose, refusals, trace
from sovfed.federation.errors import ConfigError, PrivacyError
from sovfed.federation.schema import nearest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from sovfed.clients.dpsgd.engines import RecordLoss

CLIP_MARGIN: Final = 2.0**-10  # persons are clipped to (1 − margin)·C: what float32 rounding of the sum may add back
CHUNK_BYTES: Final = 32 << 20  # gradients and activations of a chunk on a CPU: about what its caches make good use of
FEW: Final = 8  # records at once of a large model, so that its weights are not read anew for each
MOST_BYTES: Final = 256 << 20  # that those few may take
DEVICE_SHARE: Final = 0.25  # of free device memory for a chunk
ENGINE_TOLERANCE: Final = 1e-3  # relative; rounding gives 1e-6 to 1e-5, a wrong rule 3e-2 and more
MERSENNE_WORDS: Final = slice(24, 24 + 8 * 624)  # the 624 words within the CPU generator's state

log = logging.getLogger(__name__)


class PrivateStep:
    """Clipped gradient sums of `module`, which it takes over: nothing else may train or evaluate it.

    Sensitivity: adding or removing one person with all their records moves `clipped_sum` by at most `clip` in L2.
    Dropout is allowed: its masks come afresh from the operating system's entropy at every step, never from a seed.
    """

    def __init__(
        self,
        module: nn.Module,
        loss: RecordLoss,
        clip: float,
        *,
        example: tuple[Tensor, Tensor],
        several_records: bool,
        device: torch.device | str = "cpu",
        engine: str = "auto",
    ) -> None:
        """`loss` maps logits [n, k] and labels [n] to the loss of each record [n].

        `example` is a few made-up records (features [n, …], labels [n]; never real ones) to try model, loss and engine
        on; `several_records` says whether a person may have more than one. `engine`: "auto" or a name.
        Raises PrivacyError with reason and fix if the model cannot be made private or the engine is wrong for it,
        ConfigError for an unknown engine or a clip that is not positive.
        """
        if not 0 < clip < float("inf"):
            raise ConfigError(f"clip is {clip}, expected a positive number")
        if engine not in ("auto", *ENGINES):
            raise ConfigError(f"unknown gradient engine '{engine[:64]}'{nearest(engine, ('auto', *ENGINES))}")
        self.clip, self._device, self._several = clip, torch.device(device), several_records
        features, labels = (part.to(self._device) for part in example)
        self._module = module.to(self._device).train()
        check_private_compatible(self._module, loss, features, labels)
        self._flat = _flatten(self._module)
        self._slices = _trainable_slices(self._module)
        self._dropout = any(isinstance(part, nn.modules.dropout._DropoutNd) for part in module.modules())
        with still(self._module):
            found = trace(self._module, features)
        self.engine, self.reason = engine, "it was asked for"
        if engine == "auto":
            self.engine, self.reason = choose(found, several_records=several_records)
        against = refusals(self.engine, found, several_records=several_records)
        if against:
            raise PrivacyError(f"engine {self.engine} is wrong here: {'; '.join(against)}. Use engine auto or vmap")
        self._engine = build_engine(self.engine, self._module, loss)
        self._chunk = self._records_at_once(found.record_bytes)
        self._try_engine(loss, features, labels)
        log.info("private step: engine=%s because %s; %d records at once", self.engine, self.reason, self._chunk)

    @property
    def parameters(self) -> int:
        """Length d of the flat vector."""
        return self._flat.numel()

    def clipped_sum(
        self, flat_model: Tensor, features: Tensor, labels: Tensor, person_groups: Tensor
    ) -> tuple[Tensor, int]:
        """The sum of the sampled persons' clipped gradients at `flat_model` (shape [d]): float64 [d], on the device.

        `features` [n, …], `labels` [n], `person_groups` [n] (equal number: same person), any n including 0. Also the
        number of persons in the sum: one whose gradient is not finite is left out of it. That number depends on the
        records and must not leave the institution. Nothing is ever cut off: a large batch is computed in chunks.
        """
        if flat_model.shape != self._flat.shape:
            raise ConfigError(f"model of shape {tuple(flat_model.shape)}, expected ({self._flat.numel()},)")
        if not len(features) == len(labels) == len(person_groups):
            raise ConfigError(f"{len(features)} features, {len(labels)} labels, {len(person_groups)} persons")
        self._flat.copy_(flat_model)
        total = torch.zeros(self._flat.shape, dtype=torch.float64, device=self._device)
        if not len(features):
            return total, 0
        persons, owners, counts = torch.unique(person_groups, return_inverse=True, return_counts=True)
        single = len(persons) == len(person_groups)
        if not (single or self._several):
            raise PrivacyError("a person has several records, though one for each was declared")
        self._module.train()
        with self._full_precision(), self._secret_masks():
            used = self._sum(total, features, labels, None if single else (owners, counts), self.clip)
        if used < len(persons):
            log.warning("%d of %d sampled persons had no finite gradient", len(persons) - used, len(persons))
        return total, used

    def _sum(
        self,
        total: Tensor,
        features: Tensor,
        labels: Tensor,
        persons: tuple[Tensor, Tensor] | None,
        clip: float,
    ) -> int:
        """Add the clipped gradients to `total`, chunk by chunk. `persons`: each record's owner, and each's count."""
        features, labels = features.to(self._device), labels.to(self._device)
        bound = clip * (1 - CLIP_MARGIN)
        chunks = -(-len(features) // self._chunk)
        used = 0
        if persons is None:
            for rows, targets in zip(features.tensor_split(chunks), labels.tensor_split(chunks), strict=True):
                if isinstance(self._engine, GhostEngine):
                    sums, finite = self._engine.clipped(rows, targets, bound)
                else:
                    sums, finite = _clip_and_sum(self._engine.gradients(rows, targets), bound)
                used += finite
                self._add(total, sums)
            return used
        for gradients in self._person_gradients(features, labels, *persons):
            sums, finite = _clip_and_sum(gradients, bound)
            used += finite
            self._add(total, sums)
        return used

    def _person_gradients(
        self, features: Tensor, labels: Tensor, owners: Tensor, counts: Tensor
    ) -> Iterator[list[Tensor]]:
        """Mean gradients of whole persons, by parameter, shape [persons, size]; one may span several chunks."""
        if isinstance(self._engine, GhostEngine):
            raise PrivacyError("ghost clipping has no gradients of persons")
        counts = counts.to(self._device)
        order = torch.argsort(owners, stable=True).to(self._device)
        owners = owners.to(self._device)[order]
        started: list[Tensor] | None = None  # the sum over the records so far of a person who goes on in this chunk
        for rows in torch.arange(len(order), device=self._device).tensor_split(-(-len(order) // self._chunk)):
            picked, owner = order[rows], owners[rows]
            first, last = int(owner[0]), int(owner[-1])
            sums = [
                one.new_zeros(last - first + 1, one.shape[1]).index_add_(0, owner - first, one)
                for one in self._engine.gradients(features[picked], labels[picked])
            ]
            if started is not None:
                for one, before in zip(sums, started, strict=True):
                    one[0] += before
            end = int(rows[-1]) + 1
            goes_on = end < len(order) and int(owners[end]) == last
            started = [one[-1].clone() for one in sums] if goes_on else None
            whole = last - first + (0 if goes_on else 1)
            if whole:
                share = counts[first : first + whole].unsqueeze(1)
                yield [one[:whole] / share for one in sums]

    def _add(self, total: Tensor, sums: list[Tensor]) -> None:
        for place, part in zip(self._slices, sums, strict=True):
            total[place] += part

    def _records_at_once(self, activations: int) -> int:
        gradients = 0 if self.engine == "ghost" else 2 * self._flat.nbytes
        each = max(1, activations + gradients)
        if self._device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(self._device)
            return max(1, int(DEVICE_SHARE * free) // each)
        return max(1, CHUNK_BYTES // each, min(FEW, MOST_BYTES // each))

    def _try_engine(self, loss: RecordLoss, features: Tensor, labels: Tensor) -> None:
        """Hold the engine to plain autograd, one made-up record at a time, before it sees a real one."""
        with still(self._module), self._full_precision():
            try:
                each = torch.stack(list(one_by_one(self._module, loss, features, labels))).double()
                clip = float(each.norm(dim=1).median()) or 1.0
                expected = (each * clip_factors(each.norm(dim=1), clip * (1 - CLIP_MARGIN)).unsqueeze(1)).sum(0)
                total = torch.zeros(self._flat.shape, dtype=torch.float64, device=self._device)
                used = self._sum(total, features, labels, None, clip)
            except (RuntimeError, NotImplementedError) as error:
                what = str(error).partition("\n")[0]
                raise PrivacyError(
                    f"engine {self.engine} cannot compute the gradient of one record: {what}. "
                    "Build the model of layers that torch.func.vmap supports: Linear, convolution, GroupNorm, attention"
                ) from error
        got = torch.cat([total[place] for place in self._slices])
        error_ = float((got - expected).norm())
        if used != len(features) or not error_ <= ENGINE_TOLERANCE * max(float(expected.norm()), clip):
            raise PrivacyError(f"engine {self.engine} is wrong for this model by {error_:.2g} at clip {clip:.2g}")

    @contextmanager
    def _full_precision(self) -> Iterator[None]:
        """No autocast and no TF32: ghost norms and the gradients that they clip must be of the same numbers."""
        with (
            torch.autocast(self._device.type, enabled=False),
            torch.backends.cudnn.flags(allow_tf32=False, deterministic=True),
        ):
            yield

    @contextmanager
    def _secret_masks(self) -> Iterator[None]:
        """Dropout masks nobody can replay: a known seed would make others' masks shift with a person's presence."""
        if not self._dropout:
            yield
            return
        cards = [self._device] if self._device.type == "cuda" else []
        with torch.random.fork_rng(devices=cards):
            if cards:
                torch.cuda.manual_seed(int.from_bytes(os.urandom(8), "big") >> 1)
            state = torch.Generator().manual_seed(0).get_state()  # a seed has 32 bits: replace all 624 words
            words = torch.frombuffer(bytearray(os.urandom(4 * 624)), dtype=torch.int32).long() & 0xFFFFFFFF
            state[MERSENNE_WORDS] = words.view(torch.uint8)
            torch.set_rng_state(state)
            yield


def _clip_and_sum(gradients: list[Tensor], bound: float) -> tuple[list[Tensor], int]:
    """Sum over the rows of [n, size] parts, each row (over all parts) clipped to `bound`, non-finite ones left out."""
    norms = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(one, dim=1) for one in gradients]), dim=0)
    finite = torch.isfinite(norms)
    used = int(finite.sum())
    if used < len(norms):  # zero times infinity is not zero
        gradients, norms = [one[finite] for one in gradients], norms[finite]
    factors = clip_factors(norms, bound)
    return [factors @ one for one in gradients], used


def _flatten(module: nn.Module) -> Tensor:
    """One flat vector in the order of `parameters_to_vector`, of which the module's parameters become views."""
    parameters = list(module.parameters())
    flat = torch.cat([parameter.detach().reshape(-1) for parameter in parameters])
    place = 0
    for parameter in parameters:
        parameter.data = flat[place : place + parameter.numel()].view_as(parameter)
        place += parameter.numel()
    return flat


def _trainable_slices(module: nn.Module) -> list[slice]:
    slices, place = [], 0
    for parameter in module.parameters():
        if parameter.requires_grad:
            slices.append(slice(place, place + parameter.numel()))
        place += parameter.numel()
    return slices
