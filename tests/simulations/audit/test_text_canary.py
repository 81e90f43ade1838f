"""Canaries in training text: exposure as the paper has it, found without privacy, and what the command prints."""

from __future__ import annotations

import json
import lzma
import math
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from sovfed.clients.data.token_store import TRAIN
from sovfed.clients.models.passages import text_of
from sovfed.federation.tasks.decoder import Decoder
from sovfed.simulations.audit import canary_texts, text_canary
from sovfed.simulations.audit.canary_texts import COPIES, LENGTH, Field, make_field, task_of
from sovfed.simulations.audit.text_canary import (
    APART,
    CHANCE,
    GOLDFISH,
    LEARNING,
    LITTLE,
    PLAIN,
    PRIVATE,
    Exposed,
    Size,
    audit_texts,
    by_chance,
    completes,
    exposures,
    run_text,
)
from sovfed.simulations.cli_audit import audit

pytest.importorskip("tokenizers")
TINY = Size(documents=120, canaries=3, references=255, rounds=60, private_rounds=4)


def field_of(folder: Path, *, alone: bool = False, size: Size = TINY) -> Field:
    return make_field(
        folder, None, documents=size.documents, canaries=size.canaries, references=size.references, alone=alone
    )


@pytest.fixture(scope="module")
def field(tmp_path_factory: pytest.TempPathFactory) -> Field:
    return field_of(tmp_path_factory.mktemp("field") / "stores")


def test_exposure_is_of_the_rank_among_all_that_could_have_been() -> None:
    """By hand: of 8 lines the likeliest has 3 bits, the second 2, the last none."""
    references = np.arange(7.0)
    assert exposures(np.array([7.5, 5.5, -1.0]), references).tolist() == [3.0, 2.0, 0.0]
    assert exposures(np.array([6.0]), references).tolist() == [2.0]  # a tie ranks behind


def test_lines_that_were_never_trained_on_are_at_chance() -> None:
    drawn = np.random.default_rng(1)
    p_values = []
    for _ in range(300):
        references = drawn.normal(size=4_095)
        bits = exposures(drawn.normal(size=8), references)
        p_values.append(by_chance(bits))
    assert np.mean(p_values) > 0.47  # at least what the probability is, so at least uniform
    assert np.mean(np.array(p_values) < 0.05) < 0.1
    for each in (CHANCE, 3.0, 12.0):  # beyond x, a gamma of shape 8 has e^−x Σ x^k / k! over k < 8
        x = 8 * each * math.log(2)
        beyond = math.exp(-x) * sum(x**k / math.factorial(k) for k in range(8))
        assert by_chance(np.full(8, each)) == pytest.approx(beyond, rel=1e-6)


def test_copies_stand_in_training_documents_of_the_first_institution_alone(field: Field, tmp_path: Path) -> None:
    together = field_of(tmp_path / "stores", alone=True)
    for each, persons_of in ((field, lambda copies: copies), (together, lambda copies: 1)):
        first, *others = each.sites.values()
        texts = [text_of(each.tokenizer, first.store, row) for row in range(len(first.store.persons))]
        for copies in COPIES:
            for line in each.canaries.inserted[copies]:
                holding = [row for row, text in enumerate(texts) if text.startswith(line)]
                assert len(holding) == copies and (first.store.sides[holding] == TRAIN).all()
                assert len(np.unique(first.store.persons[holding])) == persons_of(copies)
        assert not any(
            text_of(each.tokenizer, windows.store, row)[:LENGTH] in each.canaries.references
            for windows in each.sites.values() for row in range(len(windows.store.persons))
        )  # fmt: skip
        assert len(others) == 3 and len(each.canaries.references) == TINY.references
    assert field.persons - together.persons == TINY.canaries * (sum(COPIES) - len(COPIES))


@pytest.mark.timeout(300)
def test_without_privacy_many_copies_are_found_and_a_short_training_completes_nothing(field: Field) -> None:
    exposed = audit_texts(field, PLAIN, LEARNING, TINY.rounds)
    assert [each.copies for each in exposed] == list(COPIES)
    assert exposed[-1].p_value < 1e-3 and exposed[-1].mean > 5  # of 8 bits
    assert exposed[-1].mean >= exposed[0].mean and exposed[-1].persons == 16


