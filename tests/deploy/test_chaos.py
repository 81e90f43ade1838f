"""A sample of `sovfed audit chaos`: what is killed at a moment that is hit for certain needs nobody."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from sovfed.federation.errors import ConfigError
from sovfed.simulations.audit.chaos.campaign import Campaign, small_federation
from sovfed.simulations.audit.chaos.points import QUICK, chosen, every_point

SAMPLE = ("coordinator:unmasking:kill", "institution:masking:kill", "agency:last:kill")


@pytest.fixture(scope="module")
def campaign(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Campaign]:
    folder = tmp_path_factory.mktemp("chaos")
    with small_federation(folder / "f") as machine:
        yield Campaign(machine, folder)


@pytest.mark.deploy
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")  # MLflow's own
@pytest.mark.parametrize("name", SAMPLE)
def test_a_run_finishes_by_itself_with_the_right_model(campaign: Campaign, name: str) -> None:
    (point,) = (point for point in every_point() if point.name == name)
    (outcome,) = campaign.play([point])
    assert outcome.good, outcome


def test_there_are_more_than_sixty_points_of_every_process_moment_and_signal() -> None:
    points = every_point()
    assert len({point.name for point in points}) == len(points) > 60
    assert tuple(tuple(point.name for point in run) for run in chosen((), quick=True)) == QUICK
    assert sum(map(len, QUICK)) >= 12
    assert {point.target for point in points} >= {"trainer", "gateway", "supernode", "superlink", "registry"}
    assert {point.times for point in points} == {1, 2} and any(point.private for point in points)


def test_points_are_chosen_by_how_their_names_begin(tmp_path: Path) -> None:
    assert {point.target for (point,) in chosen(["trainer"], quick=False)} == {"trainer"}
    assert {point.signal for (point,) in chosen(["trainer:idle"], quick=False)} == {"kill", "term", "stop"}
    with pytest.raises(ConfigError, match="there is no point 'trianer'"):
        chosen(["trianer"], quick=False)
