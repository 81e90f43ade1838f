"""The model's bill of materials, as CycloneDX: the model itself with its card, and the libraries that trained it."""

from __future__ import annotations

import json
import uuid
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, Final

from sovfed.federation.evidence.entries import canonical

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cyclonedx.model.component import Component

LIBRARIES: Final = ("sovfed", "torch", "numpy", "flwr", "opacus", "dp-accounting", "cryptography")
NAMESPACE: Final = uuid.UUID("6a0d1f5e-6f3e-5d2b-9f41-0f6ad1f9a5a1")


def bill_of_materials(facts: Mapping[str, Any], sha256: str) -> bytes:
    """The bill of the model with these facts and that SHA-256 (hex): equal ones for equal arguments."""
    from cyclonedx.model import HashAlgorithm, HashType
    from cyclonedx.model.bom import Bom, BomMetaData
    from cyclonedx.model.component import Component, ComponentType
    from cyclonedx.output.json import JsonV1Dot6

    task = facts["task"]
    model = Component(
        type=ComponentType.MACHINE_LEARNING_MODEL, name=task["name"], version=facts["run"]["name"], bom_ref="model",
        description=task["title"] or None, hashes=[HashType(alg=HashAlgorithm.SHA_256, content=sha256)],
    )  # fmt: skip
    bom = Bom(
        serial_number=uuid.uuid5(NAMESPACE, sha256), metadata=BomMetaData(component=model), components=_libraries()
    )
    bom.register_dependency(model, bom.components)
    values = json.loads(JsonV1Dot6(bom).output_as_string())
    del values["metadata"]["timestamp"]  # equal models have equal bills
    values["metadata"]["component"]["modelCard"] = _card(facts)
    return canonical(values)


def _libraries() -> list[Component]:
    from cyclonedx.model.component import Component, ComponentType

    return [
        Component(type=ComponentType.LIBRARY, name=name, version=found, bom_ref=f"pkg:pypi/{name}@{found}")
        for name in LIBRARIES
        if (found := _version(name))
    ]


def _card(facts: Mapping[str, Any]) -> dict[str, Any]:
    """CycloneDX's model card, which the library cannot write."""
    metrics = facts["run"]["metrics"]
    considered = [
        {"name": "trained by a federation", "mitigationStrategy": "records stayed at the institutions"},
        *([] if facts["run"]["privacy"] else [{"name": "trained without differential privacy"}]),
    ]
    return {
        "modelParameters": {
            "approach": {"type": "supervised"}, "task": task_of(facts),
            "datasets": [{"type": "dataset", "name": facts["task"]["name"], "contents": {"properties": [
                {"name": "sovfed:task-digest", "value": facts["task"]["digest"]}]}}],
        },
        "quantitativeAnalysis": {
            "performanceMetrics": [{"type": name, "value": f"{metrics[name]:.6g}"} for name in sorted(metrics)]
        },
        "considerations": {"ethicalConsiderations": considered},
    }  # fmt: skip


def task_of(facts: Mapping[str, Any]) -> str:
    """What the model does, in a word."""
    return "classification" if facts["classes"] else "regression"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""
