"""The device by its name, and bits that repeat themselves."""

from __future__ import annotations

import os

import pytest
import torch

from sovfed.clients.trainer.service import make_trainer
from sovfed.clients.training.device import CUBLAS, choose_device, seeded, usable_devices
from sovfed.federation.config import ClientConfig
from sovfed.federation.errors import ConfigError
from sovfed.federation.schema import bind


def test_each_gpu_has_a_name_and_one_that_is_not_there_is_refused_with_those_that_are() -> None:
    cards = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for number in range(cards):
        assert choose_device(f"cuda:{number}") == torch.device("cuda", number)
    with pytest.raises(ConfigError, match=f"'cuda:{cards}' is not there; present: .*'cpu'"):
        choose_device(f"cuda:{cards}")
    assert [choose_device(name).type for name in usable_devices()][-1] == "cpu"


@pytest.mark.parametrize(
    "device", ["auto", "cpu", "mps", "cuda", "cuda:0", "cuda:15", "cpu,cpu", "cuda:0,cuda:1", "cpu,cuda:7,cpu"]
)
def test_a_device_can_be_configured(device: str) -> None:
    assert bind(ClientConfig, {"device": device}).device == device


@pytest.mark.parametrize(
    "device",
    [
        "gpu",
        "cuda:",
        "cuda:-1",
        "cuda:100",
        "cuda:0,1",
        "cpu\n",
        "cpu,",
        "cuda,cuda:1",
        "mps,cpu",
        "auto,cpu",
        "cuda:0,cuda:0",
        ",".join(["cpu"] * 17),
    ],
)
def test_what_is_no_device_is_refused(device: str) -> None:
    with pytest.raises(ConfigError, match="device"):
        bind(ClientConfig, {"device": device})


def test_what_is_drawn_under_a_seed_moves_no_draw_of_others_even_where_it_fails() -> None:
    torch.manual_seed(3)
    drawn, others = [], [torch.rand(2)]

    def fail() -> None:
        with seeded(7, torch.device("cpu")):
            drawn.append(torch.rand(2))
            raise KeyError

    for _ in range(2):
        with pytest.raises(KeyError):
            fail()
        others.append(torch.rand(2))
    assert torch.equal(drawn[0], drawn[1])
    assert torch.equal(torch.cat(others), torch.rand(6, generator=torch.Generator().manual_seed(3)))


@pytest.mark.apart
def test_a_trainer_that_must_repeat_itself_refuses_what_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    name, value = CUBLAS
    monkeypatch.delenv(name, raising=False)
    before = torch.are_deterministic_algorithms_enabled()
    try:
        make_trainer(ClientConfig(device="cpu"))
        assert not torch.are_deterministic_algorithms_enabled()
        make_trainer(ClientConfig(device="cpu", deterministic=True))
        assert os.environ.pop(name) == value
        with pytest.raises(RuntimeError, match="deterministic"):  # one of torch's operations that has no such form
            torch.zeros(4).put_(torch.tensor([0, 0]), torch.ones(2))
    finally:
        torch.use_deterministic_algorithms(before)


def test_several_devices_train_in_no_half_precision_that_one_alone_can() -> None:
    with pytest.raises(ConfigError, match="fp16 trains on one device"):
        bind(ClientConfig, {"device": "cpu,cpu", "precision": "fp16"})
    assert choose_device("cpu,cpu") == torch.device("cpu")  # for all that is not divided
