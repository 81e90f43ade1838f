"""What `sovfed bench own-task` runs in processes of their own, each of which prints one line of JSON at its end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

from sovfed.federation.errors import ServiceError
from sovfed.federation.host.quiet import quiet_environment

TIMEOUT_S: Final = 900.0
THREADS: Final = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def child(module: str, *arguments: str, paths: tuple[Path, ...] = ()) -> dict[str, Any]:
    """What `module` of this package prints, with `paths` to import from. Raises ServiceError if it fails."""
    completed = subprocess.run(
        [sys.executable, "-P", "-m", f"{__name__}.{module}", *arguments],
        env=environment(paths), capture_output=True, text=True, check=False, timeout=TIMEOUT_S,
    )  # fmt: skip
    if completed.returncode:
        raise ServiceError(f"{module} {arguments[0]}: …{completed.stderr[-2000:]}")
    result: dict[str, Any] = json.loads(completed.stdout.splitlines()[-1])
    return result


def environment(paths: tuple[Path, ...] = ()) -> dict[str, str]:
    """Of a child that computes on one thread and imports this package from where it is."""
    import sovfed

    own = Path(next(iter(sovfed.__path__))).parent
    return {**quiet_environment(), **THREADS, "PYTHONPATH": os.pathsep.join(map(str, (*paths, own)))}
