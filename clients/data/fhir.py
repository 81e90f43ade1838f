"""FHIR bulk export (NDJSON files by resource) as one row a patient, by the mapping of `data.mapping`.

    columns:
      sex: {table: Patient, path: gender}
      age: {table: Patient, path: birthDate, age_at: 2026-01-01}
      glucose: {table: Observation, codes: "http://loinc.org|2339-0", take: last, unit: mg/dL}
      diabetes: {table: Condition, codes: "http://snomed.info/sct|44054006", take: any}

`data.path` is the folder of the files Patient.ndjson, Observation.ndjson, Condition.ndjson; an export's several files
of a resource (Observation.000.ndjson) are all read. Source: HL7 FHIR R4; FHIR Bulk Data Access 2.0.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sovfed.clients.data.jsonl import Jsonl
from sovfed.clients.data.tables.connect import connector
from sovfed.clients.data.tables.facts import Facts, Gathered, Rule, rules_of
from sovfed.clients.data.tables.mapping import read_mapping
from sovfed.federation.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from sovfed.clients.data.tables.report import Report
    from sovfed.federation.config import DataConfig

TABLES: Final = ("Patient", "Observation", "Condition")
SUFFIXES: Final = (".ndjson", ".ndjson.xz", ".jsonl")
DATES: Final = {
    "Observation": ("effectiveDateTime", "effectiveInstant", "issued"),
    "Condition": ("onsetDateTime", "recordedDate"),
}
REFUTED: Final = ("refuted", "entered-in-error")
VOID: Final = ("entered-in-error", "cancelled")


class Fhir(Facts):
    """The patients of an export."""

    def __init__(self, folder: Path, rules: Mapping[str, Rule]) -> None:
        super().__init__(str(folder), rules)
        self._folder = folder
        self._files("Patient")

    def gather(self, report: Report) -> tuple[list[str], dict[str, Gathered]]:
        gathered = {name: Gathered(rule) for name, rule in self.rules.items()}
        persons: dict[str, None] = {}
        for table in TABLES:
            columns = {name: column for name, column in gathered.items() if column.rule.table == table}
            if not columns and table != "Patient":
                continue
            for line, resource in self._resources(table):
                person = _person(resource, table)
                if table == "Patient":
                    persons[person] = None
                elif _void(resource):
                    continue
                for name, column in columns.items():
                    _take(resource, column, name, person, line, report)
        return [person for person in persons if person], gathered

    def _resources(self, table: str) -> Iterator[tuple[int, dict[str, Any]]]:
        for path in self._files(table):
            for line, resource in Jsonl(path, ()).objects():
                if resource.get("resourceType") == table:
                    yield line, resource

    def _files(self, table: str) -> list[Path]:
        if not self._folder.is_dir():
            raise DataError(f"{self._folder}: no such folder; check data.path")
        files = sorted(
            path for path in self._folder.iterdir()
            if path.name.split(".")[0] == table and path.name.endswith(SUFFIXES) and path.is_file()
        )  # fmt: skip
        if not files:
            raise DataError(f"{self._folder}: no {table}.ndjson, which data.mapping needs")
        return files


def _person(resource: Mapping[str, Any], table: str) -> str:
    """The patient's id; "" if there is none."""
    if table == "Patient":
        return str(resource.get("id", ""))
    subject = resource.get("subject")
    reference = str(subject.get("reference", "")) if isinstance(subject, dict) else ""
    return (
        reference.rpartition("Patient/")[2].split("/")[0]
        if "Patient/" in reference
        else reference.removeprefix("urn:uuid:")
    )


def _void(resource: Mapping[str, Any]) -> bool:
    """Whether an entry says of itself that it does not count."""
    return resource.get("status") in VOID or bool(set(_codes(resource.get("verificationStatus"))) & set(REFUTED))


def _take(resource: Mapping[str, Any], column: Gathered, name: str, person: str, line: int, report: Report) -> None:
    rule = column.rule
    if rule.codes and not set(_codes(resource.get("code"))) & set(rule.codes):
        return
    when = next((str(resource[key]) for key in DATES.get(rule.table, ()) if resource.get(key)), "")
    if rule.unit and rule.take not in ("any", "count"):
        quantity = resource.get("valueQuantity")
        unit = (quantity.get("unit"), quantity.get("code")) if isinstance(quantity, dict) else ()
        if unit and rule.unit not in unit:
            raise DataError(
                f"{report.where}: {rule.table}, line {line}: column '{name}' is in another unit than '{rule.unit}'"
            )
    column.add(person, when, _value(resource, rule))


def _value(resource: Mapping[str, Any], rule: Rule) -> Any:
    """What stands at the rule's path, else the entry's own value."""
    if rule.path:
        node: Any = resource
        for key in rule.path.split("."):
            node = node[int(key)] if isinstance(node, list) and key.isdecimal() and int(key) < len(node) else node
            node = node.get(key) if isinstance(node, dict) else node
        return None if isinstance(node, (dict, list)) else node
    quantity = resource.get("valueQuantity")
    if isinstance(quantity, dict):
        return quantity.get("value")
    if coded := _codes(resource.get("valueCodeableConcept")):
        return next((rule.values[code] for code in coded if code in rule.values), coded[0])
    return next(
        (resource[key] for key in ("valueInteger", "valueBoolean", "valueString", "valueDateTime") if key in resource),
        None,
    )


def _codes(concept: object) -> list[str]:
    """The codes of a CodeableConcept, each alone and with its system before."""
    coding = concept.get("coding") if isinstance(concept, dict) else None
    parts = [entry for entry in coding if isinstance(entry, dict)] if isinstance(coding, list) else []
    return [text for entry in parts for text in (str(entry.get("code")), f"{entry.get('system')}|{entry.get('code')}")]


def open_fhir(config: DataConfig, names: Iterable[str]) -> Fhir:
    """The configured export. Raises DataError."""
    if not config.path:
        raise DataError("data.source 'fhir' needs data.path: the folder of the NDJSON files")
    folder = Path(config.path).expanduser()
    folder = folder / config.site if (folder / config.site).is_dir() else folder
    return Fhir(folder, rules_of(read_mapping(config), config.mapping or "", TABLES))


CONNECTOR: Final = connector(open_fhir, (), reads=())
