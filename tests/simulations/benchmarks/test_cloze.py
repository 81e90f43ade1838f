"""Cloze on law: candidates are as long and of other articles, and the likeliest wins."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.real_data import published

from sovfed.clients.data.documents import Keys, documents_in
from sovfed.federation.tasks.decoder import Decoder
from sovfed.federation.tasks.tokenizer import Tokenizer, read_tokenizer, train_tokenizer
from sovfed.simulations.benchmarks import cloze as module_
from sovfed.simulations.benchmarks.cloze import BEFORE, BEHIND, Item, cloze, interval, items_of

pytest.importorskip("tokenizers")
TERMS = ("所得者", "納税者", "事業者", "申請者", "長い用語")
LAW = "".join(
    f"第{number}条　この法律において「{term}」という。第{other}条の規定による。\n"
    for number, term, other in zip("一二三四五", TERMS, "二三四五一", strict=True)
)


def test_candidates_are_as_long_and_of_other_articles() -> None:
    terms = items_of([LAW], "term")
    assert {item.candidates[0] for item in terms} == set(TERMS[:4])  # there are no others as long as the fifth
    for item in terms:
        assert set(item.candidates) == set(TERMS[:4]) and item.before.endswith("「") and item.behind.startswith("」と")
        assert len(item.before) <= BEFORE and len(item.behind) <= BEHIND
    numbers = items_of([LAW], "number")
    assert len(numbers) == 5
    for item in numbers:
        assert item.before.endswith("という。第") and item.behind.startswith("条の規定")
        own = item.before[1]  # the article's own number, which stands in it
        assert len(set(item.candidates)) == 4 and own not in item.candidates[1:]


def test_the_number_of_the_article_itself_is_not_asked_for() -> None:
    assert (
        items_of(["§ 1 Der Zoll\n§ 2 Die Steuer nach § 11\n§ 3 wie § 12, § 13 und § 14\n"], "number")[0].candidates[0]
        == "11"
    )
    assert items_of(["§ 1 a\n§ 2 b\n§ 3 c\n§ 4 d\n"], "number") == []


@pytest.fixture
def tokenizer(tmp_path: Path) -> Tokenizer:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(train_tokenizer([LAW * 3], 270))
    return read_tokenizer(path)


def test_the_likeliest_candidate_wins_and_a_tie_does_not(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = Decoder(270, 40, 16, 1, 2, 32)
    item = Item("a", ("b", "c", "d", "e"), "f")
    assert cloze(decoder, tokenizer, [item]) == (0, 1)  # at first every token is as likely
    with torch.no_grad():
        decoder.embedding.weight.fill_(1.0)
        (token,) = tokenizer.encode(["b"])[0]
        decoder.head.weight[token] = 1.0
    assert cloze(decoder, tokenizer, [item, Item("a", ("c", "b", "d", "e"), "f")]) == (1, 2)
    assert cloze(decoder, tokenizer, [item, Item("x" * 50, ("b", "c", "d", "e"), "")]) == (1, 1)
    assert cloze(decoder, tokenizer, []) == (0, 0)
    monkeypatch.setattr(module_, "MOST", 3)
    assert len(items_of([LAW], "term")) == 3 and items_of([LAW], "term") == items_of([LAW], "term")


def test_the_interval_is_wilsons() -> None:
    """By hand for 1 of 2: 0.5 ± 1.96 / (1 + z²/2) · √(1/8 + z²/16)."""
    low, high = interval(1, 2)
    assert low == pytest.approx(0.0945, abs=1e-4) and high == pytest.approx(0.9055, abs=1e-4)
    assert interval(0, 10)[0] == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize(("language", "kinds"), [("ja_law", ("term", "number")), ("de_law", ("number",))])
def test_published_law_has_items(language: str, kinds: tuple[str, ...]) -> None:
    files = sorted(published(language).glob("*.xz"))[:3]
    texts = [each.text for each in documents_in(files, Keys(side="split")) if each.side == "test"]
    for kind in kinds:
        assert len(items_of(texts, kind)) >= 20
