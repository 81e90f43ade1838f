"""The files that an institution keeps between rounds, by their names, which say all that finding them takes.

KEY.OWNER.ROUND.KIND.safetensors: of a run and task, of Flower's own number of that run, both hashed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_NAME: Final = re.compile(
    r"([0-9a-f]{24})\.([0-9a-f]{16})\.([0-9]{1,9})\.(personal|variate|place|moments)\.safetensors"
)


@dataclass(frozen=True)
class KeptFile:
    """A file's name in parts; `age` is when it was written, in ns since 1970."""

    path: Path
    key: str
    owner: str
    round: int
    kind: str
    age: int


def kept_files(folder: Path) -> list[KeptFile]:
    """Those in `folder`, in no order; whatever else lies there is left out."""
    matches = [(_NAME.fullmatch(path.name), path) for path in folder.glob("*.safetensors")]
    return [KeptFile(p, m[1], m[2], int(m[3]), m[4], p.stat().st_mtime_ns) for m, p in matches if m]
