"""The table by number of persons: noise as the accountant has it, less of it the more persons there are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

from sovfed.federation.privacy.accounting import calibrate_noise_multiplier
from sovfed.simulations.benchmarks import persons
from sovfed.simulations.benchmarks.report import Files


def test_it_tells_noise_over_signal_by_persons_and_trained_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(persons, "PERSONS", (1_000, 100_000))
    persons.run(epsilon=8.0, files=Files(json=tmp_path / "table.json"), console=Console(quiet=True))
    few, many = json.loads((tmp_path / "table.json").read_text())["rows"]
    expected = calibrate_noise_multiplier(8.0, 1e-4, persons.SAMPLING, persons.ROUNDS)
    assert few["noise_multiplier"] == pytest.approx(expected, rel=0.02)  # the plan has steps to spare
    assert few["20000"] == pytest.approx(few["noise_multiplier"] * 20_000**0.5 / 100)
    assert few["20000"] < few["100000"] and many["20000"] < few["20000"] / 50
