"""The byte-level transformer: its loss by hand, what it may see, and that ministries learn with it."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.clients.data.test_statutes import document, written

from sovfed.clients.dpsgd.examination import examine_task
from sovfed.federation.compose import compose
from sovfed.federation.tasks import summarise
from sovfed.federation.tasks.byte_gpt import ByteGPT
from sovfed.federation.tasks.statutes import TASK, build, mean_loss
from sovfed.simulations.federation import simulate_population
from sovfed.simulations.population import make_population


def test_the_loss_is_the_mean_of_the_bytes_that_are_not_given() -> None:
    scores = -torch.tensor([[1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 4.0]])
    assert mean_loss(scores, torch.tensor([0, 3])).tolist() == [2.5, 4.0]


def test_bits_per_byte_of_added_parts_count_each_byte_once() -> None:
    # 4 bytes of 1 bit and one of 6: 10 bits in 5 bytes, though the mean over windows would say 3.5.
    bit = math.log(2.0)
    parts = [
        TASK.metrics.sums(np.zeros((1, 4)), np.array([given]), np.array([loss * bit]))
        for given, loss in ((0, 1.0), (3, 6.0))
    ]
    found = summarise(TASK, np.sum(parts, axis=0))
    assert found == pytest.approx({"bits_per_byte": 2.0, "loss": 2.0 * bit})
    assert summarise(TASK, np.zeros(3)) == {}


def test_the_outputs_are_log_probabilities_of_the_bytes_that_came() -> None:
    torch.manual_seed(0)
    model = build()
    assert isinstance(model, ByteGPT)
    window = torch.randint(0, 256, (2, 129))
    with torch.no_grad():
        told, probabilities = model(window.float()), model.scores(window[:, :-1]).softmax(-1)
    expected = [[probabilities[n, t, window[n, t + 1]].log() for t in range(128)] for n in range(2)]
    assert told == pytest.approx(torch.tensor(expected), abs=1e-5)
    assert sum(parameter.numel() for parameter in model.parameters()) == TASK.parameters


def test_a_later_byte_changes_nothing_before_it() -> None:
    torch.manual_seed(0)
    model = build()
    assert isinstance(model, ByteGPT)
    codes = torch.randint(0, 256, (1, 128))
    other = codes.clone()
    other[0, 70] = (other[0, 70] + 1) % 256
    with torch.no_grad():
        change = (model.scores(codes) - model.scores(other)).abs().amax(-1)[0]
    assert change[:70].max() == 0.0
    assert change[70:].min() > 0.0


def test_bytes_reach_the_model_as_they_are() -> None:
    assert (TASK.transform.size, TASK.transform.public_scale.size) == (0, 0)
    windows = torch.arange(258, dtype=torch.int32).reshape(2, 129) % 256
    given = torch.tensor([0.0, 64.0])
    bound = TASK.transform.bound(TASK.transform.public_scale)
    assert bound.inputs({"window": windows, "given": given}) is windows
    assert bound.targets({"window": windows, "given": given}) is given


def test_the_model_can_be_made_private() -> None:
    assert examine_task(TASK) == []


def test_ministries_learn_more_than_how_often_bytes_occur(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    article = "第一条　この法律は、国民の生活の安定を図ることを目的とする。" * 24
    for site in ("moj_justice", "mof_finance", "meti_economy"):
        path = written(tmp_path, monkeypatch, document("train", article) + document("test", article), site).path
    counts = np.bincount(np.frombuffer(article.encode(), np.uint8))
    share = counts[counts > 0] / counts.sum()
    unigram = -float((share * np.log2(share)).sum())
    config = compose(
        ["task=statutes", f"data.path={path}", "rounds=6", "task.batch_size=1", "client.device=cpu"]
    ).config
    outcome = simulate_population(config, make_population(config), tmp_path / "run")
    assert config.secagg.enabled
    assert outcome.summary["metric"] == "bits_per_byte"
    assert outcome.summary["metrics"]["bits_per_byte"] < 0.8 * unigram
    assert outcome.summary["institutions"] == ["meti-economy", "mof-finance", "moj-justice"]
