"""Losses of single records; torch is imported by the call, so that naming a task stays instant.

Each takes outputs [n, outputs] and targets, a tensor or a dict of tensors by column, and gives one loss a record [n].
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor

HUBER_DELTA: Final = 1.0  # deviations of the target from which on a Huber loss grows by the error, not its square


def binary_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """−log p(label) of one logit a record: logits [n, 1], labels [n] → [n]."""
    from torch.nn.functional import binary_cross_entropy_with_logits

    return binary_cross_entropy_with_logits(logits[:, 0], labels.to(logits.dtype), reduction="none")


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """−log p(label) of a softmax: logits [n, classes], labels [n] → [n]."""
    from torch.nn.functional import cross_entropy as of_torch  # faster than from torch.nn, by every call

    return of_torch(logits, labels, reduction="none")


def squared_error(outputs: Tensor, values: Tensor) -> Tensor:
    """(output − value)², both scaled by the run's scale: outputs [n, 1], values [n] → [n]."""
    return (outputs[:, 0] - values.to(outputs.dtype)).square()


def huber(outputs: Tensor, values: Tensor) -> Tensor:
    """Half the squared error near 0, the absolute error (− 1/2) beyond 1: outputs [n, 1], values [n] → [n].

    Source: Huber 1964, doi 10.1214/aoms/1177703732.
    """
    from torch.nn import functional

    return functional.huber_loss(outputs[:, 0], values.to(outputs.dtype), reduction="none", delta=HUBER_DELTA)


def next_token(logits: Tensor, tokens: Tensor) -> Tensor:
    """Mean −log p of each token but the first, given those before it: logits [n, t, symbols], tokens [n, t] → [n]."""
    from torch.nn import functional

    scores = logits[:, :-1].transpose(1, 2)
    return functional.cross_entropy(scores, tokens[:, 1:].long(), reduction="none").mean(1)


def counted_tokens(scores: Tensor, targets: Mapping[str, Tensor]) -> Tensor:
    """−log p of a window's tokens, their sum over the window's length, so that every token weighs the same.

    scores [n, t] = log p, of which the first `given` [n] are another window's to predict; → [n].
    """
    import torch

    counted = torch.arange(scores.shape[1], device=scores.device) >= targets["given"][:, None]
    return -(scores * counted).sum(1) / scores.shape[1]


def multilabel(columns: Sequence[str]) -> Callable[[Tensor, Mapping[str, Tensor]], Tensor]:
    """The loss of several labels at once: the mean of −log p over them.

    The loss takes logits [n, labels], in the order of `columns`, and for each column its 0 or 1 [n]; → [n].
    """
    names = tuple(columns)

    def loss(logits: Tensor, labels: Mapping[str, Tensor]) -> Tensor:
        import torch
        from torch.nn.functional import binary_cross_entropy_with_logits

        truth = torch.stack([labels[name] for name in names], 1).to(logits.dtype)
        return binary_cross_entropy_with_logits(logits, truth, reduction="none").mean(1)

    return loss


def discrete_hazards(time: str, event: str, edges: Sequence[float]) -> Callable[[Tensor, Mapping[str, Tensor]], Tensor]:
    """The loss of survival in the K intervals between `edges` [K + 1]: each record's −log likelihood by itself.

    Logit k is of the hazard, P(event in interval k | alive at its start). An event at time t counts in [edge, next
    edge) and a person survived every interval before; censored at t, a person survived those of which at least half
    was lived. What lies at or behind the last edge is survival of all. The loss takes logits [n, K] and the columns
    `time` [n] in its own unit and `event` [n], 1 or 0 (censored); → [n].
    Source: Gensheimer and Narasimhan 2019, doi 10.7717/peerj.6257, equation 3.
    """
    bounds = tuple(float(edge) for edge in edges)

    def loss(logits: Tensor, targets: Mapping[str, Tensor]) -> Tensor:
        import torch
        from torch.nn.functional import logsigmoid

        ends = torch.tensor(bounds, dtype=logits.dtype, device=logits.device)
        when, died = targets[time].to(logits.dtype)[:, None], targets[event][:, None] > 0
        lived = torch.where(died, when >= ends[1:], when >= (ends[:-1] + ends[1:]) / 2)
        fell = died & (when >= ends[:-1]) & (when < ends[1:])
        return -(logsigmoid(-logits) * lived + logsigmoid(logits) * fell).sum(1)

    return loss
