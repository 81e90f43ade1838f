"""Goldfish loss: which tokens are left out follows from those before, in training alone."""

from __future__ import annotations

import pytest
import torch
from tests.federation.tasks.test_decoder import TEXT, lively, windows
from torch.func import functional_call, grad, vmap

from sovfed.federation.errors import ConfigError
from sovfed.federation.tasks.declared import task_from_text
from sovfed.federation.tasks.goldfish import weights
from sovfed.federation.tasks.taskfile import read_text, to_text

WORD = (1 << 64) - 1


def drawn(*shape: int, symbols: int = 4_096) -> torch.Tensor:
    return torch.randint(1, symbols, shape, generator=torch.Generator().manual_seed(5))


def left_out(tokens: list[int], k: int) -> list[bool]:
    """By whole numbers of Python: a polynomial of the last 13 tokens, then splitmix64's finaliser, modulo 2^64."""
    dropped = []
    for end in range(1, len(tokens)):
        mixed = 0
        for token in tokens[max(0, end - 13) : end]:
            mixed = (mixed * 0x9E3779B97F4A7C15 + token) & WORD
        mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & WORD
        mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & WORD
        dropped.append(((mixed ^ (mixed >> 31)) >> 33) % k == 0)
    return dropped


@pytest.mark.parametrize("k", [2, 3, 4, 50])
def test_the_mask_is_the_hash_of_the_thirteen_tokens_before(k: int) -> None:
    tokens = drawn(40)
    assert (weights(tokens[None], k)[0] == 0).tolist() == left_out(tokens.tolist(), k)


@pytest.mark.parametrize("k", [2, 4, 16])
def test_one_token_in_k_is_left_out_and_the_loss_keeps_its_length(k: int) -> None:
    counts = weights(drawn(500, 101), k)
    assert float((counts == 0).double().mean()) == pytest.approx(1 / k, abs=0.01)
    assert float(counts.double().mean()) == pytest.approx(1.0, abs=0.03)


def test_a_passage_loses_the_same_tokens_wherever_it_stands() -> None:
    passage = drawn(60)
    behind = weights(torch.cat([drawn(30), passage])[None], 4)[0]
    alone = weights(passage[None], 4)[0]
    assert torch.equal(behind[-47:], alone[-47:])  # all but the first thirteen, which others stand before
    changed = passage.clone()
    changed[20] += 1
    assert not torch.equal(weights(changed[None], 4)[0][20:33], alone[20:33])
    assert torch.equal(weights(changed[None], 4)[0][33:], alone[33:])


def test_what_fills_up_a_short_text_changes_nothing() -> None:
    text = torch.cat([torch.zeros(1, dtype=torch.int64), drawn(20)])
    filled = torch.cat([torch.zeros(9, dtype=torch.int64), text])
    assert torch.equal(weights(filled[None], 3)[0][-20:], weights(text[None], 3)[0])


def test_training_leaves_out_what_evaluation_counts() -> None:
    plain, module = lively(), lively(goldfish=4)
    counts = weights(windows(), 4)
    assert bool((counts == 0).any()) and not bool((counts == 0).all())
    torch.testing.assert_close(module(windows()), plain(windows()) * counts)
    torch.testing.assert_close(module.eval()(windows()), plain(windows()))


def test_gradients_of_single_records_leave_out_the_same() -> None:
    module = lively(goldfish=4)
    values = {name: value.detach() for name, value in module.named_parameters()}

    def alone(values: dict[str, torch.Tensor], window: torch.Tensor) -> torch.Tensor:
        return functional_call(module, values, (window[None],)).sum()  # type: ignore[no-any-return]

    together = vmap(grad(alone), in_dims=(None, 0))(values, windows())
    plain = lively()
    kept = (plain(windows()[1:2]) * weights(windows()[1:2], 4)).sum()
    expected = torch.autograd.grad(kept, list(plain.parameters()))
    for name, slope in zip(values, expected, strict=True):
        torch.testing.assert_close(together[name][1], slope, rtol=1e-3, atol=1e-5)


def test_a_task_says_it_only_where_it_is_asked_for() -> None:
    asked = TEXT.replace("hidden: 32", "hidden: 32, goldfish: 4")
    assert "goldfish" not in to_text(read_text(TEXT))
    assert read_text(to_text(read_text(asked))) == read_text(asked)
    assert task_from_text(asked).digest != task_from_text(TEXT).digest
    assert task_from_text(TEXT.replace("hidden: 32", "hidden: 32, goldfish: 0")).digest == task_from_text(TEXT).digest
    assert task_from_text(asked).model(0).goldfish == 4


@pytest.mark.parametrize("k", [1, -1, 129])
def test_what_leaves_every_token_out_is_refused(k: int) -> None:
    with pytest.raises(ConfigError, match="goldfish"):
        task_from_text(TEXT.replace("hidden: 32", f"hidden: 32, goldfish: {k}"))
