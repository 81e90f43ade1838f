"""pfl-research's packages in a folder of their own: what it asks of dp-accounting is older than what we need.

pfl 0.6.0 imports dp-accounting and calls it only for central noise, which the benchmark does not use; torch, numpy and
scipy are ours.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sovfed.federation.errors import ServiceError

if TYPE_CHECKING:
    from rich.console import Console

PACKAGES: Final = ("pfl==0.6.0", "multiprocess==0.70.19", "dill==0.4.1", "prv-accountant==0.2.0")


def pfl_packages(console: Console) -> Path:
    """The folder that has pfl for this Python, filled by pip on the first call. Raises ServiceError."""
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sovfed"
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    folder = caches / f"{'-'.join(PACKAGES).replace('==', '-')}-python{python}"
    if folder.is_dir():
        return folder
    console.print(f"pip installs {', '.join(PACKAGES)}, without what they depend on, into {folder}")
    caches.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix="pfl-", dir=caches))
    command = [
        sys.executable, "-P", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps",
        "--target", str(partial), *PACKAGES,
    ]  # fmt: skip
    try:
        completed = subprocess.run(command, capture_output=True, text=True, check=False)
        if completed.returncode:
            raise ServiceError(f"pip could not install {PACKAGES[0]}: …{completed.stderr.strip()[-500:]}")
        if not folder.is_dir():  # else another benchmark was faster
            partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder
