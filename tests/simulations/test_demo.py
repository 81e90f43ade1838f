"""What `sovfed demo` tells when its run is over, without the federation that made it."""

from __future__ import annotations

from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from sovfed.federation.compose import compose
from sovfed.federation.errors import ConfigError, ServiceError
from sovfed.simulations import demo
from sovfed.simulations.baselines import Comparison
from sovfed.simulations.deployment import LocalFederation

SUMMARY: dict[str, Any] = {
    "metrics": {"auc": 0.75}, "epsilon": None, "split": "natural", "transport": "stream", "rounds": 2,
    "seconds_training": 1.0, "seconds_per_round_median": 0.5, "overhead_seconds_per_round_median": None,
    "seconds_total": 3.0,
}  # fmt: skip


def test_the_end_names_the_model_and_how_to_use_it_in_lines_that_can_be_copied(tmp_path: Path) -> None:
    out = StringIO()
    federation = LocalFederation(tmp_path / ("long" * 30) / "[bold]", [], compose([]).config)
    row = {"institution": "north", "train": 3, "test": 2, "pooled": 0.9, "alone": 0.5, "federated": 0.75}
    comparison = Comparison("auc", 0.9, 0.5, 0.75, [row])
    demo._print(Console(file=out, width=80), federation, SUMMARY, comparison)
    run = federation.home / "runs" / "demo"
    lines = out.getvalue().splitlines()
    assert f"model: {run / 'model.safetensors'}, card: {run / 'model.html'}" in lines
    assert f"next: sovfed model predict '{run}' FILE.csv" in lines
    assert any("north" in line and "+0.250" in line for line in lines)


@pytest.mark.parametrize("failing", ["build_agency", "start_institutions"])
def test_what_is_left_in_the_folder_is_said_even_if_a_step_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    def fail(_federation: LocalFederation) -> None:
        raise ServiceError("no room")

    for step in ("build_agency", "start_agency", "enrol", "start_institutions"):
        monkeypatch.setattr(LocalFederation, step, fail if step == failing else lambda _federation: None)
    out = StringIO()
    with pytest.raises(ServiceError, match="no room"):
        demo.run_demo(compose(["server.min_cohort=3"]).config, tmp_path / "demo", Console(file=out, width=80))
    last = out.getvalue().splitlines()[-1]
    assert (
        last
        == f"delete {tmp_path / 'demo'} when you are done with it: it holds the demonstration's homes, keys and logs"
    )


@pytest.mark.parametrize(("chosen", "institutions", "awaited"), [(0, 3, 3), (0, 32, 32), (4, 6, 4)])
def test_the_first_round_waits_for_all_that_there_are(chosen: int, institutions: int, awaited: int) -> None:
    """It waited for four: two minutes in vain where there are three, and for no more where there are."""
    config = compose(["server.min_cohort=3", f"server.start_cohort={chosen}"]).config
    assert demo._with_all(config, institutions).server.start_cohort == awaited
    with pytest.raises(ConfigError, match=r"^1 institution; a sum is over 3 or more: .* data\.site_column"):
        demo._with_all(config, 1)
