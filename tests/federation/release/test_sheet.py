"""A signed table holds by the root alone; nobody else signs one, and no bit of it can be changed."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from tests.release_fixture import RUN, Released, finished_run

from sovfed.federation.errors import ConfigError, DataError, EvidenceError, PolicyError
from sovfed.federation.evidence.store import LogReader
from sovfed.federation.files import write_private
from sovfed.federation.release.cli import verify
from sovfed.federation.release.sheet import check_sheet, make_sheet
from sovfed.federation.statistics.question import read_question
from sovfed.federation.statistics.table import table_of
from sovfed.federation.tasks.registry import get_task
from sovfed.server.cli.run import cli as run_cli
from sovfed.server.orders.withdrawn import FILE as WITHDRAWN
from sovfed.server.orders.withdrawn import Withdrawal, add_withdrawal
from sovfed.server.registry import authority
from sovfed.server.runs.release import DIGEST, SUMMARY, TABLE, TRACKED, check_copies, digest
from sovfed.server.runs.sheet import signed_table, table_in

FLIPS = 300


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Released:
    """A run that counted, as its coordinator leaves it."""
    made = finished_run(tmp_path_factory.mktemp("federation"))
    task = get_task("breast_cancer")
    question = read_question("malignant", task.schema)
    table = table_of(question, np.array([300.0, 190.0, 110.0]), 5.0)
    run = {"name": RUN, "date": "2027-01-01", "institutions": ["hospital-1", "hospital-2"],
           "privacy": {"mechanism": "distributed", "epsilon": 0.5, "delta": 1e-6, "seeded": False}}  # fmt: skip
    content = {"run": run, "task": {"name": task.name, "digest": task.digest}, "question": "malignant", "table": table}
    write_private(made.folder / TABLE, json.dumps(content).encode())
    summary = json.loads((made.folder / SUMMARY).read_bytes())
    summary |= {"table": table, DIGEST: digest(made.folder / TABLE)}
    write_private(made.folder / SUMMARY, json.dumps(summary).encode())
    return made


@pytest.fixture(scope="module")
def sheet(federation: Released) -> bytes:
    return signed_table(federation.agency.home, RUN)


def test_a_table_holds_by_the_root_alone_and_is_in_the_agency_s_log(federation: Released, sheet: bytes) -> None:
    checked = check_sheet(sheet, federation.roots)
    text = "\n".join(checked.lines())
    assert checked.agency == "localhost"
    assert "ε = 0.500 at δ = 1e-06" in text and "malignant  110" in text
    entries = [json.loads(entry) for _, entry in LogReader(federation.agency.home).entries()]
    assert [entry["sha256"] for entry in entries if entry["kind"] == "release"] == [digest(federation.folder / TABLE)]


def test_the_command_tells_a_table_from_a_release(federation: Released, sheet: bytes, tmp_path: Path) -> None:
    path, root = tmp_path / "counts.table", federation.agency.authority / "root.pem"
    path.write_bytes(sheet)
    done = CliRunner().invoke(verify, [str(path), "--root", str(root)])
    assert done.exit_code == 0 and "✓ signed by the agency localhost" in done.output
    done = CliRunner().invoke(verify, [str(path), "--root", str(root), "--json"])
    assert json.loads(done.output)["question"] == "malignant"


@pytest.mark.parametrize("asked", [["--signed-by-all"], ["--cosigned-by", "1"]])
def test_a_table_is_never_taken_for_one_that_institutions_signed(
    federation: Released, sheet: bytes, tmp_path: Path, asked: list[str]
) -> None:
    path, root = tmp_path / "counts.table", federation.agency.authority / "root.pem"
    path.write_bytes(sheet)
    done = CliRunner().invoke(verify, [str(path), "--root", str(root), *asked])
    assert isinstance(done.exception, EvidenceError) and "✓" not in done.output


def test_one_flipped_bit_anywhere_is_found(federation: Released, sheet: bytes) -> None:
    generator = random.Random(1)
    for place in generator.sample(range(8 * len(sheet)), FLIPS):
        changed = bytearray(sheet)
        changed[place // 8] ^= 1 << place % 8
        with pytest.raises(EvidenceError):
            check_sheet(bytes(changed), federation.roots)


@pytest.mark.parametrize("data", [b"{", b"{}", b'{"payload":1}', b"{" * 10_000])
def test_what_is_no_table_is_told_as_such(federation: Released, data: bytes) -> None:
    with pytest.raises(EvidenceError):
        check_sheet(data, federation.roots)


def predicate(federation: Released, sheet: bytes) -> dict[str, Any]:
    return check_sheet(sheet, federation.roots).predicate


@pytest.mark.parametrize(
    ("changes", "column"),
    [
        ({"table": {}}, {}), ({"table": {"models": [{}]}}, {}), ({"table": []}, {}), ({"privacy": {}}, {}),
        ({"institutions": 5}, {}), ({}, {"quantiles": {"0.5": 1e30}}), ({}, {"quantiles": {"0.5": "x"}}),
        ({}, {"mean": "x"}), ({}, {"mean": 1e300}),
    ],
)  # fmt: skip
def test_an_agency_that_signs_what_cannot_be_shown_has_signed_no_table(
    federation: Released, sheet: bytes, changes: dict[str, Any], column: dict[str, Any]
) -> None:
    told = predicate(federation, sheet)
    day = {"name": "day", "unit": "", "kind": "date", "cells": {"a": 1}, "mean": 1.0, "mean_within": 1.0,
           "deviation": 1.0, "quantiles": {}}  # fmt: skip
    table = {**told["table"], "columns": [day | column]}
    forged = make_sheet({**told, "table": table, **changes}, {}, federation.agency.home)
    with pytest.raises(EvidenceError):
        check_sheet(forged, federation.roots)


def test_an_institution_signs_no_table(federation: Released, sheet: bytes) -> None:
    forged = make_sheet(predicate(federation, sheet), {}, federation.homes[0])
    with pytest.raises(EvidenceError, match="not signed by an agency"):
        check_sheet(forged, federation.roots)


def test_another_authority_s_agency_signs_none(federation: Released, sheet: bytes, tmp_path: Path) -> None:
    other = finished_run(tmp_path)
    with pytest.raises(EvidenceError):
        check_sheet(sheet, other.roots)


def test_a_run_that_trained_has_no_table_and_a_changed_one_is_noticed(tmp_path: Path) -> None:
    trained = finished_run(tmp_path)
    with pytest.raises(ConfigError, match="no table"):
        table_in(trained.agency.home, RUN)
    summary = json.loads((trained.folder / SUMMARY).read_bytes())
    write_private(trained.folder / SUMMARY, json.dumps(summary | {"table": {}}).encode())
    (trained.folder / TABLE).write_text("{}")
    with pytest.raises(DataError, match="not the table"):
        signed_table(trained.agency.home, RUN)


def test_a_table_of_a_run_that_somebody_withdrew_from_is_signed_no_more(federation: Released) -> None:
    add_withdrawal(federation.folder, Withdrawal("hospital-1", 1_900_000_000, "0" * 64, 1, 1))
    with pytest.raises(PolicyError, match="hospital-1 withdrew"):
        signed_table(federation.agency.home, RUN)
    (federation.folder / WITHDRAWN).unlink()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")  # MLflow's own
def test_a_run_that_counted_is_checked_by_its_table_here_and_at_mlflow(tmp_path: Path) -> None:
    from mlflow import MlflowClient

    (tmp_path / TABLE).write_text("{}")
    (tmp_path / SUMMARY).write_text(json.dumps({"table": {}, DIGEST: digest(tmp_path / TABLE)}))
    done = CliRunner().invoke(run_cli, ["check", str(tmp_path)])
    assert done.exit_code == 0 and f"{TABLE}: SHA-256 {digest(tmp_path / TABLE)}" in done.output
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.create_experiment("counts", artifact_location=(tmp_path / "artifacts").as_uri())
    run = client.create_run(experiment).info.run_id
    client.log_artifact(run, str(tmp_path / TABLE))
    (tmp_path / TRACKED).write_text(run)
    assert check_copies(tmp_path, client)[1:] == [f"MLflow run {run}: the same"]
    (tmp_path / "artifacts" / run / "artifacts" / TABLE).write_text("{ }")
    with pytest.raises(DataError, match="MLflow's copy"):
        check_copies(tmp_path, client)
    (tmp_path / TABLE).write_text("[]")
    assert isinstance(CliRunner().invoke(run_cli, ["check", str(tmp_path)]).exception, DataError)


def test_a_certificate_that_was_revoked_signs_none(federation: Released, sheet: bytes) -> None:
    """With the list of its day in the table, as it must be."""
    told = predicate(federation, sheet)
    crl = authority.revoke(federation.agency.authority, "localhost")
    forged = make_sheet(told | {"revoked": crl.decode()}, {}, federation.agency.home)
    with pytest.raises(EvidenceError, match="revoked"):
        check_sheet(forged, federation.roots)
