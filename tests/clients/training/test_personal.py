"""What an institution keeps: found again after a restart or a set-back, never of another run, never unbounded."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from sovfed.clients.cli.personal import personal
from sovfed.clients.training.personal import MAX_PERSONAL, MAX_VARIATES, PersonalStates, read
from sovfed.federation.errors import DataError, PolicyError
from sovfed.federation.messages import EvaluateRequest

ASKED = EvaluateRequest(
    run="7", round=1, task="digits", model=np.zeros(5, np.float32), scale=np.ones(4), algorithm="ditto", keep="a-run"
)


def at(number: int, **more: str) -> EvaluateRequest:
    return dataclasses.replace(ASKED, round=number, **more)  # type: ignore[arg-type]


def vector(value: float) -> np.ndarray:
    return np.full(5, value, np.float32)


@pytest.fixture
def states(tmp_path: Path) -> PersonalStates:
    found = PersonalStates(tmp_path / "personal")
    for number in (1, 2, 3):
        found.save(at(number), vector(number))
    return found


def test_the_newest_up_to_a_round_is_found_by_another_process(states: PersonalStates, tmp_path: Path) -> None:
    again = PersonalStates(tmp_path / "personal")
    for last, expected in ((9, 3), (3, 3), (2, 2)):
        found = again.load(at(last + 1), last)
        assert found is not None and found.tolist() == [expected] * 5
    assert again.load(at(2), 1) is None  # older ones are gone
    assert len(list((tmp_path / "personal").iterdir())) == 2


def test_a_run_that_was_set_back_overwrites_what_came_after(states: PersonalStates) -> None:
    states.save(at(2), vector(20))
    found = states.load(at(4), 3)
    assert found is not None and found[0] == 20


@pytest.mark.parametrize("other", [{"keep": "b-run"}, {"task": "heart"}, {"algorithm": "fedbn"}])
def test_another_run_task_or_algorithm_finds_nothing(states: PersonalStates, other: dict[str, str]) -> None:
    assert states.load(at(4, **other), 3) is None


def test_a_resumed_run_finds_its_predecessors_state_and_leaves_it(states: PersonalStates, tmp_path: Path) -> None:
    found = states.load(at(4, run="8"), 3)
    assert found is not None and found[0] == 3
    for number in (4, 5, 6):
        states.save(at(number, run="8"), vector(40 + number))
    found = states.load(at(7, run="9"), 6)
    assert found is not None and found[0] == 46
    assert sorted(one.flower_run for one in states.list()) == ["7", "8"]


def test_a_file_that_cannot_be_read_keeps_nothing_from_being_removed(states: PersonalStates) -> None:
    path = states.list()[0].path
    damaged = path.with_name(f"{path.name.split('.')[0][::-1]}.{path.name.split('.', 1)[1]}")
    damaged.write_bytes(b"no safetensors")
    assert states.remove("a-run") == 2
    assert not list(path.parent.glob("*.safetensors"))


@pytest.mark.parametrize("number", [1, 3, 4, 999])
def test_no_message_of_another_run_replaces_a_personal_model(states: PersonalStates, number: int) -> None:
    """The same name, model and task, whatever the round: Flower's number is another."""
    before = {path: path.read_bytes() for path in states.list()[0].path.parent.iterdir()}
    for step in range(3):
        states.load(at(number + step, run="666"), number + step - 1)
        states.save(at(number + step, run="666"), vector(0))
    assert {path: path.read_bytes() for path in before} == before


def test_the_agency_fills_the_shelf_and_deletes_nothing(states: PersonalStates, tmp_path: Path) -> None:
    first = states.list()[0].path
    for other in range(MAX_PERSONAL - 1):
        states.save(at(1, keep=f"junk-{other}"), vector(0))
    for other in range(5):
        with pytest.raises(PolicyError, match="personal remove"):
            states.load(at(1, keep=f"more-{other}"), 0)  # before anything is computed
        with pytest.raises(PolicyError, match="16 personal models are kept"):
            states.save(at(1, keep=f"more-{other}"), vector(0))
    assert first.exists() and len(states.list()) == MAX_PERSONAL
    states.save(at(4), vector(4))  # a run that has its place goes on
    home = ["--home", str(tmp_path)]
    told = CliRunner().invoke(personal, ["remove", "junk-3", *home], catch_exceptions=False).output
    assert told == "deleted what run 'junk-3' left\n"
    states.save(at(1, keep="more"), vector(0))
    refused = CliRunner().invoke(personal, ["remove", "junk-3", *home])
    assert isinstance(refused.exception, DataError)


