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

PARTS: Final = (("click", "."), ("rfc8785", "."), ("sovfed", "federation"))
FIRST: Final = b"#!/usr/bin/env python3\n"
MAIN: Final = b"from sovfed.federation.release.cli import verify\n\nverify(prog_name='verify')\n"
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
    for package, below in PARTS:
        folder = Path(str(import_module(package).__file__)).parent
        paths = {folder / "__init__.py", *(folder / below).rglob("*.py")}
        for path in sorted(paths):
            yield f"{package}/{path.relative_to(folder)}", path.read_bytes()
