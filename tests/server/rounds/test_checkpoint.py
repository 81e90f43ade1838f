"""Checkpoints: whole or absent, bound to their configuration, safe to resume from."""

from __future__ import annotations

import dataclasses
import re
import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from sovfed.federation.compose import compose
from sovfed.federation.config import Config, TaskConfig
from sovfed.federation.errors import ConfigError
from sovfed.server.rounds import checkpoint
from sovfed.server.rounds.checkpoint import Checkpoint

CONFIG = Config()


def made(number: int, parameters: int = 5) -> Checkpoint:
    rng = np.random.default_rng(number)
    return Checkpoint(
        number, rng.normal(size=parameters).astype(np.float32), rng.normal(size=4),
        {"m": rng.normal(size=parameters)}, checkpoint.deciding(CONFIG),
    )  # fmt: skip


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    checkpoint.write(tmp_path, made(3))
    found = checkpoint.read(tmp_path, CONFIG)
    assert found is not None and found.round == 3
    np.testing.assert_array_equal(found.model, made(3).model)
    np.testing.assert_array_equal(found.scale, made(3).scale)
    np.testing.assert_array_equal(found.slots["m"], made(3).slots["m"])


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert checkpoint.read(tmp_path, CONFIG) is None


def test_a_checkpoint_is_readable_by_the_owner_only(tmp_path: Path) -> None:
    checkpoint.write(tmp_path, made(1))
    assert (tmp_path / checkpoint.NAME).stat().st_mode & 0o777 == 0o600


def test_another_configuration_is_refused_but_more_rounds_are_not(tmp_path: Path) -> None:
    checkpoint.write(tmp_path, made(1))
    assert checkpoint.read(tmp_path, dataclasses.replace(CONFIG, rounds=99)) is not None
    with pytest.raises(ConfigError, match=r"settings \(task.learning_rate was 0.1, now 0.5\);"):
        checkpoint.read(tmp_path, dataclasses.replace(CONFIG, task=TaskConfig(learning_rate=0.5)))
    with pytest.raises(ConfigError, match=r"settings \(seed was 0, now 1\);"):
        checkpoint.read(tmp_path, dataclasses.replace(CONFIG, seed=1))


@pytest.mark.parametrize(
    ("then", "now", "said"),
    [
        (["privacy=distributed", "privacy.epsilon=1.5"], ["privacy=distributed", "privacy.epsilon=3", "seed=2"],
         r"privacy.epsilon was 1.5, now 3.0; seed was 0, now 2"),
        (["task=digits"], ["task=digits", "strategy=fedadam"], r"strategy.name was \"fedavg\", now \"fedadam\""),
        (["task.schedule=cosine", "rounds=5"], ["task.schedule=cosine", "rounds=6"], "rounds was 5, now 6"),
        (["task.schedule=cosine", "rounds=5"], ["rounds=5"], r"task.schedule was \"cosine\", now \"constant\""),
        (["task=digits"], ["task=heart"], r"task.name was \"digits\", now \"heart\""),
    ],
)  # fmt: skip
def test_a_run_that_cannot_go_on_is_told_which_setting_differs(
    tmp_path: Path, then: list[str], now: list[str], said: str
) -> None:
    settings = checkpoint.deciding(compose(then).config)
    checkpoint.write(tmp_path, dataclasses.replace(made(1), deciding=settings))
    with pytest.raises(ConfigError) as refused:
        checkpoint.read(tmp_path, compose(now).config)
    assert re.search(rf"{said}.*\); a new run", str(refused.value)), refused.value


def test_a_checkpoint_of_an_older_version_is_refused_without_the_setting_that_differs(tmp_path: Path) -> None:
    digest = checkpoint.config_digest(CONFIG)
    tensors: dict[str, Any] = {"model": np.zeros(5, np.float32), "scale": np.zeros(4)}
    save_file(tensors, tmp_path / checkpoint.NAME, metadata={"round": "1", "digest": digest})
    assert checkpoint.read(tmp_path, CONFIG) is not None
    with pytest.raises(ConfigError, match="task, strategy, privacy, secagg, seed or rounds"):
        checkpoint.read(tmp_path, dataclasses.replace(CONFIG, seed=1))


