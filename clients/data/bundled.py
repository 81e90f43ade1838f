"""Data sets that lie in scikit-learn's package, read without importing it: that would take a trainer over a second."""

from __future__ import annotations

import gzip
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from sovfed.clients.data.files import read_file
from sovfed.federation.errors import DataError
from sovfed.federation.host.extras import advice

MAX_BYTES: Final = 1 << 20


def read_bundled(name: str, sha256: str, skip_lines: int = 0) -> npt.NDArray[np.float64]:
    """The numbers of `name` in scikit-learn's data folder, shape [n, columns]. Raises DataError."""
    package = find_spec("sklearn")
    if package is None or package.origin is None:
        raise DataError(f"data set {name} lies in scikit-learn: {advice('sklearn')}")
    content = read_file(Path(package.origin).parent / "datasets" / "data" / name, MAX_BYTES, sha256)
    text = (gzip.decompress(content) if name.endswith(".gz") else content).decode("ascii")
    return np.loadtxt(text.splitlines()[skip_lines:], delimiter=",", dtype=np.float64)
