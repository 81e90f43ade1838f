"""Who lacks an optional part is told in one line how to get it."""

from __future__ import annotations

import sys

import pytest

from sovfed.cli import COMMANDS, EXTRAS, run
from sovfed.federation.errors import ConfigError
from sovfed.federation.host import extras as module
from sovfed.federation.host.doctor import packages
from sovfed.federation.host.extras import advice, complete, extras, require


def test_the_extras_are_those_of_the_distribution_with_what_they_include() -> None:
    assert {"plot", "server", "simulate", "bench"} <= set(extras())
    assert "dev" not in extras()
    assert extras()["plot"] < extras()["server"] < extras()["simulate"] < extras()["bench"]
    assert {"mlflow", "hydra-core"} <= extras()["server"]
    assert "sovfed-bench" in extras()["bench"] - extras()["simulate"]


def test_the_extra_that_is_named_is_the_commands_own_or_the_smallest() -> None:
    assert "'sovfed[simulate]'` (hydra is not installed)" in advice("hydra.errors", "simulate")
    assert "'sovfed[plot]'` (matplotlib is not installed)" in advice("matplotlib.figure")
    assert "'sovfed[simulate]'` (ray is not installed)" in advice("ray", "server")
    assert "'sovfed[bench]'` (sovfed-bench is not installed)" in advice("sovfed.simulations.benchmarks.rounds", "bench")


@pytest.mark.parametrize("module", ["", "torch", "sovfed.clients.nothing", "json"])
def test_nothing_is_advised_for_what_no_extra_brings(module: str) -> None:
    assert advice(module, "server") == ""


def test_every_extra_that_a_command_needs_exists() -> None:
    assert set(EXTRAS) <= set(COMMANDS)
    assert set(EXTRAS.values()) <= set(extras())


@pytest.mark.parametrize(
    ("arguments", "module", "extra"),
    [
        (["config", "show"], "hydra", "simulate"),
        (["server", "init", "--home", "nowhere"], "hydra", "server"),
        (["bench", "noise"], "sovfed.simulations.benchmarks.report", "bench"),
        (["audit", "noise"], "sovfed.simulations.audit.report", "bench"),
    ],
)
def test_a_command_without_its_extra_is_one_line_and_code_2(
    arguments: list[str], module: str, extra: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, module, None)  # as Python sees what is not there
    assert run(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: this command needs `pip install 'sovfed[{extra}]'`") and error.count("\n") == 1


def test_a_module_of_our_own_that_is_missing_is_a_fault_and_no_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sovfed.federation.compose", None)
    with pytest.raises(ModuleNotFoundError):
        run(["config", "show"])


def test_what_is_required_beforehand_is_looked_for_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    require("server")
    monkeypatch.setattr(module, "extras", lambda: {"mine": frozenset({"click", "no-such-distribution"})})
    with pytest.raises(ConfigError, match=r"sovfed\[mine\]'` \(no-such-distribution is not installed\)"):
        require("mine")
    assert complete() == {"mine": False}


def test_doctor_names_the_extras_that_are_whole() -> None:
    (told,) = (finding for finding in packages() if finding.name == "extras")
    assert told.state == "ok"
    assert {"plot", "server", "simulate"} <= set(told.found.split(", "))
    assert complete()["bench"] is ("bench" in told.found)
