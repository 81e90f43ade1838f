"""What is exported gives the same predictions elsewhere, from raw values, missing ones among them."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.federation.models.made_tasks import BINARY, RUN, TASKS, model_of, squares
from torch import nn

from sovfed.federation.errors import ConfigError
from sovfed.federation.models.export import to_hugging_face, to_onnx, to_torch
from sovfed.federation.models.saved import LoadedModel, load_model, save_model
from sovfed.federation.tasks import Task
from sovfed.federation.tasks.registry import add

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")  # torch's and onnx's own
PLAIN = """
import sys, json, numpy, torch
arrays = numpy.load(sys.argv[2])
found = torch.export.load(sys.argv[1]).module()(torch.from_numpy(arrays["numbers"]), torch.from_numpy(arrays["codes"]))
print(json.dumps([found.tolist(), sorted(name for name in sys.modules if name.startswith("sovfed"))]))
"""


def loaded(folder: Path, task: Task) -> LoadedModel:
    folder.mkdir(exist_ok=True)
    save_model(folder, task, *model_of(task), RUN)
    return load_model(folder)


def raw(task: Task) -> dict[str, np.ndarray]:
    """Made-up records, some with what may be missing missing."""
    table = task.schema.made_up(9)
    table[".numbers"][::2, 1:3] = np.nan
    table[".codes"][1::2, 0] = -1
    return table


def expected(model: LoadedModel, table: dict[str, np.ndarray]) -> np.ndarray:
    found = model.predict(table)
    return np.stack([found[f"probability_{word}"] for word in model.facts.classes], 1)


@pytest.mark.apart
def test_torch_alone_runs_the_program(tmp_path: Path) -> None:
    """In a process that never imports sovfed."""
    model, table = loaded(tmp_path, BINARY), raw(BINARY)
    to_torch(model, tmp_path / "model.pt2")
    np.savez(tmp_path / "raw.npz", numbers=table[".numbers"], codes=table[".codes"].astype(np.int64))
    command = [sys.executable, "-W", "ignore", "-c", PLAIN, str(tmp_path / "model.pt2"), str(tmp_path / "raw.npz")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    values, ours = json.loads(done.stdout.splitlines()[-1])
    assert ours == []
    np.testing.assert_allclose(values, expected(model, table), rtol=1e-5, atol=1e-7)
    said = {"model.json": ""}
    torch.export.load(tmp_path / "model.pt2", extra_files=said)
    assert json.loads(said["model.json"])["task"]["digest"] == BINARY.digest


@pytest.mark.apart
def test_onnx_gives_the_same_for_any_number_of_records(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    for name in ("several", "buffers"):
        model, table = loaded(tmp_path / name, TASKS[name]), raw(TASKS[name])
        to_onnx(model, tmp_path / f"{name}.onnx")
        session = onnxruntime.InferenceSession(tmp_path / f"{name}.onnx")
        assert [given.name for given in session.get_inputs()] == ["numbers", "codes"]
        for rows in (slice(None), slice(1)):
            given = {"numbers": table[".numbers"][rows], "codes": table[".codes"][rows].astype(np.int64)}
            (found,) = session.run(["prediction"], given)
            np.testing.assert_allclose(found, expected(model, table)[rows], rtol=1e-4, atol=1e-6)
        assert json.loads(session.get_modelmeta().custom_metadata_map["sovfed"])["run"]["name"] == "study-1"


class Untraceable(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * (2.0 if x.sum().item() > 0 else 1.0)


@pytest.mark.apart
def test_what_cannot_be_traced_is_one_line(tmp_path: Path) -> None:
    task = add(replace(BINARY, name="t_untraceable", build=lambda: Untraceable(12, 1), code="1"))
    with pytest.raises(ConfigError, match="'t_untraceable' cannot be exported"):
        to_torch(loaded(tmp_path, task), tmp_path / "model.pt2")


class Pretrained(nn.Linear):
    """As transformers' models: a config, and a way to write itself."""

    config: object = {"hidden": 12}

    def save_pretrained(self, folder: Path, safe_serialization: bool) -> None:
        from safetensors.torch import save_file

        assert safe_serialization
        save_file(self.state_dict(), folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(self.config))


def test_a_model_with_save_pretrained_writes_its_folder(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    task = add(
        replace(
            BINARY, name="t_pretrained", build=lambda: Pretrained(12, 1), loss=squares, code="1",
            predict=lambda module, inputs: {"logits": module(inputs)},
        )
    )  # fmt: skip
    model = loaded(tmp_path, task)
    to_hugging_face(model, tmp_path / "hf")
    assert torch.equal(
        load_file(tmp_path / "hf" / "model.safetensors")["weight"], model.module.state_dict()["inner.weight"]
    )
    assert {path.name for path in (tmp_path / "hf").iterdir()} == {"config.json", "model.json", "model.safetensors"}


def test_any_other_model_has_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a Linear, which is none of Hugging Face's"):
        to_hugging_face(loaded(tmp_path, BINARY), tmp_path / "hf")
    assert not (tmp_path / "hf").exists()


def test_an_adapters_folder_does_not_tell_where_its_base_lay(tmp_path: Path) -> None:
    """Seen: peft wrote the institution's path of the base into adapter_config.json and README.md."""
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    place = tmp_path / "confidential" / "base"
    transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=300, **sizes)).save_pretrained(place)
    base = transformers.AutoModelForCausalLM.from_pretrained(place, local_files_only=True)
    adapted = peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=["q_proj"]))
    out = tmp_path / "hf"
    to_hugging_face(replace(loaded(tmp_path / "model", BINARY), network=adapted), out)
    assert json.loads((out / "adapter_config.json").read_text())["base_model_name_or_path"] == "base"
    assert not any(b"confidential" in path.read_bytes() for path in out.iterdir())
    again = peft.PeftModel.from_pretrained(transformers.AutoModelForCausalLM.from_pretrained(place), out)
    assert "q_proj" in again.peft_config["default"].target_modules
