"""How every process of ours is started: it runs the installed package, and no library reports home.

Nothing that lies in the folder where a command is typed, and no variable but those named here, reaches a child: by
`argparse.py`, `PYTHONPATH`, `usercustomize`, `LD_PRELOAD` and their like, other people's code would run in a process
that holds keys or records.
"""

from __future__ import annotations

import logging
import os
import sys
from typing import TYPE_CHECKING, Final

from sovfed.federation.host.cpus import usable

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

QUIET: Final[Mapping[str, str]] = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",  # api.flower.ai is asked even with telemetry off
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",  # else the SuperLink runs `uv sync` against PyPI
    "FLWR_TRACING_ENABLED": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # a server that is away is tried again later, by us
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

# Freed memory stays with the process, in one heap of huge pages. glibc would hand it back and have the kernel zero it
# anew, page by page, several times a message: half of a 40 MB round's CPU time. A thread's own heap would end at
# 64 MiB, so there is one for all. Longer vectors are mapped one by one, in huge pages too, and given back: in the heap
# small objects settle in the hole that such a one leaves, and the next does not fit there.
LONG_BYTES: Final = 1 << 26
HEAP: Final[Mapping[str, str]] = {
    "MALLOC_MMAP_THRESHOLD_": str(LONG_BYTES),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
    "MALLOC_ARENA_MAX": "1",
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}
SPINS: Final = "1000"  # a coordinator's step beside ten trainers on two cores: 0.20 s of processor time, not 0.33
# For what a library starts by itself, as MLflow its web server: `python_command` says the same to our own children.
SAFE: Final[Mapping[str, str]] = {"PYTHONSAFEPATH": "1", "PYTHONNOUSERSITE": "1"}
# What a child may take from the environment of whoever types the command. By name: `CUDA_*` would hold
# CUDA_INJECTION64_PATH, and `OMP_*` OMP_TOOL_LIBRARIES, which load code.
PASSED: Final = (
    "PATH", "HOME", "USER", "LOGNAME", "LANG", "LANGUAGE", "LC_ALL", "LC_CTYPE", "LC_MESSAGES", "TZ", "TERM", "TMPDIR",
    "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "all_proxy", "no_proxy",
    "OMP_NUM_THREADS", "OMP_PROC_BIND", "OMP_PLACES", "OMP_WAIT_POLICY", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS",
    "GOMP_SPINCOUNT",
    "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "CUDA_MODULE_LOADING", "CUDA_LAUNCH_BLOCKING",
    "CUBLAS_WORKSPACE_CONFIG", "NVIDIA_VISIBLE_DEVICES", "NVIDIA_TF32_OVERRIDE", "HIP_VISIBLE_DEVICES",
    "ROCR_VISIBLE_DEVICES", "HSA_OVERRIDE_GFX_VERSION", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF",
    "PYTORCH_ENABLE_MPS_FALLBACK", "MPLBACKEND",
)  # fmt: skip
# Where the agency's MLflow is another machine: whom it speaks to, and as whom.
TRACKING: Final = (
    "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_SERVER_CERT_PATH",
    "MLFLOW_S3_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_DEFAULT_REGION",
)  # fmt: skip


def python_command(module: str, *arguments: str) -> list[str]:
    """The argument vector of `module` in this Python, isolated: neither the current folder, nor a variable, nor the
    user's own packages are on its path.
    """
    return [sys.executable, "-I", "-u", "-m", module, *arguments]


def quiet_environment(home: Path | None = None, also: Iterable[str] = ()) -> dict[str, str]:
    """The environment of a child: what `PASSED` and `also` name of this one, every report and update check off.

    With `home`, the child is one of ours: Flower's own files go to `home/state/flwr` rather than to the user's home
    directory, and its heap is kept (`HEAP`).
    """
    environment = {name: os.environ[name] for name in (*PASSED, *also) if name in os.environ}
    return {**_threads(), **environment, **QUIET, **_own(home)}


def be_quiet(home: Path | None = None) -> None:
    """Have this process report nothing. Call it before flwr, mlflow, ray or transformers is imported."""
    for name in REMOVED:
        os.environ.pop(name, None)
    os.environ.update({**QUIET, **_own(home)})
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)  # else it tells of its cache amid our output


def _threads() -> dict[str, str]:
    """How OpenMP's threads wait for each other: briefly in circles, then asleep, as libgomp itself has them where they
    outnumber the processors. It counts those of one process, and here are many; who turns in circles keeps the
    processor from the very thread that is waited for.

    Where a quota leaves less than the machine: numeric libraries count processors, and would fight for the quota.
    """
    count = usable()
    quota = {"OMP_NUM_THREADS": str(count)} if count < (os.cpu_count() or 1) else {}
    return quota if "OMP_WAIT_POLICY" in os.environ else {"GOMP_SPINCOUNT": SPINS, **quota}


def _own(home: Path | None) -> dict[str, str]:
    return {} if home is None else {**HEAP, **SAFE, "FLWR_HOME": str(home / "state" / "flwr")}
