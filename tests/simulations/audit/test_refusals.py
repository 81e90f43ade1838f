"""No probe tells two data sets of one institution apart, and a trainer that refuses is found out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from sovfed.simulations.audit.reading import audit_reading
from sovfed.simulations.audit.refusals import Probe, Refusing, audit_refusals, probes
from sovfed.simulations.cli_audit import audit

PROBES = probes()


@pytest.mark.parametrize("probe", PROBES, ids=[probe.name for probe in PROBES])
def test_what_leaves_in_the_clear_does_not_depend_on_the_records(probe: Probe) -> None:
    verdict = audit_refusals(probe)
    assert verdict.masked, verdict  # the request got as far as the records
    assert not verdict.distinguishable, verdict


@pytest.mark.parametrize(
    "name",
    [
        "a value that is no number, trained on", "one record more than the maximum weight", "no training records",
        "a sum of losses above the header's bound", "a label that is no class",
    ],
)  # fmt: skip
def test_a_trainer_that_refuses_what_fails_on_the_records_is_found_out(name: str) -> None:
    (probe,) = (probe for probe in PROBES if probe.name == name)
    assert audit_refusals(probe, Refusing).distinguishable


def test_sums_without_privacy_still_read_a_patient_as_the_documents_say() -> None:
    reading = audit_reading()
    assert (reading.features, reading.sums) == (30, 62)
    assert reading.error < 0.002
    assert reading.per_evaluations_of_a_run <= 9


@pytest.mark.timeout(300)
def test_the_command_writes_its_ratios(tmp_path: Path) -> None:
    path = tmp_path / "refusals.json"
    result = CliRunner().invoke(audit, ["refusals", "--quick", "--json", str(path)])
    assert result.exit_code == 0, result.output
    ratios = json.loads(path.read_text())["ratios"]
    assert ratios["distinguishable"] == 0 and ratios["probes"] >= 30 and ratios["control_distinguishable"] >= 5
