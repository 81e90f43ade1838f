"""The decoder sees no token to come, and gives the same whether scores and blocks are kept or computed again."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.func import functional_call, grad, vmap
from torch.nn import functional

from sovfed.federation.errors import ConfigError
from sovfed.federation.tasks import decoder
from sovfed.federation.tasks.conformance import conform
from sovfed.federation.tasks.declared import DeclaredTask, task_from_text
from sovfed.federation.tasks.simple import language_model
from sovfed.federation.tasks.taskfile import read_text, to_text

DIGEST = "5e" * 32
LEARNT = f'{{kind: next_token, tokenizer: "{DIGEST}"}}'
TEXT = f"""name: words
title: Words
person: document
columns:
  window: {{kind: tokens, shape: [9], high: 30}}
target: {LEARNT}
model: {{family: decoder, width: 16, blocks: 2, heads: 2, hidden: 32}}
"""


def task() -> DeclaredTask:
    return task_from_text(TEXT)


def lively(**settings: Any) -> decoder.Decoder:
    """A decoder none of whose matrices is zero."""
    torch.manual_seed(1)
    module = decoder.Decoder(31, 8, 16, 2, 2, 32, **settings)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(std=0.3)
    return module


def windows(count: int = 3) -> torch.Tensor:
    return torch.randint(0, 31, (count, 9), generator=torch.Generator().manual_seed(2), dtype=torch.int32)


@pytest.mark.parametrize("activation", ["relu2", "swiglu"])
def test_no_token_is_seen_before_its_turn(activation: str) -> None:
    module, changed = lively(activation=activation), windows()
    changed[:, 6:] = (changed[:, 6:] + 1) % 31
    before, after = module(windows()), module(changed)
    torch.testing.assert_close(before[:, :5], after[:, :5])
    assert not torch.allclose(before[:, 6:], after[:, 6:])


def test_where_a_token_stands_counts_by_distance_alone() -> None:
    """Rotary positions: the same pair, moved on, has the same product."""
    turned = decoder.Rotary(8, 16)
    query, key = torch.randn(8), torch.randn(8)
    queries, keys = turned(query.expand(1, 1, 16, 8)), turned(key.expand(1, 1, 16, 8))
    products = (queries[0, 0] @ keys[0, 0].T).diagonal(-3)
    torch.testing.assert_close(products, products[:1].expand_as(products))


def test_it_gives_log_probabilities_that_add_up_to_one() -> None:
    module = lively()
    codes = windows(1)[:, :5]
    every = torch.cat([codes.expand(31, 5), torch.arange(31)[:, None]], 1)
    assert float(module(every)[:, -1].exp().sum().detach()) == pytest.approx(1.0, rel=1e-5)
    torch.testing.assert_close(module.scores(codes).log_softmax(-1)[0], module(every)[:, -1])


def test_at_first_every_token_is_as_likely() -> None:
    torch.testing.assert_close(decoder.Decoder(31, 8, 16, 2, 2, 32)(windows()).exp(), torch.full((3, 8), 1 / 31))


def test_what_is_computed_again_has_the_same_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    def slopes(module: decoder.Decoder) -> list[torch.Tensor]:
        return list(torch.autograd.grad(module(windows()).sum(), list(module.parameters())))

    kept = slopes(lively())
    monkeypatch.setattr(decoder, "SCORES_AT_ONCE", 31 * 5)
    for again, slope in zip(slopes(lively(recompute=True)), kept, strict=True):
        torch.testing.assert_close(again, slope)


def test_gradients_of_single_records_can_be_taken_all_at_once() -> None:
    module = lively()
    values = {name: value.detach() for name, value in module.named_parameters()}

    def alone(values: dict[str, torch.Tensor], window: torch.Tensor) -> torch.Tensor:
        return functional_call(module, values, (window[None],)).sum()  # type: ignore[no-any-return]

    together = vmap(grad(alone), in_dims=(None, 0))(values, windows())
    for row in range(3):
        expected = torch.autograd.grad(module(windows()[row : row + 1]).sum(), list(module.parameters()))
        for name, slope in zip(values, expected, strict=True):
            torch.testing.assert_close(together[name][row], slope, rtol=1e-3, atol=1e-5)


def test_a_tied_head_is_the_embedding() -> None:
    tied, apart = (sum(part.numel() for part in lively(tied=tied).parameters()) for tied in (True, False))
    assert apart - tied == 31 * 16


def test_muon_takes_no_vocabulary_for_a_matrix() -> None:
    assert task().layout.vocabulary == {"embedding.weight", "head.weight"}


def test_every_token_weighs_the_same_and_given_ones_nothing() -> None:
    language = task()
    scores = functional.logsigmoid(torch.randn(2, 8))
    assert language.loss is not None
    losses = language.loss(scores, {"given": torch.tensor([0.0, 5.0]), "bytes": torch.tensor([20.0, 6.0])})
    torch.testing.assert_close(losses, torch.stack([-scores[0].sum() / 8, -scores[1, 5:].sum() / 8]))


def test_bits_per_byte_are_of_the_text_whatever_its_tokens() -> None:
    """By hand: 3 tokens of 2 bits each, over 12 bytes."""
    language = task()
    scores = torch.full((1, 8), -2 * 0.6931471805599453)
    targets = {"given": torch.tensor([5.0]), "bytes": torch.tensor([12.0])}
    assert language.loss is not None
    sums = language.metrics.sums(
        scores.numpy(), {name: value.numpy() for name, value in targets.items()}, language.loss(scores, targets).numpy()
    )
    found = language.metrics.summarise(sums)
    assert found["bits_per_byte"] == pytest.approx(0.5) and found["loss"] == pytest.approx(2 * 0.693147, rel=1e-5)


def test_a_language_model_of_ones_own_is_the_same_task_by_schema() -> None:
    own = language_model("words", lambda: decoder.Decoder(31, 8, 16, 2, 2, 32), DIGEST, 31, 8)
    assert own.schema == task().schema and own.tokenizer == DIGEST and own.parameters == task().parameters
    assert all(check.held for check in conform(own))
    assert own.digest != language_model("words", lambda: decoder.Decoder(31, 8, 16, 2, 2, 32), "5f" * 32, 31, 8).digest


def test_a_file_says_the_same_once_written() -> None:
    assert to_text(read_text(to_text(read_text(TEXT)))) == to_text(read_text(TEXT))
    assert task().tokenizer == DIGEST and task().digest != task_from_text(TEXT.replace("5e5e", "5f5e", 1)).digest


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("high: 30", "high: 30.5", "whole number"),
        (", high: 30", "", "needs 'high'"),
        ("shape: [9]", "shape: [9, 2]", r"expected \[tokens\]"),
        ("shape: [9]", "shape: [1]", r"expected \[tokens\]"),
        (DIGEST, "abc", "SHA-256"),
        (f'tokenizer: "{DIGEST}"', "", "needs 'tokenizer'"),
        ("family: decoder, width: 16, blocks: 2, heads: 2, hidden: 32", "family: linear", "no tokens column|takes"),
        ("width: 16", "width: 10", "twice the heads"),
        ("kind: next_token, tokenizer", "kind: binary, column: a, classes: [b, c], tokenizer", "not for kind"),
        (LEARNT, "{kind: binary, column: a, classes: [b, c]}", "not for a target"),
        ("columns:\n", "columns:\n  age: {kind: number, low: 0, high: 1}\n", "no other column"),
    ],
)  # fmt: skip
def test_what_cannot_be_learnt_is_refused(old: str, new: str, message: str) -> None:
    assert old in TEXT
    with pytest.raises(ConfigError, match=message):
        task_from_text(TEXT.replace(old, new))