def test_a_place_is_taken_by_the_request_whether_or_not_a_model_comes_of_it(
    states: PersonalStates, tmp_path: Path
) -> None:
    """Else a free place would tell the agency whose training fails on which record."""
    for other in range(MAX_PERSONAL - 1):
        states.claim(at(1, keep=f"failed-{other}"))
        states.claim(at(2, keep=f"failed-{other}"))  # once a run
        assert states.load(at(2, keep=f"failed-{other}"), 1) is None
    with pytest.raises(PolicyError, match="16 personal models are kept"):
        states.claim(at(1, keep="one more"))
    states.claim(at(4))  # has its place, and its model
    assert states.list()[0].personal and states.load(at(5), 4) is not None
    states.save(at(1, keep="failed-0"), vector(1))
    assert [one.run for one in states.list() if one.personal] == ["failed-0", "a-run"]
    home = ["--home", str(tmp_path)]
    assert "a place, no model came" in CliRunner().invoke(personal, ["list", *home], env={"COLUMNS": "200"}).output
    refused = CliRunner().invoke(personal, ["export", "failed-1", str(tmp_path / "out"), *home])
    assert isinstance(refused.exception, DataError)
    CliRunner().invoke(personal, ["remove", "failed-1", *home], catch_exceptions=False)
    states.claim(at(1, keep="one more"))


def test_two_models_of_one_name_are_told_apart(states: PersonalStates, tmp_path: Path) -> None:
    states.save(at(9, run="666"), vector(66))
    home, out = ["--home", str(tmp_path)], tmp_path / "ours.safetensors"
    refused = CliRunner().invoke(personal, ["export", "a-run", str(out), *home])
    assert isinstance(refused.exception, DataError) and "Flower's runs 666, 7" in str(refused.exception)
    CliRunner().invoke(personal, ["export", "a-run", str(out), "--of", "7", *home], catch_exceptions=False)
    assert read(out)[0].tolist() == [3] * 5


def test_what_a_file_says_of_itself_steers_no_terminal(tmp_path: Path) -> None:
    """A state that an earlier version kept may be called anything."""
    states = PersonalStates(tmp_path / "personal")
    states.save(at(1, keep="\x1b]0;x\x07[bold red]run\x1b[2J"), vector(1))
    shown = CliRunner().invoke(personal, ["list", "--home", str(tmp_path)], env={"COLUMNS": "200"}).output
    assert r"\x1b]0;x\x07[bold red]run\x1b[2J" in shown
    assert shown.replace("\n", "").isprintable()


def test_a_name_is_never_a_path(states: PersonalStates, tmp_path: Path) -> None:
    states.save(at(1, keep="../../etc/passwd"), vector(1))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["personal"]


def test_files_are_the_owners_alone_and_bounded_in_number(states: PersonalStates, tmp_path: Path) -> None:
    for run in range(2 * MAX_VARIATES):
        states.save(at(1, keep=f"run-{run}", algorithm="scaffold"), vector(run))
    files = list((tmp_path / "personal").iterdir())
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}
    assert len({path.name.split(".")[0] for path in files if "variate" in path.name}) == MAX_VARIATES
    assert states.list()[0].run == f"run-{2 * MAX_VARIATES - 1}"
    assert [one.run for one in states.list() if one.personal] == ["a-run"]  # no control variate costs a model


@pytest.mark.parametrize("damage", [b"", b"x" * 100, None])
def test_a_damaged_file_is_an_error_not_a_new_beginning(
    states: PersonalStates, tmp_path: Path, damage: bytes | None
) -> None:
    newest = max((tmp_path / "personal").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    newest.write_bytes(newest.read_bytes()[:-3] if damage is None else damage)
    with pytest.raises(DataError, match=newest.name):
        states.load(at(4), 3)


def test_the_command_lists_and_exports(states: PersonalStates, tmp_path: Path) -> None:
    home, out = ["--home", str(tmp_path)], tmp_path / "ours.safetensors"
    listed = json.loads(CliRunner().invoke(personal, ["list", "--json", *home], catch_exceptions=False).output)
    assert [(one["run"], one["algorithm"], one["round"]) for one in listed] == [("a-run", "ditto", 3)]
    assert "a-run" in CliRunner().invoke(personal, ["list", *home]).output
    told = CliRunner().invoke(personal, ["export", "a-run", str(out), *home], catch_exceptions=False).output
    assert "after round 3 (ditto)" in told
    model, scale = read(out)
    assert model.tolist() == [3] * 5 and scale.tolist() == [1] * 4
    refused = CliRunner().invoke(personal, ["export", "a-ran", str(out), *home])
    assert isinstance(refused.exception, DataError) and "did you mean 'a-run'" in str(refused.exception)
    assert "Nothing yet" in CliRunner().invoke(personal, ["list", "--home", str(tmp_path / "new")]).output


def test_whoever_looks_leaves_what_a_living_trainer_is_writing(states: PersonalStates, tmp_path: Path) -> None:
    states.save(at(1), vector(1))
    draft = tmp_path / "personal" / ".a.safetensors.abcd1234"
    draft.write_bytes(b"half")
    assert PersonalStates(tmp_path / "personal").list() and draft.exists()
