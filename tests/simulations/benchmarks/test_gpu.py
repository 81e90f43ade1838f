"""The benchmark of a device on a small decoder and a processor: what it counts, and what it writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch.utils.flop_counter import FlopCounterMode

from sovfed.federation.errors import ConfigError
from sovfed.simulations.benchmarks.gpu import Setting, made_up, peak_flops, run, task_of, token_flops
from sovfed.simulations.benchmarks.language import Size
from sovfed.simulations.benchmarks.report import Files

TINY = Setting(512, Size(context=64, width=32, blocks=2, heads=2), batch=4, steps=2, matrix=128)


def test_the_flops_of_a_token_are_those_of_torchs_own_counter_and_attentions() -> None:
    task = task_of(TINY)
    windows = torch.from_numpy(made_up(task, TINY.batch).columns["window"])[: TINY.batch]
    module = task.model()
    with FlopCounterMode(display=False) as counter:  # which knows no attention of a processor
        (-module(windows).mean()).backward()
    attention = 12 * 2 * 32 * 64
    assert token_flops(task, TINY.size) == counter.get_total_flops() / (TINY.batch * 64) + attention


@pytest.mark.parametrize(("device", "precision"), [("cpu", None), ("cpu", "bf16"), ("cpu,cpu", None)])
def test_it_writes_speed_share_of_the_peak_and_of_masking(tmp_path: Path, device: str, precision: str | None) -> None:
    path = tmp_path / "gpu.json"
    run(
        device=device, precision=precision, quick=True, steps=None, files=Files(json=path), setting=TINY,
        console=Console(quiet=True),
    )  # fmt: skip
    told = json.loads(path.read_text())
    ratios, figures = told["ratios"], told["figures"]
    assert set(ratios) == {"tokens_over_bare", "masking_share"}
    assert ratios["tokens_over_bare"] == pytest.approx(figures["tokens_per_s"] / figures["bare_tokens_per_s"])
    assert figures["training_s"] * figures["tokens_per_s"] == pytest.approx(2 * 4 * 64)
    assert 0 < ratios["masking_share"] < 1
    assert figures["mfu"] > 0
    assert told["conditions"]["precision"] == (precision or "float32")
    assert told["conditions"]["device"] == device.replace(",", ", ")


def test_the_peak_is_what_a_product_of_matrices_reaches() -> None:
    assert peak_flops(torch.device("cpu"), torch.float32, 256, times=2) > 1e8


def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigError, match="is not there"):
        run(device="rocm", precision=None, quick=True, steps=None, files=Files(), console=Console(quiet=True))