def test_a_line_is_completed_only_to_the_letter(field: Field, monkeypatch: pytest.MonkeyPatch) -> None:
    line = field.canaries.references[0]
    module = task_of(field.tokenizer).model(0)
    assert isinstance(module, Decoder)
    for text, completed in ((line[12:], True), (line[12:] + " more", True), (line[12:-1], False), ("x", False)):
        monkeypatch.setattr(text_canary, "written", lambda *_, text=text: iter(text))
        assert completes(module, field.tokenizer, line) is completed


def test_verdicts_hold_what_the_audit_claims_against_what_it_saw() -> None:
    def exposed(model: str, *, copies: int = 16, persons: int = 16, p: float = 1e-20, completed: int = 0) -> Exposed:
        return Exposed(model, copies, persons, (2.0, 1.0), p, completed, 1.0)

    def fine(each: Exposed, *, before: int = 3) -> bool:
        every = {PLAIN: [exposed(PLAIN, completed=before)], GOLDFISH: [each]}
        return text_canary._case(each, every)[2]

    assert fine(exposed(PLAIN)) and not fine(exposed(PLAIN, p=0.01)) and fine(exposed(PLAIN, copies=1, p=0.5))
    for control in (LITTLE, APART):
        assert fine(exposed(control)) and not fine(exposed(control, p=0.01))
    assert fine(exposed(PRIVATE, persons=1, p=1e-3)) and not fine(exposed(PRIVATE, persons=1, p=1e-7))
    assert not fine(exposed(PRIVATE, persons=1, p=0.2, completed=1)) and fine(exposed(PRIVATE, persons=16))
    assert fine(exposed("goldfish 4", completed=2)) and not fine(exposed("goldfish 4", completed=3))
    assert not fine(exposed("goldfish 4"), before=0)


@pytest.mark.timeout(300)  # four models, two of them private
def test_law_is_read_from_files_whatever_stands_between_the_words_of_their_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(canary_texts, "LAW_SYMBOLS", 300)  # of few words
    for site in ("diet_acts", "a_one", "b-two", "c_three", "d_four"):
        lines = [{"id": "1", "split": "train", "text": "\n".join(f"Article {n} of {site} binds." for n in range(150))}]
        content = "".join(json.dumps(line) + "\n" for line in lines).encode()
        (tmp_path / f"{site}.jsonl.xz").write_bytes(lzma.compress(content))
    field = make_field(tmp_path / "stores", tmp_path, documents=100, canaries=1, references=3, alone=False)
    assert set(field.sites) == {"a-one", "b-two", "c-three", "d-four"}


def test_a_result_for_each_model_and_number_of_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = Size(documents=60, canaries=2, references=63, rounds=2, private_rounds=2)
    findings = run_text(None, quick=True, alone=False, goldfish=4, size=size)
    models = [PLAIN, PRIVATE, LITTLE, "goldfish 4"]
    assert [result.model for result, _, _ in findings.cases] == [name for name in models for _ in COPIES]
    assert {"exposure_private_1", "completed_goldfish", "bpb_plain", "exposure_by_chance"} <= set(findings.ratios)
    monkeypatch.setattr(text_canary, "run_text", lambda *_, **__: findings)
    done = CliRunner().invoke(audit, ["canary", "--text", "--quick", "--json", str(tmp_path / "text.json")])
    assert done.exit_code == 1  # two rounds find nothing, so that the controls fail
    written = json.loads((tmp_path / "text.json").read_text())
    assert len(written["rows"]) == 12 and written["rows"][0]["exposures"] and written["audit"] == "canary-text"


@pytest.mark.parametrize("words", [["--person"], ["--goldfish", "4"], ["--text", "--run", "heart-1"]])
def test_options_that_do_not_fit_are_refused(words: list[str]) -> None:
    done = CliRunner().invoke(audit, ["canary", *words])
    assert done.exit_code == 2 and "--text" in done.output
