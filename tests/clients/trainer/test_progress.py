"""Work of hours is told from work that hangs: by its steps."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest

from sovfed.clients.trainer.process import _overseer
from sovfed.clients.training.progress import PROGRESS
from sovfed.federation.host.pulse import Beat


def test_a_long_round_is_no_hang_while_it_takes_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    now, trainer, beat = 0.0, SimpleNamespace(answering=0), Beat("local work", patience_s=100.0)
    monkeypatch.setattr(time, "monotonic", lambda: now)
    look = _overseer(trainer, beat)  # type: ignore[arg-type]
    look()
    now = 10_000.0
    look()
    assert not beat.overdue_s()  # nothing is asked for
    trainer.answering = 1
    look()
    for _ in range(100):
        now += 90.0
        PROGRESS.step()
        look()
        assert not beat.overdue_s()
    now += 101.0
    look()
    assert beat.overdue_s()
    trainer.answering = 2
    look()
    assert not beat.overdue_s()  # another request is another start
