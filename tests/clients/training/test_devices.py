"""Several devices, which are processes on this processor: the model is that of one device, or nothing is."""

from __future__ import annotations

import dataclasses
import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.packages import make_signer, table, write_wheel
from tests.records import in_memory
from torch import Tensor

from sovfed.clients.data import load_records
from sovfed.clients.home.folder import create
from sovfed.clients.home.own_tasks import added, allow_task
from sovfed.clients.home.packages import make_packages_known
from sovfed.clients.home.policy import Policy, load_policy
from sovfed.clients.trainer.service import make_trainer
from sovfed.clients.training.algorithms import Learner
from sovfed.clients.training.devices import Devices
from sovfed.clients.training.halfway import Halfway
from sovfed.clients.training.local import LocalTraining
from sovfed.clients.training.private import PrivateTraining
from sovfed.federation.archive.packing import pack
from sovfed.federation.config import ClientConfig, Config, DataConfig
from sovfed.federation.errors import ConfigError, DeviceLostError
from sovfed.federation.messages import PrivateRequest, TrainReply, TrainRequest
from sovfed.federation.tasks import Task, initial_vector, registry
from sovfed.federation.tasks.declared import task_from_text
from sovfed.federation.tasks.registry import get_task
from sovfed.server.registry import authority
from sovfed.simulations.benchmarks.gpu import made_up
from sovfed.simulations.benchmarks.language import Size, decoder_task
from sovfed.simulations.federation import simulate

TASK = get_task("breast_cancer")
RECORDS = in_memory(load_records(TASK, DataConfig(site="0")))
PLANS: dict[str, dict[str, Any]] = {
    "sgd": {}, "momentum": {"momentum": 0.9}, "adamw": {"optimizer": "adamw", "learning_rate": 0.01},
    "clipped": {"momentum": 0.9, "gradient_clip": 0.1}, "scheduled": {"rate_start": 1.0, "rate_end": 0.1},
    "muon": {"optimizer": "muon", "momentum": 0.95, "nesterov": True, "learning_rate": 0.01},
    "accumulated": {"optimizer": "adamw", "accumulation": 3, "learning_rate": 0.01},
    "proximal": {"proximal_mu": 0.5}, "a last batch of one": {"batch_size": len(RECORDS.train) - 1},
    "fewer records than devices": {"batch_size": 2}, "one record": {"batch_size": 1}, "steps": {"local_steps": 7},
}  # fmt: skip


def asked(task: Task = TASK, **changes: Any) -> TrainRequest:
    return dataclasses.replace(
        TrainRequest(
            run="r", round=1, task=task.name, seed=1, local_epochs=2, batch_size=32, learning_rate=0.1,
            proximal_mu=0.0, model=initial_vector(task, 0), scale=task.transform.public_scale,
        ),
        **changes,
    )  # fmt: skip


@pytest.fixture(scope="module")
def three() -> Iterator[Devices]:
    devices = Devices(["cpu"] * 3, "float32")
    yield devices
    devices.close()


@pytest.fixture
def two() -> Iterator[Devices]:
    devices = Devices(["cpu", "cpu"], "float32")
    yield devices
    devices.close()


def training(devices: Devices | None, task: Task = TASK, records: Any = RECORDS, **more: Any) -> LocalTraining:
    return LocalTraining(task, records, site="0", device="cpu", devices=devices, **more)


@pytest.mark.parametrize("plan", PLANS)
def test_the_update_is_that_of_one_device_to_rounding(three: Devices, plan: str) -> None:
    request = asked(**PLANS[plan])
    expected, loss = training(None).train(request)
    several = training(three)
    update, same_loss = several.train(request)
    assert np.abs(update - expected).max() < 1e-5 * max(1.0, np.abs(expected).max())
    assert same_loss == pytest.approx(loss, rel=1e-5)
    assert several.device_name == "cpu, cpu, cpu"
    assert np.array_equal(several.train(request)[0], update)  # to the bit, from the same devices


