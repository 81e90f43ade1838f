"""A package's own head: trained by the package's code, kept at home, put into the model by a sealed process."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from tests.packages import HEADER, TASK, make_signer, rows, write_wheel

from sovfed.clients.models.prediction_apart import OWN, Prediction, exported_apart, predictions_apart
from sovfed.federation.archive.packing import pack
from sovfed.federation.errors import DataError
from sovfed.server.registry import authority

TRAIN = """
import json, sys
from pathlib import Path
import sovfed.task
from sovfed.clients.data import load_records
from sovfed.clients.models.received import ReceivedModels
from sovfed.clients.trainer.loaded import RecordSource, Runtime
from sovfed.clients.trainer.service import TrainerService
from sovfed.clients.training.personal import PersonalStates
from sovfed.federation.algorithms import ALGORITHMS
from sovfed.federation.config import DataConfig
from sovfed.federation.messages import TrainRequest
from sovfed.federation.models.facts import RunFacts, facts_of
from sovfed.federation.tasks import initial_vector
archive, table, home = map(Path, sys.argv[1:])
task = sovfed.task.add_archive(archive)
data = DataConfig(source="csv", path=str(table))
states = PersonalStates(home / "personal")
trainer = TrainerService(RecordSource(lambda task: load_records(task, data), "a"), Runtime("cpu"), states=states)
model, scale = initial_vector(task, 0), task.transform.public_scale
reply = trainer.answer(TrainRequest(
    run="7", round=1, task=task.name, seed=1, local_epochs=2, batch_size=16, learning_rate=0.5, proximal_mu=0.0,
    model=model, scale=scale, digest=task.digest, algorithm="fedper", keep="a-run",
))
head = ALGORITHMS["fedper"].own(task.layout)
facts = facts_of(task, scale, RunFacts("a-run", 1, "fedper", "2026-11-29", ("a",)))
received = ReceivedModels(home / "received").keep(task, model + reply.update, facts, owner="7", plan={})
print(json.dumps([
    bool(head.any()), bool(reply.update[head].any()), bool(reply.update[~head].any()), str(received.path),
    str(states.list()[0].path),
]))
"""


PRINTING = (
    TASK
    + """
import os, sys
if "sovfed.clients.models.prediction_apart" in sys.orig_argv:
    for number in range(3, 64):
        try:
            os.write(number, {printed!r})
        except OSError:
            pass
    os._exit(0)
"""
)


def test_code_of_an_archive_prints_no_formula_and_steers_no_terminal(tmp_path: Path) -> None:
    """It writes to the pipe itself, in the table's place."""
    authority.init(tmp_path / "authority", "Authority")
    signer = make_signer(tmp_path, tmp_path / "authority", "pat", "vendor")
    (tmp_path / "model").mkdir()

    def predicted(name: str, printed: bytes) -> str:
        folder = tmp_path / name
        wheel = write_wheel(folder, task=PRINTING.format(printed=printed))
        (folder / "task.sovtask").write_bytes(pack(wheel, signer)[0].to_bytes())
        return predictions_apart(Prediction(str(tmp_path / "model"), str(folder / "task.sovtask"), str(folder)))

    text = predicted("words", b'line,class\n1,\x1b[2Jill\n2,=1+1\n3,-1e-05\n4,\'=x\n5,"a\nb"\n6,\xff\n')
    assert "\x1b" not in text
    cells = [row[1] for row in csv.reader(io.StringIO(text))]
    assert cells == ["class", "\\x1b[2Jill", "'=1+1", "-1e-05", "'=x", "a\nb", "\ufffd"]
    with pytest.raises(DataError, match="printed no table"):
        predicted("long", b"x" * 200_000)


def test_a_packaged_head_stays_and_comes_with_the_institutions_model(tmp_path: Path) -> None:
    authority.init(tmp_path / "authority", "Authority")
    personal = TASK.replace("headline=", "personal=lambda name: name.startswith('out.'), headline=")
    signer = make_signer(tmp_path, tmp_path / "authority", "pat", "vendor")
    archive, table = tmp_path / "sepsis.sovtask", tmp_path / "a.csv"
    archive.write_bytes(pack(write_wheel(tmp_path, task=personal), signer)[0].to_bytes())
    table.write_text("".join(",".join(row) + "\n" for row in [HEADER, *rows("a", 120)]))
    command = [sys.executable, "-c", TRAIN, str(archive), str(table), str(tmp_path / "home")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd="/", timeout=300)
    assert done.returncode == 0, done.stderr
    some, moved, learnt, received, state = json.loads(done.stdout.splitlines()[-1])
    assert (some, moved, learnt) == (True, False, True)
    own = tmp_path / "own"
    own.mkdir()
    asked = Prediction(model=received, archive=str(archive), state=state, form=OWN)
    assert "strategy=fedper" in exported_apart(asked, own)
    shared, with_head = (load_file(folder / "model.safetensors") for folder in (Path(received), own))
    differ = {name for name in shared if not np.array_equal(shared[name], with_head[name])}
    assert differ and all("out." in name for name in differ), differ
    (tmp_path / "own.yaml").write_text("columns: {}")
    settings = (f"data.mapping={tmp_path / 'own.yaml'}", "data.missing_words=[-99]")
    asked = Prediction(model=str(own), archive=str(archive), table=str(table), keep="patient", settings=settings)
    assert len(predictions_apart(asked).splitlines()) == 121
