"""One private gradient step up to the noise: the sum over persons of each person's clipped gradient.

The privacy unit is a person. A person's gradient is the mean of the gradients of their records in the batch, so that
the clip means the same for one record and for fifty, and the step follows the mean over persons of their mean loss.

Sensitivity. What a person adds depends, to the last bit, on that person's records and the model alone: records are
computed in pieces of one fixed size, the last one filled up with zeros, by kernels of which `PrivateStep` has seen that
a record's numbers depend neither on its place in the piece nor on the others there (else a piece is one record). The
engine and the size of a piece follow from declarations, the model and the machine, never from the records. From there
on arithmetic is float64. A clipped vector has a norm of at most (1 − 2^-10)·(1 + 2^-48)·C. Sums of n of them are added
up in levels of at most `FAN` terms (`LevelSum`), hence are off by at most (4·`FAN` + `PIECE`)·2^-53·n·C in L2, and two
neighbouring sums together by less than 2^-11·C for every n ≤ 2^30, more than a connector reads. Together: at most C.
"""

from __future__ import annotations

import logging
import os
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Final

import torch
from torch import nn

from sovfed.clients.dpsgd.engines import GhostEngine, build_engine, clip_and_sum, clip_factors, one_by_one
from sovfed.clients.dpsgd.layers import ENGINES, choose, refusals, trace
from sovfed.clients.training.device import OUT_OF_MEMORY, SMALL, matrices, one_thread
from sovfed.federation.errors import ConfigError, PrivacyError
from sovfed.federation.privacy.compatibility import check_private_compatible, still
from sovfed.federation.schema import nearest
from sovfed.federation.tasks.trees import Tree, leaves, padded, rows, size, split, to_device

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from sovfed.clients.dpsgd.engines import RecordLoss

CLIP_MARGIN: Final = 2.0**-10  # persons are clipped to (1 − margin)·C: it pays for the rounding of the sum
PIECE: Final = 64  # most records at once on a CPU, a power of two: a piece that is not full is filled up
DEVICE_PIECE: Final = 256  # and on a device
CHUNK_BYTES: Final = 32 << 20  # gradients and activations of a piece on a CPU: about what its caches make good use of
FEW: Final = 8  # records at once of a large model, so that its weights are not read anew for each
MOST_BYTES: Final = 256 << 20  # that those few may take
DEVICE_SHARE: Final = 0.25  # of device memory for a piece
FAN: Final = 256  # terms that a level of a sum adds up before it is one term of the next
ENGINE_TOLERANCE: Final = 1e-3  # relative; rounding gives 1e-6 to 1e-5, a wrong rule 3e-2 and more
MERSENNE_WORDS: Final = slice(24, 24 + 8 * 624)  # the 624 words within the CPU generator's state

log = logging.getLogger(__name__)


