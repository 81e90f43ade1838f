"""Published data sets that the project does not ship, for tests that need the real files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

BESIDE = Path(__file__).resolve().parents[2] / "shared" / "data"
VARIABLES = {
    "heart_disease": "SOVFED_HEART_DATA",
    "pneumoniamnist": "SOVFED_PNEUMONIA_DATA",
    "ja_law": "SOVFED_JA_LAW_DATA",
    "de_law": "SOVFED_DE_LAW_DATA",
}


def published(name: str) -> Path:
    """The folder of the published files `name`; skips the test where it is absent.

    Its environment variable names it, or it lies beside the project.
    """
    folder = Path(os.environ.get(VARIABLES[name], BESIDE / name))
    if not folder.is_dir():
        pytest.skip(f"{name}: no folder beside the project, and {VARIABLES[name]} names none")
    return folder
