"""The benchmark of language on a few made-up laws: what it writes, and that it wants public text."""

from __future__ import annotations

import json
import lzma
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from sovfed.federation.errors import ConfigError
from sovfed.simulations.api import simulate
from sovfed.simulations.benchmarks import language
from sovfed.simulations.benchmarks.language import ALONE, OUTSIDE, QUICK_RINGS, STEPS, WINDOWS, Bench, run
from sovfed.simulations.benchmarks.language_apart import by_document, resampled
from sovfed.simulations.benchmarks.report import Files

pytest.importorskip("tokenizers")
SHARED = "この規定は、公布の日から施行し、別に定める場合を除き、これを適用する。"
SITES = ("diet_acts", "mof_finance", "moj_justice")


def laws(folder: Path, *sites: str) -> Path:
    for number, site in enumerate(sites):
        lines = [
            {
                "id": f"{site}{row}",
                "split": "test" if row < 2 else "train",
                "promulgated": ("1950-01-01", "2005-02-03")[row % 2],
                "text": f"第{row}条 {site} {number * row}。{SHARED}\n" * 30,
            }
            for row in range(6)
        ]
        content = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode()
        (folder / f"{site}.jsonl.xz").write_bytes(lzma.compress(content))
    return folder


def test_it_trains_pooled_federated_and_in_sixteen_bits_and_writes_the_ratios(tmp_path: Path) -> None:
    files = Files(json=tmp_path / "language.json")
    run(data=laws(tmp_path, *SITES), quick=True, rounds=2, files=files, console=Console(quiet=True), symbols=262)
    told = json.loads((tmp_path / "language.json").read_text())
    rings = [f"federated, {name}" for name in QUICK_RINGS]
    assert [row["model"] for row in told["rows"]] == ["pooled", "federated", *rings]
    assert all(row["tokens"] == 2 * 3 * WINDOWS * 128 and row["bits_per_byte"] > 0 for row in told["rows"])
    assert set(told["ratios"]) == {
        "federated_bpb", "pooled_bpb", "federated_over_pooled", "sixteen_bits_over_32", "sixteen_down_bits_over_32",
        "step_over_bare",
    }  # fmt: skip
    figures = told["figures"]
    share, copied, new = (figures[name] for name in ("copied_share", "federated_bpb_copied", "federated_bpb_new"))
    own = 1 - len(SHARED) / len(f"第0条 moj_justice 0。{SHARED}\n")  # of a line; others' have some of it too
    assert 0 < 1 - share < own
    assert share * copied + (1 - share) * new == pytest.approx(told["ratios"]["federated_bpb"], rel=1e-4)
    assert figures["copied_share_before_1980"] == pytest.approx(figures["copied_share_from_2005"], abs=0.05)
    assert "federated_bpb_copied_1980_to_2004" not in figures
    whole, change = (row["down_mb"] for row in told["rows"][-2:])
    assert change < whole  # the median of two rounds: one of each kind
    assert told["ratios"]["sixteen_bits_over_32"] == pytest.approx(1.0, abs=0.1)  # a clip for longer texts


def test_by_parts_only_what_is_asked_for_is_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(language, "LOCAL_STEPS", (2,))
    told = run(
        data=laws(tmp_path, *SITES), quick=True, rounds=2, files=Files(), console=Console(quiet=True), symbols=262,
        parts=(STEPS, ALONE),
    )  # fmt: skip
    steps = [f"{name}, H = 2" for name in OUTSIDE]
    sites = [f"{site.replace('_', '-')} alone" for site in sorted(SITES)]
    assert [row["model"] for row in told["rows"]] == ["federated", *steps, *sites]
    assert "pooled_bpb" not in told["ratios"] and told["ratios"]["diloco_h2_over_federated"] > 0
    figures = told["figures"]
    assert 0 <= figures["surely_better_than_alone"] <= figures["better_than_alone"] <= len(SITES)
    low, told_once, high = (figures[f"mof-finance_over_alone{end}"] for end in ("_low", "", "_high"))
    assert 0 < low <= told_once <= high


def test_what_was_trained_is_kept_and_the_same_command_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task, sites = language.prepared(laws(tmp_path, *SITES), tmp_path, 50, 262)
    trained: list[str] = []

    def train(bench: Bench, name: str, *_: Any, **__: Any) -> Any:
        if name == "DiLoCo, H = 2" and len(trained) == 2:
            raise KeyboardInterrupt
        trained.append(name)
        bench.tell(name, 1, 1, 2.0, None, 0.0)
        return SimpleNamespace(metrics={"bits_per_byte": 2.0})

    def told(rounds: int = 2) -> tuple[dict[str, float], list[dict[str, Any]]]:
        bench = Bench(task, sites, rounds, Console(quiet=True), [], tmp_path)
        return language._more_local_steps(bench), bench.rows

    monkeypatch.setattr(language, "LOCAL_STEPS", (2,))
    monkeypatch.setattr(Bench, "train", train)
    with pytest.raises(KeyboardInterrupt):
        told()
    trained.append("stopped")
    first = told()
    assert trained == ["federated", "FedAvg, H = 2", "stopped", "DiLoCo, H = 2"]
    assert told() == first and len(trained) == 4 and len(first[1]) == 3
    told(rounds=3)
    assert len(trained) == 7  # other rounds, another training


def test_nats_by_document_are_those_of_the_evaluation(tmp_path: Path) -> None:
    task, sites = language.prepared(laws(tmp_path, *SITES), tmp_path, 50, 262)
    windows = sites["moj-justice"]
    result = simulate(task, {"moj-justice": windows}, rounds=1, settings={**language.CENTRAL, "secagg": "none"})
    nats, size = by_document(result, windows).sum(0)
    assert len(by_document(result, windows)) == 2
    assert nats / size / math.log(2) == pytest.approx(result.metrics["bits_per_byte"], rel=1e-5)


def test_documents_are_drawn_in_pairs() -> None:
    nats = np.random.default_rng(1).gamma(2.0, 10.0, (40, 1))
    theirs = np.hstack([nats, np.ones_like(nats)])
    assert resampled(0.9 * theirs, theirs) == pytest.approx(0.9)  # however large each document is
    apart = resampled(theirs * np.where(np.arange(40) < 20, 0.5, 1.6)[:, None], theirs)
    assert apart[1:].min() < 1 < apart[1:].max() and apart.std() > 0.05


def test_text_that_is_not_public_makes_no_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="one of them of"):
        run(data=laws(tmp_path, *SITES[1:], "x"), quick=True, rounds=2, files=Files(), console=Console(quiet=True))
