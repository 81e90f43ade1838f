"""Losses against their definitions, scikit-learn and scipy, and of each record by itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import expit
from sklearn.metrics import log_loss

from sovfed.federation.tasks.losses import (
    binary_cross_entropy,
    cross_entropy,
    discrete_hazards,
    huber,
    multilabel,
    next_token,
    squared_error,
)

EDGES = (0.0, 1.0, 2.0, 4.0)


def test_the_losses_of_classifiers_are_the_negative_logarithm_of_the_probability() -> None:
    assert binary_cross_entropy(torch.tensor([[0.0], [2.0]]), torch.tensor([1, 0])).tolist() == pytest.approx(
        [0.693147, 2.126928]
    )
    assert cross_entropy(torch.zeros(1, 10), torch.tensor([4])).tolist() == pytest.approx([2.302585])


def test_the_losses_of_numbers_equal_their_definition() -> None:
    outputs, values = torch.tensor([[0.5], [3.0]]), torch.tensor([0.0, 0.0])
    assert squared_error(outputs, values).tolist() == [0.25, 9.0]
    assert huber(outputs, values).tolist() == [0.125, 2.5]


def test_the_multilabel_loss_is_the_mean_of_scikit_learns_log_loss() -> None:
    random = np.random.default_rng(0)
    logits, truth = random.normal(size=(50, 2)), random.integers(0, 2, (50, 2))
    targets = {name: torch.from_numpy(truth[:, place]).float() for place, name in enumerate("ab")}
    found = multilabel("ab")(torch.from_numpy(logits), targets)
    wanted = np.mean([log_loss(truth[:, place], expit(logits[:, place])) for place in range(2)])
    assert found.shape == (50,)
    assert float(found.mean()) == pytest.approx(wanted)


def test_the_loss_of_survival_is_the_likelihood_of_the_intervals_lived_through() -> None:
    """By hand, for hazards of 0.1, 0.2 and 0.4 in [0, 1), [1, 2) and [2, 4)."""
    hazards = np.array([0.1, 0.2, 0.4])
    people = {  # (time, event): likelihood
        (0.5, 1.0): 0.1,
        (1.0, 1.0): 0.9 * 0.2,
        (3.9, 1.0): 0.9 * 0.8 * 0.4,
        (4.0, 1.0): 0.9 * 0.8 * 0.6,  # at the last edge: all intervals were survived
        (0.4, 0.0): 1.0,  # censored before half an interval was lived
        (1.5, 0.0): 0.9 * 0.8,  # half of it was
        (9.0, 0.0): 0.9 * 0.8 * 0.6,
    }
    logits = torch.from_numpy(np.tile(np.log(hazards / (1 - hazards)), (len(people), 1)))
    time, event = (torch.tensor(part) for part in zip(*people, strict=True))
    found = discrete_hazards("t", "e", EDGES)(logits, {"t": time, "e": event})
    assert found.tolist() == pytest.approx([-np.log(likelihood) for likelihood in people.values()], abs=1e-9)


def test_the_hazards_that_minimise_the_loss_are_those_of_the_life_table() -> None:
    """With nobody censored, the hazard of an interval is who fell in it over who entered it."""
    time = torch.tensor([0.5, 0.5, 1.5, 3.0, 3.5, 5.0, 6.0, 7.0])
    logits = torch.logit(torch.tensor([[2 / 8, 1 / 6, 2 / 5]])).requires_grad_()
    losses = discrete_hazards("t", "e", EDGES)(logits.expand(8, 3), {"t": time, "e": torch.ones(8)})
    (slope,) = torch.autograd.grad(losses.sum(), logits)
    assert slope[0].tolist() == pytest.approx([0.0, 0.0, 0.0], abs=1e-6)


def test_the_loss_of_the_next_token_counts_all_but_the_first() -> None:
    logits = torch.zeros(1, 3, 4)
    logits[0, 0, 2] = 100.0  # sure of the second token, knows nothing of the third
    assert next_token(logits, torch.tensor([[0, 2, 1]])).tolist() == pytest.approx([np.log(4) / 2])


def test_a_records_loss_does_not_depend_on_the_others() -> None:
    logits = torch.randn(6, 3, generator=torch.Generator().manual_seed(1))
    targets = {"t": torch.tensor([0.5, 1.0, 1.4, 3.0, 4.0, 9.0]), "e": torch.tensor([1.0, 0, 1, 0, 1, 0])}
    loss = discrete_hazards("t", "e", EDGES)
    alone = [
        loss(logits[row : row + 1], {name: part[row : row + 1] for name, part in targets.items()}) for row in range(6)
    ]
    assert torch.equal(loss(logits, targets), torch.cat(alone))
