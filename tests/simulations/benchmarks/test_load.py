"""The agency's load: the model's arithmetic, and thin institutions at a real agency."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from sovfed.federation.errors import ConfigError
from sovfed.federation.wire import flower_http
from sovfed.simulations.benchmarks import load
from sovfed.simulations.benchmarks.report import Files


def test_the_model_goes_on_along_the_line_through_what_was_measured() -> None:
    rows = [{"institutions": size, **dict.fromkeys(load.MODEL, 100 + 2 * size)} for size in (100, 300, 1000)]
    modelled = load._model(rows)
    assert modelled["agency_mb_each"] == pytest.approx(2)
    assert modelled["agency_mb_of_10000"] == pytest.approx(20_100)
    assert load._model(rows[:1]) == {}, "an agency alone costs something too"


def test_more_institutions_than_one_secure_sum_takes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="256 institutions; one secure sum takes at most 255"):
        load.run(False, True, (256,), Files(), Console(file=io.StringIO()))


@pytest.fixture
def _own_presented() -> Iterator[None]:
    """A thin institution shows its certificate for the whole process, which outlives the institution's files."""
    yield
    flower_http._presented.clear()


@pytest.mark.deploy
@pytest.mark.usefixtures("_own_presented")
def test_thin_institutions_join_and_are_in_every_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "SETTLE_S", 0.1)
    monkeypatch.setattr(load, "IDLE_S", 1.0)
    document = load.run(False, True, (3, 4), Files(), Console(file=io.StringIO()))
    assert [row["joined"] for row in document["rows"]] == [3, 4]
    assert document["ratios"]["joined"] == 1
