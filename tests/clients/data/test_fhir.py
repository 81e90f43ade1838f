"""A FHIR bulk export becomes one row a patient."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any

import pytest
from tests.clients.data.cases import AGE, rows, task_of

from sovfed.clients.data import load_records
from sovfed.federation.config import DataConfig
from sovfed.federation.errors import DataError
from sovfed.federation.tasks.columns import Column, number, target

if TYPE_CHECKING:
    from pathlib import Path

LOINC, SNOMED = "http://loinc.org", "http://snomed.info/sct"
TASK = task_of(
    AGE, Column("male", "boolean", true=("male",), false=("female",)),
    number("glucose", 0, 600, missing="mean", unit="mg/dL"),
    target("diabetes", "no", "yes"),
)  # fmt: skip
MAPPING = f"""
columns:
  age: {{table: Patient, path: birthDate, age_at: 2026-01-01}}
  male: {{table: Patient, path: gender}}
  glucose: {{table: Observation, codes: "{LOINC}|2339-0", take: last, unit: mg/dL}}
  diabetes: {{table: Condition, codes: ["{SNOMED}|44054006", "{SNOMED}|46635009"], take: any}}
"""


def _observation(person: str, code: str, value: float, day: str, **more: Any) -> dict[str, Any]:
    return {
        "resourceType": "Observation", "status": "final", "code": {"coding": [{"system": LOINC, "code": code}]},
        "subject": {"reference": f"Patient/{person}"}, "effectiveDateTime": day,
        "valueQuantity": {"value": value, "unit": "mg/dL"},
    } | more  # fmt: skip


def _condition(person: str, code: str, **more: Any) -> dict[str, Any]:
    coding = {"coding": [{"system": SNOMED, "code": code}]}
    return {"resourceType": "Condition", "code": coding, "subject": {"reference": f"Patient/{person}"}} | more


def _export(folder: Path, observations: list[dict[str, Any]] | None = None) -> DataConfig:
    patients = [
        {"resourceType": "Patient", "id": "p1", "gender": "male", "birthDate": "1980-06-01"},
        {"resourceType": "Patient", "id": "p2", "gender": "female", "birthDate": "1990"},
        {"resourceType": "Patient", "id": "p3", "gender": "female", "birthDate": "2000-01-01"},
    ]
    parts = {
        "Patient.ndjson": patients,
        "Observation.000.ndjson": [
            _observation("p1", "2339-0", 100, "2025-02-01"), _observation("p2", "999", 7, "2025-02-01"),
        ],
        "Observation.001.ndjson": observations or [
            _observation("p1", "2339-0", 90, "2024-02-01"),
            _observation("p2", "2339-0", 110, "2024-02-01"),
            _observation("p2", "2339-0", 500, "2025-02-01", status="entered-in-error"),
        ],
        "Condition.ndjson": [
            _condition("p1", "44054006"),
            _condition("p2", "1"),
            _condition("p3", "44054006", verificationStatus={"coding": [{"system": "x", "code": "refuted"}]}),
        ],
    }  # fmt: skip
    for name, resources in parts.items():
        (folder / name).write_text("\n".join(map(json.dumps, resources)))
    (folder / "mapping.yaml").write_text(MAPPING)
    return DataConfig(source="fhir", path=str(folder), mapping=str(folder / "mapping.yaml"))


def test_each_patient_is_a_row(tmp_path: Path) -> None:
    records = load_records(TASK, _export(tmp_path))
    *first, third = rows(records)
    assert first == [[45, 1, 100, 1], [36, 0, 110, 0]]
    assert third[:2] == [26, 0]
    assert third[2] != third[2]  # no glucose
    assert third[3] == 0
    assert records.persons.tolist() == [0, 1, 2]
    assert records.not_private == ""


def test_a_declared_unit_is_converted_before_the_bounds_are_checked(tmp_path: Path) -> None:
    millimol = [_observation("p2", "2339-0", 6, "2025-01-01", valueQuantity={"value": 6, "unit": "mmol/L"})]
    config = _export(tmp_path, millimol)
    text = MAPPING.replace("unit: mg/dL", "unit: mmol/L, multiply: 18.02")
    text = text.replace("path: birthDate, age_at: 2026-01-01", "path: birthDate, age_at: 2026-01-01, add: 1")
    (tmp_path / "mapping.yaml").write_text(text)
    (tmp_path / "Observation.000.ndjson").unlink()
    read = rows(load_records(TASK, config))
    assert [row[0] for row in read] == [46, 37, 27]
    assert read[1][2] == pytest.approx(108.12)


def test_another_unit_is_refused(tmp_path: Path) -> None:
    wrong = [_observation("p2", "2339-0", 6, "2025-01-01", valueQuantity={"value": 6, "unit": "mmol/L"})]
    with pytest.raises(DataError, match="column 'glucose' is in another unit than 'mg/dL'"):
        load_records(TASK, _export(tmp_path, wrong))


def test_a_value_that_no_number_and_no_calendar_holds_is_at_fault_alone(tmp_path: Path) -> None:
    """Seen: one patient's year of ten digits, or value of hundreds, took all patients out of every sum."""
    text = MAPPING.replace("take: last", "take: mean")
    observations = [_observation("p2", "2339-0", 10**400, "2025-01-01"), _observation("p3", "2339-0", 90, "2025-01-01")]
    config = dataclasses.replace(_export(tmp_path, observations), bad_rows="quarantine", max_bad_share=0.9)
    (tmp_path / "mapping.yaml").write_text(text)
    born = {"resourceType": "Patient", "id": "p4", "gender": "male", "birthDate": "9999999999"}
    with (tmp_path / "Patient.ndjson").open("a") as file:
        file.write("\n" + json.dumps(born))
    assert [row[2] for row in rows(load_records(TASK, config))] == [100, 90]


@pytest.mark.parametrize(
    ("mapping", "said"),
    [
        ("columns: {age: {table: Patients}}", "columns.age.table is 'Patients', expected one of"),
        ("columns: {age: {table: Patient, pth: x}}", "unknown key .*did you mean 'path'"),
        ("columns: {age: {table: Patient, take: newest}}", "columns.age.take"),
        ("columns: {age: {table: Patient, age_at: soon}}", "columns.age"),
        ("columns: {age: 5}", "columns.age"),
        ("columns: []", "expected 'columns'"),
        ("!!python/object/apply:os.system [ls]", "not YAML"),
        ("columns: {age: {table: Patient, path: birthDate}}", "lacks 3 columns"),
    ],
)
def test_a_wrong_mapping_is_told(tmp_path: Path, mapping: str, said: str) -> None:
    config = _export(tmp_path)
    (tmp_path / "mapping.yaml").write_text(mapping)
    with pytest.raises(DataError, match=said):
        load_records(TASK, config)


def test_what_is_not_there_is_told(tmp_path: Path) -> None:
    config = _export(tmp_path)
    with pytest.raises(DataError, match=r"needs data\.mapping"):
        load_records(TASK, dataclasses.replace(config, mapping=None))
    (tmp_path / "Condition.ndjson").unlink()
    with pytest.raises(DataError, match=r"no Condition\.ndjson"):
        load_records(TASK, config)
