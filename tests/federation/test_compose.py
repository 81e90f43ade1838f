"""Overrides on a command line become one checked configuration, and everything else a clear refusal."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sovfed.federation.algorithms import ALGORITHMS
from sovfed.federation.compose import OVERRIDE, compose, groups
from sovfed.federation.config import Config
from sovfed.federation.errors import ConfigError
from sovfed.federation.tasks.registry import get_task

ALL = [(group, option) for group, options in groups().items() for option in options]
NEEDS = {"network": ["server.names=[agency.example]"], "remote": ["tracking.uri=http://localhost:5000"]}
NEEDS["own"] = ["task.name=heart"]  # it says which task of their own, or of a package, is meant
NEEDS |= {name: ["secagg=none"] for name, algorithm in ALGORITHMS.items() if not algorithm.masked}


@pytest.mark.parametrize(("group", "option"), ALL)
def test_every_packaged_option_composes(group: str, option: str) -> None:
    assert isinstance(compose([f"{group}={option}", *NEEDS.get(option, [])]).config, Config)


def test_every_packaged_file_says_in_a_comment_what_it_is() -> None:
    conf = Path(__file__).parent.parent.parent / "conf"
    for path in conf.rglob("*.yaml"):
        lines = [line for line in path.read_text().splitlines() if not line.startswith("# @package")]
        assert lines[0].startswith("# "), path


def test_a_task_brings_its_own_data_unless_told_otherwise() -> None:
    assert compose(["task=heart"]).config.data.source == "uci_heart"
    assert compose(["task=heart", "data=csv"]).config.data.source == "csv"


def test_data_settings_reach_the_institution() -> None:
    config = compose(["task=heart", "data.path=/srv/heart", "data.site=va"]).config
    assert config.client.data == config.data


def test_overrides_win_over_experiment_over_group_over_default() -> None:
    composed = compose(["experiment=heart", "seed=7"])
    assert (composed.config.task.name, composed.config.rounds, composed.config.seed) == ("heart", 20, 7)
    assert compose(["experiment=heart", "rounds=5"]).config.rounds == 5


def test_origins_name_the_file_that_chose_each_value() -> None:
    origins = compose(["experiment=heart", "data.site=va", "strategy=fedprox"]).origins
    assert origins["rounds"] == "conf/experiment/heart.yaml"
    assert origins["seed"] == "conf/config.yaml"
    assert origins["task.name"] == "conf/task/heart.yaml"
    assert origins["strategy.proximal_mu"] == "conf/strategy/fedprox.yaml"
    assert origins["data.site"] == OVERRIDE
    assert origins["client.data.site"] == "conf/client/auto.yaml: ${data}"
    assert origins["run_name"] == "default"


@pytest.mark.parametrize("order", [1, -1])
def test_what_a_task_recommends_never_goes_before_what_was_asked_for(tmp_path: Path, order: int) -> None:
    file = tmp_path / "birth.yaml"
    file.write_text(
        "format: 1\nname: birth_asked\ntitle: asked\nperson: one row a person\n"
        "columns: {age: {kind: number, low: 0, high: 99}}\n"
        "target: {kind: binary, column: ill, classes: [a, b]}\nmodel: {family: linear}\n"
        "training: {learning_rate: 0.25, batch_size: 8, rounds: 7}\n"
    )
    composed = compose([f"task={file}", "task.learning_rate=0.5", "rounds=3"][::order])
    assert (composed.config.task.learning_rate, composed.config.rounds) == (0.5, 3)
    assert composed.config.task.batch_size == 8
    assert composed.origins["task.batch_size"] == str(file)
    assert composed.origins["task.learning_rate"] == composed.origins["rounds"] == OVERRIDE


def test_every_value_has_an_origin_and_default_means_the_dataclass() -> None:
    from sovfed.federation.compose import DEFAULT, leaves

    composed = compose()
    values, defaults = dict(leaves(composed.config)), dict(leaves(Config()))
    assert set(composed.origins) == set(values)
    assert all(values[key] == defaults[key] for key, origin in composed.origins.items() if origin == DEFAULT)


def test_a_task_s_file_that_lies_here_is_meant_before_a_task_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen: of `task=readmit` beside readmit.yaml, "did you mean 'heart'?"."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hearts.yaml").touch()
    for refused in (lambda: compose(["task=hearts"]), lambda: get_task("hearts"), lambda: get_task("hearts.yam")):
        with pytest.raises(ConfigError, match=r"did you mean the file 'hearts\.yaml', which is here\?"):
            refused()
    with pytest.raises(ConfigError, match="did you mean 'heart'"):
        get_task("../hearts")  # names come by messages too


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("task=hart", "unknown option 'hart' of group 'task' (did you mean 'heart'?)"),
        ("strateg=fedavg", "unknown key 'strateg' (did you mean 'strategy'?)"),
        ("task.nam=heart", "unknown key 'task.nam' (did you mean 'task.name'?)"),
        ("rounds=ten", "'rounds' must be int, got 'ten' (str)"),
        ("rounds=2.5", "'rounds' must be int, got 2.5 (float)"),
        ("rounds=0", "'rounds' 0 is outside [1, 100000]"),
        ("rounds", "override 'rounds' is not of the form key=value"),
        ("+rounds=3", "override '+rounds=3' is not of the form key=value"),
        ("~task=heart", "override '~task=heart' is not of the form key=value"),
        ("rounds=1,2", "Ambiguous value for argument 'rounds=1,2'"),
        ("rounds=${nowhere}", "Interpolation key 'nowhere' not found"),
        ("server.names=[", "override 'server.names=[' cannot be read: "),
        ("server=network", "'server.names' must be given, as in server.names=…"),
        ("hydra.run.dir=/tmp", "unknown key 'hydra.run.dir'"),
        ("hydra/launcher=basic", "override 'hydra/launcher=basic' is not of the form key=value"),
    ],
)
def test_wrong_overrides_are_refused_with_the_nearest_name(override: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compose([override])
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("override", ["_target_=os.system", "task._target_=os.system", "task={_target_: os.system}"])
def test_an_override_cannot_name_code(override: str) -> None:
    with pytest.raises(ConfigError):
        compose([override])


def test_a_file_cannot_name_code(tmp_path: Path) -> None:
    (tmp_path / "task").mkdir()
    (tmp_path / "task" / "mine.yaml").write_text("name: heart\n_target_: os.system\n")
    with pytest.raises(ConfigError, match=r"'task\._target_' is refused"):
        compose(["task=mine", "data=heart"], tmp_path)


def test_own_folder_adds_options_and_cannot_replace_packaged_ones(tmp_path: Path) -> None:
    (tmp_path / "strategy").mkdir()
    (tmp_path / "strategy" / "mine.yaml").write_text("name: fedavgm\nserver_momentum: 0.5\n")
    (tmp_path / "strategy" / "fedavg.yaml").write_text("name: fedadam\n")
    mine = compose(["strategy=mine"], tmp_path)
    assert mine.config.strategy.server_momentum == 0.5
    assert mine.origins["strategy.name"] == str(tmp_path / "strategy" / "mine.yaml")
    assert compose(["strategy=fedavg"], tmp_path).config.strategy.name == "fedavg"


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        compose([], tmp_path / "nowhere")


@pytest.mark.parametrize(
    "text", ["/a b/c(1).csv", "C:\\data\\x", "a=b", "it's", "0", "1e3", "true", "[x]", "ü–ß", "x,y"]
)
def test_text_is_taken_as_given(text: str) -> None:
    assert compose([f"data.path={text}"]).config.data.path == text


@settings(max_examples=20)
@given(st.text(st.characters(blacklist_categories=("C", "Z"), blacklist_characters="$\\'\""), min_size=1, max_size=40))
def test_any_printable_text_is_taken_as_given(text: str) -> None:
    if text != "null":
        assert compose([f"data.path={text}"]).config.data.path == text


def test_null_and_the_last_of_two_overrides_count() -> None:
    assert compose(["tracking.uri=http://a", "tracking.uri=null"]).config.tracking.uri is None
    assert compose(["task=digits", "task=heart"]).config.task.name == "heart"


def test_text_can_be_built_from_other_values() -> None:
    assert compose(["run_name=${task.name}-${seed}", "seed=3"]).config.run_name == "breast_cancer-3"


@pytest.mark.parametrize(
    "override",
    [
        "run_name=${oc.env:SECRET}",
        "run_name='${oc.env:SECRET}'",
        "run_name=${ oc.env : SECRET }",
        "run_name=${oc.decode:${oc.env:SECRET}}",
        "tracking.experiment=of-${task.name}-${oc.env:SECRET}",
        "server.names=[a,'${oc.env:SECRET}']",
        "server.lane_address=${oc.select:nowhere,${oc.env:SECRET}}",
        "data.path=${hydra:runtime.cwd}",
        "rounds=${oc.env:SECRET}",
    ],
)
def test_no_override_reads_the_environment(override: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "17")
    with pytest.raises(ConfigError, match="only other settings may be named") as caught:
        compose([override])
    assert "17" not in str(caught.value) and "\n" not in str(caught.value)


def test_nor_does_a_file_of_the_operator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "17")
    (tmp_path / "task").mkdir()
    (tmp_path / "task" / "mine.yaml").write_text("name: heart\nlocal_epochs: ${oc.env:SECRET}\n")
    with pytest.raises(ConfigError, match=r"'task\.local_epochs' is"):
        compose(["task=mine", "data=csv"], tmp_path)


@pytest.mark.parametrize(
    "name", ["a\nb", "a\x1b]0;x\x07", "a b", "a/b", "../a", ".a", "-a", "[bold]a", "a\u202eb", "ä", ""]
)
def test_a_run_has_a_plain_name(name: str) -> None:
    with pytest.raises(ConfigError, match="run_name") as caught:
        compose([f"run_name={name}"])
    assert str(caught.value).isprintable()


def test_no_text_steers_a_terminal() -> None:
    with pytest.raises(ConfigError, match="no control characters"):
        compose(["data.site=a\x1b[2Jb"])


def test_a_task_of_ones_own_must_be_named() -> None:
    with pytest.raises(ConfigError, match=r"'task\.name' must be given"):
        compose(["task=own"])


@pytest.mark.parametrize("path", ["/models/a,b", "/models/ü's", '/models/"q\\z', "/models/[a]={b}"])
def test_a_model_to_score_may_lie_in_a_folder_of_any_name(path: str) -> None:
    asked = json.dumps([path, "/models/other"], ensure_ascii=False)
    assert compose(["task=heart", f"evaluate={asked}"]).config.task.candidates == (path, "/models/other")


@pytest.mark.parametrize("asked", ["[", "[]", "[1]", '["a", ["b"]]', "[" * 100_000])
def test_a_list_of_models_that_is_none_is_told(asked: str) -> None:
    with pytest.raises(ConfigError, match="is no JSON list of paths"):
        compose(["task=heart", f"evaluate={asked}"])


def test_a_schedule_that_a_task_recommends_gives_way_where_a_run_has_none(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "format: 1\nname: mine\ntitle: Mine\nperson: one row a person\n"
        "columns: {age: {kind: number, low: 0, high: 120}}\n"
        'target: {kind: binary, column: ill, classes: ["no", "yes"]}\nmodel: {family: linear}\n'
        "training: {learning_rate: 0.2, schedule: wsd, cooldown: 0.5}\n"
    )
    assert compose([f"task={path}"]).config.task.schedule == "wsd"
    for asked in ("strategy=scaffold", "privacy=silo"):
        task = compose([f"task={path}", asked]).config.task
        assert (task.schedule, task.learning_rate) == ("constant", 0.2)
    with pytest.raises(ConfigError, match="schedule"):
        compose([f"task={path}", "privacy=silo", "task.schedule=linear"])
