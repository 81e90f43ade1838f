"""What runs under a permit left at the agency is erased when it ends, and the receipt of it can be checked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from tests.release_fixture import RUN, Released, finished_run

from sovfed.federation.errors import ConfigError, EvidenceError
from sovfed.federation.evidence.store import LogReader
from sovfed.federation.files import private_directory, write_private
from sovfed.federation.orders.receipts import read_receipt
from sovfed.federation.release.cli import verify
from sovfed.server.cli.run import cli
from sovfed.server.orders.purging import purge
from sovfed.server.runs.folders import STATE, lock

ERASED = (
    "checkpoint.safetensors", "best.safetensors", "start.safetensors", ".checkpoint.safetensors.ab3_k9x_",
    ".tmp5yezEK", "before/2.safetensors", "before/.2.safetensors.ab3_k9x_",
)  # fmt: skip


@pytest.fixture
def federation(tmp_path: Path) -> Released:
    made = finished_run(tmp_path, "order.permit=p-12")
    private_directory(made.folder / "before")
    for name in ERASED:
        write_private(made.folder / name, b"x")
    return made


def test_checkpoints_of_a_permit_go_and_the_model_stays(federation: Released) -> None:
    home, root = federation.agency.home, federation.agency.authority / "root.pem"
    done = CliRunner().invoke(cli, ["purge", "p-12", "--yes", "--home", str(home)])
    assert done.exit_code == 0, f"{done.output} {done.exception!r}"
    assert not [*federation.folder.rglob("*2.safetensors"), *federation.folder.glob("checkpoint*")]
    assert (federation.folder / "model.safetensors").exists()
    path = home / "receipts" / "p-12.json"
    receipt = read_receipt(path.read_bytes(), federation.roots)
    assert receipt.runs == (RUN,) and receipt.institution == "sovfed/agency/localhost"
    assert receipt.erased == tuple(f"runs/{RUN}/{name}" for name in ERASED)
    told = CliRunner().invoke(verify, [str(path), "--root", str(root)])
    assert "signed by sovfed/agency/localhost" in told.output and "remains  what institutions hold" in told.output
    assert next(LogReader(home).newest())["event"] == "purged"
    values = json.loads(path.read_bytes())
    for name, value in (("erased", []), ("institution", "localhost"), ("institution", "sovfed/agency/other")):
        with pytest.raises(EvidenceError):
            read_receipt(json.dumps({**values, name: value}).encode(), federation.roots)


def test_nothing_is_erased_beneath_a_coordinator_and_none_begins_beneath_a_purge(federation: Released) -> None:
    with lock(federation.folder), pytest.raises(ConfigError, match=f"{RUN} goes on"):
        purge(federation.agency.home, "p-12", 1.0)
    assert (federation.folder / "checkpoint.safetensors").exists()
    purge(federation.agency.home, "p-12", 1.0)
    with lock(federation.folder):
        pass


def test_nothing_is_erased_while_a_run_of_the_permit_goes_on(federation: Released) -> None:
    state = json.loads((federation.folder / STATE).read_bytes())
    (federation.folder / STATE).write_text(json.dumps({**state, "status": "running"}))
    with pytest.raises(ConfigError, match=f"{RUN} goes on"):
        purge(federation.agency.home, "p-12", 1.0)
    assert (federation.folder / "checkpoint.safetensors").exists()
    for other in ("p-13", "../p-12"):
        with pytest.raises(ConfigError):
            purge(federation.agency.home, other, 1.0)
