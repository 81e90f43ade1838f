"""A language model's local training on one device: beside a plain loop of torch, and beside what the device can do.

The model is the product's decoder, the step the trainer's own (`clients/training/`), the windows made up and in memory.
Model FLOPs of a token are 6 for each weight that multiplies and 12 · blocks · width · context for attention (Chowdhery
et al. 2022, arXiv:2204.02311, appendix B); their share of the peak (MFU) is of what one large product of matrices
reaches on this device, in the same arithmetic and the same run, not of what a vendor writes. Masking is all that an
institution does from the update to the masked upload in a cohort of `MEMBERS`, after training: a trainer makes the
masks meanwhile, so it is the most that masking can take. Of several devices the loop, the peak and masking have the
first; the trainer's share is of the peak of as many as that.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from sovfed.clients.data import Records
from sovfed.clients.training.device import PRECISIONS, choose_device, device_name
from sovfed.federation.secagg.local import found, random_updates
from sovfed.simulations.benchmarks.bare_language import seconds, tokens_per_s
from sovfed.simulations.benchmarks.language import Size, decoder_task
from sovfed.simulations.benchmarks.report import Column, Files, Report, conditions, publish

if TYPE_CHECKING:
    from rich.console import Console

    from sovfed.federation.tasks import Task

MEMBERS: Final = 10
WEIGHT: Final = 500
TURNS, QUICK_TURNS = 10, 3
NO_TOKENIZER: Final = "0" * 64  # nobody's texts: the tokens are drawn


@dataclass(frozen=True)
class Setting:
    """A decoder and its round: windows of a step, steps of a round, and how large the product of the peak is."""

    symbols: int
    size: Size
    batch: int
    steps: int
    matrix: int


SMALL: Final = Setting(4_096, Size(128), batch=8, steps=20, matrix=1_024)  # 1.6 million values, on a processor
LARGE: Final = Setting(32_768, Size(1_024, 1_024, 12, 16), batch=16, steps=100, matrix=8_192)  # 218 million
COLUMNS: Final = (
    Column("what", "what"),
    Column("tokens_per_s", "tokens a s", "{:,.0f}".format),
    Column("mfu", "share of peak", "{:.1%}".format),
)


def run(
    *, device: str, precision: str | None, quick: bool, steps: int | None, files: Files, console: Console,
    setting: Setting | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Measure the trainer, the loop, the peak and masking, and publish the report."""
    files.check()
    place = choose_device(device)
    arithmetic = precision or ("float32" if place.type == "cpu" else "bf16")
    chosen = setting or (SMALL if place.type == "cpu" else LARGE)
    chosen = replace(chosen, steps=steps or chosen.steps)
    task = task_of(chosen)
    figures = measured(task, chosen, device, arithmetic, QUICK_TURNS if quick else TURNS)
    speeds = {"trainer": figures["tokens_per_s"], "plain loop": figures["bare_tokens_per_s"]}
    share, count = figures["mfu"] / figures["tokens_per_s"], len(device.split(","))
    shares = {"trainer": share, "plain loop": share * count}
    report = Report(
        f"Local training of {task.parameters:,} values on {device if ',' in device else place}, {arithmetic}",
        COLUMNS,
        [{"what": what, "tokens_per_s": speed, "mfu": speed * shares[what]} for what, speed in speeds.items()],
        {
            "tokens_over_bare": figures["tokens_per_s"] / figures["bare_tokens_per_s"],
            "masking_share": figures["masking_s"] / (figures["masking_s"] + figures["training_s"]),
        },
        figures,
        conditions(
            quick=quick,
            device=", ".join(device_name(choose_device(name)) for name in device.split(",")),
            precision=arithmetic,
            torch=torch.__version__,
        ),
    )
    return publish(report, console, files)


def measured(task: Task, setting: Setting, device: str, precision: str, turns: int) -> dict[str, float]:
    """Speeds in tokens a second, the peak, and the seconds of a round."""
    place = choose_device(device)
    windows = made_up(task, setting.steps * setting.batch)
    ours, bare = tokens_per_s(
        task, windows, setting.batch, turns, steps=setting.steps, device=device, precision=precision
    )
    peak = peak_flops(place, PRECISIONS[precision], setting.matrix)
    return {
        "tokens_per_s": ours,
        "bare_tokens_per_s": bare,
        "mfu": ours * token_flops(task, setting.size) / peak / len(device.split(",")),
        "peak_tflop_per_s": peak / 1e12,
        "training_s": setting.steps * setting.batch * setting.size.context / ours,
        "masking_s": min(masked_s(task.parameters, turns, place)),
        "steps": setting.steps,
    }


def task_of(setting: Setting) -> Task:
    """The next token, by the product's decoder."""
    return decoder_task("tokens", setting.symbols, NO_TOKENIZER, setting.size)


def made_up(task: Task, count: int) -> Records:
    """`count` windows to train on, of drawn tokens."""
    rows = np.arange(count + 1)
    return Records(task.schema.made_up(count + 1), rows, rows[:-1], rows[-1:])


def token_flops(task: Task, size: Size) -> float:
    """Model FLOPs of a token, forward and backward: the embedding is looked up, not multiplied with."""
    looked_up = next(layer for layer in task.model().modules() if isinstance(layer, torch.nn.Embedding))
    return 6.0 * (task.parameters - looked_up.weight.numel()) + 12.0 * size.blocks * size.width * size.context


def peak_flops(device: torch.device, kind: torch.dtype, size: int, times: int = 10) -> float:
    """FLOP/s of the fastest of `times` products of two square matrices of `size` rows."""
    one, other = (torch.randn(size, size, device=device, dtype=kind) for _ in range(2))
    fastest = min([seconds(lambda: one @ other, device) for _ in range(times + 1)][1:])
    return 2.0 * size**3 / fastest


def masked_s(size: int, times: int, device: torch.device) -> list[float]:
    """Seconds, as training on `device` is measured, from an update of `size` values to its masked upload."""
    federation, model = found(MEMBERS), np.zeros(size, np.float32)
    update = random_updates(1, size)[0]

    def upload(number: int) -> float:
        round_ = federation.open(number, model)
        return seconds(lambda: federation.upload(round_, 0, model, update, WEIGHT), device)

    return [upload(number) for number in range(1, times + 1)]
