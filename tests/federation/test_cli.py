"""The command line: what it prints, and the exit code of each kind of failure."""

from __future__ import annotations

import json
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from sovfed import __version__, cli
from sovfed.federation import errors

SRC = Path(__file__).parent.parent.parent / ".src"


def run(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str, str]:
    code = cli.run(args)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture
def failing(request: pytest.FixtureRequest) -> Iterator[str]:
    """A command that raises the error given as the parameter."""

    module = types.ModuleType("sovfed_failing")
    sys.modules[module.__name__] = module

    @click.command()
    def command() -> None:
        raise request.param

    vars(module)["command"] = command
    cli.COMMANDS["fail-as-told"] = cli.Lazy(module.__name__, "command", "")
    yield "fail-as-told"
    del cli.COMMANDS["fail-as-told"], sys.modules[module.__name__]


def test_help_names_every_command_and_shows_examples(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "--help")
    assert code == 0
    for name, lazy in cli.COMMANDS.items():
        assert f"  {name} " in out
        assert lazy.help in out, f"the line of {name} is broken in two at 80 columns"
    assert "Examples:" in out


@pytest.mark.parametrize("name", sorted(cli.COMMANDS))
def test_every_command_teaches_with_examples(capsys: pytest.CaptureFixture[str], name: str) -> None:
    code, out, _ = run(capsys, name, "--help")
    assert code == 0
    assert f"sovfed {name}" in out.partition("\n")[2], "no example"


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "--version") == (0, f"sovfed, version {__version__}\n", "")


def test_the_module_runs_as_the_command_does() -> None:
    command = [sys.executable, "-m", "sovfed", "--version"]
    assert __version__ in subprocess.run(command, cwd=SRC, capture_output=True, text=True, check=True).stdout


def test_an_unknown_command_is_a_usage_error_with_the_nearest_name(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, "sever")
    assert code == 2
    assert "did you mean 'server'?" in err


@pytest.mark.parametrize(
    ("failing", "code"),
    [
        (errors.ConfigError("what"), 2),
        (errors.IdentityError("what"), 3),
        (errors.PolicyError("what"), 3),
        (errors.PrivacyError("what"), 3),
        (errors.ServiceError("what"), 4),
        (errors.CohortError("what"), 1),
        (errors.TrainingError("what"), 1),
    ],
    indirect=["failing"],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else str(value),
)
def test_our_errors_are_one_line_and_an_exit_code(capsys: pytest.CaptureFixture[str], failing: str, code: int) -> None:
    assert run(capsys, failing) == (code, "", "error: what\n")


@pytest.mark.parametrize("failing", [errors.ConfigError("what")], indirect=True)
def test_debug_shows_where_an_error_came_from(capsys: pytest.CaptureFixture[str], failing: str) -> None:
    code, _, err = run(capsys, "--debug", failing)
    assert code == 2
    assert "Traceback" in err
    assert err.endswith("error: what\n")


@pytest.mark.parametrize("failing", [KeyboardInterrupt()], indirect=True)
def test_an_interrupt_exits_as_shells_expect(capsys: pytest.CaptureFixture[str], failing: str) -> None:
    code, _, err = run(capsys, failing)
    assert (code, err.strip()) == (130, "interrupted")


@pytest.mark.parametrize("failing", [NotADirectoryError(20, "Not a directory", "a/file/run")], indirect=True)
def test_a_file_within_a_path_is_told_with_what_to_do(capsys: pytest.CaptureFixture[str], failing: str) -> None:
    told = "error: Not a directory: a/file/run; a part of this path is a file: name another place\n"
    assert run(capsys, failing) == (1, "", told)


@pytest.mark.parametrize("failing", [KeyboardInterrupt("the run goes on")], indirect=True)
def test_an_interrupt_says_what_it_left(capsys: pytest.CaptureFixture[str], failing: str) -> None:
    assert run(capsys, failing)[::2] == (130, "\nthe run goes on\n")


def test_config_show_prints_every_key_with_who_chose_it(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "config", "show", "task=heart", "rounds=7")
    assert code == 0
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert "rounds: 7 override" in lines
    assert 'name: "heart" conf/task/heart.yaml' in lines
    assert "proximal_mu: 0.0 default" in lines


def test_config_show_json_is_the_configuration_and_its_origins(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "config", "show", "--json", "rounds=7")
    assert code == 0
    shown = json.loads(out)
    assert shown["config"]["rounds"] == 7
    assert shown["origins"]["rounds"] == "override"


def test_config_show_refuses_a_wrong_override(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "config", "show", "round=7")
    assert (code, out) == (2, "")
    assert err == "error: unknown key 'round' (did you mean 'rounds'?)\n"


def test_config_options_lists_the_groups(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "config", "options", "--json")
    assert code == 0
    assert "fedadam" in json.loads(out)["strategy"]


def test_doctor_json_lists_findings_and_fails_when_a_check_fails(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    tmp_path.chmod(0o755)
    code, out, _ = run(capsys, "doctor", "--json", "--home", str(tmp_path))
    findings = {finding["name"]: finding for finding in json.loads(out)}
    assert code == 1
    assert findings["home"]["state"] == "fail"
    assert findings["home"]["fix"] == f"chmod 700 {tmp_path}"
