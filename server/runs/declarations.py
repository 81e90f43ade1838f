"""What institutions have declared of a run's training content, kept in its folder until it is released."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from sovfed.federation.errors import IdentityError
from sovfed.federation.evidence.entries import canonical
from sovfed.federation.files import private_directory, write_private
from sovfed.federation.identity import load_roots
from sovfed.federation.release.content import CONTENT, read_declaration
from sovfed.server.orders.making import read_order
from sovfed.server.runs.folders import run_folder

if TYPE_CHECKING:
    from pathlib import Path

FOLDER: Final = "declarations"  # in the run's folder


def take(home: Path, run: str, file: Path) -> str:
    """Keep the declaration in `file`; whose it is. Raises IdentityError unless it is an institution's, of this run."""
    declaration = read_declaration(file.read_bytes(), str(file))
    declaration.check(load_roots(home / "identity" / "root.pem"))
    folder, proposal = run_folder(home, run), read_order(run_folder(home, run))
    if proposal is None or declaration.order != proposal.order.digest:
        raise IdentityError(f"{file}: a declaration for another run than '{run}'")
    write_private(private_directory(folder / FOLDER) / f"{declaration.institution}.json", declaration.to_bytes())
    return declaration.institution


def declared(folder: Path, institutions: list[str]) -> dict[str, Any]:
    """The declarations of those who took part in the run in `folder`, by name."""
    paths = {name: folder / FOLDER / f"{name}.json" for name in sorted(institutions)}
    return {name: json.loads(path.read_bytes()) for name, path in paths.items() if path.exists()}


def files_of(folder: Path, institutions: list[str]) -> dict[str, bytes]:
    """The file of a release that holds them; none where there are none."""
    values = declared(folder, institutions)
    return {CONTENT: canonical(values)} if values else {}