def test_the_other_devices_compute_their_share(three: Devices) -> None:
    """Else all of this would hold of one that does all the work itself."""
    taken: list[int] = []
    task = dataclasses.replace(TASK)
    several = training(three, task)
    loss = several._loss

    def counted(outputs: Tensor, targets: Any) -> Tensor:
        taken.append(len(outputs))
        return loss(outputs, targets)

    several._loss = counted
    several.train(asked(batch_size=32, local_steps=2))
    assert taken == [11, 11]


def test_what_corrects_a_step_is_added_once(three: Devices) -> None:
    correction = np.full(31, 0.01, np.float32)
    expected, _ = training(None).train(asked(), correction=correction)
    update, _ = training(three).train(asked(), correction=correction)
    assert update == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("precision", ["float32", "tf32", "bf16"])
def test_a_decoder_trains_like_on_one_device(precision: str) -> None:
    task = decoder_task("t_devices", 32, "0" * 64, Size(32, 32, 1, 2))
    windows = made_up(task, 21)
    devices = Devices(["cpu", "cpu"], precision)
    try:
        request = asked(task, batch_size=5, optimizer="adamw", learning_rate=0.01)
        expected, _ = training(None, task, windows, precision=precision).train(request)
        update, _ = training(devices, task, windows, precision=precision).train(request)
    finally:
        devices.close()
    tolerance = 1e-4 if precision != "bf16" else 0.05
    assert np.linalg.norm(update - expected) < tolerance * np.linalg.norm(expected)


DROPPING = """\
format: 1
name: t_dropping
title: Dropping
person: number
columns:
  a: {kind: number, low: 0, high: 1}
  b: {kind: number, low: 0, high: 1}
target: {kind: binary, column: c, classes: ["no", "yes"]}
model: {family: mlp, hidden: [8], dropout: 0.5}
"""


def test_what_is_dropped_is_drawn_anew_for_each_device_and_alike_in_a_repeated_round(three: Devices) -> None:
    task = registry.add(task_from_text(DROPPING))
    records = made_up(task, 40)
    several = training(three, task, records)
    first, _ = several.train(asked(task, round=3))
    assert np.array_equal(several.train(asked(task, round=3))[0], first)
    assert not np.array_equal(several.train(asked(task, round=4))[0], first)
    other, same = training(None, task, records).train(asked(task, round=3))[0], training(three, task, records)
    assert not np.allclose(other, first) and np.array_equal(same.train(asked(task, round=3))[0], first)


def test_another_task_takes_the_place_of_the_last(three: Devices) -> None:
    digits = get_task("digits")
    records = load_records(digits, DataConfig(source="digits", site="0"))
    for task, own in ((TASK, RECORDS), (digits, records), (TASK, RECORDS)):
        request = asked(task)
        expected, _ = training(None, task, own).train(request)
        assert training(three, task, own).train(request)[0] == pytest.approx(expected, abs=1e-5)


def test_a_batch_that_has_statistics_stays_on_the_first_device(two: Devices, caplog: pytest.LogCaptureFixture) -> None:
    task = get_task("digits_cnn")
    records = load_records(task, DataConfig(source="digits", site="0"))
    alone = training(two, task, records)
    assert "digits_cnn trains on cpu alone: its running statistics are of whole batches" in caplog.text
    assert alone.device_name == "cpu"
    request = asked(task, local_steps=2)
    assert np.array_equal(alone.train(request)[0], training(None, task, records).train(request)[0])
    assert not two._children


def test_a_private_step_is_taken_on_the_first_device() -> None:
    places = [PrivateTraining(TASK, RECORDS, site="0", device=device, ledger=None) for device in ("cpu", "cpu,cpu")]
    request = PrivateRequest(
        run="1", grant="g", round=1, task=TASK.name, mechanism="distributed", rounds=1, steps=1, spare=0,
        noise_multiplier=4.0, sampling_rate=1.0, clip=1.0, delta=1e-6, honest=3, grid_bits=16, batch=100.0, seed=0,
        local_epochs=1, batch_size=16, learning_rate=0.5, model=initial_vector(TASK, 0),
    )  # fmt: skip
    one, several = (place._total(request) for place in places)
    assert torch.equal(torch.as_tensor(one), torch.as_tensor(several))


