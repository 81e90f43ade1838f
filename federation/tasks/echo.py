"""Measures links, not models: no records, and every update is one at every place, so that the model counts rounds."""

from __future__ import annotations

from sovfed.federation.metrics import NoMetrics
from sovfed.federation.tasks import Task
from sovfed.federation.tasks.columns import Schema

TASK = Task(
    name="echo",
    title="Echo",
    schema=Schema(columns=()),
    length=2_500,  # 10 kB, unless the run chooses another length
    metrics=NoMetrics(),
    headline="",
    simulated_split=True,
    licence="none: no data",
    citation="none: no data",
    build=None,
    loss=None,
)
