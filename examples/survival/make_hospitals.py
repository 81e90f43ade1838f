"""Three hospitals' Parquet files of made-up patients: how long each lived, or was seen alive.

python examples/survival/make_hospitals.py FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

STAGES = np.array(["I", "II", "III"])


def hospital(count: int, seed: int) -> pa.Table:
    """`count` patients; risk grows with age, stage and creatinine, which is missing for some."""
    generator = np.random.default_rng(seed)
    age = generator.normal(64, 10, count).clip(20, 100).round()
    stage = generator.integers(0, 3, count)
    creatinine = generator.lognormal(0.1, 0.4, count).clip(0.2, 15)
    treated = generator.random(count) < 0.5
    risk = 0.05 * (age - 64) + 0.7 * (stage - 1) + 0.8 * np.log(creatinine) - 0.6 * treated
    death = generator.exponential(500 * np.exp(-risk))
    seen = generator.uniform(100, 1000, count)
    lost = generator.random(count) < 0.1
    return pa.table({
        "patient": [f"{seed}-{number}" for number in range(count)],
        "age": age,
        "stage": pa.array(STAGES[stage], mask=generator.random(count) < 0.05),
        "creatinine": pa.array(creatinine, mask=lost),
        "treated": treated,
        "days": np.minimum(death, seen).clip(0, 1000),
        "died": death <= seen,
    })  # fmt: skip


def prepare(folder: Path, count: int = 400) -> Path:
    """Write one file a hospital."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed, name in enumerate(("east", "north", "south")):
        pq.write_table(hospital(count, seed), folder / f"{name}.parquet")
    return folder


if __name__ == "__main__":
    print(prepare(Path(sys.argv[1])))
