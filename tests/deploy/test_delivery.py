"""After a run in a real federation its model lies at every institution, which measures it at home."""

from __future__ import annotations

import json
from typing import Any

import pytest
from click.testing import CliRunner
from tests.deploy.conftest import finished, make_config, summary

from sovfed.clients.cli.model import model
from sovfed.clients.data import load_records
from sovfed.federation.tasks.registry import get_task
from sovfed.server.runs import folders
from sovfed.simulations.deployment import LocalFederation

pytestmark = pytest.mark.deploy


def asked(federation: LocalFederation, name: str, *arguments: str) -> Any:
    home = ["--home", str(federation.client_home(name))]
    return json.loads(CliRunner().invoke(model, [*arguments, "--json", *home], catch_exceptions=False).stdout)


def test_an_institution_lists_and_measures_the_model_of_a_run(federation: LocalFederation) -> None:
    federation.start_run("delivered", make_config("rounds=3", "task.batch_size=16"))
    finished(federation, "delivered")
    told = summary(federation, "delivered")
    names = sorted(member.name for member in federation.institutions)
    assert told["delivered_to"] == names
    published = (folders.run_folder(federation.home, "delivered") / "model.safetensors").read_bytes()
    for name in names:
        (listed,) = asked(federation, name, "list")
        assert (listed["run"], listed["rounds"], listed["as_published"]) == ("delivered", 3, True)
        assert listed["sha256"] == told["model_sha256"]
        (received,) = (federation.client_home(name) / "received").iterdir()
        assert (received / "model.safetensors").read_bytes() == published
        assert json.loads((received / "received.json").read_bytes())["plan"]["batch_size"] == 16
    member = federation.institutions[0]
    figures = asked(federation, member.name, "evaluate", "delivered")
    records = load_records(get_task("breast_cancer"), member.data)
    assert (figures["train"], figures["test"]) == (len(records.train), len(records.test))
    assert figures["federated"]["accuracy"] > 0.7
    assert figures["alone"].keys() == figures["federated"].keys()
