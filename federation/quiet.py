"""The environment of every process that we start: no library reports home or looks for updates."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

QUIET: Final[Mapping[str, str]] = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",  # api.flower.ai is asked even with telemetry off
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",  # else the SuperLink runs `uv sync` against PyPI
    "FLWR_TRACING_ENABLED": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "RAY_USAGE_STATS_ENABLED": "0",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_DATASETS_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
}
# Settings that would reopen in Flower what our launchers close, or point it at a service outside.
REMOVED: Final = (
    "FLWR_INTERNAL_GRPC_FLEET_API",
    "FLWR_INTERNAL_GRPC_CONTROL_API",
    "FLWR_DATABASE",
    "FLWR_OIDC_ENABLED",
    "FLWR_ENABLE_EVENT_LOG",
    "FLWR_SUPERGRID_API_URL",
    "FLWR_SUPERGRID_ADDRESS",
    "FLWR_MODEL_API_KEY",
    "FLWR_MODEL_API_ENDPOINT",
    "FLWR_LICENSE_KEY",
)

# Freed memory of a model's size stays with the process, in one heap of huge pages. glibc would hand it back and have
# the kernel zero it anew, page by page, several times a message: half of a 40 MB round's CPU time. A thread's own heap
# would end at 64 MiB, so there is one for all. Blocks above 1 GiB are returned all the same.
HEAP: Final[Mapping[str, str]] = {
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
    "MALLOC_ARENA_MAX": "1",
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}


def quiet_environment(home: Path | None = None) -> dict[str, str]:
    """A copy of this process's environment for a child, with every report and update check off.

    With `home`, the child is one of ours: Flower's own files go to `home/state/flwr` rather than to the user's home
    directory, and its heap is kept (`HEAP`).
    """
    environment = {name: value for name, value in os.environ.items() if name not in REMOVED}
    environment.update(QUIET)
    if home is not None:
        environment = {**HEAP, **environment}
        environment["FLWR_HOME"] = str(home / "state" / "flwr")
    return environment


def be_quiet(home: Path | None = None) -> None:
    """Apply `quiet_environment` to this process. Call it before flwr, mlflow, ray or transformers is imported."""
    environment = quiet_environment(home)
    for name in REMOVED:
        os.environ.pop(name, None)
    os.environ.update(environment)