class PrivateStep:
    """Clipped gradient sums of `module`, which it takes over: nothing else may train or evaluate it.

    Sensitivity: adding or removing one person with all their records moves `clipped_sum` by at most `clip` in L2, for
    all records, models and numbers of persons: the proof stands at the head of this module.
    Dropout is allowed: its masks come afresh from the operating system's entropy at every step, never from a seed.
    """

    def __init__(
        self,
        module: nn.Module,
        loss: RecordLoss,
        clip: float,
        *,
        example: tuple[Tree, Tree],
        several_records: bool,
        device: torch.device | str = "cpu",
        engine: str = "auto",
    ) -> None:
        """`loss` maps logits [n, k] and labels [n] to the loss of each record [n].

        `example` is a few made-up records (features [n, …], labels [n]; never real ones) to try model, loss and engine
        on; `several_records` declares whether a person may have more than one, and is never counted from the records.
        `engine`: "auto" or a name.
        Raises PrivacyError with reason and fix if the model cannot be made private or the engine is wrong for it,
        ConfigError for an unknown engine or a clip that is not positive.
        """
        if not 0 < clip < float("inf"):
            raise ConfigError(f"clip is {clip}, expected a positive number")
        if engine not in ("auto", *ENGINES):
            raise ConfigError(f"unknown gradient engine '{engine[:64]}'{nearest(engine, ('auto', *ENGINES))}")
        self.clip, self._device, self._several = clip, torch.device(device), several_records
        features, labels = (to_device(tree, self._device) for tree in example)
        self._module = module.to(self._device).train()
        check_private_compatible(self._module, loss, features, labels)
        self._flat = _flatten(self._module)
        self._slices = _trainable_slices(self._module)
        self._dropout = any(isinstance(layer, nn.modules.dropout._DropoutNd) for layer in module.modules())
        with still(self._module):
            traced = trace(self._module, features)
        self.engine, self.reason = engine, "it was asked for"
        if engine == "auto":
            self.engine, self.reason = choose(traced, several_records=several_records)
        against = refusals(self.engine, traced, several_records=several_records)
        if against:
            raise PrivacyError(f"engine {self.engine} is wrong here: {'; '.join(against)}. Use engine auto or vmap")
        self._engine = build_engine(self.engine, self._module, loss)
        self._piece = self._records_at_once(traced.record_bytes)
        self._try_engine(loss, features, labels)
        preferred = self._piece
        for records in (preferred, 2 * preferred, 1):  # vector kernels may need a multiple of their width
            self._piece = records
            if self._bits_are_their_own(features, labels):
                break
        if self._piece < preferred:
            log.warning("private step: on this machine a record's numbers depend on others; computed one at a time")
        log.info("private step: engine=%s because %s; %d records at once", self.engine, self.reason, self._piece)

    @property
    def parameters(self) -> int:
        """Length d of the flat vector."""
        return self._flat.numel()

    def clipped_sum(
        self, flat_model: Tensor, features: Tree, labels: Tree, person_groups: Tensor
    ) -> tuple[Tensor, int]:
        """The sum of the sampled persons' clipped gradients at `flat_model` (shape [d]): float64 [d], on the device.

        `features` [n, …], `labels` [n], `person_groups` [n] (equal number: same person), any n including 0. Also the
        number of persons in the sum: one whose gradient is not finite is left out of it. That number depends on the
        records and must not leave the institution. Nothing is ever cut off: a large batch is computed in pieces.
        """
        if flat_model.shape != self._flat.shape:
            raise ConfigError(f"model of shape {tuple(flat_model.shape)}, expected ({self._flat.numel()},)")
        if not size(features) == size(labels) == len(person_groups):
            raise ConfigError(f"{size(features)} features, {size(labels)} labels, {len(person_groups)} persons")
        self._flat.copy_(flat_model)
        total = torch.zeros(self._flat.shape, dtype=torch.float64, device=self._device)
        if not len(person_groups):
            return total, 0
        persons, owners, counts = torch.unique(person_groups.cpu(), return_inverse=True, return_counts=True)
        if not self._several and len(persons) < len(person_groups):
            raise PrivacyError("a person has several records, though one for each was declared")
        self._module.train()
        with self._steady(), self._secret_masks():
            used = self._sum(total, features, labels, (owners, counts) if self._several else None, self.clip)
        if used < len(persons):
            log.warning("%d of %d sampled persons had no finite gradient", len(persons) - used, len(persons))
        return total, used

    def _sum(
        self,
        total: Tensor,
        features: Tree,
        labels: Tree,
        persons: tuple[Tensor, Tensor] | None,
        clip: float,
    ) -> int:
        """Add the clipped gradients to `total`, piece by piece. `persons`: each record's owner, and each's count."""
        features, labels = to_device(features, self._device), to_device(labels, self._device)
        bound, sums, used = clip * (1 - CLIP_MARGIN), LevelSum(), 0
        if persons is None:
            for records, targets, count in self._pieces(features, labels):
                if isinstance(self._engine, GhostEngine):
                    parts, finite = self._engine.clipped(records, targets, count, bound)
                else:
                    parts, finite = clip_and_sum(self._engine.gradients(records, targets), count, bound)
                used += finite
                sums.add(parts)
        else:
            for gradients in self._person_gradients(features, labels, *persons):
                parts, finite = clip_and_sum(gradients, len(gradients[0]), bound)
                used += finite
                sums.add(parts)
        for span, summed in zip(self._slices, sums.total(), strict=False):
            total[span] = summed
        return used

    def _pieces(self, features: Tree, labels: Tree) -> Iterator[tuple[Tree, Tree, int]]:
        """Features and labels of `self._piece` records each, and how many of them are real: the last ones are zeros."""
        for records, targets in zip(split(features, self._piece), split(labels, self._piece), strict=True):
            count = size(records)
            yield padded(records, self._piece), padded(targets, self._piece), count

    def _person_gradients(self, features: Tree, labels: Tree, owners: Tensor, counts: Tensor) -> Iterator[list[Tensor]]:
        """Mean gradients of whole persons, by parameter, float64 [persons, size]; one may span several pieces.

        A person's records are added up one by one in their own order, wherever a piece begins: the same bits always.
        """
        if isinstance(self._engine, GhostEngine):
            raise PrivacyError("ghost clipping has no gradients of persons")
        order = torch.argsort(owners, stable=True)
        owners = owners[order]  # which stay on the processor: to ask a GPU is to wait for it
        counts, order = counts.to(self._device), order.to(self._device)
        begun: Tensor | None = None  # the sum over the records so far of a person who goes on in this piece
        end = 0
        for records, targets, count in self._pieces(rows(features, order), rows(labels, order)):
            start, end = end, end + count
            owner = owners[start:end]
            first, last = int(owner[0]), int(owner[-1])
            gradients = self._engine.gradients(records, targets)
            each = torch.cat(gradients, dim=1)
            sums = torch.zeros(last - first + 1, each.shape[1], dtype=torch.float64, device=self._device)
            if begun is not None:
                sums[0] = begun
            for row, person in enumerate((owner - first).tolist()):
                sums[person] += each[row]
            goes_on = end < len(order) and int(owners[end]) == last
            begun = sums[-1].clone() if goes_on else None
            complete = last - first + (0 if goes_on else 1)
            if complete:
                means = sums[:complete] / counts[first : first + complete].unsqueeze(1)
                yield list(torch.split(means, [gradient.shape[1] for gradient in gradients], dim=1))

    def _records_at_once(self, activations: int) -> int:
        """The fixed size of a piece, a power of two, from the model and the machine alone."""
        gradients = 0 if self.engine == "ghost" else 2 * self._flat.nbytes
        each = max(1, activations + gradients)
        if self._device.type == "cuda":
            memory = torch.cuda.get_device_properties(self._device).total_memory
            most = min(DEVICE_PIECE, int(DEVICE_SHARE * memory) // each)
        else:
            most = min(PIECE, max(CHUNK_BYTES // each, min(FEW, MOST_BYTES // each)))
        return 1 << max(0, most.bit_length() - 1)

    def _bits_are_their_own(self, features: Tree, labels: Tree) -> bool:
        """Whether made-up records get the same bits at every place of a piece, and beside others or zeros alike."""
        count, places = size(features), torch.arange(self._piece, device=self._device)
        first_copies: dict[int, list[Tensor]] = {}
        with still(self._module), self._steady():
            for turn in range(count + 1 if self._piece > 1 else 0):  # each record comes to every place
                which = (places + turn) % count
                records, targets = rows(features, which), rows(labels, which)
                real = (places % 3 != 1) | (turn < count)
                for tensor in (*leaves(records), *leaves(targets)):
                    tensor[~real] = 0
                own = self._engine.own(records, targets)
                for record in range(count):
                    copies = [values[real & (which == record)] for values in own]
                    if len(copies[0]) and not all(
                        bool((values == first).all())
                        for values, first in zip(
                            copies, first_copies.setdefault(record, [values[0] for values in copies]), strict=True
                        )
                    ):
                        return False
        return True

    def _try_engine(self, loss: RecordLoss, features: Tree, labels: Tree) -> None:
        """Hold the engine to plain autograd, one made-up record at a time, before it sees a real one."""
        with still(self._module), self._steady():
            try:
                each = torch.stack(list(one_by_one(self._module, loss, features, labels))).double()
                clip = float(each.norm(dim=1).median()) or 1.0
                expected = (each * clip_factors(each.norm(dim=1), clip * (1 - CLIP_MARGIN)).unsqueeze(1)).sum(0)
                total = torch.zeros(self._flat.shape, dtype=torch.float64, device=self._device)
                used = self._sum(total, features, labels, None, clip)
            except OUT_OF_MEMORY as error:  # no smaller piece: how much is free depends on how many records lie there
                raise PrivacyError(f"out of memory on {self._device} for {self._piece} records at once") from error
            except (RuntimeError, NotImplementedError) as error:
                reason = str(error).partition("\n")[0]
                raise PrivacyError(
                    f"engine {self.engine} cannot compute the gradient of one record: {reason}. "
                    "Build the model of layers that torch.func.vmap supports: Linear, convolution, GroupNorm, attention"
                ) from error
        got = torch.cat([total[span] for span in self._slices])
        error_ = float((got - expected).norm())
        if used != size(features) or not error_ <= ENGINE_TOLERANCE * max(float(expected.norm()), clip):
            raise PrivacyError(f"engine {self.engine} is wrong for this model by {error_:.2g} at clip {clip:.2g}")

    @contextmanager
    def _steady(self) -> Iterator[None]:
        """No autocast and no TF32, and a small model on one thread: several would cut the records somewhere."""
        with (
            one_thread() if self._flat.numel() < SMALL else nullcontext(),
            torch.autocast(self._device.type, enabled=False),
            matrices("float32"),
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


class LevelSum:
    """Float64 sums of many lists of vectors: each level adds up `FAN` terms, then they are one term of the next.

    So an error grows with the number of levels and not with the number of terms.
    """

    def __init__(self) -> None:
        self._levels: list[tuple[list[Tensor], int]] = []

    def add(self, parts: list[Tensor]) -> None:
        """Add `parts`, which are taken over."""
        for level, (level_sums, count) in enumerate(self._levels):
            if count:
                parts = [level_sum.add_(added) for level_sum, added in zip(level_sums, parts, strict=True)]
            if count + 1 < FAN:
                self._levels[level] = (parts, count + 1)
                return
            self._levels[level] = ([], 0)
        self._levels.append((parts, 1))

    def total(self) -> list[Tensor]:
        """The sum, by part; [] of nothing. Nothing may be added afterwards."""
        totals: list[Tensor] = []
        for level_sums, count in self._levels:
            if count:
                totals = (
                    [level_sum + subtotal for level_sum, subtotal in zip(level_sums, totals, strict=True)]
                    if totals
                    else level_sums
                )
        return totals


def _flatten(module: nn.Module) -> Tensor:
    """One flat vector of the parameters that are trained, in torch's order, which become views of it."""
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    flat = torch.cat([parameter.detach().reshape(-1) for parameter in parameters])
    offset = 0
    for parameter in parameters:
        parameter.data = flat[offset : offset + parameter.numel()].view_as(parameter)
        offset += parameter.numel()
    return flat


def _trainable_slices(module: nn.Module) -> list[slice]:
    slices, offset = [], 0
    for parameter in module.parameters():
        if parameter.requires_grad:
            slices.append(slice(offset, offset + parameter.numel()))
            offset += parameter.numel()
    return slices