def test_a_write_that_dies_half_way_leaves_the_old_checkpoint(tmp_path: Path) -> None:
    checkpoint.write(tmp_path, made(1))
    (tmp_path / f".{checkpoint.NAME}.abc").write_bytes(b"half")  # what a crash before the rename leaves
    found = checkpoint.read(tmp_path, CONFIG)
    assert found is not None and found.round == 1


def test_the_writer_has_everything_on_disk_when_it_closes(tmp_path: Path) -> None:
    writer = checkpoint.Writer(tmp_path)
    for number in range(1, 21):
        writer.submit(made(number))
    writer.close()
    found = checkpoint.read(tmp_path, CONFIG)
    assert found is not None and found.round == 20


def test_spaced_checkpoints_are_few_and_the_last_one_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[int] = []
    write = checkpoint.write

    def note(folder: Path, one: Checkpoint) -> None:
        written.append(one.round)
        write(folder, one)

    monkeypatch.setattr(checkpoint, "write", note)
    writer = checkpoint.Writer(tmp_path, spacing_s=60)
    for number in range(1, 21):
        writer.submit(made(number))
    writer.flush()
    assert written[-1] == 20
    writer.submit(made(21))
    writer.close()
    found = checkpoint.read(tmp_path, CONFIG)
    assert found is not None and found.round == 21
    assert 2 <= len(written) <= 5 and written == sorted(written)


def test_a_failing_disk_stops_the_rounds(tmp_path: Path) -> None:
    writer = checkpoint.Writer(tmp_path / "missing")
    writer.submit(made(1))
    with pytest.raises(FileNotFoundError):
        writer.close()


def test_a_full_disk_is_told_as_one_so_that_the_run_is_taken_up_again(tmp_path: Path) -> None:
    """What passes by itself is an OSError; safetensors has an error of its own, which ended the run for good."""
    checkpoint.write(tmp_path, made(1))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(OSError, match="large"):
            checkpoint.write(tmp_path, made(2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    found = checkpoint.read(tmp_path, CONFIG)
    assert found is not None and found.round == 1
    assert [path.name for path in tmp_path.iterdir()] == [checkpoint.NAME]


@pytest.mark.parametrize("override", ["secagg=compact", "secagg.clip=7", "task=heart", "seed=3", "privacy.delta=1e-7"])
def test_what_decides_the_training_is_in_the_digest(override: str) -> None:
    """Institutions hold a run to this digest, so nothing of secure aggregation may change under it."""
    assert checkpoint.config_digest(compose([override]).config) != checkpoint.config_digest(compose([]).config)


def test_a_version_with_more_settings_goes_on_with_an_older_version_s_run() -> None:
    """Else an upgrade would end every run that is going on: a supervisor starts its coordinator again."""
    config = CONFIG
    newer = dataclasses.make_dataclass(
        "Newer", [("later", int, dataclasses.field(default=3))], bases=(type(config.privacy),), frozen=True
    )
    values = {field.name: getattr(config.privacy, field.name) for field in dataclasses.fields(config.privacy)}
    same = dataclasses.replace(config, privacy=newer(**values))
    other = dataclasses.replace(config, privacy=newer(**values, later=4))
    assert checkpoint.config_digest(same) == checkpoint.config_digest(config) != checkpoint.config_digest(other)


@pytest.mark.parametrize("keep", [0, 7, 60])
def test_a_torn_checkpoint_is_named_with_what_to_do(tmp_path: Path, keep: int) -> None:
    """The run had failed of "SafetensorError", and nothing else was told."""
    checkpoint.write(tmp_path, made(3))
    path = tmp_path / checkpoint.NAME
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ConfigError, match=r"is damaged .*restore it from a backup"):
        checkpoint.read(tmp_path, CONFIG)


def test_another_file_in_a_checkpoints_place_is_named(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    save_file({"model": np.zeros(3, np.float32)}, tmp_path / checkpoint.NAME)
    with pytest.raises(ConfigError, match="no checkpoint of a run"):
        checkpoint.read(tmp_path, CONFIG)