def _hit(several: LocalTraining, devices: Devices, number: int, times: int = 1) -> None:
    """Send the signal `number` to the last device's process in the third step of each of so many rounds."""
    loss, calls, left = several._loss, itertools.count(1), [times]

    def hitting(outputs: Tensor, targets: Any) -> Tensor:
        if next(calls) % 3 == 0 and left[0]:
            left[0] -= 1
            os.kill(devices._children[-1].process.pid, number)
        return loss(outputs, targets)

    several._loss = hitting


def test_a_process_that_dies_is_started_again_and_the_round_with_it(
    two: Devices, caplog: pytest.LogCaptureFixture
) -> None:
    expected, _ = training(None).train(asked())
    several = training(two)
    _hit(several, two, signal.SIGKILL)
    assert several.train(asked())[0] == pytest.approx(expected, abs=1e-6)
    assert "device cpu: its process ended with -9: round 1 begins anew" in caplog.text


def test_a_process_that_dies_again_ends_the_round_and_not_the_next(two: Devices) -> None:
    several = training(two)
    _hit(several, two, signal.SIGKILL, times=2)
    with pytest.raises(DeviceLostError, match="device cpu: its process ended with -9"):
        several.train(asked())
    assert not two._children
    assert several.train(asked())[0] == pytest.approx(training(None).train(asked())[0], abs=1e-6)


def test_a_process_that_hangs_is_ended(two: Devices, caplog: pytest.LogCaptureFixture) -> None:
    several = training(two)
    several.train(asked())
    (child,) = two._children
    child.channel._end.settimeout(0.5)
    _hit(several, two, signal.SIGSTOP)
    assert several.train(asked())[0] == pytest.approx(training(None).train(asked())[0], abs=1e-6)
    assert "device cpu: its process did not answer for 1800 s: round 1 begins anew" in caplog.text
    assert child.process.returncode == -signal.SIGKILL


def test_a_task_that_the_processes_do_not_know_is_a_failure_and_no_model(two: Devices) -> None:
    foreign = dataclasses.replace(TASK, version="of this process alone")
    with pytest.raises(DeviceLostError, match="device cpu: ConfigError"):
        training(two, foreign).train(asked(foreign))


@pytest.fixture
def _own_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_ADDED", {})


CROWDED = """\
import sys

import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, hidden):
        super().__init__()
        self.body, self.out = nn.Linear(5, hidden), nn.Linear(hidden, 1)

    def forward(self, x):
        if self.training and len(x) > (8 if "device_process" in sys.argv[0] else 20):
            raise torch.OutOfMemoryError(f"{len(x)} records at once")
        return {"logits": self.out(self.body(x).tanh())}
"""


@pytest.mark.apart  # which imports the package
@pytest.mark.usefixtures("_own_tasks")
def test_a_package_of_the_home_trains_and_where_memory_runs_out_in_smaller_pieces(tmp_path: Path) -> None:
    """Of a share of 28 records it does not do for 23 at once on the first device, nor for 12 on the others."""
    home = _home_with_package(tmp_path)
    (task,) = make_packages_known(home, load_policy(home))
    data = DataConfig(source="csv", path=str(tmp_path / "north.csv"), site="north")
    records, request = load_records(task, data), asked(task, batch_size=90)
    expected, _ = training(None, task, records).train(request)
    devices = Devices(["cpu"] * 3, "float32", home=home)
    try:
        several = training(devices, task, records)
        assert several.train(request)[0] == pytest.approx(expected, abs=1e-6)
        assert several._most is not None and several._most == 6
    finally:
        devices.close()


def _home_with_package(folder: Path) -> Path:
    authority.init(folder / "authority", "Authority")
    archive, _ = pack(
        write_wheel(folder / "wheel", net=CROWDED), make_signer(folder, folder / "authority", "pat", "vendor")
    )
    home, file = folder / "home", folder / archive.file_name
    file.write_bytes(archive.to_bytes())
    (folder / "north.csv").write_text(table("north", 120))
    create(home, ClientConfig(home=str(home)), Policy(min_reviewers=0, min_reviewing_organisations=0))
    for name in ("root.pem", "crl.pem"):
        (home / "identity" / name).write_bytes((folder / "authority" / name).read_bytes())
    list(added(home, file))
    allow_task(home, file)
    return home


