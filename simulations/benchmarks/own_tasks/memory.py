"""`python -m … table|images FOLDER COUNT`: the memory that a process takes on to load records and train on them.

It is the resident set's high-water mark (VmHWM of /proc/self/status, which a fork does not inherit) less the resident
set just before, after the same was done with a few records, so that libraries and their pools are already there.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from sovfed.federation.config import DataConfig
from sovfed.federation.metrics import BinaryMetrics
from sovfed.federation.tasks import Task
from sovfed.federation.tasks.columns import Column, Schema, number
from sovfed.federation.tasks.losses import binary_cross_entropy
from sovfed.simulations.benchmarks.own_tasks import environment

if TYPE_CHECKING:
    from torch.nn import Module

COLUMNS: Final = 50
SIDE: Final = 224
BATCH: Final = 256  # records of the table
IMAGES: Final = 32  # of a batch of them
STEPS: Final = 8
FEW: Final = 512
BLOCK: Final = 10_000  # rows that are written at once
DISTINCT: Final = 64  # images; the others are further names of the same
KB: Final = 1024
MODULE: Final = f"{environment.__module__}.memory"


def linear() -> Module:
    from torch import nn

    return nn.Linear(COLUMNS, 1)


def convolution() -> Module:
    from torch import nn

    return nn.Sequential(
        nn.Conv2d(3, 8, 7, stride=7), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(128, 1)
    )


def _task(name: str, inputs: tuple[Column, ...], build: Any) -> Task:
    schema = Schema(columns=(*inputs, Column("ill", "boolean", role="target")), one_row_a_person=True)
    return Task(
        name=name, title=name, schema=schema, metrics=BinaryMetrics(), headline="auc", build=build,
        loss=binary_cross_entropy,
    )  # fmt: skip


TABLE: Final = _task("bench_table", tuple(number(f"value_{index}", 0.0, 1.0) for index in range(COLUMNS)), linear)
PICTURES: Final = _task("bench_images", (Column("scan", "image", shape=(3, SIDE, SIDE)),), convolution)


def write_table(path: Path, count: int) -> Path:
    """A CSV file of `count` rows: numbers with six digits, and a label."""
    import pyarrow as pa
    from pyarrow import csv

    generator = np.random.default_rng(0)
    names = [column.name for column in TABLE.schema.columns]
    with csv.CSVWriter(str(path), pa.schema([(name, pa.float64()) for name in names])) as writer:
        for start in range(0, count, BLOCK):
            values = np.round(generator.random((min(BLOCK, count - start), len(names))), 6)
            values[:, -1] = np.rint(values[:, -1])
            writer.write_batch(pa.RecordBatch.from_arrays(list(map(pa.array, values.T)), names))
    return path


def write_images(folder: Path, count: int) -> Path:
    """A folder of `count` JPEG files and their table."""
    from PIL import Image

    folder.mkdir()
    generator, lines = np.random.default_rng(0), ["scan,ill"]
    for index in range(count):
        path = folder / f"{index}.jpg"
        if index < DISTINCT:
            coarse = generator.integers(0, 256, (SIDE // 16, SIDE // 16, 3), dtype=np.uint8)
            Image.fromarray(coarse).resize((SIDE, SIDE)).save(path, quality=90)
        else:
            os.link(folder / f"{index % DISTINCT}.jpg", path)
        lines.append(f"{path.name},{index % 2}")
    (folder / "table.csv").write_text("\n".join([*lines, ""]))
    return folder


def apart(kind: str, path: Path, count: int) -> Path:
    """`write_table` or `write_images` in a process of its own: what it leaves in the heap is no cost of loading."""
    program = (
        f"import sys, pathlib; from {MODULE} import write_{kind} as write; write(pathlib.Path(sys.argv[1]), {count})"
    )
    subprocess.run([sys.executable, "-P", "-c", program, str(path)], env=environment(), check=True)
    return path


def train(task: Task, config: DataConfig, batch: int) -> int:
    """Load, take the profile, train and evaluate, as an institution does in a round; how many records there are."""
    from sovfed.clients.data import load_records
    from sovfed.clients.training.local import LocalTraining
    from sovfed.federation.messages import TrainRequest
    from sovfed.federation.tasks import initial_vector

    training = LocalTraining(task, load_records(task, config), site="0", device="cpu")
    scale = task.transform.scale(training.profile())
    request = TrainRequest(
        run="bench", round=1, task=task.name, seed=0, local_epochs=1, local_steps=STEPS, batch_size=batch,
        learning_rate=0.01, proximal_mu=0.0, model=initial_vector(task, 0), scale=scale,
    )  # fmt: skip
    training.train(request)
    training.evaluate(request.model, scale)
    return len(training.records.persons)


def measure(kind: str, folder: Path, count: int) -> dict[str, float]:
    """Bytes taken on at most, those of the columns as they are stored, and those of a batch as the model takes it."""
    few = min(FEW, count)
    if kind == "table":
        task, batch = TABLE, BATCH
        small, large = (apart("table", folder / name, size) for name, size in (("few.csv", few), ("all.csv", count)))
        configs = [DataConfig(source="csv", path=str(path)) for path in (small, large)]
    else:
        task, batch = PICTURES, IMAGES
        small, large = (apart("images", folder / name, size) for name, size in (("few", few), ("all", count)))
        configs = [DataConfig(source="images", path=str(path)) for path in (small, large)]
    train(task, configs[0], batch)
    before = _kilobytes("VmRSS")
    records = train(task, configs[1], batch)
    each = sum(kind.itemsize * math.prod(shape) for kind, shape in task.schema.stored().values())
    return {
        "records": records, "columns": float(each * records), "batch": 4.0 * batch * sum(c.size for c in _inputs(task)),
        "extra": max(0.0, KB * (_kilobytes("VmHWM") - before)), "peak": KB * _kilobytes("VmHWM"),
    }  # fmt: skip


def _inputs(task: Task) -> list[Column]:
    return list(task.schema.inputs)


def _kilobytes(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith(f"{name}:")))


if __name__ == "__main__":
    sys.stdout.write(json.dumps(measure(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))))
