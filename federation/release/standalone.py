"""The verifier as one file for whoever has Python and `cryptography` and nothing else: equal bytes for equal versions.

It holds this installation's own source of what anybody runs, and the two packages of plain Python that this needs.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sovfed.federation.files import write_atomic

if TYPE_CHECKING:
    from collections.abc import Iterator

PARTS: Final = {
    "click": ("**/*.py",), "rfc8785": ("**/*.py",), "sovfed": ("__init__.py", "cli.py", "federation/**/*.py"),
}  # fmt: skip
FIRST: Final = b"#!/usr/bin/env python3\n"
MAIN: Final = b"import sys\n\nfrom sovfed.cli import run\n\nsys.exit(run(['verify', *sys.argv[1:]]))\n"
_FIRST_DAY: Final = (1980, 1, 1, 0, 0, 0)


def write_verifier(path: Path) -> str:
    """Write `sovfed verify` into the new file `path`, for `python FILE BUNDLE --root ROOT`; its SHA-256 (hex)."""
    content = io.BytesIO(FIRST)
    content.seek(0, io.SEEK_END)
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in (("__main__.py", MAIN), *_sources()):
            file.writestr(zipfile.ZipInfo(name, _FIRST_DAY), data, zipfile.ZIP_DEFLATED)
    write_atomic(path, content.getvalue(), 0o755)
    return hashlib.sha256(content.getvalue()).hexdigest()


def _sources() -> Iterator[tuple[str, bytes]]:
    for package, patterns in PARTS.items():
        folder = Path(str(import_module(package).__file__)).parent
        for path in sorted(path for pattern in patterns for path in folder.glob(pattern)):
            yield f"{package}/{path.relative_to(folder)}", path.read_bytes()