class Death(BaseException):
    """Of the trainer; nothing catches it."""


def test_a_round_goes_on_at_its_step_to_the_same_bits(three: Devices, tmp_path: Path) -> None:
    path = tmp_path / "halfway.safetensors"
    request = asked(optimizer="adamw", learning_rate=0.01)

    def learner(halfway: Halfway | None) -> Learner:
        return Learner(TASK, RECORDS, site="0", device="cpu", devices=three, halfway=halfway)

    expected = learner(None).learn(request, None)
    dying = learner(Halfway(path, 0.0))
    loss, calls = dying._loss, itertools.count()

    def deadly(outputs: Tensor, targets: Any) -> Tensor:
        if next(calls) >= 5:
            raise Death
        return loss(outputs, targets)

    dying._loss = deadly
    with pytest.raises(Death):
        dying.learn(request, None)
    assert path.exists()
    learned = learner(Halfway(path, 1e6)).learn(request, None)
    assert np.array_equal(learned.update, expected.update)
    assert learned.loss == expected.loss


def _until(condition: Callable[[], bool], seconds: float = 30.0) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    return condition()


STARTED = """\
import numpy as np
from sovfed.clients.training.devices import Devices
from sovfed.federation.tasks.registry import get_task
task = get_task("breast_cancer")
devices = Devices(["cpu"] * 3, "float32")
devices.begin(task, task.transform.public_scale)
print(*(child.process.pid for child in devices._children), flush=True)
input()
"""


@pytest.mark.deploy
@pytest.mark.parametrize("end", ["killed", "of its own"])
def test_no_process_outlives_its_trainer(end: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", STARTED], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as trainer:
        assert trainer.stdout is not None
        pids = [int(word) for word in trainer.stdout.readline().split()]
        assert len(pids) == 2 and all(Path(f"/proc/{pid}").exists() for pid in pids)
        os.kill(pids[1], signal.SIGTERM)  # which is the trainer's to answer
        time.sleep(0.2)
        assert Path(f"/proc/{pids[1]}").exists()
        if end == "killed":
            trainer.kill()
        else:
            trainer.communicate("\n")
    assert _until(lambda: not any(_alive(pid) for pid in pids))


def _alive(pid: int) -> bool:
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


def test_a_trainer_of_several_devices_answers_and_names_them() -> None:
    several = make_trainer(ClientConfig(device="cpu,cpu", data=DataConfig(site="0")))
    one = make_trainer(ClientConfig(device="cpu", data=DataConfig(site="0")))
    replies = [trainer.answer(dataclasses.replace(asked(), digest=TASK.digest)) for trainer in (one, several)]
    first, second = (reply for reply in replies if isinstance(reply, TrainReply))
    assert second.update == pytest.approx(first.update, abs=1e-6)
    assert second.evaluation == pytest.approx(first.evaluation)
    assert several.health().device == "cpu, cpu"
    devices = several._loaded._runtime.devices
    assert devices is not None
    devices.close()


def test_a_device_that_is_not_there_ends_the_trainer_before_any_round() -> None:
    cards = torch.cuda.device_count() if torch.cuda.is_available() else 0
    with pytest.raises(ConfigError, match=f"'cuda:{cards}' is not there"):
        make_trainer(ClientConfig(device=f"cpu,cuda:{cards}"))


def test_a_simulation_refuses_several_devices(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a simulation trains on one device"):
        simulate(Config(client=ClientConfig(device="cpu,cpu")), [DataConfig(site="0")] * 4, tmp_path)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two CUDA or ROCm devices here")
@pytest.mark.parametrize("plan", PLANS)
def test_two_gpus_give_the_cpus_update(plan: str) -> None:
    request = asked(**PLANS[plan])
    expected, _ = training(None).train(request)
    devices = Devices(["cuda:0", "cuda:1"], "float32")
    try:
        update, _ = LocalTraining(TASK, RECORDS, site="0", device="cuda:0", devices=devices).train(request)
    finally:
        devices.close()
    assert np.linalg.norm(update - expected) < 1e-4 * np.linalg.norm(expected)
